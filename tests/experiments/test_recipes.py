"""The recipes load, and the quickstart's script runs from end to end on the planted target."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlprompt.config import load_config

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "experiments" / "rlprompt").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_recipe_is_a_valid_configuration(recipe: Path) -> None:
    config = load_config(recipe)
    if config.env.kind == "multi":
        assert config.env.action == "sequence"
        assert sum(agent.length for agent in config.env.agents) == (6 if recipe.stem == "multiprompter" else 24)
    elif config.env.dialogue:
        kind = "lm-adaptor" if config.algorithm.name == "ppo" else "causal-lm"
        assert (config.policy.kind, config.env.turns, config.env.action) == (kind, 3, "sequence")
    elif config.env.kind == "token-prompt":
        assert config.env.prompt_length == (3 if recipe.stem == "planted" else 5)
        assert config.reward[0].name == "gap"
    else:  # one step of RLlib writes the whole text, and all recipes are sized for two cores
        assert config.env.action == "sequence" or config.algorithm.name != "ppo"
        assert config.policy.kwargs["lora"]["r"] == 8
    assert config.name == recipe.stem or recipe.stem.startswith("paper-")


def test_the_paper_recipes_have_the_paper_s_hyper_parameters() -> None:
    for name in ("paper-roberta-large", "paper-gpt2"):
        config = load_config(ROOT / "experiments" / "rlprompt" / f"{name}.yaml")
        algorithm, policy = config.algorithm, config.policy.kwargs
        assert (algorithm.name, algorithm.sql_variant, algorithm.iterations) == ("sql", "v2_v3", 12000)
        assert (algorithm.lr, algorithm.grad_clip, algorithm.polyak) == (5e-5, 5.0, 0.001)
        assert algorithm.reward_shaping == ((0.0, 1.0), (0.0, 5.0))
        assert policy == {"mode": "replace", "hidden": 2048, "top_k": 256}
        assert config.env.num_envs == 16


@pytest.mark.ray
def test_the_quickstart_script_writes_the_rows_of_its_table(tmp_path: Path) -> None:
    overrides = [
        "task={name: planted, shots: 4, dev_shots: 4}",
        "target={name: 'planted:separable'}",
        "policy={kind: categorical, model: planted-50}",
        "env={prompt_length: 3, num_envs: 8}",
        "algorithm.iterations=3",
        "algorithm.lr=0.1",
        "budget={max_target_calls: 400}",
        "selection.top=4",
        f"run.dir={tmp_path}",
    ]
    script = ROOT / "experiments" / "quickstart.py"
    done = subprocess.run(
        [sys.executable, str(script), *overrides], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (summary,) = tmp_path.glob("quickstart/*/summary.json")
    rows = json.loads(summary.read_text(encoding="utf-8"))
    assert {row["kind"] for row in rows} == {"empty", "manual", "oracle", "random", "trained"}
    assert {row["calibration"] for row in rows} == {"none", "median"}
    keys = {"name", "kind", "calibration", "prompt", "test_accuracy", "ci95", "target_calls", "seconds"}
    assert all(keys <= row.keys() for row in rows)
    assert sum(row["name"].startswith("manual: ") for row in rows) >= 2 * 8
    assert all(row["target_calls"] <= 400 for row in rows if row["kind"] in ("random", "trained"))
