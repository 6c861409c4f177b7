"""The scripts of the tables on rewriting and hinting policies: their sums, and a whole run on the planted target."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # experiments/ is no package that is installed

from experiments import rewriters, stimulus  # noqa: E402


def test_the_table_of_rewriters_has_hand_computed_numbers(tmp_path: Path) -> None:
    correct = {"draft": [0, 0, 1, 1], "random I": [0, 0, 0, 1], "random S": [1, 0, 0, 1], "ppo I": [1, 1, 0, None]}
    correct |= {"ppo S": [1, 1, 1, 1], "grpo I": [0, 0, 0, 1], "grpo S": [0, 0, 0, 0]}
    for seed in (0, 1):
        rows = {name: {"correct": values, "accuracy": 0.25 + 0.5 * seed} for name, values in correct.items()}
        (tmp_path / f"test-{seed}.json").write_text(json.dumps({"seed": seed, "rows": rows, "seconds": 60}))
        for method in rewriters.METHODS:
            cell = {"target_calls": 100 + seed, "seconds": 20, "machine": "a machine"}
            (tmp_path / f"{method}-{seed}.json").write_text(json.dumps(cell))
    lines = rewriters.table(tmp_path).splitlines()
    assert "Seeds 0, 1" in lines[0]
    assert "4 test rows; a machine; 4 minutes in all" in lines[0]  # 2 * 60 s + 6 * 20 s
    assert lines[4] == "| draft instruction | 0.500 ± 0.354 | | 0 |"
    assert lines[5] == "| untrained rewriter, most probable rewrite (I) | 0.500 ± 0.354 |  | 0 |"
    # Rows that both answered: 1 - 0, 1 - 0, 0 - 0.
    assert lines[6].startswith("| PPO, most probable rewrite (I) | 0.500 ± 0.354 | +0.667 (")
    assert lines[7].startswith("| GRPO, most probable rewrite (I) | 0.500 ± 0.354 | +0.000 (+0.000 to +0.000) | 101 |")
    assert lines[8] == "| untrained rewriter, best on dev (S) | 0.500 ± 0.354 |  | 101 |"
    assert lines[9].startswith("| PPO, best on dev (S) | 0.500 ± 0.354 | +0.500 (")
    assert lines[10].startswith("| GRPO, best on dev (S) | 0.500 ± 0.354 | -0.500 (")


def test_the_table_of_hints_has_hand_computed_numbers(tmp_path: Path) -> None:
    def entry(*values: float | None) -> dict[str, list[float | None]]:
        return {variant: list(values) for variant in stimulus.VARIANTS}

    fixed = {"no hint": entry(0.1, 0.3), "extractor": entry(0.5, 0.5), "untrained": entry(0.2, None)}
    (tmp_path / "baselines.json").write_text(json.dumps({"rows": fixed, "seconds": 60, "machine": "a machine"}))
    for seed in (0, 1):
        cell = {"rows": {"sft": entry(0.2, 0.2), "rl": entry(0.2 + 0.1 * seed, 0.4)}, "target_calls": 7 + seed}
        cell |= {"seconds": 60, "training_seconds": 120}
        (tmp_path / f"seed-{seed}.json").write_text(json.dumps(cell))
    lines = stimulus.table(tmp_path, [0, 1]).splitlines()
    assert "2 test articles; a machine; 3 minutes in all, 2 for the longest training" in lines[0]
    assert lines[4].startswith("| no hint | 20.00 ± nan".replace(" ± nan", "") + " | 20.00 | 20.00 | +0.00 (")
    assert "| +30.00 (+30.00 to +30.00) | 0 |" in lines[5]
    assert "| 20.00 | 20.00 | 20.00 | +0.00 (+0.00 to +0.00) | 0 |" in lines[6]  # the second row failed
    assert lines[7] == "| SFT | 20.00 ± 0.00 | 20.00 ± 0.00 | 20.00 ± 0.00 |  | 0 |"
    # SFT + RL: 30 and 35 in the mean; by row 25 and 40, less 20 each.
    assert lines[8].startswith("| SFT + RL | 32.50 ± 3.54 | 32.50 ± 3.54 | 32.50 ± 3.54 | +12.50 (")
    assert lines[8].endswith("| 8 |")


@pytest.mark.ray
def test_the_script_of_rewriters_runs_from_end_to_end_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- prewrite -->\n<!-- /prewrite -->\nafter\n")
    overrides = [
        "task={name: planted, shots: 2, dev_shots: 2, test_limit: 6}",
        "target={name: 'planted:separable'}",
        "policy={kind: causal-lm, model: planted-50, kwargs: {lora: {r: 2, targets: [c_attn]}}}",
        "env={kind: rewrite, meta_prompt: 'w01 {draft}', draft: w02, chat: false, prompt_length: 3, num_envs: 4, "
        "action: sequence}",
        "algorithm.iterations=2",
        "budget={max_target_calls: 60}",
        "selection.top=2",
        f"run.dir={tmp_path}",
    ]
    command = [sys.executable, str(ROOT / "experiments" / "rewriters.py"), "--seeds", "0", "--readme", str(readme)]
    command += ["--results", str(tmp_path / "results"), *overrides]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / "results" / "prewrite"
    assert {path.stem for path in folder.iterdir()} == {"random-0", "ppo-0", "grpo-0", "test-0"}
    cells = {method: json.loads((folder / f"{method}-0.json").read_text()) for method in rewriters.METHODS}
    assert all(cell["target_calls"] <= 60 and cell["I"] and cell["S"] for cell in cells.values())
    assert "| PPO, best on dev (S) |" in readme.read_text()
    runs = len(list(tmp_path.glob("prewrite-*/*")))
    (folder / "test-0.json").unlink()
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr[-2000:]
    assert len(list(tmp_path.glob("prewrite-*/*"))) == runs == 3
