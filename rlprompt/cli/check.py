"""`rlprompt check`: resolves a configuration, tries its rewards and one small scoring, and estimates the cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlprompt.cli.console import number, quiet_stdout, say, say_error, say_table
from rlprompt.cli.options import AllowModules, ConfigFile, Overrides

if TYPE_CHECKING:
    from rlprompt.config import RunConfig
    from rlprompt.rewards import RewardCheck
    from rlprompt.scoring import Scorer
    from rlprompt.tasks import Task
    from rlprompt.types import Scores

MAX_CALLS = 8
"""Target calls of a check at most; the ledger of the check is limited to it."""

_EXAMPLES = 5
"""With the three content-free inputs of contextual calibration that makes eight calls."""


def check(config: ConfigFile, overrides: Overrides = None, allow_module: AllowModules = None) -> int:
    """Check CONFIG before a run: every name, each reward on made-up outputs, a small scoring, and the cost.

    At most 8 target calls are made.
    """
    from rlprompt.config import load_config
    from rlprompt.rewards import RewardSet, check_rewards
    from rlprompt.tasks import task_from_config

    resolved = load_config(config, overrides or [])
    allowed, folder = tuple(allow_module or ()), config.resolve().parent
    with quiet_stdout():
        _resolve_algorithm(resolved)
        task = task_from_config(resolved.task)
        rewards = RewardSet.from_config(resolved.reward, allow_modules=allowed, search_path=folder)
        checks = check_rewards(rewards, task)
        prompt, policy = _write_one_prompt(resolved)
        scorer, scores, seconds = _score(resolved, task, prompt, allowed, folder)
    _say_parts(config, resolved, task, policy)
    _say_rewards(checks)
    _say_scoring(prompt, scores, scorer, seconds)
    _say_cost(resolved, task, scorer)
    failed = len(scores.failures)
    if failed == scores.valid.size:
        say_error(f"all {failed} scored examples failed: {scores.failures[0][2].message}")
        return 1
    return 0


def _resolve_algorithm(config: RunConfig) -> None:
    from rlprompt.registry import resolve

    resolve("algorithms", config.algorithm.name)


def _write_one_prompt(config: RunConfig) -> tuple[str, str]:
    """Builds the policy, has it write its most probable prompt, and describes it."""
    import numpy as np
    import torch

    from rlprompt.masks import decode, static_mask
    from rlprompt.policies import build_policy
    from rlprompt.policies.sampling import write_prompts

    policy = build_policy(config.policy, prompt_length=config.env.prompt_length, seed=config.seed)
    mask = static_mask(policy.tokenizer, config.env.mask, eos=config.env.eos)
    tokens = write_prompts(
        policy,
        torch.tensor([policy.context_ids(config.policy.context)]),
        static_mask=mask,
        eos_id=policy.tokenizer.eos_token_id if config.env.eos else None,
        no_repeat=config.env.mask.no_repeat,
        length=config.env.prompt_length,
        uniforms=None,
    )
    trainable = sum(parameter.numel() for parameter in policy.head.parameters())
    words = f"{trainable:,} trainable parameters, {int(mask.sum()):,} of {len(mask):,} tokens may be written"
    return decode(policy.tokenizer, np.asarray(tokens)[0]), words


def _score(
    config: RunConfig, task: Task, prompt: str, allowed: Sequence[str], folder: Path
) -> tuple[Scorer, Scores, float]:
    from rlprompt.calibration import CONTENT_FREE
    from rlprompt.config import BudgetConfig
    from rlprompt.scoring import build_scorer

    budget = BudgetConfig.model_validate({"max_target_calls": MAX_CALLS})
    small = config.model_copy(update={"budget": budget})
    scorer = build_scorer(small, allow_modules=allowed, search_path=folder, task=task)
    started = time.perf_counter()
    count = _EXAMPLES
    if scorer.rewards.needs_original:  # every example is asked about twice
        count = MAX_CALLS // 2 - (len(CONTENT_FREE) if config.calibration == "contextual" else 0)
    scores = scorer.score([prompt], scorer.minibatch(0, count)[:count])
    scorer.stabilise(scores)
    return scorer, scores, time.perf_counter() - started


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
    for result in checks:
        values = [number(result.gold), number(result.wrong), number(result.empty)]
        rows.append([result.name, f"{result.weight:g}", *values, number(1000 * result.seconds, 3)])
    say_table(rows)


def _say_scoring(prompt: str, scores: Scores, scorer: Scorer, seconds: float) -> None:
    spent = scorer.ledger.snapshot()["used"]
    say()
    rows = [
        ["prompt", repr(prompt)],
        ["reward", f"{number(float(scores.mean_rewards[0]))} on {int(scores.valid.sum())} examples"],
        ["accuracy", number(float(scores.accuracies[0]))],
        ["failed", str(len(scores.failures))],
        ["spent by this check", f"{spent['calls']} calls, {spent['tokens']} tokens, {seconds:.2f} s"],
    ]
    say_table(rows)


def _say_cost(config: RunConfig, task: Task, scorer: Scorer) -> None:
    """Upper estimates: a prompt that comes back costs nothing again."""
    calls = _estimated_calls(config, task)
    if scorer.rewards.needs_original:
        calls["the original prompt"] = (len(task.train) + len(task.dev)) * config.env.samples
    total = sum(calls.values())
    spent = scorer.ledger.snapshot()["used"]
    tokens = spent["tokens"] / max(spent["calls"], 1)
    limit = config.budget.max_target_calls
    say()
    rows = [[f"calls for {what}", f"{value:,}"] for what, value in calls.items()]
    rows.append(["the run, at most", f"{total:,} calls, about {round(total * tokens):,} tokens"])
    rows.append(["budget", "no limit on calls" if limit is None else f"{limit:,} calls"])
    say_table(rows)
    step = config.env.num_envs * _examples_per_step(config, task)
    if limit is not None and limit < step:
        say(f"warning: the budget of {limit:,} calls ends before the first iteration, which needs {step:,}")
    elif limit is not None and limit < total:
        say(f"warning: the budget may end the run before its {config.algorithm.iterations} iterations")


def _examples_per_step(config: RunConfig, task: Task) -> int:
    return min(config.env.examples_per_step or len(task.train), len(task.train))


def _estimated_calls(config: RunConfig, task: Task) -> dict[str, int]:
    """Target calls of a run by purpose, if no prompt ever came twice."""
    iterations, selection = config.algorithm.iterations, config.selection
    prompts = iterations * config.env.num_envs
    calls = {"training": prompts * _examples_per_step(config, task)}
    on_dev = min(selection.top, prompts)
    if selection.every is not None:
        on_dev = min(prompts, on_dev + iterations // selection.every)
    calls["selection on dev"] = on_dev * len(task.dev)
    if config.calibration == "contextual":
        calls["calibration"] = prompts * 3
    elif config.calibration == "median":
        calls["calibration"] = on_dev * len(task.train)
    return calls
