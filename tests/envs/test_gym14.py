"""T13: the environment also runs under the newest gymnasium, which lives in an environment of its own."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-gym14" / "bin" / "python"


@pytest.fixture(scope="module")
def seen() -> dict[str, object]:
    if not PYTHON.is_file() and not os.environ.get("CI"):
        pytest.skip("run 'make gym14' first")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(PYTHON), str(ROOT / "tests" / "envs" / "gym14_check.py")],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    result: dict[str, object] = json.loads(done.stdout)
    return result


def test_t13_it_is_the_newest_gymnasium_without_ray(seen: dict[str, object]) -> None:
    assert str(seen["gymnasium"]).startswith("1.4.")
    assert seen["ray"] is False


def test_t13_check_env_passes_and_the_vector_env_plays_an_episode(seen: dict[str, object]) -> None:
    assert (seen["num_envs"], seen["shape"], seen["steps"], seen["finite"]) == (4, [4, 3], 3, True)
