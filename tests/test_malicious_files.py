"""T1: a file that runs code when it is unpickled, in the place of every file that rlprompt reads back.

Nothing runs, and what is told is one line. Checksums are made to fit, as somebody who forges a file would.
"""

import hashlib
import io
import json
import logging
import pickle
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from planted_runs import TASK, finished
from preference_pairs import count_of, planted_texts, ruled_pairs

from rlprompt.algorithms.trl.preference_data import read_lines
from rlprompt.algorithms.trl.reward_model import RewardModelConfig, train_reward_model
from rlprompt.config import RunConfig, load_config, parse_config
from rlprompt.errors import CheckpointError, ConfigError, ModelNotFoundError, RLPromptError, RunError, TaskError
from rlprompt.model_files import converted_folder
from rlprompt.models import load_frozen, load_tokenizer
from rlprompt.planted_models import planted_model
from rlprompt.policies import load_policy
from rlprompt.preference_pairs import read_pairs
from rlprompt.preferences.votes import read_votes
from rlprompt.rewards.attribute import Attribute
from rlprompt.rewards.classifier import SETTINGS
from rlprompt.rewards.classifier import WEIGHTS as CLASSIFIER
from rlprompt.rewards.learned.language_model import DESCRIPTION, WEIGHTS, RewardModel
from rlprompt.runs import load_run, train
from rlprompt.runs.candidates import candidates_of
from rlprompt.runs.folder import RunFolder
from rlprompt.runs.journal import read_journal
from rlprompt.runs.stages import _load_reference
from rlprompt.targets.cache import CachedTarget, ResponseCache
from rlprompt.targets.planted import PlantedTarget
from rlprompt.tasks import load_task
from rlprompt.types import Rendered, TargetRequest

Slot = Callable[[Path, bytes], Any]


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.canary, "w"))


