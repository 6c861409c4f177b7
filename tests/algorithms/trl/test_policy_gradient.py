"""GRPO and RLOO: the gradient in closed form, failures left out of it, and the rules of a run."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from toy import ToyRun, make_config

from rlprompt.algorithms.trl.grpo import beta
from rlprompt.algorithms.trl.policy_gradient import silence_flat_groups, without
from rlprompt.config import RunConfig
from rlprompt.errors import BudgetExceededError, ConfigError
from rlprompt.registry import resolve

WORDS, LENGTH, KL = 3, 2, 0.5
TABLE = torch.tensor([[0.5, -0.25, 0.0, 0.0], [-1.0, 0.25, 0.5, 0.0]])  # the fourth token is EOS: never written


def reward(prompt: str) -> float:
    """1 for w00, 2 for w01, 4 for w02, and the place counts double."""
    return float(sum((place + 1) * 2 ** int(word[1:]) for place, word in enumerate(prompt.split())))


def fit(config: RunConfig, fails: Callable[[str, int], bool] = lambda prompt, place: False) -> ToyRun:
    run = ToyRun(config, reward, fails=fails)
    with torch.no_grad():
        run.policy.head.table.copy_(TABLE)  # the reference stays at the start: uniform
    resolve("algorithms", config.algorithm.name)(run)
    return run


def gradient(run: ToyRun) -> np.ndarray:
    """The first step's gradient: Adam's first moment is 0.1 of it."""
    moment: np.ndarray = run.iterations[0]["state"]["optimizer"]["table"]["exp_avg"].numpy() * 10
    return moment


def expected(run: ToyRun, algorithm: str, scale: str, kl_in: str) -> np.ndarray:
    """The gradient by hand, over the prompts that were scored."""
    scores = run.iterations[0]["scores"]
    prompts = [prompt for prompt, valid in zip(scores.prompts, scores.valid[:, 0], strict=True) if valid]
    rewards = np.array([reward(prompt) for prompt in prompts])
    logits = TABLE[:, :WORDS].double().numpy()
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    tokens = [[int(word[1:]) for word in prompt.split()] for prompt in prompts]
    ratios = np.array([[np.log(chances[t, row[t]] * WORDS) for t in range(LENGTH)] for row in tokens])  # ref is 1/3
    n = len(prompts)
    per_token = np.zeros((n, LENGTH))
    if algorithm == "rloo" or kl_in == "reward":
        rewards = rewards - KL * ratios.sum(axis=1)
    else:
        per_token = ratios * (KL * (1 - 1 / 8) if scale == "none" else KL)
    if algorithm == "rloo":
        advantages = (rewards - rewards.mean()) * n / (n - 1)
        share = 1 / n
    else:
        advantages = rewards - rewards.mean()
        if scale == "group":
            advantages = advantages / (rewards.std(ddof=1) + 1e-4)
        share = 1 / (n * LENGTH)  # dr_grpo divides by the most tokens a prompt may have
    result = np.zeros(TABLE.shape)
    for row, advantage, pull in zip(tokens, advantages, per_token, strict=True):
        for t in range(LENGTH):
            score = -chances[t]
            score[row[t]] += 1  # d log p(token) / d logits
            result[t, :WORDS] -= share * (advantage - pull[t]) * score
    return result


@pytest.mark.parametrize("failed", [(), (2, 5)], ids=str)
@pytest.mark.parametrize(
    ("algorithm", "scale", "kl_in"),
    [("rloo", "none", "loss"), ("grpo", "none", "loss"), ("grpo", "none", "reward"), ("grpo", "group", "loss")],
)
def test_t7_the_gradient_is_that_of_the_batch_without_the_failed_prompts(
    algorithm: str, scale: str, kl_in: str, failed: tuple[int, ...]
) -> None:
    settings = {"name": algorithm, "iterations": 1, "kl_coeff": KL, "scale_rewards": scale, "kl_in": kl_in}
    run = fit(make_config(algorithm=settings), lambda prompt, place: place in failed)
    assert int(run.iterations[0]["metrics"]["failed"]) == len(failed)
    np.testing.assert_allclose(gradient(run), expected(run, algorithm, scale, kl_in), atol=2e-5)
    assert np.abs(gradient(run)).max() > 0.01


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_t8_a_step_without_a_valid_prompt_leaves_the_weights_and_the_moments_alone(algorithm: str) -> None:
    settings = {"name": algorithm, "iterations": 3, "kl_coeff": KL}
    count = iter(range(100))
    run = fit(make_config(algorithm=settings), lambda prompt, place: 8 <= next(count) < 16)  # all of the second step
    first, second, third = run.iterations
    assert second["metrics"]["failed"] == 8
    assert torch.equal(first["weights"]["table"], second["weights"]["table"])
    assert torch.equal(
        first["state"]["optimizer"]["table"]["exp_avg"], second["state"]["optimizer"]["table"]["exp_avg"]
    )
    assert not torch.equal(second["weights"]["table"], third["weights"]["table"])


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_kl_is_zero_at_the_first_step_and_every_step_is_an_iteration(algorithm: str) -> None:
    run = ToyRun(make_config(algorithm={"name": algorithm, "kl_coeff": KL, "iterations": 3}), reward)
    resolve("algorithms", algorithm)(run)
    assert [entry["iteration"] for entry in run.iterations] == [0, 1, 2]
    assert [entry["metrics"]["loss/kl"] == 0 for entry in run.iterations] == [True, False, False]
    assert run.iterations[0]["metrics"]["loss/entropy"] == pytest.approx(np.log(WORDS))  # EOS is not in it
    assert run.scorer.calls == 24
    assert run.iterations[0]["rewards"].tolist() == run.iterations[0]["scores"].rewards[:, 0].tolist()


def test_prompts_are_those_that_random_search_draws_first() -> None:
    trained, searched = ToyRun(make_config(), reward), ToyRun(make_config(), reward)
    resolve("algorithms", "rloo")(trained)
    from rlprompt.masks import decode, static_mask
    from rlprompt.policies.sampling import write_prompts
    from rlprompt.seeding import generator

    draws = np.array([[generator(3, "token", 0, row, step).random() for step in range(LENGTH)] for row in range(8)])
    tokens = write_prompts(
        searched.policy,
        torch.full((8, 1), WORDS),
        static_mask=static_mask(searched.policy.tokenizer, searched.config.env.mask, eos=False),
        eos_id=None,
        no_repeat=False,
        length=LENGTH,
        uniforms=draws,
    )
    assert list(trained.iterations[0]["scores"].prompts) == [decode(searched.policy.tokenizer, row) for row in tokens]


@pytest.mark.parametrize("no_repeat", [False, True])
@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_prompts_hold_no_special_token_and_the_log_probability_is_that_of_the_mask(
    algorithm: str, no_repeat: bool
) -> None:
    env = {"prompt_length": 3, "num_envs": 16, "eos": True, "mask": {"candidates": ["w00", "w02"]}}
    env["mask"] = {"candidates": ["w00", "w02"], "no_repeat": no_repeat}
    run = ToyRun(make_config(env=env, algorithm={"name": algorithm, "iterations": 2}), reward)
    resolve("algorithms", algorithm)(run)
    written = [prompt.split() for entry in run.iterations for prompt in entry["scores"].prompts]
    assert {word for prompt in written for word in prompt} == {"w00", "w02"}
    assert min(len(prompt) for prompt in written) == 1  # never empty, sometimes ended early
    if no_repeat:
        assert all(len(set(prompt)) == len(prompt) for prompt in written)
        return
    # A first token has two choices, the next ones three; the mean is over the tokens written, EOS included.
    tokens = [min(len(prompt) + 1, 3) for prompt in written[:16]]
    entropy = (16 * np.log(2) + (sum(tokens) - 16) * np.log(3)) / sum(tokens)
    assert run.iterations[0]["metrics"]["loss/entropy"] == pytest.approx(entropy, rel=1e-5)


def test_the_run_stops_between_steps() -> None:
    run = ToyRun(make_config(algorithm={"iterations": 10}), reward)
    run.stop_after = 3
    resolve("algorithms", "rloo")(run)
    assert len(run.iterations) == 3
    run.restored = (10, {})
    resolve("algorithms", "rloo")(run)  # nothing is left to do
    assert len(run.iterations) == 3


def test_the_end_of_the_budget_leaves_the_trainer_in_the_middle_of_a_step() -> None:
    run = ToyRun(make_config(algorithm={"iterations": 10}), reward)
    score = run.scorer.score

    def limited(prompts: list[str], *args: Any, **kwargs: Any) -> Any:
        if run.scorer.calls >= 16:
            raise BudgetExceededError("the budget is spent")
        return score(prompts, *args, **kwargs)

    run.scorer.score = limited  # type: ignore[method-assign]
    run.policy.eval()
    with pytest.raises(BudgetExceededError):
        resolve("algorithms", "rloo")(run)
    assert len(run.iterations) == 2
    assert torch.equal(run.policy.head.table, run.iterations[-1]["weights"]["table"])
    assert not run.policy.training  # the mode is that of before


def test_global_generators_are_left_as_they_were() -> None:
    import random

    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    wanted = (random.random(), np.random.random(), float(torch.rand(1)))
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    resolve("algorithms", "grpo")(ToyRun(make_config(algorithm={"name": "grpo", "iterations": 1}), reward))
    assert (random.random(), np.random.random(), float(torch.rand(1))) == wanted


def test_the_entropy_bonus_has_a_gradient() -> None:
    settings = {"name": "grpo", "iterations": 1, "entropy_coeff": 0.5}
    run = ToyRun(make_config(algorithm=settings), lambda prompt: 1.0)  # equal rewards: no other gradient
    with torch.no_grad():
        run.policy.head.table.copy_(TABLE)
    resolve("algorithms", "grpo")(run)
    table = TABLE[:, :WORDS].double().requires_grad_()
    chances = torch.softmax(table, dim=-1)
    (0.5 * (chances * chances.log()).sum(dim=-1).mean()).backward()  # minus the mean entropy of the two places
    assert table.grad is not None
    np.testing.assert_allclose(gradient(run)[:, :WORDS], table.grad.numpy(), atol=2e-5)


@pytest.mark.parametrize("kl_coeff", [0.0, 0.1])
@pytest.mark.parametrize(("algorithm", "scale"), [("rloo", "none"), ("grpo", "none"), ("grpo", "group")])
def test_equal_rewards_move_nothing(algorithm: str, scale: str, kl_coeff: float) -> None:
    settings = {"name": algorithm, "iterations": 1, "scale_rewards": scale, "kl_coeff": kl_coeff}
    run = ToyRun(make_config(algorithm=settings), lambda prompt: 52.7)  # its mean over eight is no float32
    before = run.policy.trainable_state()["table"]
    resolve("algorithms", algorithm)(run)
    assert torch.equal(run.iterations[0]["weights"]["table"], before)


def test_only_rounding_errors_are_taken_out_where_the_advantages_hold_the_kl() -> None:
    rewards = [2.0, 2.0, None, 3.0]
    advantages = torch.tensor([1e-7, -1e-7, 0.5, -0.5])
    silence_flat_groups(advantages, rewards, 2, kl_inside=True)
    assert advantages.tolist() == [0.0, 0.0, 0.5, -0.5]
    silence_flat_groups(advantages, rewards, 2, kl_inside=False)  # one known reward of a group cannot differ
    assert advantages.tolist() == [0.0, 0.0, 0.0, 0.0]
    advantages = torch.tensor([0.1, -0.1])
    silence_flat_groups(advantages, [2.0, 2.0], 2, kl_inside=True)
    assert advantages.tolist() == pytest.approx([0.1, -0.1])


@pytest.mark.parametrize(("target", "factor"), [(1e-6, 1.02), (100.0, 0.98)])
@pytest.mark.parametrize(("algorithm", "kl_in"), [("rloo", "loss"), ("grpo", "loss"), ("grpo", "reward")])
def test_the_weight_of_the_kl_moves_towards_its_target(
    algorithm: str, kl_in: str, target: float, factor: float
) -> None:
    settings = {"name": algorithm, "iterations": 2, "kl_coeff": KL, "kl_in": kl_in, "kl_target": target}
    run = fit(make_config(algorithm={**settings, "kl_horizon": 80}))
    assert run.iterations[0]["metrics"]["kl_coeff"] == KL
    # beta <- beta (1 +- 0.2 * 8 prompts / 80), by whether the KL is far above or below its target
    assert run.iterations[0]["state"]["kl_coeff"] == pytest.approx(KL * factor)
    assert run.iterations[1]["metrics"]["kl_coeff"] == pytest.approx(KL * factor)


def test_the_weight_of_the_kl_in_grpo() -> None:
    assert beta(0.5, "none", 4) == 0.375  # 0.5 (1 - 1/4)
    assert beta(0.5, "group", 4) == 0.5


def test_rows_leave_every_tensor_and_the_token_count() -> None:
    batch = {
        "completion_mask": torch.tensor([[1, 1], [1, 0], [1, 1]]),
        "advantages": torch.tensor([1.0, 2.0, 3.0]),
        "num_items_in_batch": torch.tensor(5),
    }
    kept = without(batch, torch.tensor([True, False, True]))
    assert kept["advantages"].tolist() == [1.0, 3.0]
    assert int(kept["num_items_in_batch"]) == 4


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"algorithm": {"minibatch_size": 4}}, "algorithm.minibatch_size is 4, but rloo does not use it"),
        ({"algorithm": {"baseline": "critic"}}, "algorithm.baseline is 'critic', but rloo"),
        ({"algorithm": {"nlpo_top_p": 0.9}}, "algorithm.nlpo_top_p is 0.9"),
        ({"algorithm": {"entropy_coeff": 0.1}}, "algorithm.entropy_coeff is 0.1, but rloo"),
        ({"stabilisers": [{"name": "leave-one-out"}]}, "remove the stabiliser 'leave-one-out'"),
        ({"env": {"num_envs": 1}}, "env.num_envs must be at least 2"),
        (
            {"env": {"kind": "rewrite", "level": "instance", "rewrites_per_input": 3}},
            r"env.rewrites_per_input must be at least 2 and divide env.num_envs \(8\), got 3",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(sections: dict[str, Any], message: str) -> None:
    run = ToyRun(make_config(**sections), reward)
    with pytest.raises(ConfigError, match=message):
        resolve("algorithms", "rloo")(run)
    assert run.scorer.calls == 0
