"""When a run must stop: what the next iteration and the final choice on dev may cost, against what is left."""

from __future__ import annotations

from rlprompt.algorithms.preference_rounds import prompts_of_iteration
from rlprompt.calibration import CONTENT_FREE
from rlprompt.config import RunConfig
from rlprompt.errors import ConfigError
from rlprompt.rewards.spending import JudgeCalls
from rlprompt.runs.selection import most_dev_calls
from rlprompt.targets.ledger import Ledger
from rlprompt.tasks import Task

NO_CALLS = JudgeCalls()


def examples_per_iteration(config: RunConfig, task: Task) -> int:
    """Returns how many train examples each prompt of an iteration is scored on."""
    if config.env.per_input:
        return 1
    return min(config.env.examples_per_step or len(task.train), len(task.train))


def calls_per_pair(config: RunConfig) -> int:
    """Returns the most calls of one (prompt, example): its samples, and the answer to a derived prompt."""
    env = config.env
    return env.samples + (env.compose == "demonstration") if env.per_input else 1


def scorings(config: RunConfig) -> int:
    """Returns how often an episode is scored at most: at the end of every turn, or at every token.

    The latter is for difference rewards, but not in dialogues: there the differences are those of turns.

    With several agents that is once, with differences before the first and after each agent's segment.
    """
    env = config.env
    if env.kind == "multi":
        return len(env.agents) + 1 if env.step_reward == "difference" else 1
    every_token = env.step_reward == "difference" and not env.dialogue
    return env.turns * env.prompt_length + 1 if every_token else env.turns


def dev_turns(config: RunConfig) -> int:
    """Returns how often a policy is scored on each dev input at most: dialogues are played to their end."""
    return config.env.turns if config.env.dialogue else 1


def main_start(config: RunConfig) -> int:
    """Returns the first iteration of the run's own algorithm: the stages come before it."""
    return sum(stage.algorithm.iterations for stage in config.stages)


def prompts_at(config: RunConfig, iteration: int) -> int:
    """Returns the most prompts that an iteration of the run has scored; none where a stage learns from files."""
    first = 0
    for stage in config.stages:
        if iteration < first + stage.algorithm.iterations:
            return prompts_of_iteration(stage.algorithm, config.env, iteration - first)
        first += stage.algorithm.iterations
    return prompts_of_iteration(config.algorithm, config.env, iteration - first)


def judged_in_iteration(config: RunConfig, task: Task, judged: JudgeCalls, iteration: int) -> int:
    """Returns the most calls that rewards make for the prompts of one iteration."""
    prompts = prompts_at(config, iteration) * scorings(config)
    return judged.most(prompts=prompts, pairs=prompts * examples_per_iteration(config, task) * _samples(config))


def judged_on_dev(config: RunConfig, task: Task, judged: JudgeCalls, num_prompts: int = 1) -> int:
    """Returns the most calls that rewards make for so many prompts on dev, or for a policy's one for each dev input."""
    size = len(task.dev)
    if config.env.per_input:
        times = size * dev_turns(config)
        return judged.most(prompts=times, pairs=times * _samples(config))
    return judged.most(prompts=num_prompts, pairs=num_prompts * size)


def iteration_calls(config: RunConfig, task: Task, iteration: int, judged: JudgeCalls = NO_CALLS) -> int:
    """Returns the most calls of one iteration, target's and judges': every prompt new, dev scored where that is due."""
    per_prompt = examples_per_iteration(config, task) * calls_per_pair(config) * scorings(config)
    if config.calibration == "contextual":
        per_prompt += len(CONTENT_FREE)
    every = config.selection.every
    dev = 0
    if every is not None and (iteration + 1) % every == 0:
        dev = len(task.dev) * calls_per_pair(config) * dev_turns(config) + judged_on_dev(config, task, judged)
    return prompts_at(config, iteration) * per_prompt + judged_in_iteration(config, task, judged, iteration) + dev


def final_calls(config: RunConfig, task: Task, num_prompts: int, judged: JudgeCalls = NO_CALLS) -> int:
    """Returns the most calls of the final choice on dev among so many distinct prompts."""
    if config.env.per_input:
        return len(task.dev) * calls_per_pair(config) * dev_turns(config) + judged_on_dev(config, task, judged)
    on_dev = most_dev_calls(config.selection, num_prompts, len(task.dev))
    field = min(config.selection.top, num_prompts)
    calls = on_dev + judged.most(prompts=field, pairs=on_dev)
    if config.calibration == "median" and examples_per_iteration(config, task) < len(task.train):
        calls += field * len(task.train)  # fitted on the whole of train
    return calls


def check_first_iteration(config: RunConfig, task: Task, judged: JudgeCalls = NO_CALLS, spent: int = 0) -> None:
    """Refuses a budget that cannot pay for one iteration of the run's own algorithm.

    Args:
        config: of the run.
        task: its task.
        judged: the calls of its rewards.
        spent: calls that are spent already, by the check of the rewards.

    Raises:
        ConfigError: `budget.max_target_calls` is too small.
    """
    limit = config.budget.max_target_calls
    first = main_start(config)
    needed = iteration_calls(config, task, first, judged)
    if limit is not None and limit < needed + spent:
        judging = judged_in_iteration(config, task, judged, first)
        more = f", {judging} calls of judges" if judging else ""
        more += f"; {spent} were spent by the check of the rewards" if spent else ""
        raise ConfigError(
            f"budget.max_target_calls is {limit}, but one iteration takes up to {needed} calls "
            f"({config.env.num_envs} prompts on {examples_per_iteration(config, task)} examples{more}); raise it, or "
            "lower env.num_envs or env.examples_per_step"
        )


def budget_is_short(
    config: RunConfig, task: Task, ledger: Ledger, iteration: int, num_prompts: int, judged: JudgeCalls = NO_CALLS
) -> bool:
    """Returns whether the next iteration and the final choice on dev might not fit into what is left.

    Calls are counted at the most they can be. Tokens and money are taken at what a call has cost so far. Before the
    first iteration the final choice is left out: a run that has scored nothing has nothing to choose from. Not so
    where the budget is shared: others have more use for calls that would end without a choice. What fits is then set
    aside, so that no other run spends it.
    """
    needed = iteration_calls(config, task, iteration, judged)
    if num_prompts or ledger.is_shared:
        needed += final_calls(config, task, num_prompts + prompts_at(config, iteration), judged)
    return not ledger.afford(needed)


def _samples(config: RunConfig) -> int:
    """Answers of the target that rewards see for one (prompt, example)."""
    return config.env.samples if config.env.per_input else 1
