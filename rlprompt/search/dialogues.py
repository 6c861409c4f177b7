"""Plays whole dialogues with a policy: for the choice on dev, for tests, and for demonstrations to learn from.

Shapes: P dialogues.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlprompt.config import RunConfig
from rlprompt.dialogues import dialogue_of
from rlprompt.envs.turns import DialogueTurns
from rlprompt.errors import ConfigError
from rlprompt.masks import decode
from rlprompt.search.random import contexts_of, greedy_prompts, write
from rlprompt.types import Example, Json, Scores


@dataclass(frozen=True)
class Spoken:
    """One turn of one dialogue."""

    example_id: str
    """Of the beginning."""
    turn: int
    context: str
    """All that the policy read, as its tokenizer spells it."""
    prompt: str
    """What it wrote."""
    utterance: str
    """What the target said."""
    gain: float
    """The partner's score after the turn less that before it."""


@dataclass(frozen=True)
class Played:
    """P dialogues that were played to their end."""

    scores: Scores
    """Of the last turns, (P, 1); accuracies are the partners' scores. Rows are those of the examples."""
    turns: tuple[Spoken, ...]
    """All turns, those of one dialogue in order."""
    said: tuple[tuple[tuple[str, str], ...], ...]
    """Of each dialogue, (speaker, words) from its beginning."""


def play(
    policy: Any,
    config: RunConfig,
    scorer: Any,
    examples: Sequence[Example],
    *,
    phase: str = "dev",
    iteration: int | None = None,
    rows: int = 32,
) -> Played:
    """Plays one dialogue for each example.

    Args:
        policy: who writes before each turn of the target.
        config: of the run; `env.dialogue` must be set.
        scorer: of the run; asks the target and is charged.
        examples: where the dialogues begin.
        phase: where the spending is booked.
        iteration: keys the draws of sampled prompts; None writes the most probable ones.
        rows: prompts that are written at the same time.

    Raises:
        ConfigError: an example is no dialogue.
        BudgetExceededError: the answers do not fit into the budget.
    """
    if not config.env.dialogue:
        raise ConfigError("env.dialogue is false, so there is no dialogue to play; set it to true")
    reader, turns = (
        contexts_of(config, policy.tokenizer, scorer),
        DialogueTurns(len(examples), config.env.turns, examples),
    )
    spoken: list[Spoken] = []
    before = [0.0] * len(examples)
    while True:
        texts, ids = reader.read(list(examples), turns.feedback)
        prompts = _written(policy, config, ids, turns, iteration, rows)
        asked = turns.asked(examples)
        scores: Scores = scorer.score_pairs(prompts, asked, phase=phase, contexts=texts)
        for row, example in enumerate(examples):
            if not turns.waiting[row] and scores.prompt_valid[row]:
                gain = float(scores.accuracies[row]) - before[row]
                before[row] += gain
                read = policy.tokenizer.decode([token for token in ids[row].tolist() if token >= 0])
                said = scores.outputs[row][0].text or ""
                spoken.append(Spoken(example.id, turns.number, read, prompts[row], said, gain))
        if not (turns.left and turns.open_rows(scores).any()):
            break
        turns.advance(scores, scorer.task, examples, per_input=True)
    ended = [_said(turns.examples[row], scores, row) for row in range(len(examples))]
    order = {example.id: place for place, example in enumerate(examples)}
    return Played(scores, tuple(sorted(spoken, key=lambda one: (order[one.example_id], one.turn))), tuple(ended))


def scores_on_dev(policy: Any, config: RunConfig, scorer: Any) -> Scores:
    """Scores a policy's most probable text for each dev input, or each dialogue of dev to its end.

    Args:
        policy: who writes.
        config: of a run that writes for single inputs.
        scorer: of the run.

    Raises:
        BudgetExceededError: the answers do not fit into the budget.
    """
    dev = scorer.task.dev
    if config.env.dialogue:
        return play(policy, config, scorer, dev, phase="dev").scores
    prompts, contexts = greedy_prompts(policy, config, scorer, dev)
    scores: Scores = scorer.score_pairs(prompts, dev, samples=config.env.samples, phase="dev", contexts=contexts)
    return scores


def demonstrations(
    played: Played, examples: Sequence[Example], *, at_least: float, gaining: bool = False
) -> list[Json]:
    """Returns what SFT learns from good dialogues, the self-talk filter of arXiv:2401.05033.

    Args:
        played: dialogues.
        examples: those that they began with, in the same order.
        at_least: the score that a dialogue must have.
        gaining: only turns that raised the score (ours): then hard scenarios, of which no dialogue went well to its
            end, have their say, too, and what was wrong in a good dialogue is not learnt.

    Returns:
        Lines with `context` and `target`, one for each turn of a dialogue that is kept, as `data: {pairs: FILE}` of an
        SFT stage reads them; turns in which nothing was written are left out.
    """
    kept = {
        example.id
        for example, score, valid in zip(
            examples, played.scores.accuracies.tolist(), played.scores.prompt_valid.tolist(), strict=True
        )
        if valid and score >= at_least
    }
    return [
        {"context": one.context, "target": one.prompt}
        for one in played.turns
        if one.example_id in kept and one.prompt.strip() and (one.gain > 0 or not gaining)
    ]


def _written(
    policy: Any, config: RunConfig, ids: np.ndarray, turns: DialogueTurns, iteration: int | None, rows: int
) -> list[str]:
    """What the policy writes now; of dialogues that have ended, what it wrote before."""
    found = [settled or "" for settled in turns.settled]
    open_rows = np.flatnonzero(~turns.waiting)
    for first in range(0, len(open_rows), rows):
        part = open_rows[first : first + rows]
        keys = None
        if iteration is not None:
            episodes = part + turns.number * len(turns.waiting)
            keys = np.stack([np.full(len(part), iteration), episodes], axis=1)
        for row, tokens in zip(part.tolist(), write(policy, config, ids[part], keys).tolist(), strict=True):
            found[row] = decode(policy.tokenizer, tokens)
    return found


def _said(example: Example, scores: Scores, row: int) -> tuple[tuple[str, str], ...]:
    partner, state = dialogue_of(example.reference, example.id)
    if scores.prompt_valid[row]:
        state = partner.reply(state, scores.outputs[row][0].text or "") if not state["over"] else state
    return tuple((str(speaker), str(words)) for speaker, words in state["said"])
