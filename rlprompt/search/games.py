"""A team writes without learning: random search over games, and the most probable compositions.

Shapes: B copies of the game, T tokens of an agent.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch

from rlprompt.config import RunConfig
from rlprompt.envs.configured import configured_game
from rlprompt.envs.multi.seats import Seat
from rlprompt.masks import NOT_WRITTEN
from rlprompt.policies import PromptTeam
from rlprompt.policies.sampling import write_prompts
from rlprompt.seeding import generator
from rlprompt.types import Example, FloatArray, IntArray, RunContext, Scores


def sample_games(run: RunContext) -> None:
    """Samples `env.num_envs` prompts per iteration from the untrained team and scores them; learns nothing."""
    config: RunConfig = run.config
    game = configured_game(config, run.scorer.spec)
    restored = run.restored_state()
    for iteration in range(0 if restored is None else restored[0], config.algorithm.iterations):
        if run.stop_reason() is not None:
            return
        started = time.perf_counter()
        game.start(iteration, np.arange(game.batch))
        for place, seat in enumerate(game.seats):
            seen = game.observations(place)
            tokens = write_segment(run.policy, config, seat, place, seen["context"], seen["prefix"], seen["key"])
            game.write_segment(tokens)
        scores = cast(Scores, game.last_scores)  # a game that is over has been scored
        record(run, iteration, scores, game.last_training_rewards, started)


def record(run: RunContext, iteration: int, scores: Scores, rewards: FloatArray | None, started: float) -> None:
    """Ends an iteration in which nothing was learnt.

    Args:
        run: the run.
        iteration: its number.
        scores: of the prompts.
        rewards: the stabilised ones.
        started: what `time.perf_counter` said at its beginning.
    """
    metrics = {
        "reward/mean": float(np.nanmean(scores.mean_rewards)) if scores.valid.any() else float("nan"),
        "unique_prompt_rate": len(set(scores.prompts)) / len(scores.prompts),
        "time/iteration_s": time.perf_counter() - started,
    }
    run.end_iteration(iteration, scores=scores, metrics=metrics, state=dict, training_rewards=rewards)


def write_segment(
    team: PromptTeam,
    config: RunConfig,
    seat: Seat,
    place: int,
    context: IntArray,
    prefix: IntArray,
    keys: IntArray | None,
) -> IntArray:
    """Returns the tokens (B, T) that one agent writes.

    Args:
        team: who writes.
        config: of the run.
        seat: masks, end and length of the agent.
        place: of the agent.
        context: (B, C) what it reads.
        prefix: (B, P) or less of it, the segments before it.
        keys: (B, 2), iteration and episode of every draw; None writes the most probable text.
    """
    draws = None
    if keys is not None:
        draws = np.array(
            [
                [
                    generator(config.seed, "token", int(iteration), int(episode), step).random()
                    for step in range(seat.agent.length)
                ]
                for iteration, episode in keys
            ]
        )
    policy = team.policy(place)
    tokens = write_prompts(
        policy,
        torch.from_numpy(np.ascontiguousarray(context)).to(policy.device),
        static_mask=seat.static_mask,
        eos_id=seat.end_id,
        no_repeat=config.env.mask.no_repeat,
        before=torch.from_numpy(np.ascontiguousarray(prefix[:, : seat.offset])),
        length=seat.agent.length,
        uniforms=draws,
    )
    return np.asarray(tokens.cpu().numpy(), dtype=np.int64)


def greedy_compositions(
    team: PromptTeam, config: RunConfig, scorer: Any, examples: Sequence[Example] | None = None, *, rows: int = 32
) -> tuple[list[str], list[str]]:
    """Returns a team's most probable prompts and what its first agent read; see `rlprompt.search.random`."""
    game = configured_game(config, scorer.spec, batch=1)
    prompts: list[str] = []
    texts: list[str] = []
    count = 1 if examples is None else len(examples)
    for first in range(0, count, rows):
        part = None if examples is None else list(examples[first : first + rows])
        size = 1 if part is None else len(part)
        segments: list[list[list[int]]] = [[] for _ in range(size)]
        prefix = np.full((size, game.length), NOT_WRITTEN, dtype=np.int64)
        for place, seat in enumerate(game.seats):
            read, ids = seat.reader.read(part, segments)
            texts += read if place == 0 else []
            tokens = write_segment(team, config, seat, place, ids, prefix, None)
            prefix[:, seat.offset : seat.offset + seat.agent.length] = tokens
            for row, written in zip(segments, tokens.tolist(), strict=True):
                row.append(written)
        prompts += [game.composition.text(written) for written in segments]
    return prompts, texts
