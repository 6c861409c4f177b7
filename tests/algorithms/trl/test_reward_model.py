"""A reward model on a tiny LM: its loss, its folder, and that nothing but pairs and settings decides it."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from preference_pairs import count_of, planted_texts, ruled_pairs
from tiny_transformers import CHAT, save_tokenizer

from rlprompt.algorithms.trl.reward_model import (
    CHECKPOINT,
    RewardModelConfig,
    bradley_terry_loss,
    collator,
    train_reward_model,
)
from rlprompt.config import RewardConfig
from rlprompt.errors import CheckpointError, ConfigError
from rlprompt.preference_pairs import PreferencePair
from rlprompt.rewards import load_component
from rlprompt.rewards.learned.language_model import DESCRIPTION, WEIGHTS, LanguageModelReward, Reading, RewardModel
from rlprompt.types import TargetOutput

PAIRS = ruled_pairs(planted_texts, count_of("w03"), 100)


def config(**changes: Any) -> RewardModelConfig:
    """Quick training of `planted-10` on the CPU."""
    settings = {"model": "planted-10", "lr": 0.02, "batch_size": 16, "device": "cpu", "dtype": "float32", **changes}
    return RewardModelConfig.model_validate(settings)


def test_the_loss_is_the_weighted_mean_over_pairs() -> None:
    # Differences 1 and 2 with margins 0 and 1: both -log sigmoid(1) = 0.313262; weights 1 and 3 of two pairs.
    loss = bradley_terry_loss(
        torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0]), torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0])
    )
    assert float(loss) == pytest.approx((0.313262 + 3 * 0.313262) / 2, abs=1e-6)


def test_with_equal_weights_it_is_the_loss_of_trl() -> None:
    """TRL's own: `-logsigmoid(chosen - rejected - margin).mean()`, as its trainer computes it on a stub."""
    from types import SimpleNamespace

    from trl import RewardTrainer

    rewards = torch.tensor([0.3, -1.2, 2.0, 0.1, 0.7, 1.5])
    margin = torch.tensor([0.0, 0.5, 1.0])
    stub = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=None),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _metrics={"eval": {key: [] for key in _METRICS}},
        _total_train_tokens=0,
    )
    theirs = RewardTrainer.compute_loss(
        stub, lambda **_: SimpleNamespace(logits=rewards[:, None]), {"margin": margin, "attention_mask": rewards}
    )
    assert float(bradley_terry_loss(rewards[:3], rewards[3:], torch.ones(3), margin)) == pytest.approx(float(theirs))


_METRICS = ("num_tokens", "min_reward", "mean_reward", "max_reward", "accuracy", "margin")


def test_it_learns_a_rule_that_holds_on_new_contexts() -> None:
    done = train_reward_model(PAIRS, config=config(epochs=4))
    assert done.losses[0] == pytest.approx(math.log(2))  # all texts are worth the same at first
    assert done.held_out.low > 0.5
    assert done.held_out.share > 0.9
    none, one, two = done.model.score(["w01"] * 3, ["w02 w04", "w03 w04", "w03 w03"])
    assert none < one < two


