"""The pages of the methods that take several commands: their commands are played, in order, with small models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from method_pages import ROOT, SMALL, commands, play
from planted_runs import text_card
from tiny_transformers import causal_models, save_tokenizer

from rlprompt.preferences import read_pairs
from rlprompt.preferences.candidates import Candidate, Group
from rlprompt.preferences.worded import slots
from rlprompt.runs import load_run
from rlprompt.serving import Rewriter


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RLPROMPT_RUN_DIR", raising=False)
    return tmp_path


def _result(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "result.json").read_text())
    return found


def _metrics(run: Path, name: str) -> list[float]:
    events = [event["metrics"] for event in load_run(run).events() if event["event"] == "iteration"]
    return [metrics[name] for metrics in events if name in metrics]


def _same_stage(*runs: Path) -> bool:
    first, second = ((run / "stages" / "sft" / "reference.safetensors").read_bytes() for run in runs)
    return first == second


def test_question_rewriter(folder: Path) -> None:
    play("question-rewriter.md", folder)
    runs = play("question-rewriter.md", folder, block=1)
    pool = _result(runs.pop("question-rewriter-pool"))
    assert set(runs) == {f"question-rewriter-{name}" for name in ("dpo", "sft", "rrhf")}
    for run in runs.values():  # what learns from files asks about dev alone: rewrites and originals of 4 inputs
        assert _result(run)["target_calls"] <= 8 < pool["target_calls"]
        assert _result(run)["dev_reward"] > pool["dev_reward"]
    assert _metrics(runs["question-rewriter-dpo"], "preference/margin")[-1] > 0


def test_prompt_a_video(folder: Path) -> None:
    gold = "reward=[{name: gap-over-original, kwargs: {reward: log-probability}}, {name: length, weight: -0.01}]"
    replaced = {", similarity: 0.4": "", "margin=0.2": "margin=0.01"}
    runs = play("prompt-a-video.md", folder, small=[*SMALL, gold], replaced=replaced)
    best = _metrics(runs["prompt-a-video"], "evolve/best")
    assert best == sorted(best)
    assert _metrics(runs["prompt-a-video-dpo"], "preference/margin")[-1] > 0
    rewards = {name: _result(run)["dev_reward"] for name, run in runs.items()}
    assert rewards["prompt-a-video-sft"] > rewards["prompt-a-video"]
    assert _same_stage(runs["prompt-a-video-sft"], runs["prompt-a-video-dpo"])


@pytest.mark.ray
def test_instructgpt(folder: Path) -> None:
    runs = play("instructgpt.md", folder, replaced={"smollm2-135m-instruct": "planted-50"})
    assert (folder / "reward-model" / "reward-model.json").is_file()
    assert _same_stage(runs["instructgpt-sft"], runs["instructgpt-ppo"])
    records = load_run(runs["instructgpt-ppo"]).prompts()
    on_dev = [record for record in records if record.phase == "dev"]
    assert on_dev
    for record in on_dev:  # the reward model decides, the reward on labels is recorded
        assert record.raw_reward == pytest.approx(record.components["reward-model"])
        assert "gap-over-original" in record.components


def test_mepo(folder: Path) -> None:
    # The planted texts have none of the merits of English ones, save that they are short.
    runs = play("mepo.md", folder, arguments=["--arg", "checks=[short]"])
    assert _metrics(runs["mepo-dpo"], "val/margin")


def test_bpo(folder: Path) -> None:
    runs = play("bpo.md", folder)
    assert _result(runs["bpo-sft"])["dev_reward"] >= _result(runs["bpo"])["dev_reward"]
    rows = [json.loads(line) for line in (folder / "optimised.jsonl").read_text().splitlines()]
    pairs = read_pairs(folder / "pairs.jsonl")
    assert [row["target"] for row in rows] == [pair.chosen for pair in pairs]
    assert all(pair.chosen_scores["reward"] >= 0 for pair in pairs)


def test_fipo(folder: Path) -> None:
    card = f"task={{name: {text_card(folder)}, shots: 4, dev_shots: 2, template: '{{input}}\\n{{prompt}}'}}"
    small = [card, *SMALL[1:], "reward=[{name: gap-over-original, kwargs: {reward: exact-match}}]"]
    runs = play("fipo.md", folder, small=small)
    texts = [str(pair.context) for pair in read_pairs(folder / "round-1.jsonl")]
    assert sum("Response to it: " in text for text in texts) * 3 == 2 * len(texts)
    assert sum("Best known response: " in text for text in texts) * 3 == len(texts)
    assert all(text.startswith("Improve the prompt below") for text in texts)
    assert _metrics(runs["fipo-2"], "preference/margin")
    assert len(_metrics(runs["fipo-1"], "preference/margin")) == 6  # the stage; the pool behind it learns nothing


def test_the_recipe_of_fipo_reads_what_the_builder_s_context_says_without_its_optional_parts() -> None:
    recipe = yaml.safe_load((ROOT / "experiments" / "rlprompt" / "fipo.yaml").read_text())
    candidates = tuple(Candidate(text, {}, reward, input="Why?") for text, reward in (("a", 0.0), ("b", 1.0)))
    (draft,) = slots(Group(candidates), max_words=60).drafts
    assert draft.context == recipe["env"]["meta_prompt"].replace("{input}", "Why?")


def test_configurable_preference_writes_longer_for_detailed_than_for_concise(folder: Path) -> None:
    tiny = str(folder / "tiny")
    tokenizer = save_tokenizer(folder / "tiny")
    torch.manual_seed(0)
    causal_models()["llama"](len(tokenizer)).save_pretrained(tiny)
    small = [
        *SMALL[:2],
        f"policy={{kind: causal-lm, model: {tiny}, dtype: float32, kwargs: {{lora: {{r: 8}}}}}}",
        "env.num_envs=16",
        "env.prompt_length=8",
        "env.mask={candidates: [' it was good']}",
        "run.tensorboard=false",
    ]
    runs = play("configurable-preference.md", folder, small=small, steps=24, model=tiny)
    saved = runs["configurable-preference-dpo"]
    template = "Rewrite the review in plain words. Be {0}. Output the new review only. Review: {{input}}"
    new = [f"item {number}" for number in range(500, 516)]
    words = {
        name: [
            len((result.prompt or "").split())
            for result in Rewriter.load(saved, model=tiny, meta_prompt=template.format(name)).results(new)
        ]
        for name in ("concise", "detailed")
    }
    assert sum(words["concise"]) < sum(words["detailed"])


def test_the_pages_name_their_recipe_and_every_command_is_one_of_ours() -> None:
    for page in (
        "question-rewriter",
        "prompt-a-video",
        "instructgpt",
        "mepo",
        "bpo",
        "fipo",
        "configurable-preference",
    ):
        played = commands(f"{page}.md")
        assert any(f"experiments/rlprompt/{page}.yaml" in words for words in played)
        assert {words[0] for words in played} <= {"rlprompt", "cat"}
