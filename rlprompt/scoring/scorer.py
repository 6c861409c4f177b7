"""`Scorer`: prompts x examples, or pairs of them, -> scored prompts.

One batched call for everything that finishes in one env step. Each (prompt, example, sample) is asked once a run:
answers are remembered, and only new ones reach the ledger and the target. Knows nothing of policies or learning.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from rlprompt.calibration import CONTENT_FREE, fit_calibration
from rlprompt.errors import ConfigError
from rlprompt.pairs import (
    DEFAULT_TEMPERATURE,
    DEMONSTRATION,
    GREEDY,
    compose_prompt,
    group_places,
    in_groups,
    sample_indices,
    sample_seed,
)
from rlprompt.payloads import can_be_kept
from rlprompt.rewards import RewardSet
from rlprompt.rewards.aggregate import best_of as expected_best
from rlprompt.rewards.metrics import metric_correct
from rlprompt.scoring.answers import by_group, check_composition, choice_correct, request_kind, shift
from rlprompt.scoring.originals import Originals, answer_from_json, answer_to_json, original_prompt
from rlprompt.scoring.rules import ScoringRules
from rlprompt.targets.ledger import Ledger
from rlprompt.targets.streaming import CallLog, run_logged
from rlprompt.tasks import Task
from rlprompt.types import Example, FloatArray, Json, Scores, Stabiliser, Target, TargetOutput, TargetRequest

_Key: TypeAlias = tuple[str, str, int]
"""(prompt, example id, sample)."""
AnswerRecord: TypeAlias = tuple[str, str, int, TargetOutput]
"""(prompt, example id, sample, output)."""


class Scorer(ScoringRules):
    """Scores prompts on examples.

    Args:
        task: the examples, the template and the choices or metric.
        target: the frozen LLM.
        rewards: the reward components and their weights.
        stabilisers: applied in order by `stabilise`.
        ledger: meters every call, those of rewards too; a fresh unlimited one by default.
        calibration: "none", "median" or "contextual"; applied to choice probabilities before the rewards.
        seed: seed of the minibatches and of drawn answers.
        compose: how a prompt and an example become what stands in the template's `{prompt}`; see
            `rlprompt.pairs.compose_prompt`.
        draft: what "append", "prepend" and "demonstration" extend, the example's input where it is empty; and the
            original prompt of rewards that compare with it.
        best_of: the training reward of a pair is the expected best of so many of its samples, not their mean.

    Raises:
        ConfigError: calibration or composition does not fit the task.
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
        compose: str = "replace",
        draft: str = "",
        best_of: int | None = None,
    ) -> None:
        fit_calibration(calibration, np.zeros((1, 1)))
        if calibration != "none" and task.choices is None:
            raise ConfigError(f"calibration '{calibration}' needs a task with choices; '{task.name}' has none")
        check_composition(task, compose, draft)
        super().__init__(
            task,
            asks=request_kind(task, rewards),
            compares_prompts=any(getattr(stabiliser, "compares_prompts", False) for stabiliser in stabilisers),
            calibration=calibration,
            seed=seed,
            compose=compose,
            draft=draft,
            best_of=best_of,
        )
        self.target = target
        self.rewards = rewards
        self.stabilisers = list(stabilisers)
        self.ledger = ledger if ledger is not None else Ledger()
        rewards.attach(self.ledger)
        self.spec: Json = {}
        self.target_seconds = 0.0
        self._is_right = metric_correct(task.metric)
        self.log: CallLog | None = None
        """Where calls and answers are written down before anything is made of them."""
        self._answers: dict[_Key, TargetOutput] = {}
        self._uncharged: dict[_Key, TargetOutput] = {}
        self._offsets: dict[str, FloatArray] = {}
        self._original_keys: dict[_Key, None] = {}
        self._held: tuple[Json, dict[str, float]] | None = None
        self._ahead: set[_Key] = set()

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
            BudgetExceededError: the new pairs do not fit into the budget, and nothing was spent; or the calls of a
                reward do not, when the target's answers are paid for and remembered.
        """
        originals = None
        asked = list(prompts)
        if self.rewards.needs_original:
            asked.append(self.draft if self.rewards.original is None else self.rewards.original)
        outputs = self.answer(asked, examples, phase=phase)
        if self.calibration != "none":
            outputs = self._calibrate(asked, examples, outputs)
        if self.rewards.needs_original:
            self._original_keys |= dict.fromkeys((asked[-1], example.id, GREEDY) for example in examples)
            originals = Originals([asked[-1]] * len(prompts), [outputs[-1]] * len(prompts))
        read = list(contexts) if contexts is not None else [""] * len(prompts)
        ids = [example.id for example in examples]
        rows = [examples] * len(prompts)
        return self._scores(prompts, rows, read, outputs[: len(prompts)], ids, originals, phase)

    def score_pairs(
        self,
        prompts: Sequence[str],
        examples: Sequence[Example],
        *,
        samples: int = 1,
        phase: str = "train",
        contexts: Sequence[str] | None = None,
    ) -> Scores:
        """Scores N prompts, each on its own example, with one batched target call ("demonstration" takes two).

        Args:
            prompts: what the policy wrote, (N,); an empty text is the empty prompt.
            examples: the example of each prompt, (N,).
            samples: answers of the target for each pair: one is greedy, more are drawn at the task's
                `sampling_temperature` (0.7 without one). Equal pairs share their answers.
            phase: where the spending is booked.
            contexts: what the policy read, per prompt; empty texts by default.

        Returns:
            Arrays (N, samples), `row_example_ids` set.

        Raises:
            ConfigError: lengths differ, or samples or calibration do not fit the task.
            BudgetExceededError: the new answers do not fit into the budget; nothing was spent on them.
        """
        if len(prompts) != len(examples):
            raise ConfigError(f"score_pairs takes one example per prompt, got {len(prompts)} and {len(examples)}")
        self.check_pairs(samples)
        pairs = list(zip(prompts, examples, strict=True))
        before = [(self._original(example), example) for example in examples] if self.rewards.needs_original else []
        outputs = self._answer([*pairs, *before], samples, phase)
        self._original_keys |= dict.fromkeys(
            (prompt, example.id, sample) for prompt, example in before for sample in sample_indices(samples)
        )
        originals = Originals([prompt for prompt, _ in before], outputs[len(pairs) :]) if before else None
        read = list(contexts) if contexts is not None else [""] * len(prompts)
        rows = [[example] * samples for example in examples]
        scores = self._scores(prompts, rows, read, outputs[: len(pairs)], [""] * samples, originals, phase)
        return replace(scores, row_example_ids=tuple(example.id for example in examples))

    def answer(
        self, prompts: Sequence[str], examples: Sequence[Example], *, phase: str = "train"
    ) -> list[list[TargetOutput]]:
        """Asks the target what it was not asked before in this run; returns the answers as P lists of E."""
        flat = self._answer(list(itertools.product(prompts, examples)), 1, phase)
        width = len(examples)
        return [[row[0] for row in flat[start * width : (start + 1) * width]] for start in range(len(prompts))]

    def known_answer(self, prompt: str, example_id: str, sample: int = GREEDY) -> TargetOutput | None:
        """Returns an answer of this run, or None; sample -1 is the answer to a derived prompt."""
        key = (prompt, example_id, sample)
        return None if key in self._ahead else self._answers.get(key)

    def new_pairs(self, prompts: Sequence[str], examples: Sequence[Example]) -> int:
        """Returns how many (prompt, example) pairs `score` would charge to the ledger."""
        asked = {(prompt, example.id, GREEDY) for prompt, example in itertools.product(prompts, examples)}
        return sum(key not in self._answers or key in self._ahead for key in asked)

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
        """Maps the raw rewards of one step to training rewards, (P,); 0.0 for prompts without a valid pair.

        Of pairs, the rows with one example are a group: their means over the samples (or the expected best of
        `best_of` of them) are laid out as (K, groups), and stabilisers that compare prompts see one group at a time.
        """
        if scores.row_example_ids is None:
            rewards = scores.rewards
            for stabiliser in self.stabilisers:
                rewards = stabiliser(rewards, scores.valid)
            count = scores.valid.sum(axis=1)
            total = np.where(scores.valid, rewards, 0.0).sum(axis=1)
            return np.where(count > 0, total / np.maximum(count, 1), 0.0)
        places, columns = group_places(scores.row_example_ids)
        over_samples = scores.mean_rewards
        if self.best_of is not None:
            over_samples = expected_best(scores.rewards, scores.valid, self.best_of)
        means = np.where(scores.prompt_valid, over_samples, 0.0)
        grouped, valid = in_groups(means, scores.prompt_valid, places, columns)
        for stabiliser in self.stabilisers:
            grouped = by_group(stabiliser, grouped, valid)
        return np.where(scores.prompt_valid, grouped[places, columns], 0.0)

    def stabilised(self, scores: Scores) -> FloatArray:
        """Returns what `stabilise` would, and leaves the stabilisers' statistics as they are."""
        before = [stabiliser.frozen for stabiliser in self.stabilisers]
        for stabiliser in self.stabilisers:
            stabiliser.frozen = True
        try:
            return self.stabilise(scores)
        finally:
            for stabiliser, frozen in zip(self.stabilisers, before, strict=True):
                stabiliser.frozen = frozen

    @property
    def is_held(self) -> bool:
        """Whether something is scored ahead of what is reported."""
        return self._held is not None

    def hold(self) -> None:
        """Scores ahead: until `release`, state, spending and metrics are reported as they are now."""
        self._held = (copy.deepcopy(self.state_dict()), self.rewards.metrics())
        self.ledger.hold()

    def release(self) -> None:
        """Reports everything again."""
        self._held = None
        self._ahead.clear()
        self.ledger.release()

    def metrics(self) -> dict[str, float]:
        """Returns the numbers that rewards tell of themselves, by name."""
        return self.rewards.metrics() if self._held is None else self._held[1]

    def state_dict(self) -> Json:
        """Returns the state of ledger, rewards and stabilisers; the answers themselves are in the run's records."""
        if self._held is not None:
            return self._held[0]
        return {
            "ledger": self.ledger.state_dict(),
            "rewards": self.rewards.state_dict(),
            "stabilisers": [stabiliser.state_dict() for stabiliser in self.stabilisers],
            "offsets": {prompt: offsets.tolist() for prompt, offsets in self._offsets.items()},
            # Nobody wrote the original prompt, so its answers are in no record of the run.
            "originals": [
                answer_to_json(*key, self._answers[key])
                for key in self._original_keys
                if key in self._answers and can_be_kept(self._answers[key].payload)
            ],
        }

    def load_state_dict(self, state: Json) -> None:
        """Restores what `state_dict` returned."""
        self.ledger.load_state_dict(state["ledger"])
        self.rewards.load_state_dict(state["rewards"])
        for stabiliser, saved in zip(self.stabilisers, state["stabilisers"], strict=True):
            stabiliser.load_state_dict(saved)
        self._offsets = {prompt: np.array(offsets) for prompt, offsets in state["offsets"].items()}
        for key, output in map(answer_from_json, state.get("originals", ())):
            self._answers[key] = output
            self._original_keys[key] = None

    def _original(self, example: Example) -> str:
        """What the policy's text for one example is compared with by rewards that need it."""
        if self.rewards.original is not None:
            return self.rewards.original
        shown = "input" in self.task.template.fields
        return original_prompt(self.compose, example, self.draft, shows_input=shown)

    def _answer(self, pairs: Sequence[tuple[str, Example]], samples: int, phase: str) -> list[list[TargetOutput]]:
        """Answers of N pairs as N lists of `samples`; one batched call for all that are new."""
        derived: dict[_Key, TargetOutput] = {}
        if self.compose == "demonstration":
            derived = self._obtain(
                {
                    (prompt, example.id, DEMONSTRATION): self._writing(prompt, example)
                    for prompt, example in pairs
                    if prompt
                },
                phase,
            )
        keys = [[(prompt, example.id, sample) for sample in sample_indices(samples)] for prompt, example in pairs]
        wanted: dict[_Key, TargetRequest] = {}
        failed: dict[_Key, TargetOutput] = {}
        for (prompt, example), row in zip(pairs, keys, strict=True):
            before = derived.get((prompt, example.id, DEMONSTRATION))
            for key in row:
                if before is not None and before.failure is not None:
                    failed[key] = TargetOutput(failure=before.failure)
                elif key not in self._answers and key not in wanted:
                    wanted[key] = self._request(key, example, "" if before is None else before.text or "")
        found = {**self._obtain(wanted, phase), **failed}
        return [[found[key] if key in found else self._answers[key] for key in row] for row in keys]

    def _obtain(self, requests: Mapping[_Key, TargetRequest], phase: str) -> dict[_Key, TargetOutput]:
        """Asks what is not known yet, in one metered call; returns all answers and remembers those that are none."""
        new = {key: request for key, request in requests.items() if key not in self._answers}
        failed: dict[_Key, TargetOutput] = {}
        if new:
            failed = self._ask_new(new, phase)
        return {key: failed[key] if key in failed else self._answers[key] for key in requests}

    def _ask_new(self, missing: Mapping[_Key, TargetRequest], phase: str) -> dict[_Key, TargetOutput]:
        """Charges all of them, asks those that nobody answered yet, and remembers the answers; returns the failures."""
        tokens = self.target.count_tokens(list(missing.values()))
        with self.ledger.reserve(len(missing), tokens, phase=phase) as reservation:
            places = {key: place for place, key in enumerate(missing) if key not in self._uncharged}
            asked = [missing[key] for key in places]
            started = time.perf_counter()
            answers = run_logged(self.target, asked, list(places), self.log, reservation, list(places.values()))
            self.target_seconds += time.perf_counter() - started
            outputs = {**self._uncharged, **dict(zip(places, answers, strict=True))}
            reservation.settle([outputs[key] for key in missing])
        if self.is_held:
            self._ahead |= missing.keys()
        failed: dict[_Key, TargetOutput] = {}
        for key in missing:
            self._uncharged.pop(key, None)
            (self._answers if outputs[key].failure is None else failed)[key] = outputs[key]
        return failed

    def _request(self, key: _Key, example: Example, derived: str) -> TargetRequest:
        prompt, _, sample = key
        composed = compose_prompt(self.compose, prompt, example, self.draft, answer=derived)
        rendered = self.task.template.render(composed, example)
        if self.asks == "choices":
            return TargetRequest(rendered, choices=self.task.choices)
        if self.asks == "logprob":
            return TargetRequest(rendered, continuation=str(example.reference))
        written = TargetRequest(rendered, max_tokens=self.task.max_tokens, stop=self.task.stop)
        if sample == GREEDY:
            return written
        temperature = self.task.sampling_temperature
        return replace(
            written,
            temperature=DEFAULT_TEMPERATURE if temperature is None else temperature,
            sample=sample,
            seed=sample_seed(self.seed, prompt, example.id, sample),
        )

    def _writing(self, prompt: str, example: Example) -> TargetRequest:
        """The question that a derived prompt is: its answer becomes part of the demonstration."""
        rendered = self.task.template.render(prompt, example)
        return TargetRequest(rendered, max_tokens=self.task.max_tokens, stop=self.task.stop)

    def _scores(
        self,
        prompts: Sequence[str],
        rows: Sequence[Sequence[Example]],
        read: Sequence[str],
        outputs: Sequence[Sequence[TargetOutput]],
        example_ids: Sequence[str],
        originals: Originals | None,
        phase: str,
    ) -> Scores:
        """Runs the rewards over all answers; row r holds the examples of prompt r."""
        width = len(example_ids)
        flat = [output for row in outputs for output in row]
        examples = [example for row in rows for example in row]
        references = [example.reference for example in examples]
        further = {} if originals is None else originals.columns(width)
        result = self.rewards(
            prompts=[text for text in read for _ in range(width)],
            completions=[prompt for prompt in prompts for _ in range(width)],
            outputs=flat,
            references=references,
            columns={**self.task.columns(examples), **further},
            phase=phase,
        )
        shape = (len(prompts), width)
        total = result.rewards.reshape(shape)
        valid = np.isfinite(total)
        failures = {index: output.failure for index, output in enumerate(flat) if output.failure is not None}
        # A reward that compares with the original abstains where that has no answer; the cause is the target's.
        missing = {index: output.failure for index, output in enumerate(further.get("originals", ())) if output.failure}
        missing = {index: failure for index, failure in missing.items() if not valid.flat[index]}
        failures = {**missing, **result.failures, **failures}
        return Scores(
            prompts=tuple(prompts),
            example_ids=tuple(example_ids),
            components={name: values.reshape(shape) for name, values in result.components.items()},
            rewards=np.where(valid, total, 0.0),
            correct=self._correct(flat, references).reshape(shape),
            valid=valid,
            outputs=tuple(tuple(row) for row in outputs),
            failures=tuple((*divmod(index, width), failure) for index, failure in sorted(failures.items())),
        )

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
                outputs = shift(outputs, prompts, prompt, offsets)
        for prompt in dict.fromkeys(prompts):
            if prompt in self._offsets and prompt not in unknown:
                outputs = shift(outputs, prompts, prompt, self._offsets[prompt])
        return outputs

    def _correct(self, outputs: list[TargetOutput], references: list[Any]) -> FloatArray:
        if self.task.choices is not None:
            return np.array(
                [
                    choice_correct(output, reference, self.task.choices)
                    for output, reference in zip(outputs, references, strict=True)
                ]
            )
        if self.asks == "logprob":
            return np.full(len(outputs), np.nan)
        blank = [""] * len(outputs)
        matches = self._is_right(prompts=blank, completions=blank, outputs=outputs, references=references)
        return np.array([np.nan if match is None else match for match in matches], dtype=np.float64)