def test_two_trainings_write_the_same_bytes_and_leave_the_global_generators_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    for name in ("a", "b"):
        train_reward_model(PAIRS, tmp_path / name, config())
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # type: ignore[index]
    for file in (DESCRIPTION, WEIGHTS):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    train_reward_model(PAIRS, tmp_path / "c", config(seed=1))
    assert (tmp_path / "c" / WEIGHTS).read_bytes() != (tmp_path / "a" / WEIGHTS).read_bytes()
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlprompt.algorithms.trl import reward_model

    whole = train_reward_model(PAIRS, tmp_path / "whole", config(epochs=2))
    write, kept = reward_model._write_checkpoint, []

    def stop_after_two(*args: Any) -> None:
        write(*args)
        kept.append(args[3])
        if len(kept) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(reward_model, "_write_checkpoint", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        train_reward_model(PAIRS, tmp_path / "cut", config(epochs=2, checkpoint_every=2))
    monkeypatch.undo()
    names = sorted(path.name for path in (tmp_path / "cut" / CHECKPOINT).iterdir())
    assert names == ["checkpoint.json", "checkpoint.safetensors"]
    with pytest.raises(CheckpointError, match="is of other pairs or settings"):
        train_reward_model(PAIRS, tmp_path / "cut", config(epochs=3, checkpoint_every=2), resume=True)
    rest = train_reward_model(PAIRS, tmp_path / "cut", config(epochs=2, checkpoint_every=2), resume=True)
    assert (kept, len(rest.losses)) == ([2, 4], len(whole.losses) - 4)
    assert rest.losses == whole.losses[4:]
    assert (tmp_path / "cut" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == [DESCRIPTION, WEIGHTS]


def test_the_folder_gives_back_the_same_rewards_whatever_stands_beside_a_text(tmp_path: Path) -> None:
    trained = train_reward_model(PAIRS, tmp_path, config()).model
    contexts, texts = [pair.reading for pair in PAIRS], [pair.chosen for pair in PAIRS]
    loaded = RewardModel.load(tmp_path, device="cpu")
    together = loaded.score(contexts, texts)
    assert together.tolist() == trained.score(contexts, texts).tolist()
    alone = [loaded.score([context], [text])[0] for context, text in zip(contexts[:6], texts[:6], strict=True)]
    assert together[:6].tolist() == alone
    values = json.loads((tmp_path / DESCRIPTION).read_text())
    assert values["base"] == {"name": "planted-10", "revision": None, "sha256": None, "source": "generated"}
    assert values["held_out"]["pairs"] == 20
    assert str(tmp_path) not in (tmp_path / DESCRIPTION).read_text()


def test_weights_margins_and_a_whole_lm_change_what_is_learnt(tmp_path: Path) -> None:
    plain = train_reward_model(PAIRS, config=config()).losses
    heavy = train_reward_model([replace(pair, weight=2.0) for pair in PAIRS], config=config()).losses
    assert heavy[0] == pytest.approx(2 * plain[0])
    wide = train_reward_model([replace(pair, margin=1.0) for pair in PAIRS], config=config(margin_scale=0.5)).losses
    assert wide[0] == pytest.approx(math.log1p(math.exp(0.5)))
    with pytest.raises(ConfigError, match=r"pair 'p\d+' has no margin above 0, but margin_scale is 0\.5; set it to 0"):
        train_reward_model([replace(pair, margin=0.0) for pair in PAIRS], config=config(margin_scale=0.5))
    whole = train_reward_model(PAIRS, tmp_path, config(lora=None, lr=0.005)).model
    assert "transformer.wte.weight" in whole.network.trained()
    loaded = RewardModel.load(tmp_path, device="cpu")
    assert loaded.score(["w01"], ["w03"]) == whole.score(["w01"], ["w03"])
    from rlprompt.models import load_frozen

    fresh = load_frozen("planted-10", dtype="float32", device="cpu").transformer.wte.weight  # type: ignore[union-attr]
    assert not torch.equal(fresh, whole.network.trained()["transformer.wte.weight"])  # the shared copy stays as it was


def test_an_input_is_the_users_message_and_a_context_stands_as_it_is(tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path, template=CHAT)
    rows = {reads: Reading(reads, True, 64).ids(tokenizer, "Say it", "good") for reads in ("input", "context")}
    assert tokenizer.decode(rows["input"]) == "<user>Say it</s><assistant>good</s>"
    assert tokenizer.decode(rows["context"]) == "Say it good</s>"


def test_rows_end_with_the_text_and_lose_their_beginning_where_they_are_too_long() -> None:
    model = train_reward_model(PAIRS, config=config(max_tokens=8)).model
    ids = model.reading.ids(model.tokenizer, "w01 w02", "w03")
    assert ids == [1, 2, 3, 10]  # 10 is EOS
    assert model.reading.ids(model.tokenizer, "w01 w02 w03 w04 w05 w06", "w07 w08") == [2, 3, 4, 5, 6, 7, 8, 10]
    assert model.reading.ids(model.tokenizer, "", "w03") == [10, 3, 10]
    assert model.facts["cut_pairs"] == 0
    batch = collator(9)([{"chosen_ids": [1, 2], "rejected_ids": [3], "margin": 0.0, "weight": 1.0}])
    assert batch["input_ids"].tolist() == [[1, 2], [3, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_it_is_a_reward_by_name(tmp_path: Path) -> None:
    train_reward_model(PAIRS, tmp_path, config(epochs=4))
    component = load_component(RewardConfig(name="reward-model", kwargs={"model": str(tmp_path), "device": "cpu"}))
    given = {"prompts": [""] * 2, "completions": ["w03 w03", "w05"], "input": ["w01"] * 2}
    good, bad = component.call({**given, "outputs": [TargetOutput(text="")] * 2})
    assert good > bad
    reward = LanguageModelReward(str(tmp_path), of="output", device="cpu")
    outputs = [TargetOutput(text="w05"), TargetOutput(choice_logprobs=(-0.1, -2.0))]
    assert reward(**given, outputs=outputs) == [bad, None]


@pytest.fixture
def other_lms(tmp_path: Path) -> tuple[str, str]:
    """Two folders of a tiny GPT-2 with the words of `planted-10`, alike but for the weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folders = []
    for seed in (0, 1):
        words = Tokenizer(models.WordLevel({f"w{n:02d}": n for n in range(10)} | {"</s>": 10}))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[attr-defined]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = GPT2LMHeadModel(
                GPT2Config(vocab_size=11, n_positions=32, n_embd=16, n_layer=1, n_head=2, eos_token_id=10)
            )
        folder = tmp_path / f"lm-{seed}"
        model.save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>").save_pretrained(folder)
        folders.append(str(folder))
    return folders[0], folders[1]


def test_a_reward_model_of_another_lm_is_refused(tmp_path: Path, other_lms: tuple[str, str]) -> None:
    own, other = other_lms
    folder = tmp_path / "saved"
    trained = train_reward_model(PAIRS, folder, config(model=own)).model
    assert RewardModel.load(folder, base=own).score(["w01"], ["w03"]) == trained.score(["w01"], ["w03"])
    with pytest.raises(ConfigError, match="its LM 'lm-0' was a local folder; give that folder as base"):
        RewardModel.load(folder)
    for wrong in (other, "planted-10"):
        with pytest.raises(CheckpointError, match=rf"was trained on another LM than '{wrong}': on 'lm-0'") as caught:
            RewardModel.load(folder, base=wrong)
        assert "\n" not in str(caught.value)
    planted = tmp_path / "planted"
    train_reward_model(PAIRS, planted, config())
    with pytest.raises(CheckpointError, match="was trained on another LM than 'planted-11'"):
        RewardModel.load(planted, base="planted-11")


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no reward model: no reward-model\.json in it"):
        RewardModel.load(tmp_path)
    train_reward_model(PAIRS, tmp_path, config())
    weights, description = (tmp_path / WEIGHTS).read_bytes(), json.loads((tmp_path / DESCRIPTION).read_text())
    (tmp_path / WEIGHTS).write_bytes(weights[:-7])
    with pytest.raises(CheckpointError, match="is truncated or altered"):
        RewardModel.load(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        RewardModel.load(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(weights)
    for change, message in (
        ({"lora": {**description["lora"], "r": 4}}, "its weights do not fit its LM"),
        ({"lora": {"rank": 3}}, "its adapter does not fit the LM"),
        ({"lora": None}, "its weights do not fit its LM"),
        ({"max_tokens": "many"}, "'max_tokens' is missing or of the wrong type"),
        ({"base": {}}, r"'base\.name' is missing"),
        ({"files": {}}, "is not a safetensors file"),
        ({"files": {"../x": ""}}, "is no file name"),
    ):
        (tmp_path / DESCRIPTION).write_text(json.dumps({**description, **change}))
        with pytest.raises(CheckpointError, match=message):
            RewardModel.load(tmp_path)


def test_arguments_that_do_not_fit_are_refused() -> None:
    for changes, message in (
        ({"lora": None, "dtype": "bfloat16"}, "without an adapter the LM trains in float32"),
        ({"lora": {"dropout": 0.1}}, "reward models train without"),
    ):
        with pytest.raises(ConfigError, match=message):
            train_reward_model(PAIRS, config=config(**changes))
    with pytest.raises(ConfigError, match="checkpoints need a folder"):
        train_reward_model(PAIRS, config=config(checkpoint_every=1))
    mixed = [*PAIRS, PreferencePair("x", "a", "b", context="c")]
    with pytest.raises(ConfigError, match="some pairs have 'input' and others 'context'"):
        train_reward_model(mixed, config=config())
    with pytest.raises(ConfigError, match="there are no pairs to learn from"):
        train_reward_model([], config=config(held_out=0.0))
