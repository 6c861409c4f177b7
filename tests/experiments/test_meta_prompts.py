"""The meta-prompt sweep: which meta-prompts, its sums, and a whole run on the planted target."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlprompt.config import load_config

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # experiments/ is no package that is installed

from experiments import meta_prompts  # noqa: E402


def test_the_sweep_has_the_task_level_meta_prompts_that_read_the_draft_alone() -> None:
    names = meta_prompts.task_level_names()
    assert names[0] == "prewrite"
    assert {"prewrite-" + style for style in meta_prompts.STYLES} == set(names[1:])


def test_cells_differ_in_meta_prompt_and_seed_only() -> None:
    recipe = load_config(ROOT / "experiments" / "rlprompt" / "prewrite.yaml")
    config = meta_prompts.configured(recipe, "prewrite-plan", 3)
    assert (config.env.meta_prompt, config.seed, config.task.split_seed) == ("prewrite-plan", 3, 3)
    assert (config.budget, config.algorithm, config.selection) == (recipe.budget, recipe.algorithm, recipe.selection)


def test_the_table_has_hand_computed_numbers(tmp_path: Path) -> None:
    for name in meta_prompts.task_level_names():
        for seed in (0, 1):
            cell = {
                "accuracy": {"draft": 0.5, "I": 0.4 + 0.2 * seed, "S": 0.75},
                "final_reward": 10.0 + 5 * seed,
                "style": meta_prompts.style(["Plan it.", "Use facts and a plan, step by step."][: seed + 1]),
                "target_calls": 100 + seed,
                "test_rows": 4,
                "seconds": 30,
                "machine": "a machine",
            }
            (tmp_path / f"{name}-{seed}.json").write_text(json.dumps(cell))
    lines = meta_prompts.table(tmp_path, [0, 1]).splitlines()
    assert "4 test rows; a machine; 6 minutes in all" in lines[0]  # 6 names, 2 seeds, 30 s
    assert "test accuracy 0.500 ± 0.000." in lines[0]
    # Words: 2 and (2 + 8) / 2; "plan" in all, "step" and "facts" in half of the second seed's.
    row = "| `prewrite` | 0.500 ± 0.141 | 0.750 ± 0.000 | 12.5 | 101 | 3.5 | 0.25 | 1.00 | 0.00 | 0.25 | 0.00 |"
    assert lines[4] == row
    assert len(lines) == 4 + 6


@pytest.mark.ray
def test_the_sweep_runs_from_end_to_end_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- meta-prompts -->\n<!-- /meta-prompts -->\nafter\n")
    overrides = [
        "task={name: planted, shots: 2, dev_shots: 2, test_limit: 6}",
        "target={name: 'planted:separable'}",
        "policy={kind: causal-lm, model: planted-50, kwargs: {lora: {r: 2, targets: [c_attn]}}}",
        "env={kind: rewrite, draft: w02, chat: false, prompt_length: 3, num_envs: 4, action: sequence}",
        "algorithm.iterations=2",
        "budget={max_target_calls: 60}",
        "selection.top=2",
        f"run.dir={tmp_path / 'runs'}",
    ]
    names = meta_prompts.task_level_names()
    results = tmp_path / "results"
    results.mkdir()
    ready = {"accuracy": {"draft": 0.0, "I": 0.0, "S": 0.0}, "final_reward": 0.0, "style": meta_prompts.style(["w01"])}
    ready |= {"target_calls": 1, "test_rows": 6, "seconds": 1, "machine": "a machine"}
    for name in names[1:]:  # as if the command had been stopped after these
        (results / f"{name}-0.json").write_text(json.dumps(ready))
    command = [sys.executable, str(ROOT / "experiments" / "meta_prompts.py"), "--readme", str(readme)]
    command += ["--results", str(results), *overrides]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(path.parent.name for path in (tmp_path / "runs").glob("*/*")) == [
        "meta-" + name for name in names[:1]
    ]
    for name in names[:1]:
        cell = json.loads((results / f"{name}-0.json").read_text())
        assert cell["target_calls"] <= 60
        assert set(cell["prompts"]) == {"draft", "I", "S"}
        assert cell["iterations"] == 2
    text = readme.read_text()
    assert all(f"| `{name}` |" in text for name in names)
    assert text.startswith("before\n")
    assert text.endswith("after\n")
