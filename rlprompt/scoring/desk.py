"""One scorer for many workers: they write letters, the process that owns budget, answers and target reads them.

The scorer stays in one process, and so do the ledger, the journal of answers and the stabilisers' statistics: no number
of workers can overdraw a budget, and nothing is asked twice. What workers ask at the same time is answered in one
batched call, in the order of their shares of the iteration: the same call that one process would make.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rlprompt.config import parse_config
from rlprompt.errors import RLPromptError
from rlprompt.mailbox import SCORE, STABILISE, Letter
from rlprompt.scoring.parts import join_scores, split_scores
from rlprompt.scoring.rules import ScoringRules
from rlprompt.scoring.scorer import Scorer
from rlprompt.types import Example, FloatArray, Json, Scores


class RoundAbandonedError(RLPromptError):
    """The iteration that a worker played is over: another worker was lost, or the run ends."""


def remote_spec(scorer: Scorer, mailbox: str, code: Json | None = None) -> Json:
    """Returns the spec that workers build their `RemoteScorer` from.

    Args:
        scorer: of the run.
        mailbox: the actor's name.
        code: of the user's, as it was sent to the workers; None where workers read it at its place.
    """
    sent = {} if code is None else {"code": code}
    return {
        **scorer.spec,
        **sent,
        "remote": {"mailbox": mailbox, "asks": scorer.asks, "compares_prompts": scorer.compares_prompts},
    }


class RemoteScorer(ScoringRules):
    """A worker's scorer: draws examples itself, has all else done by the process that owns the run.

    Args:
        spec: from `remote_spec`.
    """

    def __init__(self, spec: Json) -> None:
        import ray

        config, remote = parse_config(dict(spec["config"])), spec["remote"]
        self._mailbox_name = remote["mailbox"]
        self._mailbox = ray.get_actor(self._mailbox_name)
        super().__init__(
            ray.get(self._mailbox.task.options(max_task_retries=-1).remote()),  # it may be coming back just now
            asks=remote["asks"],
            compares_prompts=remote["compares_prompts"],
            calibration=config.calibration,
            seed=config.seed,
            compose=config.env.compose if config.env.per_input else "replace",
            draft=config.env.draft,
            best_of=config.env.best_of,
        )
        self.attempt = 0
        self.share = 0
        """Number of the first episode that this worker plays."""

    def score(
        self,
        prompts: Sequence[str],
        examples: Sequence[Example],
        *,
        phase: str = "train",
        contexts: Sequence[str] | None = None,
    ) -> Scores:
        """Has P prompts scored on E examples; `phase` is always "train" here."""
        found: Scores = self._ask(self._letter(prompts, examples, None, contexts))
        return found

    def score_pairs(
        self,
        prompts: Sequence[str],
        examples: Sequence[Example],
        *,
        samples: int = 1,
        phase: str = "train",
        contexts: Sequence[str] | None = None,
    ) -> Scores:
        """Has N prompts scored, each on its own example; `phase` is always "train" here."""
        found: Scores = self._ask(self._letter(prompts, examples, samples, contexts))
        return found

    def stabilise(self, scores: Scores) -> FloatArray:
        """Has the rewards stabilised together with those of the other workers' prompts; returns (P,), its own."""
        found: FloatArray = self._ask(Letter(self.attempt, self.share, STABILISE, replace(scores, outputs=())))
        return found

    def _letter(
        self,
        prompts: Sequence[str],
        examples: Sequence[Example],
        samples: int | None,
        contexts: Sequence[str] | None,
    ) -> Letter:
        read = tuple(contexts) if contexts is not None else ("",) * len(prompts)
        return Letter(
            self.attempt,
            self.share,
            SCORE,
            prompts=tuple(prompts),
            examples=tuple(examples),
            samples=samples,
            contexts=read,
        )

    def _ask(self, letter: Letter) -> Any:
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            answer = ray.get(self._mailbox.ask.remote(letter))
        except RayTaskError:
            raise
        except RayError as error:  # it died, was killed for memory, or its node is gone
            raise RoundAbandonedError("the mailbox was lost") from error
        if answer is None:
            raise RoundAbandonedError("the iteration was abandoned")
        return answer


def answer_letters(scorer: ScoringRules, letters: Mapping[int, Letter]) -> dict[int, Any]:
    """Answers what all workers of an iteration wait for; those that are only done with scoring wait for the others.

    Letters that ask for the same kind of scoring become one call. Rewards are stabilised once no worker has prompts to
    score any more: over all prompts of the iteration, as one process does it.

    Args:
        scorer: of the run.
        letters: by ticket, one of each worker that has not finished the iteration.

    Returns:
        The answers by ticket: of letters that ask for scores, if there are any; else of all.
    """
    ordered = sorted(letters.items(), key=lambda item: item[1].share)
    asking = [(ticket, letter) for ticket, letter in ordered if letter.kind == SCORE]
    if not asking:
        return _stabilised(scorer, ordered)
    groups: dict[Any, list[tuple[int, Letter]]] = {}
    for ticket, letter in asking:
        # The columns of a joint scoring are the same examples.
        same = letter.samples if letter.samples is not None else tuple(example.id for example in letter.examples)
        groups.setdefault(same, []).append((ticket, letter))
    answers: dict[int, Any] = {}
    for group in groups.values():
        answers |= _scored(scorer, group)
    return answers


def _scored(scorer: ScoringRules, group: list[tuple[int, Letter]]) -> dict[int, Any]:
    first = group[0][1]
    prompts = [prompt for _, letter in group for prompt in letter.prompts]
    contexts = [context for _, letter in group for context in letter.contexts]
    if first.samples is None:
        scores = scorer.score(prompts, first.examples, contexts=contexts)
    else:
        examples = [example for _, letter in group for example in letter.examples]
        scores = scorer.score_pairs(prompts, examples, samples=first.samples, contexts=contexts)
    parts = split_scores(scores, [len(letter.prompts) for _, letter in group])
    return {ticket: part for (ticket, _), part in zip(group, parts, strict=True)}


def _stabilised(scorer: ScoringRules, ordered: list[tuple[int, Letter]]) -> dict[int, Any]:
    parts = [letter.scores for _, letter in ordered if letter.scores is not None]
    rewards = scorer.stabilise(join_scores(parts))
    ends = np.cumsum([len(part.prompts) for part in parts])[:-1]
    return {ticket: share for (ticket, _), share in zip(ordered, np.split(rewards, ends), strict=True)}
