"""The scorer: template + target + rewards + ledger, prompts x examples -> scored prompts.

One batched call for everything that finishes in one env step. Each (prompt, example) is asked once a run: answers
are remembered, and only new ones reach the ledger and the target. Knows nothing of policies or learning.
"""

from __future__ import annotations

import itertools
import json
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from rlprompt.calibration import CONTENT_FREE, apply_calibration, fit_calibration
from rlprompt.config import RunConfig, parse_config
from rlprompt.errors import ConfigError
from rlprompt.rewards import RewardSet, build_stabilisers
from rlprompt.rewards.generation import ExactMatch
from rlprompt.seeding import generator
from rlprompt.targets import target_from_config, target_prices
from rlprompt.targets.ledger import Ledger
from rlprompt.tasks import Task, task_from_config
from rlprompt.types import (
    Example,
    Failure,
    FloatArray,
    Json,
    Scores,
    Stabiliser,
    Target,
    TargetOutput,
    TargetRequest,
)

AnswerRecord: TypeAlias = tuple[str, str, int, TargetOutput]
"""(prompt, example id, sample, output)."""
_Pair: TypeAlias = tuple[str, str, int]

_SHARED: weakref.WeakValueDictionary[str, Scorer] = weakref.WeakValueDictionary()
_INSTANCES = itertools.count()


