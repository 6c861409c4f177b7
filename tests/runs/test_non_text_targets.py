"""The page docs/non-text-targets.md: a target that answers with images, trained, resumed, evaluated and rescored."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers

from rlprompt.config import RewardConfig, parse_config
from rlprompt.runs import RunResult, load_run, train
from rlprompt.runs.rescore import rescore
from rlprompt.targets.renderer import RendererTarget
from rlprompt.types import TargetRequest

PAGE = (Path(__file__).parents[2] / "docs" / "non-text-targets.md").read_text(encoding="utf-8")
RECIPE: dict[str, Any] = {}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's files, and a tiny model over its words."""
    files = re.findall(r"`([\w.-]+)`:\n\n```\w+\n(.*?)```", PAGE, flags=re.DOTALL)
    assert [name for name, _ in files] == [
        *("train.jsonl", "dev.jsonl", "test.jsonl", "pictures.yaml", "pictures-run.yaml")
    ]
    for name, text in files:
        (tmp_path / name).write_text(text, encoding="utf-8")
    recipe = yaml.safe_load((tmp_path / "pictures-run.yaml").read_text())
    known = [word.strip() for word in recipe["env"]["mask"]["candidates"]]
    words = ["<unk>", "</s>", *known, "a", "circle", "square", "triangle", "green", "yellow"]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
    )
    tokenizer.save_pretrained(tmp_path / "tiny")
    torch.manual_seed(0)
    shape = transformers.GPT2Config(vocab_size=len(words), n_embd=16, n_layer=1, n_head=2, n_positions=64)
    transformers.GPT2LMHeadModel(shape).save_pretrained(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RLPROMPT_RUN_DIR", raising=False)
    return tmp_path


def run(folder: Path, *, resume: Path | None = None, **sections: Any) -> RunResult:
    data = yaml.safe_load((folder / "pictures-run.yaml").read_text())
    data["task"]["name"] = str(folder / "pictures.yaml")
    data["policy"]["model"] = str(folder / "tiny")
    data["run"] = {"dir": str(folder / "runs"), "tensorboard": False, "checkpoint_every": 1}
    for name, given in sections.items():
        data[name] = {**data.get(name, {}), **given} if isinstance(given, dict) else given
    return train(parse_config(data), resume=resume, progress=False)


def means(path: Path) -> list[float]:
    records = [record for record in load_run(path).prompts() if record.phase == "train"]
    found = []
    for iteration in range(1 + max(record.iteration for record in records)):
        values = [record.raw_reward for record in records if record.iteration == iteration]
        found.append(sum(values) / len(values))
    return found


def test_the_prompt_that_a_search_chooses_makes_better_images_than_the_plain_one(folder: Path) -> None:
    result = run(folder, algorithm={"name": "random", "iterations": 3})
    stored = load_run(result.folder)
    assert result.dev_reward is not None
    assert result.dev_reward > 0.5  # the plain prompt's is 0
    assert set((result.best_prompt or "").split()) == {"vivid", "detailed"}
    assert all(answer.output.payload is not None and answer.output.text is None for answer in stored.answers())
    assert "promptist/aesthetic" in stored.prompts()[0].components
    abstract = [record for record in stored.prompts() if "abstract" in record.prompt]
    assert abstract
    for record in abstract:  # not without contrast, but without what was asked for
        assert record.components["promptist/relevance"] < 0.28
        assert record.raw_reward < 0


@pytest.mark.slow
@pytest.mark.ray
def test_reinforce_learns_what_makes_better_images(folder: Path) -> None:
    result = run(folder, run={"dir": str(folder / "runs"), "tensorboard": False, "checkpoint_every": 50})
    curve = means(result.folder)
    assert sum(curve[-3:]) / 3 > sum(curve[:3]) / 3 + 1
    assert curve[-1] > 0.5


def test_each_input_gets_its_own_additions_and_several_answers(folder: Path) -> None:
    env = {
        "kind": "rewrite",
        "level": "instance",
        "compose": "append",
        "meta_prompt": "{input}",
        "rewrites_per_input": 4,
        "samples": 2,
    }
    result = run(
        folder,
        task={"template": "{prompt}"},
        env=env,
        policy={"kind": "causal-lm", "kwargs": {"lora": {"r": 2, "targets": ["c_attn"]}}},
        algorithm={"name": "random", "iterations": 1},
    )
    records = load_run(result.folder).prompts()
    assert {record.example_id for record in records if record.phase == "train"} == {f"train/{n}" for n in range(4)}
    assert all(record.num_valid == 2 and record.num_failed == 0 for record in records)


def test_a_resumed_run_has_the_images_of_before_and_asks_for_none_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    draw = RendererTarget.run

    def counted(self: RendererTarget, requests: list[TargetRequest]) -> Any:
        asked.extend(str(request.rendered.text) for request in requests)
        return draw(self, requests)

    monkeypatch.setattr(RendererTarget, "run", counted)
    three = {"name": "random", "iterations": 3}
    whole = run(folder, algorithm=three)
    calls = list(asked)
    asked.clear()
    first = run(folder, algorithm=three, budget={"max_target_calls": len(calls) // 2})
    assert 0 < len(asked) <= len(calls) // 2
    resumed = run(folder, resume=first.folder, algorithm=three)
    assert len(set(asked)) == len(asked)
    assert set(asked) >= set(calls)
    assert means(resumed.folder) == means(whole.folder)
    records = [record for record in load_run(resumed.folder).prompts() if record.phase == "train"]
    assert all(record.num_valid == 4 for record in records)  # none abstained for want of its image


def test_stored_images_are_scored_again_without_asking(folder: Path) -> None:
    result = run(folder, algorithm={"name": "random", "iterations": 1})
    stored = load_run(result.folder)
    again = rescore(stored, [RewardConfig(name="promptist", weight=2.0)])
    assert again.num_failed == again.num_left == 0
    assert [record.raw_reward for record in again.records] == pytest.approx(
        [2 * record.raw_reward for record in stored.prompts()]
    )
