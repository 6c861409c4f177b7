"""Whole LMs on RLlib: same gradient in both action modes and in any chunks, KL, NLPO, exact resume."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from rllib_runs import FakeRun, merged

from rlprompt.algorithms import chunks
from rlprompt.algorithms.rllib import batches
from rlprompt.algorithms.rllib.engine import Engine
from rlprompt.algorithms.rllib.rollouts import env_of, modules_of
from rlprompt.config import RunConfig
from rlprompt.errors import ConfigError
from rlprompt.policies import build_policy, load_policy
from rlprompt.runs import train

pytestmark = pytest.mark.ray

PPO = {"name": "ppo", "lr": 1e-2, "iterations": 2, "epochs": 2, "minibatch_size": 4}
PENALTY = {"kl_in": "reward", "kl_coeff": 0.1}


def make_config(algorithm: dict[str, Any] | None = None, **overrides: Any) -> RunConfig:
    sections: dict[str, Any] = {
        "seed": 3,
        "task": {"name": "planted", "shots": 4, "dev_shots": 4},
        "target": {"name": "planted:separable", "kwargs": {"length": 3, "vocabulary": 8}},
        "policy": {"kind": "causal-lm", "model": "planted-8", "context": "w01 w02 w03"},
        "env": {"prompt_length": 3, "num_envs": 8, "action": "sequence"},
        "reward": [{"name": "log-probability"}],
        "stabilisers": [{"name": "leave-one-out", "kwargs": {"scale": "std"}}],
        "algorithm": {**PPO, **(algorithm or {})},
        "run": {"tensorboard": False, "checkpoint_every": 2},
    }
    return merged(sections, overrides)


def play(config: RunConfig, iterations: int = 2) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Returns the state and the metrics after some iterations."""
    engine = Engine(FakeRun(config))  # type: ignore[arg-type]
    metrics = [engine.iterate(iteration)[1] for iteration in range(iterations)]
    state = engine.state()
    engine.close()
    return state, metrics


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def moved(config: RunConfig, state: dict[str, Any]) -> float:
    """How far the LM itself went, its value head left out."""
    start = build_policy(config.policy, prompt_length=config.env.prompt_length, seed=config.seed)
    names = [name for name in state["head"] if name.startswith("lm.")]
    before = start.trainable_state()
    return largest_difference({n: before[n] for n in names}, {n: state["head"][n] for n in names})


@pytest.mark.parametrize(
    ("algorithm", "policy"),
    [
        ({"baseline": "critic", **PENALTY}, {}),
        ({"kl_in": "loss", "kl_coeff": 0.1, "entropy_coeff": 0.01}, {"kwargs": {"lora": None}}),
        ({"nlpo_top_p": 0.9}, {}),
    ],
    ids=["critic, KL in the reward", "full, KL in the loss", "NLPO"],
)
def test_token_steps_and_whole_prompts_give_the_same_weights(algorithm: dict[str, Any], policy: dict[str, Any]) -> None:
    configs = [
        make_config(algorithm, policy=policy, env={"action": action, "eos": True}) for action in ("token", "sequence")
    ]
    (token, _), (sequence, _) = (play(config) for config in configs)
    assert largest_difference(token["head"], sequence["head"]) < 1e-5
    assert moved(configs[0], token) > 1e-2


@pytest.mark.parametrize(
    "env",
    [
        {"level": "instance", "meta_prompt": "w03 {draft} {input} {feedback}", "rewrites_per_input": 2, "turns": 3},
        {"level": "task", "meta_prompt": "w03 {draft} w05 {feedback}", "turns": 2},
        {"level": "instance", "meta_prompt": "w03 {input}", "draft": "", "step_reward": "difference"},
    ],
    ids=["instance", "task", "a reward for each token"],
)
def test_rewrites_give_the_same_weights_in_both_action_modes(env: dict[str, Any]) -> None:
    rewriting = {"kind": "rewrite", "draft": "w01 w02", "prompt_length": 4, **env}
    configs = [
        make_config({"baseline": "critic", **PENALTY}, env={**rewriting, "action": action}, stabilisers=[])
        for action in ("token", "sequence")
    ]
    (token, metrics), (sequence, _) = (play(config) for config in configs)
    assert largest_difference(token["head"], sequence["head"]) < 1e-5
    assert moved(configs[0], token) > 1e-2
    assert metrics[0]["kl/prompt"] == pytest.approx(0.0, abs=1e-6)