class Scorer:
    """Scores prompts on examples.

    Args:
        task: the examples, the template and the choices or metric.
        target: the frozen LLM.
        rewards: the reward components and their weights.
        stabilisers: applied in order by `stabilise`.
        ledger: meters every call; a fresh unlimited one by default.
        calibration: "none", "median" or "contextual"; applied to choice probabilities before the rewards.
        seed: seed of the minibatches.
    """

    def __init__(
        self,
        task: Task,
        target: Target,
        rewards: RewardSet,
        stabilisers: Sequence[Stabiliser] = (),
        *,
        ledger: Ledger | None = None,
        calibration: str = "none",
        seed: int = 0,
    ) -> None:
        fit_calibration(calibration, np.zeros((1, 1)))
        if calibration != "none" and task.choices is None:
            raise ConfigError(f"calibration '{calibration}' needs a task with choices; '{task.name}' has none")
        self.task = task
        self.target = target
        self.rewards = rewards
        self.stabilisers = list(stabilisers)
        self.ledger = ledger if ledger is not None else Ledger()
        self.calibration = calibration
        self.seed = seed
        self.spec: Json = {}
        self.target_seconds = 0.0
        self.on_answers: Callable[[Sequence[AnswerRecord]], None] | None = None
        """Told of what the target has just answered, failures left out, before anything is made of it."""
        self._ask = _request_kind(task, rewards)
        self._answers: dict[_Pair, TargetOutput] = {}
        self._uncharged: dict[_Pair, TargetOutput] = {}
        self._offsets: dict[str, FloatArray] = {}

    def score(
        self,
        prompts: Sequence[str],
        examples: Sequence[Example],
        *,
        phase: str = "train",
        contexts: Sequence[str] | None = None,
    ) -> Scores:
        """Scores P prompts on E examples with at most one batched target call (two with calibration on dev or test).

        Args:
            prompts: what the policy wrote.
            examples: what the target is asked about.
            phase: where the spending is booked: "train", "dev", "calibration" or "test".
            contexts: what the policy read, per prompt; empty texts by default.

        Raises:
            BudgetExceededError: the new pairs do not fit into the budget; nothing was spent.
        """
        outputs = self.answer(prompts, examples, phase=phase)
        if self.calibration != "none":
            outputs = self._calibrate(prompts, examples, outputs)
        flat = [output for row in outputs for output in row]
        repeated = {name: list(values) * len(prompts) for name, values in self.task.columns(examples).items()}
        references = [example.reference for example in examples] * len(prompts)
        read = list(contexts) if contexts is not None else [""] * len(prompts)
        result = self.rewards(
            prompts=[text for text in read for _ in examples],
            completions=[prompt for prompt in prompts for _ in examples],
            outputs=flat,
            references=references,
            columns=repeated,
        )
        shape = (len(prompts), len(examples))
        total = result.rewards.reshape(shape)
        valid = np.isfinite(total)
        failures = {index: output.failure for index, output in enumerate(flat) if output.failure is not None}
        failures = {**result.failures, **failures}
        return Scores(
            prompts=tuple(prompts),
            example_ids=tuple(example.id for example in examples),
            components={name: values.reshape(shape) for name, values in result.components.items()},
            rewards=np.where(valid, total, 0.0),
            correct=self._correct(flat, references).reshape(shape),
            valid=valid,
            outputs=tuple(tuple(row) for row in outputs),
            failures=tuple((*divmod(index, len(examples)), failure) for index, failure in sorted(failures.items())),
        )

    def answer(
        self, prompts: Sequence[str], examples: Sequence[Example], *, phase: str = "train"
    ) -> list[list[TargetOutput]]:
        """Asks the target what it was not asked before in this run; returns the answers as P lists of E."""
        missing: dict[_Pair, TargetRequest] = {}
        for prompt, example in itertools.product(prompts, examples):
            key = (prompt, example.id, 0)
            if key not in self._answers and key not in missing:
                missing[key] = self._request(prompt, example)
        failed = self._ask_new(missing, phase) if missing else {}
        return [
            [failed[key] if (key := (prompt, example.id, 0)) in failed else self._answers[key] for example in examples]
            for prompt in prompts
        ]

    def _ask_new(self, missing: Mapping[_Pair, TargetRequest], phase: str) -> dict[_Pair, TargetOutput]:
        """Charges all pairs, asks those that nobody answered yet, and remembers the answers; returns the failures."""
        tokens = self.target.count_tokens(list(missing.values()))
        with self.ledger.reserve(len(missing), tokens, phase=phase) as reservation:
            unknown = {key: request for key, request in missing.items() if key not in self._uncharged}
            started = time.perf_counter()
            answers = self.target.run(list(unknown.values())) if unknown else []
            self.target_seconds += time.perf_counter() - started
            outputs = {**self._uncharged, **dict(zip(unknown, answers, strict=True))}
            reservation.settle([outputs[key] for key in missing])
        new = [(*key, outputs[key]) for key in unknown if outputs[key].failure is None]
        if new and self.on_answers is not None:
            self.on_answers(new)
        failed: dict[_Pair, TargetOutput] = {}
        for key in missing:
            self._uncharged.pop(key, None)
            (self._answers if outputs[key].failure is None else failed)[key] = outputs[key]
        return failed

    def new_pairs(self, prompts: Sequence[str], examples: Sequence[Example]) -> int:
        """Returns how many (prompt, example) pairs `score` would charge to the ledger."""
        asked = {(prompt, example.id, 0) for prompt, example in itertools.product(prompts, examples)}
        return sum(key not in self._answers for key in asked)

    def remember(self, records: Iterable[AnswerRecord], *, charged: bool = True) -> None:
        """Fills in answers of an earlier part of the run; failures are left out.

        Args:
            records: the answers.
            charged: whether the ledger's state has them. Those that it has not are charged, as if the target had
                been asked, by the first scoring that needs them.
        """
        known = self._answers if charged else self._uncharged
        for prompt, example_id, sample, output in records:
            if output.failure is None:
                known[(prompt, example_id, sample)] = output

    def stabilise(self, scores: Scores) -> FloatArray:
        """Maps the raw rewards of one step to training rewards, (P,); 0.0 for prompts without a valid pair."""
        rewards = scores.rewards
        for stabiliser in self.stabilisers:
            rewards = stabiliser(rewards, scores.valid)
        count = scores.valid.sum(axis=1)
        total = np.where(scores.valid, rewards, 0.0).sum(axis=1)
        return np.where(count > 0, total / np.maximum(count, 1), 0.0)

    def minibatch(self, iteration: int, size: int | None) -> tuple[Example, ...]:
        """Returns the train examples of one iteration, stratified by class; all of them for size None.

        The draw is keyed by (seed, iteration), so it does not depend on workers or restarts.
        """
        train = self.task.train
        if size is None or size >= len(train):
            return train
        rng = generator(self.seed, "minibatch", iteration)
        by_class: dict[Any, list[Example]] = {}
        for index in rng.permutation(len(train)):
            example = train[int(index)]
            by_class.setdefault(example.reference if self.task.choices else None, []).append(example)
        order = [by_class[key] for key in sorted(by_class, key=str)]
        chosen = [group[turn] for turn in range(len(train)) for group in order if turn < len(group)]
        return tuple(chosen[:size])

    def state_dict(self) -> Json:
        """Returns the state of ledger, rewards and stabilisers; the answers themselves are in the run's records."""
        return {
            "ledger": self.ledger.state_dict(),
            "rewards": self.rewards.state_dict(),
            "stabilisers": [stabiliser.state_dict() for stabiliser in self.stabilisers],
            "offsets": {prompt: offsets.tolist() for prompt, offsets in self._offsets.items()},
        }

    def load_state_dict(self, state: Json) -> None:
        """Restores what `state_dict` returned."""
        self.ledger.load_state_dict(state["ledger"])
        self.rewards.load_state_dict(state["rewards"])
        for stabiliser, saved in zip(self.stabilisers, state["stabilisers"], strict=True):
            stabiliser.load_state_dict(saved)
        self._offsets = {prompt: np.array(offsets) for prompt, offsets in state["offsets"].items()}

    def _request(self, prompt: str, example: Example) -> TargetRequest:
        rendered = self.task.template.render(prompt, example)
        if self._ask == "choices":
            return TargetRequest(rendered, choices=self.task.choices)
        if self._ask == "logprob":
            return TargetRequest(rendered, continuation=str(example.reference))
        return TargetRequest(rendered, max_tokens=self.task.max_tokens, stop=self.task.stop)

    def _calibrate(
        self, prompts: Sequence[str], examples: Sequence[Example], outputs: list[list[TargetOutput]]
    ) -> list[list[TargetOutput]]:
        """Subtracts each prompt's own offsets, fitted on its train answers (or on content-free inputs)."""
        fit_on = CONTENT_FREE if self.calibration == "contextual" else self.task.train
        unknown = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._offsets]
        if unknown:
            in_step = {example.id for example in examples} <= {example.id for example in self.task.train}
            basis = examples if in_step and self.calibration == "median" else fit_on
            for prompt, row in zip(unknown, self.answer(unknown, basis, phase="calibration"), strict=True):
                known = [output.choice_logprobs for output in row if output.choice_logprobs is not None]
                offsets = fit_calibration(self.calibration, np.array(known).reshape(len(known), -1))
                if len(basis) == len(fit_on):  # offsets of a minibatch hold for that step only
                    self._offsets[prompt] = offsets
                outputs = _shift(outputs, prompts, prompt, offsets)
        for prompt in dict.fromkeys(prompts):
            if prompt in self._offsets and prompt not in unknown:
                outputs = _shift(outputs, prompts, prompt, self._offsets[prompt])
        return outputs

    def _correct(self, outputs: list[TargetOutput], references: list[Any]) -> FloatArray:
        if self.task.choices is not None:
            return np.array(
                [
                    _choice_correct(output, reference, self.task.choices)
                    for output, reference in zip(outputs, references, strict=True)
                ]
            )
        if self._ask == "logprob":
            return np.full(len(outputs), np.nan)
        blank = [""] * len(outputs)
        matches = ExactMatch()(prompts=blank, completions=blank, outputs=outputs, references=references)
        return np.array([np.nan if match is None else match for match in matches], dtype=np.float64)


