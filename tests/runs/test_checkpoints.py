from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from rlprompt.errors import CheckpointError
from rlprompt.runs.checkpoints import decode, encode, load_checkpoint, newest_valid, save_checkpoint
from rlprompt.runs.folder import RunFolder


def through_json(state: Any) -> Any:
    skeleton, arrays = encode(state)
    data = safetensors.numpy.save(arrays)
    return decode(json.loads(json.dumps(skeleton, allow_nan=False)), safetensors.numpy.load(data))


def save_policy(folder: Path) -> None:
    folder.mkdir()
    (folder / "policy.json").write_text("{}")


def make_checkpoints(root: Path, *iterations: int, keep: int = 9) -> RunFolder:
    folder = RunFolder(root)
    for iteration in iterations:
        state = {"iteration": iteration, "weights": np.arange(3.0) + iteration}
        save_checkpoint(folder, iteration, encode(state), keep=keep, save_policy=save_policy)
    return folder


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4) | st.sampled_from(["$array", "$", "$$x"]), inner, max_size=3)
        | st.dictionaries(st.integers(), inner, max_size=2)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(PLAIN)
def test_plain_values_come_back_exactly(state: Any) -> None:
    found = through_json(state)
    assert found == state
    assert repr(found) == repr(state)  # also 1 is not 1.0, 0.0 is not -0.0, True is not 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_know_come_back(value: float) -> None:
    found = through_json([value])
    assert repr(found) == repr([value])


