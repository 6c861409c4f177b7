"""A served team composes exactly as in training."""

from pathlib import Path

import pytest

from rlprompt.config import RunConfig, parse_config
from rlprompt.errors import ConfigError
from rlprompt.policies import load_policy, load_team
from rlprompt.runs import load_run, train
from rlprompt.runs.candidates import candidates_of
from rlprompt.scoring import build_scorer
from rlprompt.search.random import greedy_prompts
from rlprompt.serving import Rewriter
from rlprompt.serving.export import export_policy

LORA = {"lora": {"r": 2, "targets": ["c_attn"]}}


def config_of(folder: Path, level: str) -> RunConfig:
    slot = "{input}" if level == "instance" else "{draft}"
    return parse_config(
        {
            "seed": 1,
            "task": {"name": "planted", "shots": 4, "dev_shots": 3, "test_limit": 6, "template": "{input}\n{prompt}"},
            "target": {"name": "planted:separable"},
            "policy": {"kind": "causal-lm", "model": "planted-50", "kwargs": LORA},
            "env": {
                "kind": "multi",
                "level": level,
                "draft": "w04",
                "num_envs": 8,
                "agents": [
                    {"name": "who", "length": 3, "meta_prompt": f"w01 {slot}", "separator": " "},
                    {"name": "what", "length": 2, "meta_prompt": f"w02 {slot} {{composed}} w03"},
                ],
            },
            "reward": [{"name": "gap"}],
            "algorithm": {"name": "ppo", "iterations": 2, "lr": 0.05, "baseline": "critic"},
            "run": {"dir": str(folder), "tensorboard": False},
        }
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return config_of(tmp_path_factory.mktemp("runs"), "instance")


@pytest.fixture(scope="module")
def folder(config: RunConfig) -> Path:
    return train(config, progress=False).folder


@pytest.mark.ray
def test_it_writes_what_the_choice_on_dev_wrote(config: RunConfig, folder: Path) -> None:
    scorer = build_scorer(config)
    examples = (*scorer.task.dev, *scorer.task.test)
    expected, read = greedy_prompts(load_team(folder), config, scorer, examples)
    rewriter = Rewriter.load(folder)
    assert [result.prompt for result in rewriter.write_for(examples)] == expected
    assert len({len(prompt.split()) for prompt in expected} - {0}) >= 1
    tokenizer = load_team(folder).tokenizer
    assert [rewriter.context(example.input) for example in examples] == [tokenizer.encode(text) for text in read]
    on_dev = {record.prompt for record in load_run(folder).prompts() if record.phase == "dev"}
    assert set(expected[: len(scorer.task.dev)]) <= on_dev


@pytest.mark.ray
def test_draws_depend_on_seed_and_text_and_long_texts_stay(config: RunConfig, folder: Path) -> None:
    rewriter = Rewriter.load(folder)
    texts = ["item 1", "item 2", "item 3"]
    drawn = rewriter.results(texts, temperature=1.0, seed=5)
    assert rewriter.results(texts[::-1], temperature=1.0, seed=5)[::-1] == drawn
    assert rewriter.results(texts, temperature=1.0, seed=6) != drawn
    (long,) = rewriter.results(["w05 " * 2000])
    assert not long.rewritten
    assert str(long.reason).startswith("too-long: ")
    with pytest.raises(ConfigError, match="segments of their own lengths"):
        rewriter.results(texts, max_tokens=2)


@pytest.mark.ray
def test_a_member_alone_and_a_team_are_told_apart(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds a team of agents.*load_team"):
        load_policy(folder)
    assert load_policy(folder / "best" / "members" / "who").prompt_length == 3
    with pytest.raises(ConfigError, match="holds one policy, not a team"):
        load_team(folder / "best" / "members" / "who")


@pytest.mark.ray
def test_at_task_level_the_chosen_prompt_is_served(tmp_path: Path) -> None:
    result = train(config_of(tmp_path, "task"), progress=False)
    assert Rewriter.load(result.folder).fixed_prompt == result.best_prompt


@pytest.mark.ray
def test_pairs_of_what_a_team_wrote_are_for_what_its_first_agent_read(folder: Path) -> None:
    found = candidates_of(load_run(folder)).candidates
    assert len(found) == 16
    assert all(candidate.input.startswith("item ") for candidate in found)
    assert all(candidate.context == f"w01 {candidate.input}" for candidate in found)


@pytest.mark.ray
def test_a_team_is_exported_with_its_members(folder: Path, tmp_path: Path) -> None:
    files = export_policy(folder, tmp_path / "mine")
    assert Path("members/who/policy.json") in files
    assert Rewriter.load(tmp_path / "mine").rewrite("item 3") == Rewriter.load(folder).rewrite("item 3")
