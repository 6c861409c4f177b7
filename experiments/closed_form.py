"""How far from the closed form of KL-regularised training each algorithm ends, where all prompts can be listed.

Command: python experiments/closed_form.py [--seeds 0 1 2]
One training a (toy, setting, seed); what is in experiments/results/closed-form/cells.json is skipped, so a stop loses
one training at most. Rewrites the table in docs/closed-form.md.

Toy "one word": six words with a reward each, a table of logits that starts uniform. The others: one or two of four
words, so 20 prompts, and a small LM writes; "chained": the second word pays only behind the right first one;
"separable": each word pays by itself.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

# The checkout replaces this script's folder on the path: experiments/rlprompt holds recipes, not the package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.report import machine, publish, read_json, spread, write_json
from rlprompt.config import RunConfig, parse_config
from rlprompt.evaluation.closed_form import (
    all_prompts,
    optimal_probabilities,
    prompt_log_probabilities,
    total_variation,
)
from rlprompt.masks import decode, static_mask
from rlprompt.policies import build_policy
from rlprompt.registry import resolve
from rlprompt.scoring import build_scorer
from rlprompt.seeding import generator
from rlprompt.types import FloatArray, IntArray, Json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "results" / "closed-form"
PAGE = ROOT / "docs" / "closed-form.md"
COEFFICIENT = 0.5
"""lambda, in units of reward per nat."""
WORD_VALUES: FloatArray = generator(0, "toy-rewards").normal(0.0, 1.0, size=6)
"""Rewards of the words w00 to w05 in the toy "one word"."""

_TWO_WORDS: Json = {
    "task": {"name": "planted", "shots": 4, "dev_shots": 4},
    "policy": {"kind": "causal-lm", "model": "planted-4", "context": "w01", "kwargs": {"lora": None}},
    "env": {"prompt_length": 2, "eos": True, "num_envs": 128, "action": "sequence"},
    "reward": [{"name": "log-probability"}],
    "algorithm": {"lr": 3e-3, "iterations": 60},
}
TOYS: dict[str, Json] = {
    "one word": {
        "task": {"name": "planted", "shots": 1, "dev_shots": 1},
        "target": {"name": "planted:separable", "kwargs": {"length": 1, "vocabulary": 6}},
        "policy": {"kind": "categorical", "model": "planted-6"},
        "env": {"prompt_length": 1, "num_envs": 64, "action": "sequence"},
        "reward": [{"name": "experiments.closed_form:word_value"}],
        "algorithm": {"lr": 0.1, "iterations": 60, "grad_clip": 1000.0},
    },
    "chained": {**_TWO_WORDS, "target": {"name": "planted:chained", "kwargs": {"length": 2, "vocabulary": 4}}},
    "separable": {**_TWO_WORDS, "target": {"name": "planted:separable", "kwargs": {"length": 2, "vocabulary": 4}}},
}

SETTINGS: dict[str, Json] = {
    "PPO, KL in the reward, gamma 1": {"name": "ppo", "kl_in": "reward"},
    "PPO, KL in the reward, gamma 0.8": {"name": "ppo", "kl_in": "reward", "gamma": 0.8},
    "PPO, KL in the loss": {"name": "ppo", "kl_in": "loss"},
    "RLOO (KL in the reward)": {"name": "rloo"},
    "GRPO, not scaled, KL in the reward": {"name": "grpo", "kl_in": "reward"},
    "GRPO, not scaled, KL in the loss": {"name": "grpo", "kl_in": "loss"},
    "GRPO, scaled by the group, KL in the reward": {"name": "grpo", "kl_in": "reward", "scale_rewards": "group"},
    "GRPO, scaled by the group, KL in the loss": {"name": "grpo", "kl_in": "loss", "scale_rewards": "group"},
}


def word_value(*, completions: Sequence[str], **columns: Any) -> list[float | None]:
    """The reward of the toy "one word": what its word is worth, whatever the target answers."""
    return [float(WORD_VALUES[int(text[1:])]) if text[1:].isdigit() else None for text in completions]


word_value.gold_not_ordered = True  # type: ignore[attr-defined]  # an attribute that rewards may have


def cell_config(toy: str, setting: str, seed: int, iterations: int | None = None) -> RunConfig:
    """Returns the configuration of one training; PPO gets its baseline from a stabiliser, the others have their own."""
    base = TOYS[toy]
    algorithm = {**base["algorithm"], "kl_coeff": COEFFICIENT, **SETTINGS[setting]}
    if iterations is not None:
        algorithm["iterations"] = iterations
    stabilisers = [{"name": "leave-one-out"}] if algorithm["name"] == "ppo" else []
    return parse_config({**base, "seed": seed, "algorithm": algorithm, "stabilisers": stabilisers})


class MemoryRun:
    """What an algorithm asks of a run, without a folder: nothing is recorded, and it goes on to the end.

    Args:
        config: the configuration.
    """

    name = "closed-form"
    folder = Path()

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.scorer = build_scorer(config, allow_modules=("experiments.closed_form",))
        self.policy: Any = build_policy(config.policy, prompt_length=config.env.prompt_length, seed=config.seed)

    def restored_state(self) -> None:
        """There is no checkpoint."""

    def stop_reason(self) -> None:
        """Nothing stops it."""

    def end_iteration(self, iteration: int, **facts: Any) -> None:
        """Keeps nothing."""


class Listed:
    """All prompts of a run, with their rewards and their exact probabilities.

    Args:
        run: the run; its policy is still the start.
    """

    def __init__(self, run: MemoryRun) -> None:
        env, tokenizer = run.config.env, run.policy.tokenizer
        self._run = run
        self._eos: int | None = tokenizer.eos_token_id if env.ends_with_eos else None
        self._mask = static_mask(tokenizer, env.mask, eos=env.ends_with_eos)
        self.prompts = all_prompts(self._mask, env.prompt_length, eos_id=self._eos)
        texts = [decode(tokenizer, row) for row in self.prompts.tolist()]
        self.rewards: FloatArray = run.scorer.score(texts, run.scorer.minibatch(0, None)).mean_rewards
        self.start = self.probabilities()
        self.optimum = optimal_probabilities(np.log(self.start), self.rewards, COEFFICIENT)

    def loss_limit(self) -> FloatArray:
        """Returns where training with the KL in the loss must end, (N,).

        The KL of each token is weighed where it stands, so a token is chosen by the reward of what follows alone, and
        not by that reward less the KL of what follows.
        """
        limit: FloatArray = np.zeros(len(self.prompts))

        def settle(rows: IntArray, depth: int) -> float:
            """Fills in the probabilities of the prompts behind one prefix; returns their mean reward."""
            if depth == self.prompts.shape[1]:
                limit[rows] = 1.0
                return float(self.rewards[rows].mean())
            parts = [rows[self.prompts[rows, depth] == token] for token in np.unique(self.prompts[rows, depth])]
            values = np.array([settle(part, depth + 1) for part in parts])
            masses = np.array([self.start[part].sum() for part in parts])
            odds = optimal_probabilities(np.log(masses), values, COEFFICIENT)
            for part, chance in zip(parts, odds, strict=True):
                limit[part] *= chance
            return float(odds @ values)

        settle(np.arange(len(self.prompts)), 0)
        return limit

    def probabilities(self) -> FloatArray:
        """Returns the policy's probability of each prompt, (N,)."""
        policy = self._run.policy
        context = policy.context_ids(self._run.config.policy.context)
        logp = prompt_log_probabilities(policy, context, self.prompts, self._mask, eos_id=self._eos)
        return np.asarray(np.exp(logp), dtype=np.float64)