def gradients(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """The gradient of the first minibatch, by parameter name."""
    found: dict[str, torch.Tensor] = {}
    engine = Engine(FakeRun(config))  # type: ignore[arg-type]
    learner = engine._learner

    def keep(gradients: dict[Any, torch.Tensor]) -> dict[Any, torch.Tensor]:
        named = {id(parameter): name for name, parameter in learner._prompt_module.policy.head.named_parameters()}
        known = {reference: value for reference, value in gradients.items() if value is not None}
        found.update({named[id(learner._params[reference])]: value.clone() for reference, value in known.items()})
        return known

    monkeypatch.setattr(learner, "postprocess_gradients", keep)
    engine.iterate(0)
    engine.close()
    return found


@pytest.mark.parametrize(
    "algorithm",
    [
        {"baseline": "critic", "kl_in": "loss", "kl_coeff": 0.1, "entropy_coeff": 0.1},
        {"name": "reinforce", "entropy_coeff": 0.1},
    ],
    ids=["PPO", "REINFORCE"],
)
def test_t6_runs_of_rows_add_up_to_the_gradient_of_the_batch(
    algorithm: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(
        {"epochs": 1, "minibatch_size": None, **algorithm},
        env={"eos": True, "prompt_length": 4},
        policy={"dtype": "float32"},  # 16 bits would round each run in its own way
    )
    whole = gradients(config, monkeypatch)
    monkeypatch.setattr(chunks, "TOKENS_WITH_GRADIENT", 12)  # three tokens of context and at most two prompts
    in_runs = gradients(config, monkeypatch)
    assert largest_difference(whole, in_runs) < 1e-6
    assert max(float(value.abs().max()) for value in whole.values()) > 1e-3


def test_the_first_ratio_is_one_and_the_first_kl_is_zero() -> None:
    _, (metrics,) = play(make_config({"epochs": 1, "minibatch_size": None, **PENALTY}), 1)
    assert metrics["loss/ratio"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["loss/approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["kl/prompt"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["kl/coefficient"] == 0.1


def test_the_module_registers_what_is_trained_and_nothing_else() -> None:
    engine = Engine(FakeRun(make_config({"nlpo_top_p": 0.9})))  # type: ignore[arg-type]
    expected = {f"policy.head.{name}" for name in engine.state()["head"]}
    for module in (modules_of(engine.algorithm.env_runner)[DEFAULT_MODULE_ID], engine._learner._prompt_module):
        assert set(module.state_dict()) == expected
    assert all("lora" in name or ".value." in name for name in expected)
    engine.close()


def test_the_frozen_weights_stay_as_they_were() -> None:
    run = FakeRun(make_config())
    frozen = {name: value.clone() for name, value in run.policy.hf_model.named_parameters() if not value.requires_grad}
    engine = Engine(run)  # type: ignore[arg-type]
    engine.iterate(0)
    engine.close()
    after = dict(run.policy.hf_model.named_parameters())
    assert frozen
    assert all(torch.equal(after[name], value) for name, value in frozen.items())


def test_an_adaptive_coefficient_moves_towards_its_target() -> None:
    # The KL of the first batch is 0: e = -0.2, and 8 prompts of a horizon of 80 make 0.1 (1 - 0.2 * 8 / 80) = 0.098.
    state, metrics = play(make_config({**PENALTY, "kl_target": 1.0, "kl_horizon": 80}))
    assert [step["kl/coefficient"] for step in metrics] == pytest.approx([0.1, 0.098])
    assert metrics[1]["kl/prompt"] != 0.0
    error = min(max(metrics[1]["kl/prompt"] - 1.0, -0.2), 0.2)
    assert state["kl_coefficient"] == pytest.approx(0.098 * (1 + error * 0.1))


def test_the_kl_of_the_batch_is_that_of_the_written_tokens() -> None:
    engine = Engine(FakeRun(make_config({**PENALTY, "lr": 0.1})))  # type: ignore[arg-type]
    engine.iterate(0)
    policy = engine._learner._prompt_module.policy
    context, tokens = torch.tensor([[1, 2, -1], [1, 2, 3]]), torch.tensor([[4, 5, -1], [6, 7, 0]])
    columns = {"context": context, "tokens": tokens, "mask": (tokens >= 0).float()}
    found = batches.score_tokens(engine._learner._prompt_module, columns, measure_kl=True)
    allowed = engine._learner._prompt_module.allowed_each(tokens)
    with torch.no_grad():
        logits = [policy.evaluate(context, tokens)[0], policy.reference_logits(context, tokens)]
    new, old = (torch.log_softmax(entry.masked_fill(~allowed, float("-inf")), dim=-1) for entry in logits)
    engine.close()
    for row, column in [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]:
        token = tokens[row, column]
        assert found["old_logp"][row, column].item() == pytest.approx(new[row, column, token].item(), abs=1e-6)
        expected = (new - old)[row, column, token].item()
        assert expected != 0.0
        assert found["log_ratio"][row, column].item() == pytest.approx(expected, abs=1e-5)
    assert found["old_logp"][0, 2] == found["log_ratio"][0, 2] == 0.0


def test_nlpo_writes_within_the_nucleus_of_the_copy_that_is_refreshed_now_and_then() -> None:
    engine = Engine(FakeRun(make_config({"nlpo_top_p": 0.3, "nlpo_every": 2})))  # type: ignore[arg-type]
    learner, copies = engine._learner, []
    for iteration in range(3):
        engine.iterate(iteration)
        copies.append(engine.state()["masking"])
    assert largest_difference(copies[0], copies[1]) == 0.0
    assert largest_difference(copies[1], copies[2]) > 1e-3
    module = learner._prompt_module
    context, written = (
        torch.tensor([[1, 2, 3]] * 8),
        torch.from_numpy(env_of(engine.algorithm.env_runner).writing.tokens),
    )
    masking = module.masking
    assert masking is not None
    allowed = module.allowed_each(written)
    with torch.no_grad():
        odds = torch.softmax(masking.policy.evaluate(context, written)[0].masked_fill(~allowed, -torch.inf), dim=-1)
    chosen = odds.gather(-1, written.unsqueeze(-1))
    more_probable = (odds * (odds > chosen)).sum(dim=-1)
    assert (more_probable < 0.3 + 1e-6).all()  # what comes before a token of the nucleus does not fill it
    engine.close()


def test_a_resumed_run_has_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    def config(iterations: int, folder: str) -> RunConfig:
        return make_config(
            {
                "iterations": iterations,
                "baseline": "critic",
                "nlpo_top_p": 0.9,
                "nlpo_every": 3,
                "kl_target": 1.0,
                "kl_horizon": 80,
                **PENALTY,
            },
            run={"dir": str(tmp_path / folder), "tensorboard": False, "checkpoint_every": 2},
        )

    whole = train(config(4, "whole"), progress=False)
    first = train(config(2, "parts"), progress=False)
    halfway = load_policy(first.folder).trainable_state()
    second = train(config(4, "parts"), resume=first.folder, progress=False)
    one, other = load_policy(whole.folder).trainable_state(), load_policy(second.folder).trainable_state()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert largest_difference(halfway, one) > 1e-3


def test_training_goes_on_from_the_policy_and_the_reference_of_an_earlier_stage() -> None:
    run = FakeRun(make_config({"epochs": 1, **PENALTY}))
    with torch.no_grad():
        for parameter in run.policy.trainable.parameters():
            parameter.add_(0.05)
    run.policy.freeze_reference()
    before = run.policy.trainable_state()
    engine = Engine(run)  # type: ignore[arg-type]
    assert largest_difference(engine.state()["head"], before) == 0.0
    _, metrics = engine.iterate(0)
    assert metrics["kl/prompt"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["loss/ratio"] != 0.0
    engine.close()


@pytest.mark.parametrize(
    ("algorithm", "policy", "message"),
    [
        ({"name": "sql"}, {}, "use ppo or reinforce, or policy.kind=lm-adaptor"),
        ({"name": "sql", **PENALTY}, {"kind": "lm-adaptor"}, "use kl_in=loss"),
        ({"name": "reinforce", "nlpo_top_p": 0.9}, {}, "use algorithm.name=ppo, or remove it for reinforce"),
        ({"kl_target": 1.0}, {}, "set the kl_coeff to start from"),
        ({"baseline": "critic"}, {"kwargs": {"value_head": False}}, "value_head: false; set one or the other"),
    ],
    ids=["SQL", "SQL with KL in the reward", "NLPO without PPO", "adaptive from zero", "critic without values"],
)
def test_settings_that_do_not_go_together_are_refused(
    algorithm: dict[str, Any], policy: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Engine(FakeRun(make_config(algorithm, policy=policy)))  # type: ignore[arg-type]
