"""Games on RLlib: one agent is the single trainer, a game is one trajectory, frozen agents stay, resuming is exact."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode
from rllib_runs import merged

from rlprompt.algorithms.losses import ppo_policy_loss
from rlprompt.algorithms.rllib.batches import ADVANTAGES, OLD_LOGP, RETURNS, TOKENS, token_logp
from rlprompt.algorithms.rllib.game_batches import GameBatch
from rlprompt.algorithms.rllib.game_engine import GameEngine
from rlprompt.algorithms.rllib.rollouts import env_of
from rlprompt.config import RunConfig
from rlprompt.errors import CheckpointError, ConfigError
from rlprompt.policies import configured_team, load_team
from rlprompt.policies.roles import RolePolicy
from rlprompt.runs import load_run, train
from rlprompt.scoring import build_scorer
from rlprompt.search.random import greedy_prompts

pytestmark = pytest.mark.ray

TWO = [{"name": "first", "length": 2}, {"name": "second", "length": 2}]


def make_config(**overrides: Any) -> RunConfig:
    sections: dict[str, Any] = {
        "seed": 3,
        "task": {"name": "planted", "shots": 4, "dev_shots": 4},
        "target": {"name": "planted:separable", "kwargs": {"length": 4, "vocabulary": 50}},
        "policy": {"kind": "lm-adaptor", "model": "planted-50", "kwargs": {"hidden": 16, "top_k": None}},
        "env": {"kind": "multi", "num_envs": 8, "agents": TWO},
        "reward": [{"name": "log-probability"}],
        "algorithm": {"name": "ppo", "lr": 1e-2, "iterations": 4, "epochs": 2, "baseline": "critic"},
        "run": {"tensorboard": False, "checkpoint_every": 2},
    }
    return merged(sections, overrides)


class FakeRun:
    """The part of a run that the engine reads."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.scorer = build_scorer(config)
        self.policy = configured_team(config)


def engine_of(**overrides: Any) -> GameEngine:
    return GameEngine(FakeRun(make_config(**overrides)))  # type: ignore[arg-type]


def metrics_of(folder: Path) -> list[dict[str, float]]:
    """Everything that iterations said of losses, KL and rewards, without the names of agents."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [
        {name.removesuffix("/only"): value for name, value in event["metrics"].items()}
        for event in events
        if "metrics" in event
    ]


@pytest.mark.parametrize(
    ("algorithm", "env"),
    [
        ({"baseline": "none", "minibatch_size": 3}, {}),
        ({"baseline": "critic", "minibatch_size": 3}, {"action": "sequence"}),
        ({"baseline": "none", "kl_in": "reward", "kl_coeff": 0.1}, {"action": "sequence"}),
        ({"baseline": "critic", "kl_coeff": 0.1, "entropy_coeff": 0.01}, {"mask": {"no_repeat": True}}),
    ],
)
def test_one_agent_is_the_single_trainer_with_the_same_losses_and_weights(
    algorithm: dict[str, Any], env: dict[str, Any], tmp_path: Path
) -> None:
    shared = {
        "stabilisers": [{"name": "leave-one-out"}] if algorithm["baseline"] == "none" else [],
        "run": {"dir": str(tmp_path)},
    }
    steps = {"iterations": 3, **algorithm}
    words = ["w34", "w43", "w10", "w46", "w01", "w02"]  # few, so that some prompts are better than others
    env = {**env, "mask": {"candidates": words, **env.get("mask", {})}}
    alone = train(
        make_config(env={"kind": "token-prompt", "agents": [], "prompt_length": 4, **env}, algorithm=steps, **shared),
        progress=False,
    )
    only = [{"name": "only", "length": 4}]
    game = train(
        make_config(env={"agents": only, **env}, team={"critic": "own"}, algorithm=steps, **shared), progress=False
    )
    assert metrics_of(game.folder) == metrics_of(alone.folder)
    assert len(metrics_of(game.folder)) == 3
    assert metrics_of(game.folder)[0]["unique_prompt_rate"] > 0.5
    assert metrics_of(game.folder)[0]["loss/ratio"] != 1.0 or "minibatch_size" not in algorithm
    assert game.best_prompt == alone.best_prompt
    weights = [
        (folder / "policy.safetensors").read_bytes()
        for folder in (alone.folder / "best", game.folder / "best" / "members" / "only")
    ]
    assert weights[0] == weights[1]


def played(engine: GameEngine, tokens: list[list[int]], reward: float) -> MultiAgentEpisode:
    """Returns one copy's game in which the agents write given tokens and both are given the reward at its end."""
    env = env_of(engine.algorithm.env_runner)
    owners = {agent: agent.partition(":")[0] for agent in env.possible_agents}
    episode = MultiAgentEpisode(agent_to_module_mapping_fn=lambda agent, _: owners[agent])
    observations, infos = env.reset(options={"iteration": 0})
    episode.add_env_reset(observations=observations, infos=infos)
    for place, segment in enumerate(tokens):
        for token in segment:
            asked = [agent for agent in env.possible_agents if agent in observations]
            assert {owners[agent] for agent in asked} == {TWO[place]["name"]}
            actions = dict.fromkeys(asked, np.int64(token))
            observations, rewards, terminated, truncated, infos = env.step(actions)
            if terminated["__all__"]:
                rewards = dict.fromkeys(rewards, reward)
            episode.add_env_step(observations, actions, rewards, infos, terminateds=terminated, truncateds=truncated)
    return episode


