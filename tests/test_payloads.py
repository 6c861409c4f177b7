import numpy as np
import pytest

from rlprompt.payloads import can_be_kept, payload_text


@pytest.mark.parametrize("payload", [{"images": [[0, 255], [0.1, -1e-9]]}, [], "a.png", 0, False, {"a": None}])
def test_what_json_gives_back_as_it_was_can_be_kept(payload: object) -> None:
    assert can_be_kept(payload)
    assert isinstance(payload_text(payload), str)


@pytest.mark.parametrize("payload", [(1, 2), {1: "a"}, np.zeros(2), object(), [float("nan")], {"a": [(1,)]}])
def test_what_json_would_change_cannot(payload: object) -> None:
    assert not can_be_kept(payload)
    assert payload_text(payload) is None


def test_no_payload_is_nothing_to_lose() -> None:
    assert can_be_kept(None)