def run_cell(toy: str, setting: str, seed: int, iterations: int | None = None) -> Json:
    """Trains once; returns the distances to the closed form before and after."""
    started = time.perf_counter()
    config = cell_config(toy, setting, seed, iterations)
    run = MemoryRun(config)
    listed = Listed(run)
    resolve("algorithms", config.algorithm.name)(run)
    return {
        "start": total_variation(listed.start, listed.optimum),
        "end": total_variation(listed.probabilities(), listed.optimum),
        "loss_limit": total_variation(listed.loss_limit(), listed.optimum),
        "prompts": len(listed.prompts),
        "seconds": round(time.perf_counter() - started, 1),
        "machine": machine(),
    }


def run_cells(path: Path, seeds: Sequence[int], console: Console, iterations: int | None = None) -> dict[str, Json]:
    """Trains what is missing; returns all cells by "toy | setting | seed"."""
    cells: dict[str, Json] = read_json(path) if path.is_file() else {}
    wanted = [(toy, setting, seed) for toy in TOYS for setting in SETTINGS for seed in seeds]
    for number, (toy, setting, seed) in enumerate(wanted, start=1):
        key = f"{toy} | {setting} | {seed}"
        if key in cells:
            continue
        cells[key] = run_cell(toy, setting, seed, iterations)
        write_json(path, cells)
        done = cells[key]
        console.print(f"{number}/{len(wanted)} {key}: {done['end']:.3f}, {done['seconds']:.0f} s", markup=False)
    return cells


def table(cells: Mapping[str, Json], seeds: Sequence[int]) -> str:
    """Returns the Markdown table: mean and standard deviation of the distances over the seeds."""
    wanted = [cells[f"{toy} | {setting} | {seed}"] for toy in TOYS for setting in SETTINGS for seed in seeds]
    count = {toy: cells[f"{toy} | {next(iter(SETTINGS))} | {seeds[0]}"]["prompts"] for toy in TOYS}
    titles = [f"{toy} ({count[toy]} prompts)" for toy in TOYS]
    minutes = sum(cell["seconds"] for cell in wanted) / 60
    lines = [
        f"Total variation distance to the closed form, lambda {COEFFICIENT}, mean ± standard deviation over the seeds "
        f"{', '.join(map(str, seeds))}; {wanted[0]['machine']}; {minutes:.0f} minutes in all.",
        "",
        f"| setting | {' | '.join(titles)} |",
        "|---" * (len(titles) + 1) + "|",
    ]
    first = next(iter(SETTINGS))
    rows = [("no training", first, "start"), *((name, name, "end") for name in SETTINGS)]
    for name, setting, field in [*rows, ("limit of the KL in the loss, calculated", first, "loss_limit")]:
        values = [[float(cells[f"{toy} | {setting} | {seed}"][field]) for seed in seeds] for toy in TOYS]
        lines.append(f"| {name} | {' | '.join(spread(row) for row in values)} |")
    return "\n".join(lines)


def main() -> int:
    """Trains what is missing and rewrites the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, help="of every training, for a trial; the table would not hold then")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE, help="file with the table's section")
    options = parser.parse_args()

    def make(console: Console) -> tuple[str, str]:
        cells = run_cells(options.results / "cells.json", options.seeds, console, options.iterations)
        return "closed-form", table(cells, options.seeds)

    return publish(make, options.page)


if __name__ == "__main__":
    raise SystemExit(main())
