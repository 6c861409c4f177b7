"""T12: values of secret environment variables are taken out of what is shown."""

import logging

import pytest

from rlprompt.cli.console import say_error
from rlprompt.redaction import RedactingFormatter, redact


def test_t12_values_of_variables_named_like_secrets_are_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "OPENAI_API_KEY": "sk-12345678",
        "MY_KEY": "sk-12345678-and-more",  # the longer one is taken out whole
        "HF_TOKEN": "hf_abcdefgh",
        "DB_PASSWORD": "correct horse",
        "SHORT_KEY": "none",  # no secret
        "KEYBOARD": "dvorak-layout",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    text = "sk-12345678-and-more sk-12345678 hf_abcdefgh 'correct horse' none dvorak-layout"
    assert redact(text) == "[redacted] [redacted] [redacted] '[redacted]' none dvorak-layout"


def test_t12_errors_and_tracebacks_hold_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-12345678")
    say_error("no login with\nsk-12345678")
    assert capsys.readouterr().err == "error: no login with [redacted]\n"
    try:
        raise ValueError("at sk-12345678")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", logging.WARNING, __file__, 1, "with %s", ("sk-12345678",), info)
    shown = RedactingFormatter("%(message)s").format(record)
    assert shown.startswith("with [redacted]\nTraceback")
    assert shown.endswith("ValueError: at [redacted]")
