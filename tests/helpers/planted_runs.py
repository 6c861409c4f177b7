"""Small finished runs on the planted target, for tests of what reads run folders."""

from pathlib import Path
from typing import Any

from rlprompt.config import parse_config
from rlprompt.runs import train

TASK = {
    "name": "small",
    "seed": 3,
    "task": {"name": "planted", "shots": 2, "dev_shots": 2, "test_limit": 8},
    "target": {"name": "planted:separable"},
    "policy": {"kind": "categorical", "model": "planted-50"},
    "env": {"prompt_length": 3, "num_envs": 8},
    "algorithm": {"name": "random", "iterations": 3},
    "selection": {"top": 2},
    "run": {"checkpoint_every": 1, "tensorboard": False},
}
"""One prompt for all inputs, choices."""

INPUTS = {
    **TASK,
    "task": {"name": "planted", "shots": 4, "dev_shots": 2, "test_limit": 8, "template": "{input}\n{prompt}"},
    "policy": {"kind": "causal-lm", "model": "planted-50", "kwargs": {"lora": {"r": 2, "targets": ["c_attn"]}}},
    "env": {
        "kind": "rewrite",
        "level": "instance",
        "meta_prompt": "w01 {input}",
        "prompt_length": 3,
        "num_envs": 32,
        "rewrites_per_input": 4,
        "mask": {"candidates": ["w34", "w43", "w10", "w01"]},  # the best prompt is w34 w43 w10
    },
    "reward": [{"name": "gap"}, {"name": "length", "weight": -0.5}],
    "algorithm": {"name": "random", "iterations": 1},
}
"""A rewrite for each input: 8 inputs, 4 rewrites of each."""


def text_card(folder: Path) -> Path:
    """Writes a generation task: the target answers yes or no, and the rows say which is right."""
    from rlprompt.tasks.planted import planted_label

    for split, first in (("train", 0), ("dev", 10), ("test", 20)):
        rows = [f"item {number}\t{('no', 'yes')[planted_label(number)]}" for number in range(first, first + 8)]
        (folder / f"{split}.tsv").write_text("\n".join(["text\tanswer", *rows]) + "\n")
    card = folder / "card.yaml"
    card.write_text(
        "name: items\nsplits: {train: train.tsv, dev: dev.tsv, test: test.tsv}\n"
        "columns: {input: text, reference: answer}\nmetric: exact-match\nmax_tokens: 4\n"
        'template: "{input}\\n{prompt}"\n'
    )
    return card


def finished(folder: Path, base: dict[str, Any] = TASK, **sections: Any) -> Path:
    """Trains and returns the run folder; sections are merged into those of the base."""
    data = dict(base)
    for name, given in {"run": {"dir": str(folder / "runs")}, **sections}.items():
        data[name] = {**data[name], **given} if isinstance(given, dict) and isinstance(data.get(name), dict) else given
    return train(parse_config(data), progress=False).folder


def text_run(folder: Path, **sections: Any) -> Path:
    """A run that writes for each input of a generation task, so that the target's texts are stored."""
    task = {"name": str(text_card(folder)), "shots": 4, "dev_shots": 2, "template": "{input}\n{prompt}"}
    settings = {"task": task, "reward": [{"name": "exact-match"}], "env": {"num_envs": 16}, **sections}
    return finished(folder, INPUTS, **settings)
