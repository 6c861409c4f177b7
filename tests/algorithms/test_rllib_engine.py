"""The RLlib engine: same gradient in both action modes, failures left out, exact resume, no wasted forward."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from rllib_runs import TOKENS, FakeRun, merged

from rlprompt.algorithms.rllib.batches import episode_columns, masked_logits, token_logp, valid_episodes
from rlprompt.algorithms.rllib.engine import Engine, check_settings
from rlprompt.algorithms.rllib.rollouts import modules_of
from rlprompt.config import RunConfig, parse_config
from rlprompt.errors import ConfigError
from rlprompt.policies import build_policy
from rlprompt.runs import train

pytestmark = pytest.mark.ray


def make_config(**overrides: Any) -> RunConfig:
    return merged(TOKENS, overrides)


def head_after(config: RunConfig, iterations: int) -> dict[str, torch.Tensor]:
    run = FakeRun(config)
    engine = Engine(run)  # type: ignore[arg-type]
    for iteration in range(iterations):
        engine.iterate(iteration)
    state = engine.state()["head"]
    engine.close()
    return state


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize(
    "algorithm",
    [
        {"name": "ppo"},
        {"name": "ppo", "baseline": "critic"},
        {"name": "ppo", "kl_in": "reward", "kl_coeff": 0.1, "nlpo_top_p": 0.9},
        {"name": "sql"},
        {"name": "reinforce"},
    ],
    ids=str,
)
def test_token_steps_and_whole_prompts_give_the_same_weights(algorithm: dict[str, Any]) -> None:
    token = head_after(make_config(algorithm=algorithm, env={"action": "token"}), 2)
    sequence = head_after(make_config(algorithm=algorithm, env={"action": "sequence"}), 2)
    start = build_policy(make_config().policy, prompt_length=3, seed=3).head.state_dict()
    assert largest_difference(token, sequence) < 1e-6
    assert largest_difference(token, start) > 1e-3  # two steps of Adam at 1e-2 move the weights


def test_whole_prompts_with_eos_give_the_same_weights_as_token_steps() -> None:
    token = head_after(make_config(env={"action": "token", "eos": True}), 2)
    sequence = head_after(make_config(env={"action": "sequence", "eos": True}), 2)
    assert largest_difference(token, sequence) < 1e-6


def test_an_iteration_makes_one_forward_per_token_and_the_first_ratio_is_one() -> None:
    run = FakeRun(make_config(algorithm={"epochs": 1}))
    engine = Engine(run)  # type: ignore[arg-type]
    _, metrics = engine.iterate(0)
    assert (
        modules_of(engine.algorithm.env_runner)[DEFAULT_MODULE_ID].forwards == 3
    )  # three tokens, eight prompts at a time, nothing thrown away
    assert metrics["loss/ratio"] == pytest.approx(1.0, abs=1e-4)
    assert {"entropy", "unique_prompt_rate", "zero_spread_share"} <= metrics.keys()
    engine.close()


def test_a_policy_on_another_device_is_refused() -> None:
    policy: Any = SimpleNamespace(device=torch.device("cuda:0"))
    config = parse_config({"policy": {"device": "cuda"}})
    with pytest.raises(ConfigError, match=r"policy.device is cuda, but ppo trains on the CPU.*grpo or rloo"):
        check_settings(config, policy)


def test_only_the_head_is_in_the_state() -> None:
    run = FakeRun(make_config())
    engine = Engine(run)  # type: ignore[arg-type]
    assert set(modules_of(engine.algorithm.env_runner)[DEFAULT_MODULE_ID].state_dict()) == {
        f"policy.head.{name}" for name in engine.state()["head"]
    }
    engine.close()


class FakeEpisode:
    """What the batch reads of an RLlib episode."""

    def __init__(self, number: int, actions: list[Any], rewards: list[float], valid: bool = True) -> None:
        self.number, self.actions, self.rewards, self.valid = number, actions, rewards, valid

    def __len__(self) -> int:
        return len(self.actions)

    def get_infos(self, index: int) -> dict[str, Any]:
        return {"valid": self.valid}

    def get_observations(self, index: int) -> dict[str, Any]:
        return {"key": np.array([0, self.number]), "context": np.array([7])}

    def get_actions(self) -> Any:
        return np.array(self.actions)

    def get_rewards(self) -> Any:
        return np.array(self.rewards)


def test_failed_episodes_leave_the_batch_and_order_is_by_episode_number() -> None:
    episodes = [FakeEpisode(2, [1], [0.5]), FakeEpisode(1, [2], [0.0], valid=False), FakeEpisode(0, [3], [1.0])]
    assert [episode.number for episode in valid_episodes(episodes)] == [0, 2]


def test_tokens_after_eos_are_dropped_and_late_rewards_go_to_the_last_token() -> None:
    waited = FakeEpisode(0, [5, 9, 9], [0.0, 0.0, 2.0])  # 9 is EOS: written at step 1, then the prompt waited
    whole = FakeEpisode(1, [[5, 6, 9]], [3.0])
    columns = episode_columns([waited, whole], 3, eos_id=9)
    assert columns["tokens"].tolist() == [[5, 9, -1], [5, 6, 9]]
    assert columns["mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert columns["rewards"].tolist() == [[0, 2, 0], [0, 0, 3]]


def test_log_probabilities_are_those_of_the_masked_distribution() -> None:
    logits = torch.tensor([[[0.0, 0.0, 5.0]]])
    allowed = torch.tensor([[[True, True, False]]])
    assert token_logp(logits, torch.tensor([[1]]), allowed).item() == pytest.approx(-0.6931472)  # log(1/2)
    nothing = torch.zeros(1, 1, 3, dtype=torch.bool)
    assert torch.isfinite(masked_logits(logits, nothing)).all()


def test_t7_advantages_equal_those_of_the_batch_without_the_failed_prompts() -> None:
    whole, failing = make_config(), make_config(target={"kwargs": {"length": 3, "vocabulary": 50, "failure_rate": 0.1}})
    run = FakeRun(failing)
    engine = Engine(run)  # type: ignore[arg-type]
    scores, _ = engine.iterate(0)
    engine.close()
    assert scores is not None
    assert scores.failures
    stabilised = run.scorer.stabilise(scores)
    kept = scores.prompt_valid
    means = np.array(
        [row[valid].mean() if valid.any() else np.nan for row, valid in zip(scores.rewards, scores.valid, strict=True)]
    )
    n = int(kept.sum())
    advantages = (means - np.nanmean(means)) * n / (n - 1)  # r_i - mean of the others = (r_i - mean) n / (n - 1)
    expected = advantages / (np.nanstd(means) + 1e-4)
    np.testing.assert_allclose(stabilised[kept], expected[kept], rtol=1e-3)
    assert whole.target.kwargs.get("failure_rate") is None


def events_of(folder: Path) -> list[dict[str, Any]]:
    from rlprompt.runs.events import VOLATILE

    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if k not in VOLATILE and not k.startswith("time")} for line in lines]
    return [
        {**line, "metrics": {k: v for k, v in line["metrics"].items() if not k.startswith("time/")}}
        if "metrics" in line
        else line
        for line in kept
        if "metrics" in line
    ]


@pytest.mark.parametrize("algorithm", ["ppo", "sql"])
def test_a_resumed_run_has_the_events_and_weights_of_an_uninterrupted_one(tmp_path: Path, algorithm: str) -> None:
    def config(iterations: int, folder: str) -> RunConfig:
        return make_config(
            algorithm={"name": algorithm, "iterations": iterations},
            run={"dir": str(tmp_path / folder), "tensorboard": False, "checkpoint_every": 2},
        )

    whole = train(config(6, "whole"), progress=False)
    first = train(config(2, "parts"), progress=False)
    second = train(config(6, "parts"), resume=first.folder, progress=False)
    assert second.iterations == 6
    assert events_of(second.folder) == events_of(whole.folder)
    from rlprompt.policies import load_policy

    one, other = load_policy(whole.folder).trainable_state(), load_policy(second.folder).trainable_state()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert second.best_prompt == whole.best_prompt
