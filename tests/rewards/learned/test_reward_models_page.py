"""The page docs/reward-models.md: its pairs are made, its commands print what it shows, its table is complete."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from rlprompt.cli.main import main
from rlprompt.registry import names

PAGE = (Path(__file__).parents[3] / "docs" / "reward-models.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"[+-]?\d+\.\d+")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize("kind", ["features", "bradley-terry"])
def test_the_commands_print_what_the_page_shows(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (made,) = [block for block in blocks("python") if block.startswith("# make_pairs.py")]
    exec(made, {})
    (shown,) = [block for block in blocks("text") if block.startswith(f"$ rlprompt train-reward {kind}")]
    command, _, expected = shown.partition("\n")
    assert main(shlex.split(command)[2:]) == 0
    printed = capsys.readouterr().out
    # The last digits are the machine's.
    assert [line.split("  ")[0] for line in printed.splitlines()] == [
        line.split("  ")[0] for line in expected.splitlines()
    ]
    ours, theirs = ([float(text) for text in NUMBER.findall(output)] for output in (printed, expected))
    assert ours == pytest.approx(theirs, abs=0.05)


def test_the_feature_of_the_page_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlprompt.rewards.learned.features import compute_features, load_features

    (code,) = [block for block in blocks("python") if block.startswith("# my_features.py")]
    (tmp_path / "my_features.py").write_text(code, encoding="utf-8")
    found = load_features(["my_features:polite"], search_path=tmp_path)
    assert compute_features(["my_features:polite"], found, ["", ""], ["Please do.", "Do."]).tolist() == [[1.0], [0.0]]
    sys.modules.pop("my_features", None)


def test_the_table_names_every_feature() -> None:
    table = PAGE.partition("| feature | value |")[2].partition("\n\n")[0]
    rows = [row.split("|")[1] for row in table.splitlines()[2:]]
    assert {name for row in rows for name in re.findall(r"`([a-z-]+)`", row)} == set(names("features"))
