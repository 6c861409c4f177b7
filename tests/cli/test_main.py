"""Exit codes and one-line errors of the command line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from rlprompt import __version__
from rlprompt.cli import main as entry
from rlprompt.cli.console import number, quiet_stdout, say_json, say_table
from rlprompt.cli.main import main
from rlprompt.errors import (
    BudgetExceededError,
    CheckpointError,
    ConfigError,
    RLPromptError,
    TooManyFailuresError,
)


def _raises(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def app(*_: object, **__: object) -> int:
        raise error

    monkeypatch.setattr(entry, "app", app)


def test_without_arguments_the_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    for verb in ("train", "sweep", "eval", "check", "judge-report", "list", "doctor", "init"):
        assert f"\n  {verb} " in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rlprompt {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "c.yaml", "--resumee", "x"], "No such option: --resumee"),
        (["trian"], "No such command 'trian'"),
        (["list"], "Missing argument"),
        (["eval", "--limit", "0"], "Invalid value for '--limit'"),
        (["eval", "--limit", "ten"], "Invalid value for '--limit'"),
    ],
    ids=["option", "verb", "argument", "range", "type"],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RLPromptError("x"), 1),
        (ConfigError("x"), 2),
        (CheckpointError("x"), 1),
        (TooManyFailuresError("x"), 1),
        (BudgetExceededError("x"), 3),
        (KeyboardInterrupt(), 130),
        (PermissionError(13, "Permission denied", "/x"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_each_error_has_its_exit_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _raises(monkeypatch, error)
    assert main(["list", "tasks"]) == code
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert "Traceback" not in shown


def test_a_message_of_several_lines_becomes_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _raises(monkeypatch, ConfigError("first\n   second"))
    main(["list", "tasks"])
    assert capsys.readouterr().err == "error: first second\n"


def test_a_mistake_of_rlprompt_itself_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    _raises(monkeypatch, ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        main(["list", "tasks"])


def test_debug_shows_the_traceback_of_a_users_mistake() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rlprompt", "train", "nowhere.yaml"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "RLPROMPT_LOG_LEVEL": "debug"},
    )
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.endswith(
        "error: configuration not found: nowhere.yaml; check the path, or see 'rlprompt list recipes'\n"
    )


def test_an_unknown_log_level_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RLPROMPT_LOG_LEVEL", "loud")
    assert main(["list", "rewards"]) == 2
    assert "RLPROMPT_LOG_LEVEL is 'loud'; use debug" in capsys.readouterr().err


def test_a_reader_that_leaves_early_causes_no_traceback() -> None:
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -u -m rlprompt list rewards | (exec <&-; sleep 1)"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def _python_print() -> None:
    sys.stdout.write("from python\n")


def _c_print() -> None:
    os.write(1, b"from C\n")


@pytest.mark.parametrize("noise", [_python_print, _c_print], ids=["python", "C"])
def test_quiet_stdout_sends_what_libraries_print_to_standard_error(
    noise: Callable[[], None], capfd: pytest.CaptureFixture[str]
) -> None:
    with quiet_stdout():
        noise()
    say_json({"a": 1})
    captured = capfd.readouterr()
    assert json.loads(captured.out) == {"a": 1}
    assert captured.err.startswith("from ")


def test_quiet_stdout_gives_standard_output_back_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="x"), quiet_stdout():
        raise ConfigError("x")
    os.write(1, b"back\n")
    assert capfd.readouterr().out == "back\n"


def test_json_refuses_what_is_not_json() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        say_json({"accuracy": float("nan")})


def test_tables_are_aligned_and_have_no_trailing_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    say_table([["a", "1"], ["long", ""]], indent=" ")
    assert capsys.readouterr().out == " a     1\n long\n"


def test_unknown_numbers_are_dashes() -> None:
    assert [number(0.12345), number(None), number(float("nan")), number(2.0, 1)] == ["0.1235", "-", "-", "2.0"]
