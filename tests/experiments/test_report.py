"""What the experiments' scripts share: numbers as text, files written whole, tables put into pages."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # experiments/ is no package that is installed

from experiments import report  # noqa: E402
from rlprompt.errors import ConfigError  # noqa: E402


def test_spread_is_mean_and_sample_deviation() -> None:
    assert report.spread([0.5]) == "0.500"
    assert report.spread([0.4, 0.6], digits=2) == "0.50 ± 0.14"


def test_a_failed_row_is_no_number_and_leaves_the_difference() -> None:
    first = report.numbers([1.0, None, 1.0])
    assert math.isnan(first[1])
    # Rows that both answered: 1 - 0 and 1 - 0, whatever is drawn.
    assert report.difference(first, np.array([0.0, 5.0, 0.0])) == "+1.000 (+1.000 to +1.000)"


def test_json_is_written_whole_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "cell.json"
    report.write_json(path, {"prompt": "très", "values": [1, None]})
    assert report.read_json(path) == {"prompt": "très", "values": [1, None]}
    assert "très" in path.read_text(encoding="utf-8")
    with pytest.raises(TypeError):
        report.write_json(path, {"no json": object()})
    assert report.read_json(path) == {"prompt": "très", "values": [1, None]}
    assert [entry.name for entry in path.parent.iterdir()] == ["cell.json"]


def test_a_table_goes_into_its_section(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- here -->\nold\n<!-- /here -->\nafter\n")

    def made(console: Console) -> tuple[str, str]:
        return "here", "| new |"

    assert report.publish(made, page) == 0
    assert page.read_text() == "before\n<!-- here -->\n| new |\n<!-- /here -->\nafter\n"
    assert "| new |" in capsys.readouterr().out


def test_a_stop_and_an_error_leave_the_page_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("no section\n")

    def refused(console: Console) -> tuple[str, str]:
        raise ConfigError("the recipe lacks a stage")

    assert report.publish(lambda console: None, page) == 130
    assert report.publish(refused, page) == 2
    assert capsys.readouterr().err == "error: the recipe lacks a stage\n"
    assert report.publish(lambda console: ("here", "text"), page) != 0
    assert "has no section 'here'" in capsys.readouterr().err.replace("\n", " ")
    assert page.read_text() == "no section\n"


def test_a_summary_is_a_list_of_rows(tmp_path: Path) -> None:
    path = report.write_summary(tmp_path, [{"name": "empty prompt"}])
    assert json.loads(path.read_text()) == [{"name": "empty prompt"}]
