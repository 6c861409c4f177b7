"""A small run on the planted task, and logging that a test leaves as it was."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from planted_runs import TASK

SMALL = {**TASK, "env": {"prompt_length": 3, "num_envs": 4}}


@pytest.fixture(autouse=True)
def _logging_stays() -> Iterator[None]:
    """`main` configures logging once a process; a captured stream must not outlive its test."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


@pytest.fixture
def small_config(tmp_path: Path) -> Callable[..., Path]:
    """Writes `small.yaml` with the given sections replaced; runs go to `<tmp>/runs`."""

    def write(**sections: object) -> Path:
        run = {**SMALL["run"], "dir": str(tmp_path / "runs")}  # type: ignore[dict-item]
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump({**SMALL, "run": run, **sections}, sort_keys=False), encoding="utf-8")
        return path

    return write