def _shift(
    outputs: list[list[TargetOutput]], prompts: Sequence[str], prompt: str, offsets: FloatArray
) -> list[list[TargetOutput]]:
    def shifted(output: TargetOutput) -> TargetOutput:
        if output.choice_logprobs is None:
            return output
        calibrated = apply_calibration(np.array(output.choice_logprobs), offsets)
        return replace(output, choice_logprobs=tuple(calibrated.tolist()))

    return [
        [shifted(output) for output in row] if prompts[index] == prompt else row for index, row in enumerate(outputs)
    ]


def _choice_correct(output: TargetOutput, reference: Any, choices: tuple[str, ...]) -> float:
    """1.0 when the reference is strictly the most probable choice: a tie is not right (RLPrompt's 1[Gap > 0])."""
    if output.failure is not None or reference is None:
        return np.nan
    label = int(reference)
    if output.choice_logprobs is None:
        return np.nan if output.text is None else float(output.text.strip() == choices[label].strip())
    others = [value for index, value in enumerate(output.choice_logprobs) if index != label]
    return float(output.choice_logprobs[label] > max(others))


def _request_kind(task: Task, rewards: RewardSet) -> str:
    if task.choices is not None:
        if rewards.needs == "logprob":
            return "choices"
        if rewards.needs == "text":
            raise ConfigError(f"a reward reads the target's text, but task '{task.name}' asks for choices")
        return "choices"
    if rewards.needs == "choices":
        raise ConfigError(f"a reward needs choices, but task '{task.name}' has none; give the card `choices:`")
    return "logprob" if rewards.needs == "logprob" else "text"


