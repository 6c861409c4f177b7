"""The page docs/preferences.md: its commands print what it shows, its program runs, and its tables are complete."""

import inspect
import json
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from rlprompt.cli.main import main
from rlprompt.config import load_config
from rlprompt.preferences import BUILDERS, PreferencePair
from rlprompt.preferences.builders import COMMON
from rlprompt.preferences.checks import CONSTRAINTS, DIRECTIVES, MERITS, Limits
from rlprompt.runs import train

PAGE = (Path(__file__).parents[2] / "docs" / "preferences.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_commands_print_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLPROMPT_RUN_DIR", str(tmp_path / "runs"))
    (tmp_path / "rewrites.yaml").write_text(_blocks("yaml")[0])
    folder = train(load_config("rewrites.yaml"), progress=False).folder
    (shown,) = _blocks("console")
    lines: dict[str, str] = {}
    for part in shown.split("$ ")[1:]:
        command, _, expected = part.partition("\n")
        words = shlex.split(command)
        capfd.readouterr()
        assert main([str(folder) if word == "RUN" else word for word in words[1:]]) == ("error" in expected)
        captured = capfd.readouterr()
        assert captured.out + captured.err == expected
        lines.setdefault("first", (tmp_path / "pairs.jsonl").read_text().splitlines()[0])
    first, example = json.loads(lines["first"]), json.loads(_blocks("json")[-1])
    assert {key: value for key, value in first.items() if "scores" not in key and key != "margin"} == {
        key: value for key, value in example.items() if "scores" not in key and key != "margin"
    }
    assert first["margin"] == pytest.approx(example["margin"])
    assert first["chosen_scores"] == pytest.approx(example["chosen_scores"])


def test_the_program_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"id": str(number), "input": f"{number}?", "chosen": "a", "rejected": "b"} for number in range(10)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    names: dict[str, object] = {}
    exec(_blocks("python")[0], names)
    assert [len(names[name]) for name in ("train", "validation", "rows")] == [9, 1, 9]  # type: ignore[arg-type]


def test_the_tables_name_every_column_builder_argument_and_check() -> None:
    columns = PAGE.partition("| column | what |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([a-z_]+)`", columns)) >= {entry.name for entry in fields(PreferencePair)} - {"columns"}
    table = PAGE.partition("| builder | source | a pair |")[2].partition("\n\n")[0]
    rows = {name: row for name, row in re.findall(r"^\| `([a-z-]+)` \|(.*)$", table, flags=re.MULTILINE)}
    assert set(rows) == set(BUILDERS)
    section = PAGE.partition("## Builders")[2].partition("## Other scores")[0]
    for name, builder in BUILDERS.items():
        arguments = set(list(inspect.signature(builder).parameters)[1:])
        own = set(re.findall(r"`([a-z_]+)`", rows[name]))
        assert own <= arguments, name
        assert arguments - own <= set(re.findall(r"`([a-z_]+)`", section)) | {"score"}, name
        paper = re.search(r"arXiv:(\d{4}\.\d{5})", builder.__doc__ or "")
        assert (paper[0] if paper else "") in rows[name]
    checks = PAGE.partition("| check | passes |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `([a-z-]+)`", checks, flags=re.MULTILINE) == list(MERITS)
    assert {f"`{entry.name}`" for entry in fields(Limits)} <= set(re.findall(r"`[a-z_]+`", checks))
    assert all(f"`{name}`" in section for name in (*CONSTRAINTS, *DIRECTIVES, *COMMON))
