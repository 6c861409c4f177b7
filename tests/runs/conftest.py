"""Runs with the tiny algorithm, in this process."""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlprompt.runs import RunResult, train

HERE = Path(__file__).parent


def _load() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("tiny_algorithm", HERE / "tiny_algorithm.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny_algorithm"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """The module of the tiny algorithm, its policy in the place of the real ones."""
    module = _load()
    stub = types.ModuleType("rlprompt.policies")
    stub.build_policy = module.build_policy  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rlprompt.policies", stub)
    monkeypatch.delenv("RLPROMPT_RUN_DIR", raising=False)
    # Syncing costs most of the time here, and only matters when a machine dies.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    yield module
    sys.modules.pop("tiny_algorithm", None)


@pytest.fixture
def start(tiny: types.ModuleType, tmp_path: Path) -> Callable[..., RunResult]:
    """Starts, or resumes, a tiny run: start("algorithm.iterations=3", resume=folder)."""

    def begin(*overrides: str, resume: Path | None = None, folder: Path | None = None, **more: Any) -> RunResult:
        config = tiny.make_config(folder or tmp_path / "runs", overrides)
        return train(config, resume=resume, search_path=HERE, **{"progress": False, **more})

    return begin
