"""`rlprompt rewrite`: one line in, one line out, and mistakes in one line."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlprompt.cli.main import main
from rlprompt.config import load_config
from rlprompt.runs import train
from rlprompt.serving import Rewriter

INSTANCE = {
    "policy": {"kind": "causal-lm", "model": "planted-50", "kwargs": {"lora": {"r": 2, "targets": ["c_attn"]}}},
    "env": {"kind": "rewrite", "level": "instance", "meta_prompt": "w01 {input}", "prompt_length": 3, "num_envs": 4},
    "task": {"name": "planted", "shots": 2, "dev_shots": 2, "template": "{input}\n{prompt}"},
    "algorithm": {"name": "random", "iterations": 1},
}
LINES = ["w03 w04", "", "w05", "w06 zwölf", "  w07 "]


@pytest.fixture
def run(small_config: Callable[..., Path]) -> Path:
    """A run whose policy writes for each input."""
    return train(load_config(small_config(**INSTANCE)), progress=False).folder


@pytest.fixture
def fixed(small_config: Callable[..., Path]) -> Path:
    """A run with one best prompt."""
    return train(load_config(small_config()), progress=False).folder


def test_one_text_is_printed_as_it_is(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["rewrite", str(run), "--text", "w03 w04"]) == 0
    captured = capfd.readouterr()
    assert captured.out == Rewriter.load(run).rewrite("w03 w04") + "\n"
    assert captured.out.startswith("w03 w04\nw")


def test_another_meta_prompt_is_handed_on(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = "w30 w31 {input}"
    assert main(["rewrite", str(run), "--text", "w03 w04", "--meta-prompt", given]) == 0
    assert capfd.readouterr().out == Rewriter.load(run, meta_prompt=given).rewrite("w03 w04") + "\n"
    assert main(["rewrite", str(run), "--text", "w03 w04", "--meta-prompt", "w30"]) == 2
    assert "must have the slots of the run's own, {input}" in capfd.readouterr().err


def test_lines_of_a_file_come_out_one_by_one(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "lines.txt"
    file.write_bytes("\r\n".join(LINES).encode())
    assert main(["rewrite", str(run), "--file", str(file), "--batch-size", "2"]) == 0
    captured = capfd.readouterr()
    expected = Rewriter.load(run).rewrite(LINES)
    assert captured.out == "".join(text.replace("\n", "\\n") + "\n" for text in expected)
    assert "line 2 is unchanged: empty-text: there is nothing to rewrite" in captured.err


@pytest.mark.parametrize("dash", [["-"], ["--file", "-"]])
def test_json_objects_hold_the_exact_text(
    run: Path, dash: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.BytesIO("".join(line + "\n" for line in LINES).encode())
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=stream))
    assert main(["rewrite", str(run), *dash, "--json", "--temperature", "1", "--seed", "4", "--max-tokens", "2"]) == 0
    found = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    results = Rewriter.load(run).results(LINES, temperature=1.0, seed=4, max_tokens=2)
    assert found == [
        {"text": one.text, "rewritten": one.rewritten, "reason": one.reason, "prompt": one.prompt} for one in results
    ]
    assert found[1] == {
        "text": "",
        "rewritten": False,
        "reason": "empty-text: there is nothing to rewrite",
        "prompt": "",
    }


def test_a_fixed_prompt_stands_beside_every_line(fixed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    best = Rewriter.load(fixed).fixed_prompt
    assert best
    assert main(["rewrite", str(fixed), "--text", "some text"]) == 0
    assert capfd.readouterr().out == f"some text {best}\n"


def test_further_fields_of_the_template_are_options(
    small_config: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for split, first in (("train", 0), ("dev", 10), ("test", 20)):
        rows = [f"w{number:02d}\t{number % 2}\tbox {number}" for number in range(first, first + 4)]
        (tmp_path / f"{split}.tsv").write_text("\n".join(["text\tlabel\tplace", *rows]) + "\n")
    (tmp_path / "card.yaml").write_text(
        "name: mine\nsplits: {train: train.tsv, dev: dev.tsv, test: test.tsv}\n"
        'columns: {input: text, reference: label, place: place}\nchoices: [" no", " yes"]\n'
        'template: "{place}: {input} {prompt}"\n'
    )
    task = {"name": str(tmp_path / "card.yaml"), "shots": None, "dev_shots": None}
    folder = train(load_config(small_config(task=task)), progress=False).folder
    best = Rewriter.load(folder).fixed_prompt
    assert main(["rewrite", str(folder), "--text", "w01", "--column", "place=a=b"]) == 0
    assert capfd.readouterr().out == f"a=b: w01 {best}\n"
    assert main(["rewrite", str(folder), "--text", "w01"]) == 2
    assert "the run's template also reads {place}" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}"], "give one of --text T, --file F or - (standard input)"),
        (["{run}", "-", "--text", "x"], "give one of --text T, --file F or - (standard input)"),
        (["{run}", "text"], "give one of --text T, --file F or - (standard input)"),
        (["{run}", "--file", "no/such/file"], "--file: cannot read no/such/file: No such file or directory"),
        (["{run}", "--file", "{latin}"], "line 2 is not UTF-8; convert the file"),
        (["{run}", "--text", "x", "--max-tokens", "9"], "max_tokens must be from 1 to 3"),
        (["{run}", "--text", "x", "--temperature", "nan"], "Invalid value for '--temperature'"),
        (["{run}", "--text", "x", "--temperature", "inf"], "temperature must be a finite number from 0, got inf"),
        (["{run}", "--text", "x", "--column", "place"], "--column takes NAME=VALUE, got 'place'"),
        (["{run}", "--text", "x", "--device", "cuda:99"], "device 'cuda:99'"),
        (["{run}", "--text", "x", "--seed", "-1"], "--seed"),
        (["{run}", "--text", "half \udcff"], "--text is not UTF-8; give it in a file"),
        (["no/such/run", "--text", "x"], "no policy at no/such/run: neither policy.json nor best/policy.json"),
    ],
    ids=["none", "two", "bare", "file", "latin", "long", "nan", "inf", "column", "device", "seed", "surrogate", "run"],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    run: Path, tmp_path: Path, arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"w01\nna\xefve\n")
    given = [part.replace("{run}", str(run)).replace("{latin}", str(latin)) for part in arguments]
    assert main(["rewrite", *given]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_a_fixed_prompt_has_nothing_to_draw(fixed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["rewrite", str(fixed), "--text", "x", "--temperature", "1"]) == 2
    assert "the run has one fixed prompt" in capfd.readouterr().err
