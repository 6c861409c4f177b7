"""One agent is the single-agent environment, exactly: observations, masks, rewards, infos."""

import numpy as np
import pytest

from rlprompt.envs import RewriteEnv, TokenPromptEnv, TokenPromptVectorEnv
from rlprompt.envs.multi import raw_env
from rlprompt.envs.multi.rllib import MultiPrompterRLlib

EOS = 50
SHARED = ("tokens", "context", "key")


def sampled(mask, rng):
    return int(rng.choice(np.flatnonzero(mask)))


def same_observation(multi, single):
    assert {name: multi[name].tolist() for name in SHARED} == {name: single[name].tolist() for name in SHARED}
    assert multi["prefix"].tolist() == single["tokens"].tolist()


def play_both(multi, single, seed, rounds=3):
    """Plays the same tokens in both, drawn from the single environment's mask; compares all of it."""
    rng, name = np.random.default_rng(seed), multi.possible_agents[0]
    multi.reset(seed=seed)
    observation, info = single.reset(seed=seed)
    for _ in range(rounds):
        over = False
        while not over:
            same_observation(multi.observe(name), observation)
            assert multi.infos[name]["action_mask"].tolist() == info["action_mask"].tolist()
            token = sampled(info["action_mask"], rng)
            multi.step(token)
            observation, reward, terminated, truncated, info = single.step(token)
            assert multi.rewards[name] == reward
            over = terminated or truncated
            assert multi.terminations[name] is over
        same_observation(multi.observe(name), observation)
        assert {key: value for key, value in multi.infos[name].items() if key not in ("segments", "action_mask")} == {
            key: value for key, value in info.items() if key != "action_mask"
        }
        multi.reset()
        observation, info = single.reset()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ends": "eos"},
        {"mask": {"no_repeat": True}},
        {"ends": "eos", "mask": {"candidates": ["w01 w02 w34 w43 w10"], "no_repeat": True}, "context": "w01 w02"},
    ],
)
def test_one_agent_is_the_token_environment(game, options):
    rules = {"examples_per_step": 2, **options}
    ends = rules.pop("ends", "length")
    built = game(agents=[{"name": "only", "length": 4, "ends": ends}], **rules)
    shared = {name: built[name] for name in ("scorer", "tokenizer", "examples_per_step")}
    shared |= {name: value for name, value in rules.items() if name in ("mask", "context")}
    for seed in (0, 1):
        play_both(raw_env(**built), TokenPromptEnv(prompt_length=4, eos=ends == "eos", **shared), seed)


@pytest.mark.parametrize("level", ["task", "instance"])
def test_one_agent_with_a_meta_prompt_is_the_rewrite_environment(game, level):
    meta = {"meta_prompt": "prewrite"} if level == "task" else {"meta_prompt": "Fit it to: {input}"}
    draft = {"draft": "w01 w02"} if level == "task" else {}
    built = game(agents=[{"name": "only", "length": 4, **meta}], level=level, **draft)
    single = RewriteEnv(built["scorer"], "planted-50", prompt_length=4, level=level, **meta, **draft)
    play_both(raw_env(**built), single, seed=2)


def test_one_agents_copies_are_the_vector_environment(game):
    built = game(agents=[{"name": "only", "length": 3, "ends": "eos"}], stabilisers=["leave-one-out"])
    multi = MultiPrompterRLlib({"num_envs": 4, "first_episode": 2, **built})
    single = TokenPromptVectorEnv(4, built["scorer"], "planted-50", prompt_length=3, eos=True, first_episode=2)
    rng = np.random.default_rng(0)
    for iteration in range(3):
        seen, infos = multi.reset()
        observations, single_infos = single.reset()
        assert observations["key"][0].tolist() == [iteration, 2]
        over = False
        while not over:
            for one, observation in seen.items():
                row = int(one.partition(":")[2])
                same_observation(observation, {name: values[row] for name, values in observations.items()})
                assert infos[one]["action_mask"].tolist() == single_infos["action_mask"][row].tolist()
            actions = [sampled(mask, rng) for mask in single_infos["action_mask"]]
            seen, rewards, terminated, _, infos = multi.step({one: actions[int(one.partition(":")[2])] for one in seen})
            observations, single_rewards, _, _, single_infos = single.step(np.array(actions))
            over = terminated["__all__"]
        assert [rewards[f"only:{row}"] for row in range(4)] == single_rewards.tolist()
        assert [infos[f"only:{row}"]["prompt"] for row in range(4)] == single_infos["prompt"].tolist()
        tokens = [seen[f"only:{row}"]["tokens"].tolist() for row in range(4)]
        assert tokens == observations["tokens"].tolist()


def test_a_difference_over_segments_of_one_token_is_that_over_tokens(game):
    rules = {"step_reward": "difference"}
    agents = [{"name": f"agent_{place}", "length": 1} for place in range(3)]
    multi = raw_env(**game(agents=agents, **rules))
    single = TokenPromptEnv(game()["scorer"], "planted-50", prompt_length=3, **rules)
    multi.reset()
    single.reset()
    steps = [single.step(token)[1] for token in (34, 2, 10)]
    for token in (34, 2, 10):
        multi.step(token)
    assert [multi.rewards[name] for name in multi.possible_agents] == pytest.approx(steps)