def forged(kind: str, canary: Path) -> bytes:
    """A pickle, or what `torch.save` makes of one."""
    if kind == "pickle":
        return pickle.dumps(Evil(canary))
    buffer = io.BytesIO()
    torch.save({"weights": Evil(canary)}, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, a trained reward model and a classifier, to be copied and spoilt."""
    base = tmp_path_factory.mktemp("prepared")
    shutil.copytree(finished(base), base / "run")
    pairs = ruled_pairs(planted_texts, count_of("w03"), 20)
    settings = RewardModelConfig.model_validate({"model": "planted-10", "device": "cpu", "dtype": "float32"})
    train_reward_model(pairs, base / "reward", settings)
    planted_model(10).save_pretrained(base / "model")
    return base


def replace(file: Path, data: bytes, sums: Path | None = None, *keys: str) -> None:
    """Writes a file, and its checksum into the JSON file that has it (below the keys)."""
    assert file.exists(), file
    file.write_bytes(data)
    if sums is not None:
        document = json.loads(sums.read_text())
        place = document
        for key in keys:
            place = place[key]
        place[file.relative_to(sums.parent).as_posix()] = hashlib.sha256(data).hexdigest()
        sums.write_text(json.dumps(document))


def config_of(run: Path, iterations: int = 4) -> RunConfig:
    """What continues a run."""
    data = {**TASK, "algorithm": {**TASK["algorithm"], "iterations": iterations}}
    return parse_config({**data, "run": {**TASK["run"], "dir": str(run.parent)}})


def policy(folder: Path, data: bytes) -> None:
    best = folder / "run" / "best"
    replace(best / "policy.safetensors", data, best / "policy.json", "files")
    load_policy(folder / "run")


def unlisted(folder: Path, data: bytes) -> None:
    """A pickle that a policy's description names in the place of its weights."""
    best = folder / "run" / "best"
    (best / "policy.bin").write_bytes(data)
    described = json.loads((best / "policy.json").read_text())
    described["files"] = {"policy.bin": hashlib.sha256(data).hexdigest()}
    (best / "policy.json").write_text(json.dumps(described))
    load_policy(folder / "run")


def newest(folder: Path) -> Path:
    """Of the checkpoints only the newest stays, so that nothing can be gone back to."""
    *older, (_, path) = RunFolder(folder / "run").checkpoints()
    for _, old in older:
        shutil.rmtree(old)
    return path


def checkpoint_tensors(folder: Path, data: bytes) -> None:
    """Weights, optimiser, and the state of scorer, rewards and stabilisers are one file."""
    path = newest(folder)
    replace(path / "state.safetensors", data, path / "checksums.json")
    train(config_of(folder / "run"), resume=folder / "run", progress=False)


def checkpoint_values(folder: Path, data: bytes) -> None:
    path = newest(folder)
    replace(path / "state.json", data, path / "checksums.json")
    train(config_of(folder / "run"), resume=folder / "run", progress=False)


def checkpoint_extra(folder: Path, data: bytes) -> None:
    """A file that trainers elsewhere read back."""
    (newest(folder) / "optimizer.pt").write_bytes(data)
    train(config_of(folder / "run"), resume=folder / "run", progress=False)


def stage_reference(folder: Path, data: bytes) -> None:
    (folder / "reference.safetensors").write_bytes(data)
    _load_reference(SimpleNamespace(policy=None), folder)  # type: ignore[arg-type]


def prompts(folder: Path, data: bytes) -> None:
    replace(RunFolder(folder / "run").part("prompts", 0), data)
    load_run(folder / "run").prompts()


def outputs(folder: Path, data: bytes) -> None:
    replace(RunFolder(folder / "run").part("outputs", 0), data)
    list(load_run(folder / "run").answers())


def other_columns(folder: Path, data: bytes) -> None:
    path = RunFolder(folder / "run").part("outputs", 0)
    known = pq.read_table(path).column("prompt_id").to_pylist()
    table = pa.table({"prompt_id": known, "failure": [data] * len(known)})
    pq.write_table(table, path)
    list(load_run(folder / "run").answers())


def scores(folder: Path, data: bytes) -> None:
    (folder / "scores.parquet").write_bytes(data)
    candidates_of(load_run(folder / "run"), scores=folder / "scores.parquet")


def events(folder: Path, data: bytes) -> None:
    replace(folder / "run" / "events.jsonl", data + b"\n{}\n")  # of a last line it is said that a kill cut it
    load_run(folder / "run").events()


def run_config(folder: Path, data: bytes) -> None:
    replace(folder / "run" / "config.yaml", data)
    load_run(folder / "run")


def configuration(folder: Path, data: bytes) -> None:
    (folder / "mine.yaml").write_bytes(data)
    load_config(folder / "mine.yaml")


def reward_model(folder: Path, data: bytes) -> None:
    replace(folder / "reward" / WEIGHTS, data, folder / "reward" / DESCRIPTION, "files")
    RewardModel.load(folder / "reward")


def classifier(folder: Path, data: bytes) -> None:
    (folder / SETTINGS).write_text(json.dumps({"format_version": 1, "encoder": "e", "labels": ["a", "b"]}))
    (folder / CLASSIFIER).write_bytes(data)
    Attribute(str(folder), 0)


def model_weights(folder: Path, data: bytes) -> None:
    replace(folder / "model" / "model.safetensors", data)
    load_frozen(str(folder / "model"))


def model_pickle(folder: Path, data: bytes) -> None:
    (folder / "model" / "model.safetensors").unlink()
    (folder / "model" / "pytorch_model.bin").write_bytes(data)
    load_frozen(str(folder / "model"))


def tokenizer(folder: Path, data: bytes) -> None:
    (folder / "model" / "tokenizer.json").write_bytes(data)
    load_tokenizer(str(folder / "model"))


def packaged_model(folder: Path, data: bytes) -> None:
    (folder / "m.gguf").write_bytes(data)
    converted_folder("m", [folder / "m.gguf"], "0" * 64, folder / "models")


def dataset(suffix: str) -> Slot:
    def load(folder: Path, data: bytes) -> None:
        for split in ("train", "dev", "test"):
            (folder / f"{split}.{suffix}").write_bytes(data)
        splits = ", ".join(f"{split}: {split}.{suffix}" for split in ("train", "dev", "test"))
        (folder / "card.yaml").write_text(
            f"splits: {{{splits}}}\ncolumns: {{input: text, reference: label}}\n"
            'choices: [" no", " yes"]\ntemplate: "{input} {prompt}"\n'
        )
        load_task(folder / "card.yaml")

    return load


def task_card(folder: Path, data: bytes) -> None:
    (folder / "card.yaml").write_bytes(data)
    load_task(folder / "card.yaml")


def pairs(folder: Path, data: bytes) -> None:
    (folder / "pairs.jsonl").write_bytes(data)
    read_pairs(folder / "pairs.jsonl")


def stage_pairs(folder: Path, data: bytes) -> None:
    (folder / "pairs.jsonl").write_bytes(data)
    read_lines(folder / "pairs.jsonl", "rankings")


def votes(folder: Path, data: bytes) -> None:
    (folder / "votes.jsonl").write_bytes(data + b"\n")
    read_votes(folder / "votes.jsonl")


def cache_file(folder: Path, data: bytes) -> None:
    (folder / "answers.sqlite").write_bytes(data)
    ResponseCache(folder / "answers.sqlite")


SLOTS: dict[str, tuple[Slot, type[RLPromptError]]] = {
    "policy": (policy, CheckpointError),
    "policy of another suffix": (unlisted, CheckpointError),
    "checkpoint tensors": (checkpoint_tensors, CheckpointError),
    "checkpoint values": (checkpoint_values, CheckpointError),
    "checkpoint with one more file": (checkpoint_extra, CheckpointError),
    "reference of a stage": (stage_reference, CheckpointError),
    "prompts of a run": (prompts, RunError),
    "outputs of a run": (outputs, RunError),
    "outputs with other columns": (other_columns, RunError),
    "scores": (scores, ConfigError),
    "events of a run": (events, RunError),
    "configuration of a run": (run_config, RLPromptError),
    "configuration": (configuration, ConfigError),
    "reward model": (reward_model, CheckpointError),
    "classifier": (classifier, CheckpointError),
    "weights of a model": (model_weights, ModelNotFoundError),
    "weights of a model as a pickle": (model_pickle, ModelNotFoundError),
    "tokenizer": (tokenizer, ModelNotFoundError),
    "packaged model": (packaged_model, ModelNotFoundError),
    "data .jsonl": (dataset("jsonl"), TaskError),
    "data .csv": (dataset("csv"), TaskError),
    "data .tsv": (dataset("tsv"), TaskError),
    "data .pkl": (dataset("pkl"), TaskError),
    "task card": (task_card, TaskError),
    "pairs": (pairs, ConfigError),
    "pairs of a stage": (stage_pairs, ConfigError),
    "votes": (votes, ConfigError),
    "cache": (cache_file, ConfigError),
}


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_t1_the_forged_files_would_run_code(kind: str, tmp_path: Path) -> None:
    data = io.BytesIO(forged(kind, tmp_path / "canary"))
    if kind == "pickle":
        pickle.load(data).close()
    else:
        torch.load(data, weights_only=False)["weights"].close()
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("kind", ["pickle", "torch"])
@pytest.mark.parametrize("slot", SLOTS)
def test_t1_a_forged_file_runs_nothing_and_is_a_one_line_error(
    slot: str, kind: str, prepared: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(prepared, folder)
    load, error = SLOTS[slot]
    with pytest.raises(error) as caught:
        load(folder, forged(kind, tmp_path / "canary"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_t1_a_forged_row_of_the_cache_is_deleted_and_asked_again(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, data = tmp_path / "answers.sqlite", forged(kind, tmp_path / "canary")
    request = TargetRequest(Rendered(text="w01 item 3"), choices=(" no", " yes"))
    with ResponseCache(path) as cache:
        (expected,) = CachedTarget(PlantedTarget(), cache).run([request])
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE answers SET value = ?, digest = ?", (data, hashlib.sha256(data).hexdigest()))
    with ResponseCache(path) as cache, caplog.at_level(logging.WARNING):
        (found,) = CachedTarget(PlantedTarget(), cache).run([request])
    assert (found, found.cached) == (expected, False)
    assert "deleted a damaged answer" in caplog.text
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_t1_a_forged_journal_holds_no_answer(kind: str, tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_bytes(forged(kind, tmp_path / "canary") + b"\n")
    assert read_journal(tmp_path / "journal.jsonl") == []
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "values",
    ["[1, 2]", '{"format": 1}', '{"format": 1, "state": [1]}', '{"format": 1, "state": {"$items": 3}}', "[" * 10**5],
    ids=["list", "no state", "state a list", "no items", "nested without end"],
)
def test_t1_values_of_another_shape_are_a_one_line_error(values: str, prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(prepared, folder)
    with pytest.raises(CheckpointError) as caught:
        checkpoint_values(folder, values.encode())
    assert "\n" not in str(caught.value)


def test_t1_code_in_the_metadata_of_a_table_does_not_run(prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(prepared, folder)
    path = RunFolder(folder / "run").part("prompts", 0)
    extension = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Evil(tmp_path / "canary")),
    }
    table = pq.read_table(path)
    pq.write_table(table.cast(pa.schema([field.with_metadata(extension) for field in table.schema])), path)
    assert len(load_run(folder / "run").prompts()) > 0
    assert not (tmp_path / "canary").exists()


def test_t1_a_data_set_with_a_script_and_a_pickle_runs_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = tmp_path / "canary"
    hub = tmp_path / "me" / "films"  # a folder of this name is read before the hub is asked
    hub.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    (hub / "films.py").write_text(f"open({str(canary)!r}, 'w')\n")
    (hub / "train.pkl").write_bytes(forged("pickle", canary))
    (tmp_path / "card.yaml").write_text(
        "hub: {id: me/films, splits: {train: train, dev: dev, test: test}}\n"
        'columns: {input: text, reference: label}\nchoices: [" no", " yes"]\ntemplate: "{input} {prompt}"\n'
    )
    with pytest.raises(TaskError, match="cannot be loaded"):
        load_task(tmp_path / "card.yaml")
    assert not canary.exists()
