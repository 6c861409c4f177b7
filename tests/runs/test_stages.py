"""Stages: one axis of iterations, the reference of what follows, exact resume from anywhere, and no pickles."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlprompt.config import RunConfig, parse_config
from rlprompt.errors import CheckpointError, ConfigError, UnknownNameError
from rlprompt.policies import load_policy
from rlprompt.runs import train
from rlprompt.runs.checkpoints import load_checkpoint
from rlprompt.runs.stages import build_stages, total_iterations

SFT, RL = 3, 4


def make_config(folder: Path, algorithm: str = "grpo", **sections: Any) -> RunConfig:
    """Three steps of SFT and four of RL on eight prompts; a checkpoint after every step."""
    pairs = folder / "pairs.jsonl"
    rows = [{"context": "w01 w02", "target": f"w0{index} w1{index}"} for index in range(5)]
    pairs.write_text("\n".join(json.dumps(row) for row in rows))
    data: dict[str, Any] = {
        "seed": 3,
        "task": {"name": "planted", "shots": 4, "dev_shots": 4},
        "target": {"name": "planted:separable", "kwargs": {"length": 2, "vocabulary": 20, "failure_rate": 0.02}},
        "policy": {
            "kind": "causal-lm",
            "model": "planted-20",
            "context": "w01 w02",
            "kwargs": {"lora": {"r": 2, "targets": ["c_attn"]}},
        },
        "env": {"prompt_length": 2, "num_envs": 8, "examples_per_step": 4},
        "algorithm": {"name": algorithm, "lr": 0.05, "iterations": RL, "kl_coeff": 0.1},
        "stages": [
            {
                "name": "warm-up",
                "algorithm": {"name": "sft", "lr": 0.05, "iterations": SFT, "minibatch_size": 2},
                "data": {"pairs": str(pairs)},
            }
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


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_policy(folder).trainable_state()


@pytest.fixture(scope="module", params=["grpo", "rloo"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path]:
    """A run that was never interrupted."""
    config = make_config(tmp_path_factory.mktemp(request.param), request.param)
    result = train(config, progress=False)
    assert result.iterations == SFT + RL
    return config, result.folder


def test_stages_share_one_axis_and_are_named_in_the_events(whole: tuple[RunConfig, Path]) -> None:
    config, folder = whole
    events = events_of(folder)
    assert [event["iteration"] for event in events if event["event"] == "iteration"] == list(range(SFT + RL))
    assert [(event["name"], event["iteration"]) for event in events if event["event"] == "stage"] == [
        ("warm-up", 0),
        ("main", SFT),
    ]
    scored = [event["num_prompts"] for event in events if event["event"] == "iteration"]
    assert scored == [0] * SFT + [8] * RL
    assert total_iterations(config) == SFT + RL


def test_the_policy_after_a_stage_is_the_reference_of_the_next(whole: tuple[RunConfig, Path]) -> None:
    _, folder = whole
    first_of_rl = next(event for event in events_of(folder) if event.get("iteration") == SFT and "metrics" in event)
    assert first_of_rl["metrics"]["loss/kl"] == pytest.approx(0, abs=1e-6)
    last = events_of(folder)[-2]
    assert abs(last["metrics"]["loss/kl"]) > 1e-6
    after = weights_of(folder / "stages" / "warm-up" / "policy")
    checkpoint = load_checkpoint(folder / f"checkpoint-{SFT - 1:06d}")["policy"]
    assert all(torch.equal(after[name], checkpoint[name]) for name in checkpoint)
    assert not all(torch.equal(after[name], value) for name, value in weights_of(folder).items())


@pytest.mark.parametrize(
    ("whole", "kept"),
    [("grpo", 2), ("grpo", SFT), ("grpo", SFT + 2), ("rloo", SFT + 2)],  # SFT is the same before both
    ids=["in the stage", "at its end", "behind it", "behind it, rloo"],
    indirect=["whole"],
)
def test_a_run_goes_on_from_anywhere_as_if_it_had_not_stopped(
    whole: tuple[RunConfig, Path], tmp_path: Path, kept: int
) -> None:
    import shutil

    config, folder = whole

    part = tmp_path / "part"
    shutil.copytree(folder, part)
    (part / "result.json").unlink()
    for iteration in range(kept, SFT + RL):  # as if killed behind the checkpoint that is left
        shutil.rmtree(part / f"checkpoint-{iteration:06d}")
    if kept < SFT:
        shutil.rmtree(part / "stages")
    train(config, resume=part, progress=False)
    assert events_of(part) == events_of(folder)
    one, other = weights_of(folder), weights_of(part)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_t1_no_file_of_a_run_is_a_pickle(whole: tuple[RunConfig, Path]) -> None:
    _, folder = whole
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".jsonl", ".yaml", ".safetensors", ".parquet", ".md", ""}
    assert [path.name for path in files if not path.suffix] == ["latest"]
    assert all(path.read_bytes()[:2] != b"\x80\x04" for path in files)
    names = set(load_checkpoint(folder / f"checkpoint-{SFT + RL - 1:06d}")["algorithm"])
    assert names == {"optimizer", "scheduler", "kl_coeff"}


def test_a_lost_reference_is_no_silent_restart(whole: tuple[RunConfig, Path], tmp_path: Path) -> None:
    import shutil

    config, folder = whole
    part = tmp_path / "part"
    shutil.copytree(folder, part)
    (part / "result.json").unlink()
    shutil.rmtree(part / f"checkpoint-{SFT + RL - 1:06d}")
    (part / "stages" / "warm-up" / "reference.safetensors").write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match=r"reference\.safetensors cannot be read"):
        train(config, resume=part, progress=False)


def test_a_stop_within_a_stage_ends_the_run_there(tmp_path: Path) -> None:
    result = train(make_config(tmp_path, budget={"max_wall_s": 1e-6}), progress=False)
    assert result.stop_reason == "wall"
    assert result.iterations == 0
    assert not (result.folder / "stages").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [(["a/b"], "stage name 'a/b' is no folder name"), (["a", "a"], "two stages have the name 'a'"), (["main"], "main")],
)
def test_names_of_stages_are_checked(tmp_path: Path, names: list[str], message: str) -> None:
    config = make_config(tmp_path, stages=[{"name": name, "algorithm": {"name": "random"}} for name in names])
    with pytest.raises(ConfigError, match=message):
        build_stages(config, allow_modules=(), search_path=None)


def test_an_unknown_algorithm_of_a_stage_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    config = make_config(tmp_path, stages=[{"name": "a", "algorithm": {"name": "sfd"}}])
    with pytest.raises(UnknownNameError, match="sfd"):
        train(config, progress=False)
    assert not (tmp_path / "runs").exists()
