"""Preferences in real runs: stages, checkpoints without pickle, exact resume, budgets, better prompts than at first."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import write_lines

from rlprompt.config import RunConfig, parse_config
from rlprompt.errors import ConfigError
from rlprompt.policies import load_policy
from rlprompt.runs import train
from rlprompt.runs.limits import iteration_calls, prompts_at
from rlprompt.targets.planted import PlantedTarget
from rlprompt.tasks.planted import planted_task

DPO, RRHF, ROUNDS = 2, 2, 3


def make_config(folder: Path, **sections: Any) -> RunConfig:
    """Two steps of DPO and two of RRHF on files, three rounds on four inputs; a checkpoint after every step."""
    rows = [
        {
            "id": str(at),
            "input": f"w{at:02d}",
            "chosen": f"w0{at} w1{at}",
            "rejected": f"w1{at} w0{at}",
            "margin": 1 + at,
        }
        for at in range(5)
    ]
    pairs = write_lines(folder / "pairs.jsonl", rows)
    step = {"lr": 0.02, "minibatch_size": 2}
    data: dict[str, Any] = {
        "seed": 3,
        "task": {"name": "planted", "shots": 4, "dev_shots": 4},
        "target": {"name": "planted:separable", "kwargs": {"length": 2, "vocabulary": 20, "failure_rate": 0.02}},
        "policy": {"kind": "causal-lm", "model": "planted-20", "kwargs": {"lora": {"r": 2, "targets": ["c_attn"]}}},
        "env": {
            "kind": "rewrite",
            "level": "instance",
            "meta_prompt": "w01 {input} w02",
            "chat": False,
            "prompt_length": 3,
            "num_envs": 12,
            "rewrites_per_input": 3,
        },
        "algorithm": {"name": "online-dpo", "iterations": ROUNDS, "items": "regret", "regenerate": 0.5, **step},
        "stages": [
            {
                "name": "pairs",
                "algorithm": {"name": "dpo", "iterations": DPO, "pair_weights": "gap", **step},
                "data": {"pairs": pairs, "val": pairs, "val_every": 1},
            },
            {
                "name": "ranking",
                "algorithm": {"name": "rrhf", "iterations": RRHF, **step},
                "data": {"pairs": pairs},
            },
        ],
        "run": {"dir": str(folder / "runs"), "tensorboard": False, "checkpoint_every": 1, "keep": 20},
    }
    for key, value in sections.items():
        data[key] = {**data[key], **value} if isinstance(data.get(key), dict) else value
    return parse_config(data)


def events_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    kept = ("event", "iteration", "metrics", "num_prompts", "used", "failed", "name", "algorithm")
    return [{key: line[key] for key in kept if key in line} for line in lines if line["event"] != "start"]


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    return [event["metrics"] for event in events_of(folder) if event["event"] == "iteration"]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_policy(folder / "best").trainable_state()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path]:
    """A run that was never interrupted."""
    config = make_config(tmp_path_factory.mktemp("whole"))
    result = train(config, progress=False)
    assert (result.stop_reason, result.iterations) == ("done", DPO + RRHF + ROUNDS)
    return config, result.folder


def test_files_cost_nothing_and_rounds_cost_what_they_write(whole: tuple[RunConfig, Path]) -> None:
    config, folder = whole
    events = [event for event in events_of(folder) if event["event"] == "iteration"]
    # Regret takes half of four inputs, and half of those two get three new texts.
    assert [event["num_prompts"] for event in events] == [0, 0, 0, 0, 12, 3, 3]
    assert [event["used"]["calls"] for event in events][: DPO + RRHF] == [0] * 4
    assert [prompts_at(config, iteration) for iteration in range(7)] == [0, 0, 0, 0, 12, 3, 3]
    assert iteration_calls(config, planted_task(8, 8), 4) == 12
    metrics = metrics_of(folder)
    assert all("val/margin" in step for step in metrics[:DPO])
    assert metrics[DPO]["preference/accuracy"] >= 0
    assert [step["items/used"] for step in metrics[DPO + RRHF :]] == [4, 2, 2]


@pytest.mark.parametrize("kept", [1, DPO + 1, DPO + RRHF, DPO + RRHF + 1])
def test_a_run_goes_on_from_anywhere_as_if_it_had_not_stopped(
    whole: tuple[RunConfig, Path], tmp_path: Path, kept: int
) -> None:
    config, folder = whole
    part = tmp_path / "part"
    shutil.copytree(folder, part)
    for name in ("result.json", "summary.json"):
        (part / name).unlink()
    for iteration in range(kept, DPO + RRHF + ROUNDS):  # as if killed behind the checkpoint that is left
        shutil.rmtree(part / f"checkpoint-{iteration:06d}")
    train(config, resume=part, progress=False)
    assert repr(events_of(part)) == repr(events_of(folder))
    one, other = weights_of(folder), weights_of(part)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_t1_a_run_leaves_no_pickle_behind(whole: tuple[RunConfig, Path]) -> None:
    _, folder = whole
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".jsonl", ".safetensors", ".parquet", ".yaml", ""}


@pytest.mark.parametrize("algorithm", ["sft", "dpo", "rrhf"])
def test_a_run_may_consist_of_data_alone(tmp_path: Path, algorithm: str) -> None:
    config = make_config(tmp_path)
    data = config.stages[0].data["pairs"]
    if algorithm == "sft":
        data = write_lines(tmp_path / "targets.jsonl", [{"input": "w03", "target": "w04 w05"}])
    alone = config.model_copy(
        update={
            "stages": [],
            "algorithm": config.stages[0].algorithm.model_copy(update={"name": algorithm, "pair_weights": "given"}),
            "data": {"pairs": data},
            "budget": config.budget.model_copy(update={"max_target_calls": 8}),  # the choice on dev, and no round
        }
    )
    result = train(alone, progress=False)
    assert (result.stop_reason, result.iterations, result.target_calls) == ("done", DPO, 8)
    assert result.selected_on == "dev"


def test_data_that_nobody_reads_is_refused(tmp_path: Path) -> None:
    config = make_config(tmp_path, data={"pairs": "a"})
    with pytest.raises(ConfigError, match="stage 'main' has data, but online-dpo learns from rewards; remove data"):
        train(config, progress=False)


def test_rounds_never_overdraw_the_budget_and_stop_in_good_time(tmp_path: Path) -> None:
    sections = {"stages": [], "budget": {"max_target_calls": 20}}
    result = train(make_config(tmp_path, **sections), progress=False)
    # 12 texts, then 3: the third round might take 3 more, and 5 of 20 calls are left; dev takes 8 and does not fit.
    assert result.stop_reason in ("done", "budget")
    assert result.target_calls <= 20
    assert result.iterations >= 2
    with pytest.raises(ConfigError, match="one iteration takes up to 12 calls"):
        train(make_config(tmp_path, stages=[], budget={"max_target_calls": 11}), progress=False)


CALLS = 8 * 32 * 8 + 4 * 8
"""Eight rounds of 32 prompts on eight train examples, and four prompts on eight dev examples."""


@pytest.mark.parametrize("algorithm", ["online-dpo", "expert-iteration"])
def test_better_prompts_than_at_the_start_are_found_within_the_budget(tmp_path: Path, algorithm: str) -> None:
    target = PlantedTarget(landscape="separable", length=3, vocabulary=20)
    config = make_config(
        tmp_path,
        stages=[],
        target={"kwargs": {"length": 3, "vocabulary": 20}},
        policy={"kind": "categorical", "kwargs": {"top_k": None}},
        env={"kind": "token-prompt", "level": "task", "num_envs": 32, "rewrites_per_input": 1},
        algorithm={
            "name": algorithm,
            **({"pairs_per_input": 8} if algorithm == "online-dpo" else {}),
            "items": "all",
            "regenerate": 1.0,
            "iterations": 8,
            "epochs": 4,
            "lr": 0.3,
            "minibatch_size": None,
        },
        selection={"top": 4},
        budget={"max_target_calls": CALLS},
        run={"checkpoint_every": 100},
    )
    result = train(config, progress=False)
    assert result.target_calls <= CALLS
    rewards = [step["reward/mean"] for step in metrics_of(result.folder)]
    first_best = metrics_of(result.folder)[0]["reward/best"]
    assert len(rewards) == 8
    assert rewards[-1] > first_best  # the mean text of the last round beats the best of the first
    assert result.best_prompt is not None
    assert target.quality(result.best_prompt) > 0.6
