"""The soak of faults: what it calls sound, its table, and the outage of its server. The soak itself takes an hour."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from experiments.reliability.fault_session import iterations_of
from experiments.reliability.faults import FAULTS, is_sound, left_alone, measure, reason_in, table
from experiments.reliability.kills import LATENCY_S, LENGTH, VOCABULARY
from experiments.reliability.server import PlantedServer
from rlprompt.targets import load_target
from rlprompt.types import Rendered, TargetRequest

FOUND = {
    "fault": "runner",
    "index": 0,
    "iteration": 3,
    "delay_s": 0.5,
    "injected": True,
    "codes": [0],
    "reasons": [],
    "lost": 0,
    "repeated": 0,
    "unknown": 0,
    "same_curve": True,
    "same_weights": True,
    "iterations": 30,
    "seconds": 90.0,
    "machine": "m",
}


@pytest.mark.parametrize(
    "change",
    [
        {"injected": False},
        {"lost": 1},
        {"repeated": 1, "unknown": 1},
        {"fault": "driver", "repeated": 3, "unknown": 2},
        {"same_curve": False},
        {"same_weights": False},
        {"codes": [1, 0], "reasons": [""]},
    ],
    ids=str,
)
def test_every_loss_is_seen(change: dict[str, Any]) -> None:
    assert is_sound(FOUND)
    assert is_sound(FOUND | {"fault": "driver", "codes": [-9, 0], "repeated": 2, "unknown": 2})
    assert is_sound(FOUND | {"codes": [1, 0], "reasons": ["error: lost"]})
    assert not is_sound(FOUND | change)


def test_the_table_sums_up_each_fault(tmp_path: Path) -> None:
    results = [
        FOUND,
        FOUND | {"index": 1, "codes": [1, 0], "reasons": ["error: lost"]},
        FOUND | {"fault": "driver", "codes": [-9, 0], "repeated": 2, "unknown": 5, "same_curve": False},
    ]
    for result in results:
        (tmp_path / f"{result['fault']}-{result['index']}.json").write_text(json.dumps(result))
    lines = table(tmp_path).splitlines()
    assert "| env runner killed | 2 | 1 | 1 | 0 | 0 | 0 | 2 of 2 | 3 |" in lines
    assert "| driver killed, resumed | 1 | 0 | 1 | 0 | 2 | 5 | 0 of 1 | 2 |" in lines
    assert len(FAULTS) == 7


@pytest.mark.slow
@pytest.mark.ray
def test_t9_a_run_whose_head_is_lost_says_so_and_goes_on_on_a_new_cluster(tmp_path: Path) -> None:
    with PlantedServer(latency_s=LATENCY_S, length=LENGTH, vocabulary=VOCABULARY) as server:
        calm = left_alone(tmp_path, server, 4)
    options = Namespace(seed=0, iterations=4)
    found = measure("head", 0, options, calm, tmp_path)
    assert found["codes"][0] != 0
    assert found["codes"][-1] == 0
    assert "GCS" in found["reasons"][0]
    assert is_sound(found)


def test_refused_calls_are_not_counted_and_are_made_again() -> None:
    with PlantedServer(latency_s=0.0, length=2, vocabulary=10) as server:
        target = load_target(
            "openai:planted", base_url=server.url, choices_by="top-logprobs", backoff_s=0.2, max_attempts=8
        )
        server.refuse(0.5)
        (output,) = target.run([TargetRequest(Rendered(text="item 3 w01"), choices=(" no", " yes"))])
        target.close()
        assert output.failure is None
        assert dict(server.calls) == {"item 3 w01": 1}


def test_recorded_iterations_and_the_reason_of_an_end_are_read(tmp_path: Path) -> None:
    run = tmp_path / "killed" / "1"
    run.mkdir(parents=True)
    assert iterations_of(tmp_path) == 0
    (run / "events.jsonl").write_text('{"event": "start"}\n{"event": "iteration"}\n{"event": "iteration"}\n')
    assert iterations_of(tmp_path) == 2
    (tmp_path / "log").write_text("WARNING x: y\nerror: env runners were lost\n\n")
    assert reason_in(tmp_path / "log") == "error: env runners were lost"