def scorer_spec(config: RunConfig) -> Json:
    """Returns the part of a configuration that a scorer is built from, as JSON values."""
    sections = ("seed", "task", "target", "reward", "stabilisers", "calibration", "budget", "env")
    dumped = config.model_dump(mode="json")
    return {"config": {section: dumped[section] for section in sections}}


def build_scorer(
    config: RunConfig,
    *,
    allow_modules: Sequence[str] = (),
    search_path: str | Path | None = None,
    task: Task | None = None,
    target: Target | None = None,
) -> Scorer:
    """Builds the scorer of a run and makes it reachable by its `spec`, so that envs in this process share it.

    The spec's `code` tells the algorithm where the run's own modules may come from.

    Args:
        config: the run's configuration.
        allow_modules: modules that a reward of the form my_module:my_name may come from.
        search_path: the folder of the user's configuration.
        task: used instead of the configured one (already loaded).
        target: used instead of the configured one (already loaded).
    """
    target = target if target is not None else target_from_config(config.target)
    scorer = Scorer(
        task if task is not None else task_from_config(config.task),
        target,
        RewardSet.from_config(config.reward, allow_modules=allow_modules, search_path=search_path),
        build_stabilisers(config.stabilisers, allow_modules=allow_modules, search_path=search_path),
        ledger=Ledger(config.budget, prices=target_prices(target)),
        calibration=config.calibration,
        seed=config.seed,
    )
    scorer.spec = {
        **scorer_spec(config),
        "instance": next(_INSTANCES),
        "code": {
            "allow_modules": list(allow_modules),
            "search_path": None if search_path is None else str(Path(search_path).resolve()),
        },
    }
    _SHARED[_key(scorer.spec)] = scorer
    return scorer


def shared_scorer(spec: Mapping[str, Any]) -> Scorer:
    """Returns this process's live scorer for a spec; builds it from the spec's configuration where there is none.

    Built here are built-in or installed parts only: a spec may come from anywhere, so its `code` allows nothing.
    """
    scorer = _SHARED.get(_key(spec))
    if scorer is None:
        scorer = build_scorer(parse_config(dict(spec["config"])))
        scorer.spec = dict(spec)
        _SHARED[_key(spec)] = scorer
    return scorer


def failure_share(scores: Scores) -> tuple[int, int]:
    """Returns (failed pairs, all pairs) of one scoring; abstentions are no failures."""
    return len(scores.failures), int(scores.valid.size)


def first_failure(scores: Scores, prompt: int) -> Failure | None:
    """Returns the first failure of a prompt, if it has one."""
    return next((failure for index, _, failure in scores.failures if index == prompt), None)


def _key(spec: Mapping[str, Any]) -> str:
    return json.dumps(spec, sort_keys=True)
