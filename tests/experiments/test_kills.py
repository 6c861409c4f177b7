"""The soak of kills: what it calls sound, and its server."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.reliability.kills import is_sound, table
from experiments.reliability.server import PlantedServer
from rlprompt.targets import load_target
from rlprompt.types import Rendered, TargetRequest

FOUND = {
    "kills": 2,
    "runners": 0,
    "seed": 0,
    "iterations": 10,
    "same_curve": True,
    "questions": 1000,
    "lost": 0,
    "sent": 1005,
    "repeated": 5,
    "unknown": 7,
    "bound": 32,
    "paid": 1007,
    "seconds": 90.0,
    "machine": "m",
}


@pytest.mark.parametrize(
    "change",
    [{"same_curve": False}, {"lost": 1}, {"repeated": 8}, {"unknown": 33}, {"paid": 1004}],
    ids=str,
)
def test_every_loss_is_seen(change: dict[str, Any]) -> None:
    assert is_sound(FOUND)
    assert not is_sound(FOUND | change)


def test_the_table_has_a_row_for_each_number_of_runners(tmp_path: Path) -> None:
    for runners in (0, 2):
        (tmp_path / f"kills-{runners}.json").write_text(json.dumps({**FOUND, "runners": runners}))
    assert "| 0 | 2 | yes | 1,000 | 0 | 1,005 | 5 | 7 | 32 | 2 |\n| 2 | 2 | yes |" in table(tmp_path)


def test_the_server_answers_as_the_planted_target_and_counts_repetitions() -> None:
    request = TargetRequest(Rendered(text="item 3 w01 w02"), choices=(" no", " yes"))
    (expected,) = load_target("planted:separable", length=2, vocabulary=10).run([request])
    with PlantedServer(latency_s=0.0, length=2, vocabulary=10) as server:
        target = load_target("openai:planted", base_url=server.url, choices_by="top-logprobs")
        found = [target.run([request])[0] for _ in range(2)]
        target.close()
        assert dict(server.calls) == {"item 3 w01 w02": 2}
    assert found[0].choice_logprobs == pytest.approx(expected.choice_logprobs)
