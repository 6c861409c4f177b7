"""Exported folders: the same rewrites, nothing but what is named, and a card that can be read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from rlprompt.cli.main import main
from rlprompt.errors import CheckpointError, ConfigError
from rlprompt.serving import Rewriter
from rlprompt.serving.export import CARD, export_policy

Save = Callable[..., Path]


def test_the_exported_folder_writes_what_the_run_writes(save: Save, tmp_path: Path) -> None:
    run = save()
    (run / "best" / "evil.py").write_text("raise SystemExit")
    (run / "best" / "pytorch_model.bin").write_bytes(b"pickle")
    files = export_policy(run, tmp_path / "mine")
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == sorted(map(str, files))
    assert "evil.py" not in map(str, files)
    texts = ["w03 w04", "w10"]
    assert Rewriter.load(tmp_path / "mine").rewrite(texts) == Rewriter.load(run).rewrite(texts)


def test_the_card_says_what_it_is_and_warns(save: Save, tmp_path: Path) -> None:
    run = save()
    file = run / "best" / "policy.json"
    values = json.loads(file.read_text())
    values["extra"] |= {"dev_accuracy": 0.75, "target": "planted"}
    file.write_text(json.dumps(values))
    export_policy(run, tmp_path / "mine")
    text = (tmp_path / "mine" / CARD).read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {"library_name": "rlprompt", "tags": ["rlprompt", "prompt-rewriting"]}
    assert "| accuracy on dev | 0.7500 |" in body
    assert "| trained for the target | planted |" in body
    assert "they are too good" in body
    assert str(run) not in text


def test_the_command_line_lists_what_it_wrote(save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = save()
    assert main(["export", str(run), str(tmp_path / "mine")]) == 0
    assert str(tmp_path / "mine" / "policy.json") in capsys.readouterr().out.splitlines()
    assert main(["export", str(run), str(tmp_path / "mine")]) == 2
    assert "is there already" in capsys.readouterr().err


def test_what_is_damaged_or_cannot_be_served_is_not_exported(save: Save, tmp_path: Path) -> None:
    run = save()
    weights = next((run / "best").glob("adapter_model*"))
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated or altered"):
        export_policy(run, tmp_path / "mine")
    with pytest.raises(ConfigError, match="no policy at"):
        export_policy(tmp_path, tmp_path / "mine")
    assert list(tmp_path.iterdir()) == []
