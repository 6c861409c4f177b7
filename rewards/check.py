"""Tries every reward before a run, on gold, wrong and empty outputs made from a few examples; no target calls.

Rewards that call a judge do so here too, in the phase "check" of the account that they were attached to.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rlprompt.errors import RewardError
from rlprompt.rewards.component import Component, Pairs, Scored
from rlprompt.rewards.runner import Runner
from rlprompt.rewards.spending import JudgeCalls
from rlprompt.types import Example, FloatArray, TargetOutput

if TYPE_CHECKING:
    from rlprompt.rewards.reward_set import RewardSet
    from rlprompt.tasks import Task

KINDS = ("gold", "wrong", "empty")
CHECK_PHASE = "check"

_CONFIDENT = 0.9
"""Probability that a made-up answer gives to its choice."""
_LOGPROBS = {"gold": -1.0, "wrong": -10.0, "empty": -20.0}
"""Made-up log-likelihoods of the reference, in nats."""


@dataclass(frozen=True)
class RewardCheck:
    """How one reward did; its values are means over the examples tried."""

    name: str
    weight: float
    num_examples: int
    gold: float | None
    """Mean value on right outputs; None where it abstained on all."""
    wrong: float | None
    empty: float | None
    """Mean value on outputs that say nothing: no text, or equal probabilities."""
    seconds: float
    """Time of one sample, from one call with all of them."""
    num_outputs: int = 0
    """Made-up outputs that it was asked about."""
    abstentions: Mapping[str, int] = field(default_factory=dict)
    """How often it abstained, by kind; of rewards that count that."""


def check_rewards(
    rewards: RewardSet, task: Task, *, num_examples: int = 4, prompt: str = "It was", spending: bool = True
) -> list[RewardCheck]:
    """Runs each reward on made-up outputs and looks at what it returns.

    A reward with a state has the same state afterwards. A right output may score as high as a wrong one, but not
    below it; a reward with a negative weight is looked at the other way round.

    Args:
        rewards: the rewards of the run.
        task: its training examples are used, the first ones of each class in turn.
        num_examples: how many.
        prompt: the prompt that the policy is supposed to have written.
        spending: whether rewards that make calls of their own are tried as well.

    Returns:
        One entry per component that was tried.

    Raises:
        RewardError: a reward raises, takes too long, returns something of the wrong length, type or a number that
            is not finite, scores a right output below a wrong one, or abstains on more than its
            `max_abstained_fraction`. The message names the reward, the sample and what to do.
        BudgetExceededError: the calls of a judge do not fit into the budget.
    """
    rewards.spend_in(CHECK_PHASE)
    examples = _choose(task, num_examples)
    pairs, labels = _make_pairs(task, examples, rewards, prompt)
    runner = Runner()
    try:
        tried = [component for component in rewards.components if spending or component.judge_calls == JudgeCalls()]
        return [_check(component, runner, pairs, labels, examples, task) for component in tried]
    finally:
        runner.close()


def _check(
    component: Component,
    runner: Runner,
    pairs: Pairs,
    labels: Sequence[str],
    examples: Sequence[Example],
    task: Task,
) -> RewardCheck:
    state = copy.deepcopy(component.state_dict())  # a reward may hand out the dict that it goes on to change
    started = time.perf_counter()
    scored = component.score(runner, pairs)
    seconds = (time.perf_counter() - started) / len(labels)
    _refuse_faults(component, runner, pairs, labels, scored, task)
    kinds = component.abstentions()
    _refuse_silence(component, scored, kinds)
    by_kind: dict[str, FloatArray] = dict(zip(KINDS, scored.values.reshape(len(KINDS), -1), strict=True))
    _refuse_wrong_order(component, by_kind, examples)
    component.load_state_dict(state)
    means = {kind: _mean(values) for kind, values in by_kind.items()}
    return RewardCheck(
        component.name,
        component.weight,
        len(examples),
        means["gold"],
        means["wrong"],
        means["empty"],
        seconds,
        len(labels),
        kinds,
    )


def _refuse_faults(
    component: Component, runner: Runner, pairs: Pairs, labels: Sequence[str], scored: Scored, task: Task
) -> None:
    if scored.reported and len(scored.reported) == len(labels):
        failure = scored.failures[min(scored.reported)]
        raise RewardError(f"{failure.message}; so did all {len(labels)} calls of the check; mend what it asks")
    # Some calls of a judge may fail, then and now: a run excludes those samples and counts them.
    faults = {index: failure for index, failure in scored.failures.items() if index not in scored.reported}
    if not faults:
        return
    index, failure = min(faults.items())
    remedy = {
        "exception": "mend it, or return None for samples that it cannot score",
        "timeout": "make it faster, or raise timeout_seconds in its kwargs",
        "malformed": "return one number, or None, per sample",
        "nan": "return a finite number, or None to abstain",
    }[failure.kind]
    if scored.whole is None:
        where = f" on {labels[index]}"
        if failure.kind == "malformed" and " needs " in failure.message:
            where, remedy = "", f"task '{task.name}' is asked for {'choices' if task.choices else 'text'}"
    elif failure.kind == "exception":
        where = _first_that_raises(component, runner, pairs, labels)
        columns = ", ".join(pairs.columns)
        if isinstance(scored.error, TypeError | KeyError):
            remedy += f"; the columns of task '{task.name}' are: {columns}"
    else:
        where = f" (a call with {len(labels)} samples, the first is {labels[0]})"
    raise RewardError(f"{failure.message}{where}; {remedy}") from scored.error


def _refuse_silence(component: Component, scored: Scored, kinds: Mapping[str, int]) -> None:
    bound = component.max_abstained_fraction
    silent = int(np.isnan(scored.values).sum()) - len(scored.failures)
    count = len(scored.values) - len(scored.failures)
    if bound is None or silent <= bound * count:
        return
    told = f" ({', '.join(f'{kind} {number}' for kind, number in sorted(kinds.items()))})" if kinds else ""
    raise RewardError(
        f"reward '{component.name}' abstained on {silent} of {count} made-up outputs{told}, more than "
        f"max_abstained_fraction = {bound:g}; have its judge answer in the form that it is asked for (a larger model, "
        "ask: probabilities, another rubric), or raise the bound"
    )


def _first_that_raises(component: Component, runner: Runner, pairs: Pairs, labels: Sequence[str]) -> str:
    for index, label in enumerate(labels):
        alone = Pairs(
            [pairs.prompts[index]],
            [pairs.completions[index]],
            [pairs.outputs[index]],
            [pairs.references[index]],
            {key: [values[index]] for key, values in pairs.columns.items()},
        )
        if component.score(runner, alone).whole is not None:
            return f" on {label}"
    return f" when it scores {len(labels)} samples at once"


def _refuse_wrong_order(component: Component, values: dict[str, FloatArray], examples: Sequence[Example]) -> None:
    if component.gold_not_ordered or component.weight == 0:
        return
    sign = math.copysign(1.0, component.weight)
    for index, example in enumerate(examples):
        gold, wrong = values["gold"][index], values["wrong"][index]
        if example.reference is not None and sign * gold < sign * wrong:  # an abstention (NaN) compares False
            relation = "below" if sign > 0 else "above"
            advice = "turn its sign round" if sign > 0 else "make its weight positive"
            raise RewardError(
                f"reward '{component.name}' scores the gold output of example '{example.id}' {gold:g}, {relation} "
                f"the wrong one's {wrong:g}, with weight {component.weight:g}; {advice}, or set "
                "gold_not_ordered = True on it if it does not judge whether answers are right"
            )


def _choose(task: Task, count: int) -> list[Example]:
    """The first training examples of each class in turn; without choices simply the first."""
    groups: dict[Any, list[Example]] = {}
    for example in task.train:
        groups.setdefault(example.reference if task.choices else None, []).append(example)
    turns = max(len(group) for group in groups.values())
    ordered = [group[turn] for turn in range(turns) for group in groups.values() if turn < len(group)]
    return ordered[:count]


def _make_pairs(
    task: Task, examples: Sequence[Example], rewards: RewardSet, prompt: str
) -> tuple[Pairs, tuple[str, ...]]:
    """All gold outputs, then all wrong, then all empty ones; with a description of each sample."""
    count = len(KINDS) * len(examples)
    needs = rewards.needs
    columns = {key: list(values) * len(KINDS) for key, values in task.columns(examples).items()}
    if rewards.needs_original:  # made-up answers to the original prompt, which say nothing
        columns["original_prompts"] = [""] * count
        columns["originals"] = [_output("empty", example, task, needs) for _ in KINDS for example in examples]
    pairs = Pairs(
        prompts=[""] * count,
        completions=[prompt] * count,
        outputs=[_output(kind, example, task, needs) for kind in KINDS for example in examples],
        references=[example.reference for example in examples] * len(KINDS),
        columns=columns,
    )
    return pairs, tuple(f"the {kind} output of example '{example.id}'" for kind in KINDS for example in examples)


def _output(kind: str, example: Example, task: Task, needs: str) -> TargetOutput:
    if task.choices is not None:
        return _choice_output(kind, example, len(task.choices))
    if needs == "logprob":
        tokens = max(1, len(str(example.reference).split()))
        return TargetOutput(logprob=_LOGPROBS[kind] * tokens, completion_tokens=tokens)
    return TargetOutput(text=_text(kind, example, task.train))


def _choice_output(kind: str, example: Example, count: int) -> TargetOutput:
    probabilities = [1.0 / count] * count
    if kind != "empty" and example.reference is not None and count > 1:
        chosen = (int(example.reference) + (kind == "wrong")) % count
        probabilities = [(1 - _CONFIDENT) / (count - 1)] * count
        probabilities[chosen] = _CONFIDENT
    return TargetOutput(choice_logprobs=tuple(math.log(value) for value in probabilities))


def _text(kind: str, example: Example, train: Sequence[Example]) -> str:
    gold = "" if example.reference is None else str(example.reference)
    if kind == "gold":
        return gold
    if kind == "empty":
        return ""
    others = (str(other.reference) for other in train if other.reference is not None)
    return next((other for other in others if other != gold), f"not {gold}")


def _mean(values: FloatArray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None
