"""The head on a policy's trunk: the policy stays as it was, the head learns the rule, and reranking pays."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from preference_pairs import count_of, planted_texts, ruled_pairs

from rlprompt.algorithms.preference_head import (
    DESCRIPTION,
    WEIGHTS,
    PreferenceHead,
    PreferenceHeadReward,
    train_preference_head,
)
from rlprompt.config import MaskConfig, PolicyConfig, RewardConfig
from rlprompt.errors import CheckpointError, ConfigError
from rlprompt.masks import decode, static_mask
from rlprompt.policies import PromptPolicy, build_policy, load_policy
from rlprompt.policies.sampling import write_prompts
from rlprompt.rewards import load_component
from rlprompt.seeding import generator
from rlprompt.types import TargetOutput

RULE = count_of("w03")
PAIRS = ruled_pairs(planted_texts, RULE, 120)


def make_policy(kind: str = "causal-lm", seed: int = 0, **kwargs: Any) -> PromptPolicy:
    """A policy on `planted-10` whose adapter has moved away from its start."""
    config = PolicyConfig(kind=kind, model="planted-10", dtype="float32", kwargs=kwargs)
    policy = build_policy(config, prompt_length=4, seed=seed)
    with torch.no_grad():
        for index, (_, parameter) in enumerate(sorted(policy.trainable.named_parameters())):
            drawn = generator(seed, "moved", index).normal(0.0, 0.05, size=tuple(parameter.shape))
            parameter.add_(torch.from_numpy(drawn).to(parameter.dtype))
    return policy


def logits(policy: PromptPolicy) -> torch.Tensor:
    context, tokens = torch.tensor([[0, 1, -1], [2, 3, 4]]), torch.tensor([[3, 4, 5, 6], [7, 8, -1, -1]])
    with torch.no_grad():
        return torch.cat([*(part.flatten() for part in policy.evaluate(context, tokens))])


def test_training_and_reading_a_head_leave_every_logit_bit_identical(tmp_path: Path) -> None:
    policy = make_policy()
    before, weights = logits(policy), policy.trainable_state()
    policy.save(tmp_path)
    saved = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    train_preference_head(policy, PAIRS, tmp_path)
    assert torch.equal(logits(policy), before)
    assert all(torch.equal(value, weights[name]) for name, value in policy.trainable_state().items())
    assert {name: (tmp_path / name).read_bytes() for name in saved} == saved
    assert {path.name for path in tmp_path.iterdir()} - set(saved) == {DESCRIPTION, WEIGHTS}
    loaded = load_policy(tmp_path)  # as if there were no head
    assert torch.equal(logits(loaded), before)
    PreferenceHead.load(tmp_path, loaded).score(["w01"], ["w02"])
    assert torch.equal(logits(loaded), before)


def test_it_learns_a_rule_that_holds_on_new_contexts() -> None:
    done = train_preference_head(make_policy(), PAIRS)
    assert done.held_out.low > 0.5
    assert done.held_out.share > 0.85
    assert (done.num_pairs + done.held_out.total) == len(PAIRS)


def test_keeping_the_best_of_n_written_texts_raises_the_reward() -> None:
    policy = make_policy()
    head = train_preference_head(policy, PAIRS, held_out=0.0).head
    kept, written = [], []
    for number in range(12):
        context = f"w{number % 10:02d} w09"
        tokens = write_prompts(
            policy,
            torch.tensor([policy.context_ids(context)] * 8),
            static_mask=static_mask(policy.tokenizer, MaskConfig(), eos=False),
            eos_id=None,
            no_repeat=False,
            length=4,
            uniforms=generator(1, "rerank", number).random((8, 4)),
        )
        texts = [decode(policy.tokenizer, row) for row in tokens.tolist()]
        kept.append(RULE(context, head.rank(context, texts)[0]))
        written.append(np.mean([RULE(context, text) for text in texts]))
    assert np.mean(kept) > np.mean(written) + 0.5


def test_the_reward_is_linear_in_the_last_hidden_state() -> None:
    policy = make_policy()
    head = train_preference_head(policy, PAIRS, held_out=0.0).head
    # What predicts a token behind "w01", line break, "w03", EOS is the state with which EOS was read.
    row = (*policy.tokenizer.encode("w01 w03"), 10)
    with torch.no_grad():
        last = policy.network.start([row]).last[0].double().numpy()  # type: ignore[attr-defined,union-attr]
    assert head.score(["w01"], ["w03"])[0] == pytest.approx(last @ head.weight + head.offset, abs=1e-4)
    scores = head.score([pair.reading for pair in PAIRS] * 2, [p.chosen for p in PAIRS] + [p.rejected for p in PAIRS])
    assert scores.mean() == pytest.approx(0, abs=1e-6)  # an average text is worth 0
    assert head.score(["w01"], ["w03"])[0] == head.score(["w01", "w02"], ["w03", "w04"])[0]
    assert head.score([], []).tolist() == []


def test_two_trainings_write_the_same_bytes_and_the_folder_is_a_reward(tmp_path: Path) -> None:
    for name in ("a", "b"):
        policy = make_policy()
        policy.save(tmp_path / name)
        head = train_preference_head(policy, PAIRS, tmp_path / name).head
    for file in (DESCRIPTION, WEIGHTS):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    named = RewardConfig(name="preference-head", kwargs={"model": str(tmp_path / "a"), "device": "cpu"})
    given = {"prompts": ["", ""], "completions": ["w03 w03", "w05 w06"], "input": ["w01"] * 2}
    values = load_component(named).call({**given, "outputs": [TargetOutput(text="")] * 2})
    assert values == head.score(["w01"] * 2, ["w03 w03", "w05 w06"]).tolist()
    assert values[0] > values[1]


def test_a_head_of_other_weights_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no policy at"):
        PreferenceHead.load(tmp_path)
    policy = make_policy()
    policy.save(tmp_path)
    with pytest.raises(ConfigError, match=r"holds no preference head: no preference-head\.json in it"):
        PreferenceHead.load(tmp_path)
    train_preference_head(policy, PAIRS, tmp_path)
    with pytest.raises(CheckpointError, match="was trained on other weights than those of this policy"):
        PreferenceHead.load(tmp_path, make_policy(seed=1))
    make_policy(seed=1).save(tmp_path)  # the head that lies beside it is the old one
    with pytest.raises(CheckpointError, match="was trained on other weights"):
        PreferenceHeadReward(str(tmp_path), device="cpu")
    policy.save(tmp_path)
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:20])
    with pytest.raises(CheckpointError, match="is truncated or altered"):
        PreferenceHead.load(tmp_path)
    train_preference_head(policy, PAIRS, tmp_path)
    values = json.loads((tmp_path / DESCRIPTION).read_text())
    (tmp_path / DESCRIPTION).write_text(json.dumps({**values, "reads": 1}))
    with pytest.raises(CheckpointError, match="'reads' is missing or of the wrong type"):
        PreferenceHead.load(tmp_path)


def test_other_policies_and_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs a policy of kind causal-lm, got categorical"):
        train_preference_head(make_policy("categorical"), PAIRS)
    with pytest.raises(ConfigError, match="max_tokens must be at least 8, got 3"):
        train_preference_head(make_policy(), PAIRS, max_tokens=3)
    with pytest.raises(ConfigError, match="there are no pairs to learn from"):
        train_preference_head(make_policy(), [])
