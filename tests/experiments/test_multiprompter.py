"""The tables of several prompters and of dialogues: equal budgets, sums by hand, and a run on the planted target."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # experiments/ is no package that is installed

from experiments import dialogues, multiprompter, multiprompter_planted  # noqa: E402


@pytest.mark.parametrize(("recipe", "total"), [("multiprompter", 6), ("multiprompter-roles", 24)])
def test_all_rows_have_the_same_total_length_and_budget(recipe: str, total: int) -> None:
    variants = multiprompter.ROLES if recipe.endswith("roles") else multiprompter.TOKENS
    configs = [multiprompter.configured(recipe, agents, 2, []) for agents in variants.values()]
    assert {sum(agent.length for agent in config.env.agents) for config in configs} == {total}
    assert len({(config.budget.max_target_calls, config.algorithm.iterations) for config in configs}) == 1
    assert {(config.seed, config.task.split_seed) for config in configs} == {(2, 2)}
    counts = [len(config.env.agents) for config in configs]
    assert counts == list(range(1, len(counts) + 1))


def test_planted_cells_differ_in_agents_critic_and_seed_only() -> None:
    one, four = (multiprompter_planted.configured("separable", 8, count, "own", 1, "runs") for count in (1, 4))
    assert [agent.length for agent in one.env.agents] == [8]
    assert [agent.length for agent in four.env.agents] == [2, 2, 2, 2]
    same = {"env": one.env}
    assert four.model_copy(update=same) == one.model_copy(update=same)


def test_calls_are_counted_to_the_first_good_iteration_and_the_median_may_be_open() -> None:
    def cell(*curve: float) -> dict[str, object]:
        shown = [*curve, *[curve[-1]] * (multiprompter_planted.ITERATIONS - len(curve))]
        return {"curve": shown, "calls_per_iteration": 512.0, "seconds": 60.0, "machine": "here"}

    assert multiprompter_planted.calls_until_good(cell(0.1, 0.89, 0.9)) == 3 * 512
    cells = {(8, 1, "own"): [cell(0.2), cell(0.3), cell(0.95)], (8, 2, "own"): [cell(0.1, 0.95)] * 3}
    lines = multiprompter_planted.table("separable", cells, [0, 1, 2]).splitlines()
    assert lines[-2].endswith("| > 40,960 | 1 of 3 |")
    assert lines[-1].endswith("| 1,024 | 3 of 3 |")


def test_dialogue_rows_are_means_over_scenarios_and_seeds() -> None:
    def cell(seed: int, untrained: list[float], trained: list[float]) -> dict[str, object]:
        rows = {"untrained": {"scores": untrained}, "trained": {"scores": trained}}
        known = {"algorithm": "sft", "target_calls": 100, "seconds": 60.0, "machine": "here"}
        return {"seed": seed, "rows": rows, **known}

    cells = [cell(0, [0.0, 0.5], [0.5, 1.0]), cell(1, [0.0, 0.0], [0.5, 0.5])]
    lines = dialogues.table({"workflow": ({"scores": [0.0, 0.25]}, cells)}).splitlines()  # type: ignore[dict-item]
    assert lines[-3] == "| workflow | no advice | 0.125 | | 0 |"
    assert lines[-2].startswith("| workflow | untrained policy | 0.125 ± ")
    assert lines[-1].startswith("| workflow | SFT on its good turns | 0.625 ± ")
    assert "+0.500" in lines[-1]


@pytest.mark.ray
def test_the_script_makes_its_table_and_goes_on_where_it_was(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- multiprompter -->\n<!-- /multiprompter -->\n")
    command = [
        *(sys.executable, str(ROOT / "experiments" / "multiprompter.py"), "--seeds", "0"),
        *("--results", str(tmp_path / "results"), "--readme", str(readme)),
        "task={name: planted, shots: 4, dev_shots: 4, test_limit: 20}",
        *("target={name: 'planted:separable'}", "policy={kind: categorical, model: planted-50}", "env.num_envs=8"),
        *("env.mask={}", "algorithm.iterations=2", "selection.top=2", "budget={max_target_calls: 400}"),
        f"run.dir={tmp_path}",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    files = sorted((tmp_path / "results" / "multiprompter").glob("*.json"))
    assert [file.name for file in files] == ["1-0.json", "2-0.json", "3-0.json"]
    assert set(json.loads(files[0].read_text())["rows"]) == {"I", "S"}
    table = readme.read_text()
    assert all(f"| {name} " in table for name in multiprompter.TOKENS)
    before = [file.stat().st_mtime_ns for file in files]
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert [file.stat().st_mtime_ns for file in files] == before
    assert readme.read_text() == table
