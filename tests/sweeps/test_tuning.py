"""Trials under Ray Tune, in processes of their own: the same results, over a kill and Ctrl-C."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from local_sweeps import SMALL

from rlprompt.config import parse_config
from rlprompt.runs import load_run, train
from rlprompt.sweeps import sweep
from rlprompt.sweeps.budget import read_grants
from rlprompt.sweeps.report import last_iteration
from rlprompt.sweeps.settings import parse_sweep

pytestmark = pytest.mark.ray

DEADLY = """
import os
import signal
from pathlib import Path

HERE = Path(__file__).parent


def reward(*, prompts, completions, outputs, references=None, **columns):
    known = list(HERE.glob("runs/*/trial-000/checkpoint-000001"))
    if known and not (HERE / "killed").exists():
        (HERE / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return [output.choice_logprobs[reference] for output, reference in zip(outputs, references, strict=True)]
"""


def config_in(folder: Path, **sections: Any) -> dict[str, Any]:
    return {**SMALL, "run": {**SMALL["run"], "dir": str(folder)}, **sections}


def test_trials_are_the_runs_they_would_be_alone_even_where_a_process_is_killed(tmp_path: Path) -> None:
    """The process of the first trial is killed; the second one trains with RLlib within Tune."""
    (tmp_path / "deadly.py").write_text(DEADLY)
    reward = {"reward": [{"name": "deadly:reward"}]}
    settings = parse_sweep(
        {
            "base": config_in(tmp_path / "runs", **reward),
            "parameters": {"algorithm.name": ["random", "ppo"]},
            # 56 calls of each; the killed one keeps what was set aside for it: as much as it needs in the end
            "budget": {"max_target_calls": 112},
        },
        source="sweep",
    )
    result = sweep(settings, progress=False, search_path=tmp_path)
    assert (tmp_path / "killed").exists()
    assert [row.failure for row in result.rows] == [None, None]
    assert (result.exit_code, result.granted_calls) == (0, 112)
    assert read_grants(result.folder / "budget.json")["trial-000"].kept[0] > 0  # it had a second session
    for row in result.rows:
        algorithm = {"name": row.parameters["algorithm.name"], "iterations": 3}
        config = parse_config(config_in(tmp_path / "alone", **reward, algorithm=algorithm))
        alone = train(config, progress=False, search_path=tmp_path)
        assert (row.best_prompt, row.dev_accuracy, row.dev_reward, row.target_calls) == (
            alone.best_prompt,
            alone.dev_accuracy,
            alone.dev_reward,
            alone.target_calls,
        )
        written = [record.prompt for record in load_run(result.folder / row.trial).prompts()]
        assert written == [record.prompt for record in load_run(alone.folder).prompts()]
    assert not (result.folder / ".tmp-tune").exists()  # with Tune's pickles


def test_ctrl_c_lets_the_trials_in_their_processes_save_what_they_have(tmp_path: Path) -> None:
    slow = {
        "target": {"name": "planted:separable", "kwargs": {"latency_s": 0.1}},
        "algorithm": {"name": "random", "iterations": 1000},
    }
    settings = parse_sweep(
        {"base": config_in(tmp_path / "runs", **slow), "parameters": {"seed": [0, 1]}}, source="sweep"
    )

    def interrupt() -> None:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            for events in tmp_path.glob("runs/*/trial-000/events.jsonl"):
                if (last_iteration(events) or 0) >= 2:
                    os.kill(os.getpid(), signal.SIGINT)
                    return
            time.sleep(0.05)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    result = sweep(settings, progress=False)
    watcher.join()
    assert (result.stop_reason, result.exit_code) == ("interrupt", 130)
    first, second = result.rows
    assert (first.status, second.status) == ("interrupt", "waiting")
    assert 3 <= (first.iterations or 0) < 1000
    newest, _ = load_run(result.folder / first.trial).folder.checkpoints()[-1]
    assert newest == (first.iterations or 0) - 1
    assert result.granted_calls == first.target_calls == 16 * (first.iterations or 0)