def test_tuples_come_back_as_lists() -> None:
    assert through_json({"betas": (0.9, 0.999)}) == {"betas": [0.9, 0.999]}


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "int8", "int16", "int64", "uint8", "uint32", "bool"]
)
@pytest.mark.parametrize("shape", [(), (0, 2), (2, 3)])
def test_arrays_come_back_with_dtype_and_shape(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    found = through_json({"a": [array]})["a"][0]
    assert isinstance(found, np.ndarray)
    assert (found.dtype, found.shape) == (array.dtype, shape)
    np.testing.assert_array_equal(found, array)


def test_transposed_and_big_endian_arrays_keep_their_values() -> None:
    array = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(through_json(array.T), array.T)
    np.testing.assert_array_equal(through_json(array.astype(">f8")), array)


def test_numpy_scalars_stay_numpy_scalars() -> None:
    found = through_json([np.float32(0.1), np.int64(3), np.bool_(True), np.float64(0.1)])
    assert [type(value) for value in found] == [np.float32, np.int64, np.bool_, np.float64]
    assert found == [np.float32(0.1), 3, True, 0.1]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int64", "uint8", "bool"])
def test_tensors_come_back_with_their_dtype(dtype: str) -> None:
    import torch

    tensor = torch.tensor([[1.0, 0.0], [3.0, 5.0]]).to(getattr(torch, dtype)).T.requires_grad_(False)
    scalar = torch.tensor(7.0).to(getattr(torch, dtype))
    found, zero_dimensional = through_json([tensor, scalar])
    assert found.dtype == tensor.dtype
    assert torch.equal(found, tensor)
    assert zero_dimensional.shape == ()
    assert torch.equal(zero_dimensional, scalar)


def test_the_encoded_state_does_not_change_with_the_live_one() -> None:
    import torch

    array, tensor = np.zeros(2), torch.nn.Parameter(torch.zeros(2))
    skeleton, arrays = encode({"a": array, "t": tensor})
    array += 1
    with torch.no_grad():
        tensor += 1
    found = decode(skeleton, arrays)
    assert found["a"].tolist() == [0.0, 0.0]
    assert found["t"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", object(), np.array(["text"]), np.array([None])])
def test_what_cannot_be_held_is_an_error_that_says_where(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"state\.optimizer\.0 is an? .* cannot hold"):
        encode({"optimizer": [value]})


def test_the_module_needs_no_torch_for_arrays() -> None:
    code = "import numpy, sys; from rlprompt.runs.checkpoints import encode; encode({'a': numpy.ones(2)}); "
    subprocess.run([sys.executable, "-c", code + "sys.exit('torch' in sys.modules)"], check=True, timeout=60)


def test_t1_a_checkpoint_is_a_folder_of_safetensors_json_and_checksums(tmp_path: Path) -> None:
    folder = make_checkpoints(tmp_path, 4)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert files == [
        "checkpoint-000004/checksums.json",
        "checkpoint-000004/policy/policy.json",
        "checkpoint-000004/state.json",
        "checkpoint-000004/state.safetensors",
        "latest",
    ]
    assert folder.latest.read_text() == "checkpoint-000004\n"
    found = newest_valid(folder)
    assert found is not None
    assert found[0] == 4
    assert found[1]["weights"].tolist() == [4.0, 5.0, 6.0]


def test_the_newest_are_kept(tmp_path: Path) -> None:
    folder = make_checkpoints(tmp_path, 1, 3, 5, 7, keep=2)
    assert [iteration for iteration, _ in folder.checkpoints()] == [5, 7]


def test_a_checkpoint_of_the_same_iteration_is_replaced(tmp_path: Path) -> None:
    folder = make_checkpoints(tmp_path, 5, 5)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["checkpoint-000005"]
    assert load_checkpoint(folder.checkpoint(5))["iteration"] == 5


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def change(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")


@pytest.mark.parametrize("damage", [cut, change, Path.unlink], ids=["cut short", "changed", "missing"])
@pytest.mark.parametrize("name", ["state.json", "state.safetensors", "checksums.json", "policy/policy.json"])
def test_t4_a_damaged_checkpoint_falls_back_loudly_to_the_one_before(
    tmp_path: Path, name: str, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_checkpoints(tmp_path, 1, 3, 5)
    damage(folder.checkpoint(5) / name)
    with caplog.at_level(logging.WARNING):
        found = newest_valid(folder)
    assert found is not None
    assert found[0] == 3
    assert "checkpoint is damaged" in caplog.text
    assert "going back to checkpoint-000003" in caplog.text
    assert [iteration for iteration, _ in folder.checkpoints()] == [1, 3]
    assert (tmp_path / "damaged-checkpoint-000005").is_dir()


def test_a_file_that_is_not_listed_makes_a_checkpoint_damaged(tmp_path: Path) -> None:
    folder = make_checkpoints(tmp_path, 1)
    (folder.checkpoint(1) / "policy" / "weights.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="are not those that its checksums"):
        load_checkpoint(folder.checkpoint(1))


def test_t3_a_linked_checkpoint_is_refused(tmp_path: Path) -> None:
    other = make_checkpoints(tmp_path / "other", 1)
    folder = RunFolder(tmp_path / "run")
    folder.root.mkdir()
    folder.checkpoint(1).symlink_to(other.checkpoint(1))
    with pytest.raises(CheckpointError, match="is a link"):
        load_checkpoint(folder.checkpoint(1))


def test_no_whole_checkpoint_is_an_error(tmp_path: Path) -> None:
    folder = make_checkpoints(tmp_path, 1)
    cut(folder.checkpoint(1) / "state.json")
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* is whole"):
        newest_valid(folder)
    assert folder.checkpoint(1).is_dir()  # nothing is thrown away


def test_a_run_without_checkpoints_has_none_but_a_lost_one_is_an_error(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert newest_valid(folder) is None
    folder.latest.write_text("checkpoint-000003\n")
    with pytest.raises(CheckpointError, match="none is there"):
        newest_valid(folder)


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoints(tmp_path, 1)
    path = folder.checkpoint(1)
    document = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**document, "format": 99}))
    sums = json.loads((path / "checksums.json").read_text())
    from rlprompt.runs.folder import sha256

    (path / "checksums.json").write_text(json.dumps({**sums, "state.json": sha256(path / "state.json")}))
    with pytest.raises(CheckpointError, match="another format"):
        load_checkpoint(path)
