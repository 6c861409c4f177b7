"""`rlprompt check`: resolves a configuration, tries its rewards and one small scoring, and estimates the cost."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlprompt.cli.console import number, quiet_stdout, say, say_error, say_table
from rlprompt.cli.options import AllowModules, ConfigFile, Overrides

if TYPE_CHECKING:
    from rlprompt.config import RunConfig
    from rlprompt.rewards import RewardCheck, RewardSet
    from rlprompt.rewards.spending import JudgeCalls
    from rlprompt.scoring import Scorer
    from rlprompt.targets import Ledger
    from rlprompt.tasks import Task
    from rlprompt.types import Example, FloatArray, Json, Scores

MAX_CALLS = 8
"""Target calls of a check at most; the ledger of the check is limited to it."""

_EXAMPLES = 5
"""With the three content-free inputs of contextual calibration that makes eight calls."""


def check(config: ConfigFile, overrides: Overrides = None, allow_module: AllowModules = None) -> int:
    """Check CONFIG before a run: every name, each reward on made-up outputs, a small scoring, and the cost.

    At most 8 target calls are made. Rewards with a judge have it judge the made-up outputs and the small scoring.
    """
    from rlprompt.config import load_config
    from rlprompt.rewards import RewardSet, check_rewards
    from rlprompt.runs.monitor import check_monitor
    from rlprompt.targets import Ledger
    from rlprompt.tasks import task_from_config

    resolved = load_config(config, overrides or [])
    allowed, folder = tuple(allow_module or ()), config.resolve().parent
    with quiet_stdout():
        _resolve_algorithm(resolved)
        task = task_from_config(resolved.task)
        rewards = RewardSet.from_config(resolved.reward, allow_modules=allowed, search_path=folder)
        check_monitor(resolved.monitor, rewards)
        judging = Ledger()  # the judges' calls on made-up outputs
        rewards.attach(judging)
        checks = check_rewards(rewards, task)
        scorer = _small_scorer(resolved, task, rewards, allowed, folder)
        examples = _some_examples(resolved, scorer)
        prompts, policy = _write_prompts(resolved, scorer, examples)
        scores, seconds = _score(resolved, scorer, prompts, examples)
    _say_parts(config, resolved, task, policy)
    _say_rewards(checks)
    _say_scoring(scores, scorer, seconds)
    _say_cost(resolved, task, scorer, judging)
    failed = len(scores.failures)
    if failed == scores.valid.size:
        say_error(f"all {failed} scored examples failed: {scores.failures[0][2].message}")
        return 1
    return 0


def _resolve_algorithm(config: RunConfig) -> None:
    from rlprompt.registry import resolve

    resolve("algorithms", config.algorithm.name)


def _small_scorer(config: RunConfig, task: Task, rewards: RewardSet, allowed: Sequence[str], folder: Path) -> Scorer:
    """Builds the scorer with the budget of a check."""
    from rlprompt.config import BudgetConfig
    from rlprompt.scoring import build_scorer

    samples = _samples(config)
    few = {"samples": samples, "best_of": None if config.env.best_of is None else min(config.env.best_of, samples)}
    # Twice: a judge may ask again after it has found out that its target gives no probabilities.
    judged = rewards.judge_calls.most(prompts=MAX_CALLS, pairs=MAX_CALLS)
    budget = BudgetConfig.model_validate({"max_target_calls": MAX_CALLS + 2 * judged})
    small = config.model_copy(update={"budget": budget, "env": config.env.model_copy(update=few)})
    return build_scorer(small, allow_modules=allowed, search_path=folder, task=task, rewards=rewards)


def _samples(config: RunConfig) -> int:
    """Answers of the target for each prompt of a check: two show as well as many whether drawing them works."""
    return min(config.env.samples, 2)


def _some_examples(config: RunConfig, scorer: Scorer) -> tuple[Example, ...]:
    """The train examples of the check: as many as its target calls allow."""
    from rlprompt.calibration import CONTENT_FREE

    count = _EXAMPLES
    if scorer.rewards.needs_original:  # every example is asked about twice
        count = MAX_CALLS // 2 - (len(CONTENT_FREE) if config.calibration == "contextual" else 0)
    if config.env.per_input:
        demonstration = config.env.compose == "demonstration"
        asked = (_samples(config) + demonstration) * (2 if scorer.rewards.needs_original else 1)
        count = min(_EXAMPLES, max(MAX_CALLS // asked, 1))
    return scorer.minibatch(0, count)[:count]


def _write_prompts(config: RunConfig, scorer: Scorer, examples: Sequence[Example]) -> tuple[list[str], str]:
    """Builds the policy, has it write its most probable prompt (or one for each example), and describes it."""
    from rlprompt.masks import static_mask
    from rlprompt.policies import build_policy, configured_team
    from rlprompt.search.random import greedy_prompts

    if config.env.kind == "multi":
        team = configured_team(config)
        prompts, _ = greedy_prompts(team, config, scorer, examples if config.env.per_input else None)
        trainable = sum(parameter.numel() for name in team.names() for parameter in team.member(name).head.parameters())
        return prompts, f"{trainable:,} trainable parameters in {len(list(team.names()))} policies of a team"
    policy = build_policy(config.policy, prompt_length=config.env.prompt_length, seed=config.seed)
    mask = static_mask(policy.tokenizer, config.env.mask, eos=config.env.ends_with_eos)
    prompts, _ = greedy_prompts(policy, config, scorer, examples if config.env.per_input else None)
    trainable = sum(parameter.numel() for parameter in policy.head.parameters())
    words = f"{trainable:,} trainable parameters, {int(mask.sum()):,} of {len(mask):,} tokens may be written"
    return prompts, words


def _score(
    config: RunConfig, scorer: Scorer, prompts: Sequence[str], examples: Sequence[Example]
) -> tuple[Scores, float]:
    started = time.perf_counter()
    if config.env.per_input:
        scores = scorer.score_pairs(prompts, examples, samples=_samples(config))
    else:
        scores = scorer.score(prompts, examples)
    scorer.stabilise(scores)
    return scores, time.perf_counter() - started


def _say_parts(path: Path, config: RunConfig, task: Task, policy: str) -> None:
    answers = f"choices {', '.join(map(repr, task.choices))}" if task.choices else f"metric {task.metric}"
    sizes = f"{len(task.train)} train, {len(task.dev)} dev, {len(task.test)} test rows"
    rows = [
        ["configuration", f"{path} is complete"],
        ["task", f"{task.name}: {sizes}, {answers}"],
        ["target", f"{config.target.name}, dtype {config.target.dtype}, device {config.target.device}"],
        ["policy", f"{config.policy.kind} on {config.policy.model}: {policy}"],
        ["algorithm", f"{config.algorithm.name}, {config.algorithm.iterations} iterations"],
    ]
    rows += [["warning", warning] for warning in task.warnings]
    say_table(rows)


def _say_rewards(checks: Sequence[RewardCheck]) -> None:
    say()
    rows = [["reward", "weight", "gold", "wrong", "empty", "milliseconds a sample"]]
    silent = []
    for result in checks:
        values = [number(result.gold), number(result.wrong), number(result.empty)]
        rows.append([result.name, f"{result.weight:g}", *values, number(1000 * result.seconds, 3)])
        if result.abstentions:
            kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(result.abstentions.items()))
            silent.append(f"without a verdict of '{result.name}' on {result.num_outputs} outputs: {kinds}")
    say_table(rows)
    for line in silent:
        say(line)


def _say_scoring(scores: Scores, scorer: Scorer, seconds: float) -> None:
    spent = scorer.ledger.snapshot()["used"]
    say()
    examples = scores.valid.sum() if scores.row_example_ids is None else scores.prompt_valid.sum()
    rows = [
        ["prompt", repr(scores.prompts[0])],
        ["reward", f"{number(_mean(scores.mean_rewards))} on {int(examples)} examples"],
        ["accuracy", number(_mean(scores.accuracies))],
        ["failed", str(len(scores.failures))],
        ["spent by this check", f"{spent['calls']} calls, {spent['tokens']} tokens, {seconds:.2f} s"],
    ]
    say_table(rows)


def _mean(values: FloatArray) -> float:
    """The mean of the numbers that are known."""
    known = [value for value in values.tolist() if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _say_cost(config: RunConfig, task: Task, scorer: Scorer, judging: Ledger) -> None:
    """Upper estimates: a prompt that comes back costs nothing again."""
    from rlprompt.runs.limits import judged_in_iteration, main_start, prompts_at

    calls = _estimated_calls(config, task)
    if scorer.rewards.needs_original:
        calls["the original prompt"] = (len(task.train) + len(task.dev)) * config.env.samples
    roles = scorer.ledger.snapshot()["by_role"]
    tokens = sum(calls.values()) * _per_call(roles.get("target", {}), "tokens")
    limit = config.budget.max_target_calls
    say()
    rows = [[f"calls for {what}", f"{value:,}"] for what, value in calls.items()]
    judged = _estimated_judging(config, task, scorer.rewards.judge_calls)
    if judged:
        spent = roles.get("judge") or judging.snapshot()["by_role"].get("judge", {})
        made_up = judging.snapshot()["used"]["calls"]
        more = judged * _per_call(spent, "tokens")
        rows.append(["calls of judges", f"{judged + made_up:,}, about {round(more):,} tokens{_price(spent, judged)}"])
        rows.append(["of which in the check", f"{made_up:,} on made-up outputs, as at the start of the run"])
        tokens += more
        calls["judging"] = judged + made_up
    total = sum(calls.values())
    rows.append(["the run, at most", f"{total:,} calls, about {round(tokens):,} tokens"])
    rows.append(["budget", "no limit on calls" if limit is None else f"{limit:,} calls"])
    say_table(rows)
    first = main_start(config)
    step = prompts_at(config, first) * _calls_per_prompt(config, task)
    step += judged_in_iteration(config, task, scorer.rewards.judge_calls, first)
    if limit is not None and limit < step:
        say(f"warning: the budget of {limit:,} calls ends before the first iteration, which needs {step:,}")
    elif limit is not None and limit < total:
        say(f"warning: the budget may end the run before its {config.algorithm.iterations} iterations")


def _per_call(spent: Json, what: str) -> float:
    """The mean of what the calls of one role took; 0 without any."""
    return float(spent[what]) / spent["calls"] if spent.get("calls") else 0.0


def _price(spent: Json, calls: int) -> str:
    """What so many calls of a judge cost; nothing where they cost nothing or the price is unknown."""
    if not spent.get("calls") or spent["unpriced_calls"]:
        return ", price unknown" if spent.get("unpriced_calls") else ""
    paid = spent["paid_calls"]
    return f", {calls * spent['cost_usd'] / paid:.4f} US dollars" if paid and spent["cost_usd"] else ""


def _estimated_judging(config: RunConfig, task: Task, judged: JudgeCalls) -> int:
    """The most calls of judges in a run, its check left out."""
    from rlprompt.runs.limits import judged_in_iteration, judged_on_dev

    iterations, measured, on_dev = _scorings(config)
    calls = sum(judged_in_iteration(config, task, judged, iteration) for iteration in range(iterations))
    if config.env.per_input:
        return calls + (1 + measured) * judged_on_dev(config, task, judged)
    return calls + judged_on_dev(config, task, judged, on_dev)


def _scorings(config: RunConfig) -> tuple[int, int, int]:
    """Iterations, measurements on dev during training, and the most prompts on dev."""
    from rlprompt.runs.limits import main_start, prompts_at

    iterations, selection = main_start(config) + config.algorithm.iterations, config.selection
    prompts = sum(prompts_at(config, iteration) for iteration in range(iterations))
    measured = 0 if selection.every is None else iterations // selection.every
    return iterations, measured, min(prompts, min(selection.top, prompts) + measured)


def _calls_per_prompt(config: RunConfig, task: Task) -> int:
    from rlprompt.runs.limits import calls_per_pair, examples_per_iteration, scorings

    return examples_per_iteration(config, task) * calls_per_pair(config) * scorings(config)


def _estimated_calls(config: RunConfig, task: Task) -> dict[str, int]:
    """Target calls of a run by purpose, if no prompt ever came twice; what learns from files asks nothing."""
    from rlprompt.runs.limits import calls_per_pair, prompts_at

    iterations, measured, on_dev = _scorings(config)
    prompts = sum(prompts_at(config, iteration) for iteration in range(iterations))
    calls = {"training": prompts * _calls_per_prompt(config, task)}
    if config.env.per_input:
        calls["selection on dev"] = (1 + measured) * len(task.dev) * calls_per_pair(config)
        return calls
    calls["selection on dev"] = on_dev * len(task.dev)
    if config.calibration == "contextual":
        calls["calibration"] = prompts * 3
    elif config.calibration == "median":
        calls["calibration"] = on_dev * len(task.train)
    return calls
