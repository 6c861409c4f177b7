"""The script of the Question Rewriter table: its sums, its settings, and all cells on the planted target."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlprompt.config import load_config

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # experiments/ is no package that is installed

from experiments import question_rewriter as script  # noqa: E402

RECIPE = ROOT / "experiments" / "rlprompt" / "question-rewriter.yaml"


def _cell(folder: Path, method: str, seed: int, correct: list[Any], logp: list[Any], calls: int) -> None:
    rows = {
        "own": {"target": "small", "correct": correct, "logp": logp},
        "transfer": {"target": "other", "correct": correct[::-1], "logp": logp},
    }
    cell = {"rows": rows, "target_calls": calls, "dev_reward": 0.5, "seconds": 60, "test_seconds": 30, "machine": "m"}
    (folder / f"{method}-{seed}.json").write_text(json.dumps(cell))


def test_the_tables_have_hand_computed_numbers(tmp_path: Path) -> None:
    for seed in (0, 1):
        (tmp_path / f"pool-{seed}.json").write_text(json.dumps({"seconds": 30}))
        _cell(tmp_path, "raw", seed, [1, 0, 0, 0], [-1, -2, -3, -4], 0)
        _cell(tmp_path, "untrained", seed, [1, 1, 0, 0], [-1, -1, -3, None], 0)
        _cell(tmp_path, "dpo", seed, [1, 1, 1, seed], [-1, -1, -1, -1], 700 + seed)
    _cell(tmp_path, "rounds-full", 0, [1, 1, 0, 0], [0, 0, 0, 0], 600)
    _cell(tmp_path, "rounds-selective", 0, [1, 0, 0, 0], [-1, -1, -1, -1], 400)
    lines = script.table(tmp_path, [0, 1]).splitlines()
    # 8 cells of 90 s and 2 pools of 30 s.
    assert "Seeds 0, 1" in lines[0]
    assert "4 test rows; m; 13 minutes in all, 1 for the longest training" in lines[0]
    assert lines[4].startswith("| raw input | 2 | 0.250 ± 0.000 | -0.250 (")
    assert lines[5].startswith("| untrained rewriter | 2 | 0.500 ± 0.000 |  | +0.333 (")  # three rows have an answer
    assert lines[6].startswith("| DPO | 2 | 0.875 ± 0.177 | +0.375 (")
    assert "| +1.500 (" in lines[6]  # 0, 1, 2 and 3
    # The other target answered as the first one, from the last row to the first.
    assert "| 0.875 ± 0.177 | +0.375 (" in lines[6].split("+1.500", 1)[1]
    assert lines[6].endswith("| 701 |")
    assert len([line for line in lines if line.startswith("| ")]) == 1 + 3 + 1 + 2
    assert "seeds 0." in lines[8]
    assert lines[12].startswith("| all texts again | 600 | 0.500 | +2.500 (")
    assert lines[13].startswith("| texts of the worse half again | 400 | 0.500 | +1.500 (")
    assert lines[13].endswith("| 0.250 | -1.000 (-1.000 to -1.000) |")


def test_methods_make_equally_many_steps_and_rounds_write_as_much_as_the_pool() -> None:
    config = load_config(RECIPE)
    pool = {"run": "runs/pool", "lines": {"pairs.jsonl": 128, "sft.jsonl": 128, "ranked.jsonl": 128}}
    runs = {method: script.configured(config, method, pool) for method in script.OFFLINE}
    assert {method: run.algorithm.iterations for method, run in runs.items()} == {
        "sft": 32,
        "dpo": 32,
        "dpo-norm": 32,
        "ipo": 32,
        "rrhf": 32,
    }  # 2 passes over 128 in eights; 8 pairs are 16 texts a step, and so are 4 rankings of 4 texts
    assert runs["rrhf"].algorithm.minibatch_size == 4
    assert runs["ipo"].algorithm.preference_loss == "ipo"
    assert runs["sft"].data == {"pairs": "runs/pool/pairs/sft.jsonl"}
    assert script.configured(config, "pool").algorithm.iterations == config.algorithm.iterations
    assert script.configured(config, "online-dpo").algorithm == config.algorithm
    full, selective = (script.configured(config, f"rounds-{name}").algorithm for name in ("full", "selective"))
    assert (full.items, full.items_share, full.regenerate) == ("regret", 1.0, 1.0)
    assert (selective.items, selective.regenerate) == ("all", 0.5)


def test_the_script_makes_all_cells_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*more: str) -> int:
        monkeypatch.setattr(sys, "argv", ["question_rewriter.py", *command, *more])
        return script.main()

    methods = [name for name in script.NAMES if name not in ("dpo", "dpo-norm")]  # as "ipo", but for the loss
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- question-rewriter -->\n<!-- /question-rewriter -->\nafter\n")
    overrides = [
        "task={name: planted, shots: 4, dev_shots: 2, test_limit: 6, template: '{input}\\n{prompt}'}",
        "target={name: 'planted:separable'}",
        "policy={kind: causal-lm, model: planted-50, kwargs: {lora: {r: 2, targets: [c_attn]}}}",
        "env={kind: rewrite, level: instance, meta_prompt: 'w01 {input}', chat: false, prompt_length: 3, num_envs: 16, "
        "rewrites_per_input: 4, action: sequence, mask: {candidates: [w34, w43, w10, w01]}}",
        "algorithm.iterations=2",
        "algorithm.lr=0.1",
        "algorithm.minibatch_size=2",
        "budget={max_target_calls: 100}",
        f"run={{dir: {tmp_path / 'runs'}, tensorboard: false}}",
    ]
    command = [*overrides, "--seeds", "0", "--readme", str(readme), "--results", str(tmp_path / "results")]
    command += ["--transfer", "planted:chained", "--transfer-task", "{}", "--methods"]
    assert run(*methods) == 0
    folder = tmp_path / "results" / "question-rewriter"
    assert {path.stem for path in folder.iterdir()} == {f"{name}-0" for name in ("pool", *methods)}
    cells = {method: json.loads((folder / f"{method}-0.json").read_text()) for method in methods}
    # 2 rounds of 16 texts and 4 inputs, then texts and originals of 4 dev inputs; equal texts are asked about once.
    offline = {cells[method]["target_calls"] for method in ("sft", "ipo", "rrhf")}
    assert max(offline) - min(offline) <= 4
    assert all(30 < calls <= 48 for calls in [*offline, cells["online-dpo"]["target_calls"]])
    assert cells["rounds-selective"]["target_calls"] < cells["rounds-full"]["target_calls"] <= 44
    assert cells["raw"]["left_alone"] == 6
    assert cells["untrained"]["left_alone"] == 0
    for cell in cells.values():
        assert {name: part["target"] for name, part in cell["rows"].items()} == {
            "own": "planted:separable",
            "transfer": "planted:chained",
        }
        assert all(len(part["correct"]) == len(part["logp"]) == 6 for part in cell["rows"].values())
    mean = {method: sum(cell["rows"]["own"]["logp"]) for method, cell in cells.items()}
    assert min(mean["sft"], mean["online-dpo"]) > mean["untrained"]
    text = readme.read_text()
    assert text.startswith("before\n")
    assert all(f"| {script.NAMES[name]} |" in text for name in methods)
    runs = len(list(tmp_path.glob("runs/*/*")))
    (folder / "ipo-0.json").unlink()
    assert run("ipo", "sft") == 0
    assert len(list(tmp_path.glob("runs/*/*"))) == runs + 1  # neither the pool nor another cell was made again


def test_a_mistake_is_told_of_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["x.py", "--results", str(tmp_path), "--transfer", "planted:none"])
    assert script.main() == 2
    assert "error: unknown landscape 'none'" in capfd.readouterr().err
    command = [sys.executable, str(ROOT / "experiments" / "question_rewriter.py"), "algorithm.name=dpo"]
    done = subprocess.run(
        [*command, "--transfer", "", "--results", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr == "error: the recipe's algorithm must be online-dpo, got dpo\n"
    assert list(tmp_path.iterdir()) == []
