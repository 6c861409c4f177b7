"""What a rewrite must keep: numbers, addresses, quotations, negations."""

import pytest

from rlprompt.serving.preserve import lost


@pytest.mark.parametrize(
    ("text", "rewrite", "reason"),
    [
        ("Add 12 and 30.", "What is 12 plus 30?", None),
        ("Add 12 and 30.", "What is 12 plus 3?", "lost-numbers: 1 of 2"),
        ("1,000 apples", "1000 apples", None),
        ("1,000 apples", "1.000 apples", "lost-numbers: 1 of 1"),
        ("version 1.2.3", "version 1.2", "lost-numbers: 1 of 1"),
        ("-5 degrees", "5 degrees", "lost-numbers: 1 of 1"),
        ("\uff11\uff12 apples", "12 apples", None),  # full-width digits
        ("see https://a.example/x?y=1.", "Look at https://a.example/x?y=1", None),
        ("see https://a.example/x", "see https://b.example/x", "lost-urls: 1 of 1"),
        ('say "good night"', "say \u201cgood night\u201d", None),
        ('say "good night"', "say good night", "lost-quotes: 1 of 1"),
        ("run `ls -l` now", "run it now", "lost-quotes: 1 of 1"),
        ("I don't like it", "I do not like it", None),
        ("I don\u2019t like it", "I like it", "lost-negations: 1 of 1"),
        ("It is not bad, never was", "It is not bad", "lost-negations: 1 of 2"),
        ("nothing to keep", "nothing to see here", None),
        ("plain", "other", None),
    ],
)
def test_what_is_lost(text: str, rewrite: str, reason: str | None) -> None:
    assert lost(text, rewrite) == reason


def test_only_what_is_asked_for_is_looked_for() -> None:
    assert lost("not 5", "yes", ["numbers"]) == "lost-numbers: 1 of 1"
    assert lost("not 5", "5", ["numbers"]) is None
    assert lost("not 5", "yes", []) is None
