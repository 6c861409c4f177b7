"""Which requests are touched."""

import pytest
from pydantic import ValidationError

from rlprompt.serving.triggers import Trigger


@pytest.mark.parametrize(
    ("settings", "text", "model", "reason"),
    [
        ({}, "a", None, None),
        ({}, "", None, "shorter than 1"),
        ({"max_chars": 3}, "abcd", None, "longer than 3"),
        ({"models": ["gpt-*", "small"]}, "a", "gpt-5", None),
        ({"models": ["gpt-*", "small"]}, "a", "large", "another model"),
        ({"models": ["gpt-*"]}, "a", None, None),  # nobody said which
        ({"matches": "(?i)^translate"}, "Translate this", None, None),
        ({"matches": "^translate"}, "Summarise this", None, "does not match"),
        ({"unless": "```"}, "fix ```x```", None, "left alone"),
    ],
)
def test_a_request_is_touched_or_the_reason_is_given(
    settings: dict[str, object], text: str, model: str | None, reason: str | None
) -> None:
    found = Trigger.model_validate(settings).refusal(text, model)
    assert (found is None) == (reason is None)
    if reason is not None:
        assert found is not None
        assert found.startswith("trigger: ")
        assert reason in found


def test_a_broken_expression_is_refused() -> None:
    with pytest.raises(ValidationError, match="no regular expression"):
        Trigger(matches="(")