def set_values(engine: GameEngine, values: list[float]) -> None:
    """Makes the critic's value depend on the place in the prefix only."""
    critic = engine._critic
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.zero_()
        for place, value in enumerate(values):
            critic.hidden.weight[place, critic.hidden.in_features - critic.length - 1 + place] = 1.0
            critic.out.weight[0, place] = value


def test_two_agents_and_four_tokens_by_hand_through_the_connector() -> None:
    engine = engine_of(env={"num_envs": 1}, algorithm={"gamma": 0.5, "gae_lambda": 0.5})
    set_values(engine, [0.2, 0.4, 0.6, 0.8])
    connector = GameBatch(
        agents=[("first", "first"), ("second", "second")], critic="central", shared=True, gamma=0.5, lam=0.5
    )
    episode = played(engine, [[34, 43], [10, 46]], 1.0)
    found = connector(rl_module=engine._learner.module, batch={}, episodes=[episode])
    # delta_t = r_t + 0.5 V_t+1 - V_t and advantage_t = delta_t + 0.25 advantage_t+1; see tests/algorithms/test_turns.py
    assert found["first"][ADVANTAGES][0].tolist() == pytest.approx([-0.034375, -0.1375])
    assert found["second"][ADVANTAGES][0].tolist() == pytest.approx([-0.15, 0.2])
    assert found["critic"][RETURNS][0].tolist() == pytest.approx([0.165625, 0.2625, 0.45, 1.0])
    assert found["critic"]["prefix"].tolist() == [[34, 43, 10, 46]]
    assert found["second"]["before"].tolist() == [[34, 43, -1, -1]]
    own = GameBatch(agents=[("first", "first"), ("second", "second")], critic="own", shared=True, gamma=0.5, lam=0.5)
    alone = own(rl_module=engine._learner.module, batch={}, episodes=[episode])
    # Each agent's own values are 0 at first, so its trajectory is its two tokens: 0.25 x 1, and 1.
    assert alone["first"][ADVANTAGES][0].tolist() == pytest.approx([0.25, 1.0])
    engine.close()


def test_shared_weights_and_gamma_1_are_one_policy_with_a_role_embedding() -> None:
    engine = engine_of(team={"weights": "embedding"}, algorithm={"baseline": "none"}, env={"num_envs": 1})
    learner = engine._learner
    module = learner.prompt_modules["shared"]
    policy = module.policy
    assert isinstance(policy, RolePolicy)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():  # past the start, where all roles are alike and the adaptor gives next to nothing
        for parameter in policy.head.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draws))
    connector = GameBatch(agents=[("first", "shared"), ("second", "shared")], critic="none", shared=True, gamma=1.0)
    written = [[34, 43], [10, 46]]
    columns = connector(rl_module=learner.module, batch={}, episodes=[played(engine, written, 0.75)])["shared"]
    assert columns[TOKENS].tolist() == written
    loss = learner.compute_loss_for_module(
        module_id="shared", config=None, batch=columns, fwd_out=learner.module["shared"].forward_train(columns)
    )
    loss.backward()
    found = {name: value.grad.clone() for name, value in policy.head.named_parameters() if value.grad is not None}
    policy.head.zero_grad()

    # One policy that writes all four tokens, in role 0, 0, 1, 1, and is given the reward at the end: gamma is 1.
    base, tokens = policy._policy, torch.tensor([[34, 43, 10, 46]])
    features = base.features(torch.tensor([[50]]), tokens)
    logits = base.logits(features + policy.head.roles[torch.tensor([0, 0, 1, 1])], head=policy.head.base)
    logp = token_logp(logits, tokens, module.allowed_each(tokens, 0))
    assert logp.flatten().tolist() == pytest.approx(columns[OLD_LOGP].flatten().tolist(), abs=1e-5)
    whole, _ = ppo_policy_loss(logp, logp.detach(), torch.full((1, 4), 0.75), torch.ones(1, 4), clip=0.2)
    whole.backward()  # type: ignore[no-untyped-call]
    expected = {name: value.grad for name, value in policy.head.named_parameters() if value.grad is not None}
    assert "roles" in found
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient is not None
        assert found[name].flatten().tolist() == pytest.approx(gradient.flatten().tolist(), abs=1e-6), name
    assert float(found["roles"].abs().max()) > 1e-4
    engine.close()


