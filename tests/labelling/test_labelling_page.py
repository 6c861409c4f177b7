"""The page docs/labelling.md: its commands print what it shows, and its keys are those of the page."""

import json
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from rlprompt.cli.main import main
from rlprompt.config import load_config
from rlprompt.preferences import Vote
from rlprompt.runs import train

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "labelling.md").read_text(encoding="utf-8")
SCRIPT = (ROOT / "rlprompt" / "labelling" / "page" / "label.js").read_text(encoding="utf-8")


def test_the_commands_print_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLPROMPT_RUN_DIR", str(tmp_path / "runs"))
    preferences = (ROOT / "docs" / "preferences.md").read_text(encoding="utf-8")
    (tmp_path / "rewrites.yaml").write_text(re.findall(r"```yaml\n(.*?)```", preferences, flags=re.DOTALL)[0])
    folder = train(load_config("rewrites.yaml"), progress=False).folder
    (shown,) = re.findall(r"```console\n(.*?)```", PAGE, flags=re.DOTALL)
    for part in shown.split("$ ")[1:]:
        command, _, expected = part.partition("\n")
        capfd.readouterr()
        assert main([str(folder) if word == "RUN" else word for word in shlex.split(command)[1:]]) == 0
        assert capfd.readouterr().out == expected


def test_the_table_of_keys_and_the_record_of_a_vote_are_those_of_the_code() -> None:
    table = PAGE.partition("| key | |")[2].partition("\n\n")[0]
    words = {"left arrow": "ArrowLeft", "right arrow": "ArrowRight", "space": " ", "backspace": "Backspace"}
    rows = [row.split("|")[1] for row in table.splitlines()[2:]]
    documented = [{words.get(key, key) for key in re.sub("[`]", "", row).strip().split(", ")} for row in rows]
    block = re.findall(r"const KEYS = \{(.*?)\};", SCRIPT, flags=re.DOTALL)[0]
    bound: dict[str, set[str]] = {}
    for quoted, plain, choice in re.findall(r'(?:"(.)"|(\w+)): "(\w+)"', block):
        bound.setdefault(choice, set()).add(quoted or plain)
    assert documented == [bound[choice] for choice in ("left", "right", "tie", "skip", "undo")]
    vote = json.loads(re.findall(r"```json\n(.*)\n", PAGE)[0])
    assert set(vote) - {"record", "number"} == {entry.name for entry in fields(Vote)} - {"simulated"}