def test_without_a_critic_all_tokens_of_a_game_have_the_advantage_of_the_whole_prompt() -> None:
    # gamma 1 and the KL in the reward: reward + the whole prompt's penalty - the other game's penalty (RLOO).
    engine = engine_of(algorithm={"baseline": "none", "kl_in": "reward", "kl_coeff": 0.5}, env={"num_envs": 2})
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():  # away from the reference, so that there is a penalty
        for module in engine._learner.prompt_modules.values():
            for parameter in module.policy.head.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draws))
    pairs = [(name, name) for name in ("first", "second")]
    connector = GameBatch(agents=pairs, critic="none", shared=True, penalise=True, measure_kl=True)
    episode = played(engine, [[34, 43], [10, 46]], 1.0)
    other = episode.agent_episodes["second:1"].actions.data  # copy 1 wrote something else at the end
    other[-1] = np.int64(7)
    found = connector(rl_module=engine._learner.module, batch={}, episodes=[episode])
    paid = -0.5 * sum(found[name]["log_ratio"].sum(dim=1) for name in ("first", "second"))
    assert paid[0] != paid[1]
    for name in ("first", "second"):
        for game in (0, 1):
            expected = 1.0 + float(paid[game]) - float(paid[1 - game])
            assert found[name][ADVANTAGES][game].tolist() == pytest.approx([expected] * 2, abs=1e-5)
    engine.close()


def test_a_frozen_agent_and_one_whose_turn_it_is_not_stay_bit_identical() -> None:
    three = [*TWO[:1], {"name": "fixed", "length": 1, "frozen": True}, {"name": "last", "length": 1}]
    engine = engine_of(env={"agents": three}, team={"take_turns": 2})
    team = engine.team
    states = [team.trainable_state()]
    for iteration in range(4):
        engine.iterate(iteration)
        states.append(team.trainable_state())
    changed = [
        {name.partition("/")[0] for name, value in new.items() if not torch.equal(value, old[name])}
        for old, new in pairwise(states)
    ]
    assert changed == [{"first", "critic"}, {"first", "critic"}, {"last", "critic"}, {"last", "critic"}]
    engine.close()


def test_an_agent_is_added_to_a_trained_one(tmp_path: Path) -> None:
    where = {"dir": str(tmp_path)}
    first = train(make_config(env={"agents": TWO[:1]}, run=where, algorithm={"iterations": 2}), progress=False)
    start = first.folder / "best" / "members" / "first"
    agents = [{**TWO[0], "start": str(start), "frozen": True}, TWO[1]]
    second = train(make_config(env={"agents": agents}, run=where, algorithm={"iterations": 2}), progress=False)
    before, after = load_team(first.folder), load_team(second.folder)
    assert before.member("first").trainable_state().keys() == after.member("first").trainable_state().keys()
    for name, value in before.member("first").trainable_state().items():
        assert torch.equal(value, after.member("first").trainable_state()[name])
    fresh = configured_team(make_config())
    moved = [
        not torch.equal(value, fresh.member("second").trainable_state()[name])
        for name, value in after.member("second").trainable_state().items()
    ]
    assert any(moved)
    assert [agent.start for agent in after.agents] == [None, None]
    wrong = [{**TWO[0], "start": str(start), "kind": "categorical"}, TWO[1]]
    with pytest.raises(CheckpointError, match="agent 'first' cannot start from"):
        configured_team(make_config(env={"agents": wrong}))


def test_a_resumed_run_has_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    def config(iterations: int, folder: str) -> RunConfig:
        return make_config(
            algorithm={"iterations": iterations, "kl_in": "reward", "kl_coeff": 0.05, "kl_target": 0.5},
            run={"dir": str(tmp_path / folder)},
        )

    whole = train(config(4, "whole"), progress=False)
    half = train(config(2, "parts"), progress=False)
    resumed = train(config(4, "parts"), resume=half.folder, progress=False)
    for member in ("first", "second"):
        files = [run.folder / "best" / "members" / member / "policy.safetensors" for run in (whole, resumed)]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert metrics_of(whole.folder)[2:] == metrics_of(resumed.folder)[2:]


def test_two_agents_learn_the_planted_prompt(tmp_path: Path) -> None:
    agents = [{"name": "first", "length": 2}, {"name": "second", "length": 1}]
    config = make_config(
        target={"kwargs": {"length": 3, "vocabulary": 50}},
        policy={"kind": "categorical", "kwargs": {}},
        env={"agents": agents, "num_envs": 48, "action": "sequence"},
        algorithm={"iterations": 40, "lr": 0.15},
        run={"dir": str(tmp_path)},
    )
    result = train(config, progress=False)
    (prompt,), _ = greedy_prompts(load_team(result.folder), config, build_scorer(config))
    assert prompt == "w34 w43 w10"  # what was planted
    rewards = [metrics["reward/mean"] for metrics in metrics_of(result.folder)]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.5


def test_a_token_policy_after_a_rewriter_with_lora_and_no_word_twice(tmp_path: Path) -> None:
    words = "w34 w43 w10 w46 w01 w02"
    agents = [
        {
            "name": "rewriter",
            "length": 3,
            "meta_prompt": "w01 {draft}",
            "kind": "causal-lm",
            "kwargs": {"lora": {"r": 2, "targets": ["c_attn"]}},
            "separator": " ",
        },
        {"name": "tokens", "length": 2},
    ]
    config = make_config(
        env={"agents": agents, "draft": "w05", "mask": {"candidates": words.split(), "no_repeat": True}},
        algorithm={"iterations": 2, "kl_in": "reward", "kl_coeff": 0.1, "minibatch_size": 4},
        run={"dir": str(tmp_path)},
    )
    result = train(config, progress=False)
    team = load_team(result.folder)
    assert [policy.kind for policy in team.policies] == ["causal-lm", "lm-adaptor"]
    first, last = metrics_of(result.folder)
    assert first["kl/prompt/rewriter"] == first["kl/prompt/tokens"] == 0.0
    assert last["kl/prompt/tokens"] != 0.0
    for record in load_run(result.folder).prompts():
        assert len(record.prompt.split()) == len(set(record.prompt.split()))


def test_difference_rewards_go_to_who_earned_them() -> None:
    engine = engine_of(env={"step_reward": "difference", "num_envs": 2})
    env = env_of(engine.algorithm.env_runner)
    observations, _ = env.reset(options={"iteration": 0})
    for token in (34, 43, 10, 46):
        observations, rewards, *_ = env.step(dict.fromkeys(observations, token))
    assert rewards["first:0"] == rewards["first:1"] != rewards["second:0"]
    scores, metrics = engine.iterate(0)
    assert scores is not None
    assert len(scores.prompts) == 2
    assert np.isfinite(metrics["loss/critic"])
    engine.close()


@pytest.mark.parametrize(
    ("sections", "match"),
    [
        ({"env": {"agents": [{"name": "a", "length": 0}]}}, "length.*greater than or equal to 1"),
        ({"env": {"agents": [{"name": "a", "role": "poet"}]}}, "poet"),
        ({"env": {"agents": [{"name": "critic"}]}}, "cannot be called 'critic'"),
        ({"env": {"agents": [{"name": "a", "frozen": True}]}}, "nothing learns"),
        ({"algorithm": {"name": "sql", "baseline": "none"}}, "ppo trains and random samples"),
        ({"algorithm": {"nlpo_top_p": 0.9}}, "nlpo_top_p is for one policy"),
        ({"stages": [{"name": "warm-up"}]}, "stages and data are for one policy"),
        ({"env": {"kind": "token-prompt", "agents": []}, "team": {"weights": "shared"}}, "team is for env.kind=multi"),
    ],
)
def test_what_cannot_be_trained_is_a_one_line_error(sections: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        make_config(**sections)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("agents", "weights", "match"),
    [
        (
            [{"name": "a", "separator": " "}, {"name": "b", "model": "planted-40"}],
            "shared",
            "team.weights is 'shared', but agents 'a' and 'b' have different models",
        ),
        ([{"name": "a"}, {"name": "b", "frozen": True}], "shared", "differ in start or frozen"),
        ([{"name": "a", "kind": "categorical"}, {"name": "b", "kind": "categorical"}], "embedding", "lm-adaptor"),
    ],
)
def test_weights_that_cannot_be_shared_are_a_one_line_error(
    agents: list[dict[str, Any]], weights: str, match: str, tmp_path: Path
) -> None:
    config = make_config(env={"agents": agents}, team={"weights": weights}, run={"dir": str(tmp_path / "runs")})
    with pytest.raises(ConfigError, match=match) as caught:
        train(config, progress=False)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("runs/*"))
