"""The three forms: PettingZoo's AEC and parallel, and RLlib's; its tests pass, and one game is one game in all."""

import json
import re
import runpy
import warnings
from pathlib import Path

import numpy as np
import pytest
from pettingzoo.test import api_test, parallel_api_test, parallel_seed_test, seed_test
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode

from rlprompt.config import parse_config
from rlprompt.envs import configured_env, configured_multi
from rlprompt.envs.multi import ENV_ID, env, parallel_env, raw_env
from rlprompt.envs.multi.rllib import MultiPrompterRLlib, agent_name
from rlprompt.errors import ConfigError
from rlprompt.scoring import scorer_spec

EOS = 50
ENDING = [{"name": "agent_0", "length": 2, "ends": "eos"}, {"name": "agent_1", "length": 2, "ends": "eos"}]
EXPECTED = (
    "Observation is not a NumPy array",  # a dict, as in all environments here
    "Observation space for each agent probably should be",
    "Agents have different observation space sizes",
    "Action space for each agent probably should be",  # MultiDiscrete
    "Environment has not defined a render",
)


@pytest.fixture
def strict():
    """Every warning is an error, but for those that PettingZoo has about dict observations and rendering."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for message in EXPECTED:
            warnings.filterwarnings("ignore", message=f".*{message}")
        yield


@pytest.mark.parametrize(
    "options", [{}, {"agents": ENDING}, {"step_reward": "difference"}, {"action": "sequence", "agents": ENDING}]
)
def test_t13_pettingzoos_tests_pass(game, options, strict, capsys):
    rules = game(**options)
    api_test(env(**rules), num_cycles=20)
    seed_test(lambda: env(**rules), num_cycles=20)
    parallel_api_test(parallel_env(**rules), num_cycles=20)
    parallel_seed_test(lambda: parallel_env(**rules), num_cycles=20)
    assert "Passed Parallel API test" in capsys.readouterr().out


def plain(values):
    """Arrays as lists, so that `==` compares."""
    return {
        key: plain(value) if isinstance(value, dict) else value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in values.items()
        if key != "active_agent"  # PettingZoo's parallel form adds it
    }


def play_aec(played, seed):
    """Plays by the masks; yields the actor, what it saw, its mask and the token, and at the end what all have."""
    rng, steps = np.random.default_rng(seed), []
    played.reset(seed=seed)
    while not any(played.terminations.values()):
        name = played.agent_selection
        seen, _, _, _, info = played.last()
        token = int(rng.choice(np.flatnonzero(info["action_mask"])))
        steps.append((name, plain(seen), info["action_mask"].tolist(), token))
        played.step(token)
    last = {name: plain(played.observe(name)) for name in played.agents}
    return steps, last, dict(played.rewards), plain(played.infos)


def play_parallel(played, seed):
    rng, steps = np.random.default_rng(seed), []
    seen, infos = played.reset(seed=seed)
    while played.agents:
        (name,) = [one for one in played.agents if infos[one]["action_mask"].any()]
        token = int(rng.choice(np.flatnonzero(infos[name]["action_mask"])))
        steps.append((name, plain(seen[name]), infos[name]["action_mask"].tolist(), token))
        seen, rewards, *_, infos = played.step({one: token if one == name else 0 for one in played.agents})
    return steps, {name: plain(values) for name, values in seen.items()}, rewards, plain(infos)


def play_rllib(played, seed):
    rng, steps, over = np.random.default_rng(seed), [], False
    seen, infos = played.reset(seed=seed)
    while not over:
        ((one, values),) = seen.items()
        token = int(rng.choice(np.flatnonzero(infos[one]["action_mask"])))
        steps.append((agent_name(one), plain(values), infos[one]["action_mask"].tolist(), token))
        seen, rewards, terminated, _, infos = played.step({one: token})
        over = terminated["__all__"]
    named = [{agent_name(one): value for one, value in part.items()} for part in (seen, rewards, infos)]
    return steps, {name: plain(value) for name, value in named[0].items()}, named[1], plain(named[2])


@pytest.mark.parametrize("agents", [ENDING, [*ENDING, {"name": "agent_2", "length": 3}]])
@pytest.mark.parametrize("step_reward", ["terminal", "difference"])
def test_one_seeded_game_is_the_same_in_all_three_forms(game, agents, step_reward):
    rules = game(agents=agents, step_reward=step_reward, mask={"no_repeat": True})
    for seed in range(3):
        first = play_aec(env(**rules), seed)
        assert first == play_parallel(parallel_env(**rules), seed)
        assert first == play_rllib(MultiPrompterRLlib(rules), seed)
        steps, _, rewards, infos = first
        assert [name for name, *_ in steps] == sorted(name for name, *_ in steps)
        assert len({info["prompt"] for info in infos.values()}) == 1
        assert set(rewards) == {agent["name"] for agent in agents}


def test_the_state_is_whose_turn_it_is_and_the_whole_prefix(game):
    played = raw_env(**game())
    played.reset()
    states = [played.state().tolist()]
    for token in (1, 2, 3):
        played.step(token)
        assert played.state() in played.state_space
        states.append(played.state().tolist())
    assert states == [[0, -1, -1, -1], [0, 1, -1, -1], [1, 1, 2, -1], [2, 1, 2, 3]]


def test_copies_that_ended_are_not_asked_and_each_plays_its_own_game(game):
    rules = game(agents=ENDING)
    played = MultiPrompterRLlib({"num_envs": 2, **rules})
    seen, _ = played.reset()
    assert list(seen) == ["agent_0:0", "agent_0:1"]
    played.step({"agent_0:0": 1, "agent_0:1": 2})
    seen, *_ = played.step({"agent_0:0": EOS, "agent_0:1": 3})
    assert list(seen) == ["agent_1:0", "agent_1:1"]
    seen, rewards, *_ = played.step({"agent_1:0": 4, "agent_1:1": 5})
    assert rewards == {"agent_1:0": 0.0, "agent_1:1": 0.0}
    seen, rewards, terminated, _, infos = played.step({"agent_1:0": EOS, "agent_1:1": 6})
    assert terminated == {**dict.fromkeys(played.possible_agents, True), "__all__": True}
    assert [infos[f"agent_0:{copy}"]["prompt"] for copy in (0, 1)] == ["w01 w04", "w02 w03 w05 w06"]
    for copy, tokens in enumerate(([1, EOS, 4, EOS], [2, 3, 5, 6])):
        alone = raw_env(**rules)
        alone.reset(options={"episode": copy})
        for token in tokens:
            alone.step(token)
        for name in alone.agents:
            assert plain(alone.observe(name)) == plain(seen[f"{name}:{copy}"])
            assert alone.rewards[name] == pytest.approx(rewards[f"{name}:{copy}"])
    played.reset()
    with pytest.raises(ConfigError, match="actions are wanted of agent_0:0, agent_0:1, got some of agent_1:0"):
        played.step({"agent_1:0": 1})


def test_rllibs_episodes_hold_the_game_of_every_agent(game):
    played = MultiPrompterRLlib({"num_envs": 2, **game()})
    seen, infos = played.reset()
    episode = MultiAgentEpisode(
        observation_space=played.observation_spaces,
        action_space=played.action_spaces,
        agent_to_module_mapping_fn=lambda one, _: agent_name(one),
    )
    episode.add_env_reset(observations=seen, infos=infos)
    for tokens in ((1, 4), (2, 5), (3, 6)):
        actions = dict(zip(seen, tokens, strict=True))
        seen, rewards, terminated, truncated, infos = played.step(actions)
        episode.add_env_step(seen, actions, rewards, infos, terminateds=terminated, truncateds=truncated)
    assert episode.is_done
    for copy, words in enumerate(([1, 2, 3], [4, 5, 6])):
        first, second = (episode.agent_episodes[f"agent_{place}:{copy}"] for place in (0, 1))
        assert [int(action) for action in first.get_actions()] == words[:2]
        assert [int(action) for action in second.get_actions()] == words[2:]
        reward = float(played.last_training_rewards[copy])
        assert list(first.get_rewards()) == pytest.approx([0.0, reward])
        assert list(second.get_rewards()) == pytest.approx([reward])
        assert first.get_infos(-1)["valid"] is True
        assert first.module_id == "agent_0"


def test_the_constructor_takes_what_a_configuration_says_and_it_is_json():
    config = parse_config(
        {
            "task": {"name": "planted", "shots": 4, "dev_shots": 4},
            "target": {"name": "planted:separable"},
            "policy": {"kind": "categorical", "model": "planted-50", "context": "w05"},
            "env": {"kind": "multi", "agents": [{"name": "a", "length": 2}, {"name": "b"}], "action": "sequence"},
        }
    )
    arguments = configured_multi(config, scorer_spec(config))
    assert json.loads(json.dumps(arguments)) == arguments
    assert [agent["ends"] for agent in arguments["agents"]] == ["length", "length"]
    played = env(**arguments)
    played.reset()
    assert str(played) == ENV_ID
    assert played.observe("a")["context"].tolist() == [5]
    assert MultiPrompterRLlib({**arguments, "num_envs": 3}).game.batch == 3
    with pytest.raises(ConfigError, match=r"build it with rlprompt\.envs\.configured_multi"):
        configured_env(config, {})
    alone = config.model_copy(update={"env": parse_config({}).env})
    with pytest.raises(ConfigError, match=r"which has one agent; build it with rlprompt\.envs\.configured_env"):
        configured_multi(alone, {})


def test_resets_count_iterations_and_options_set_the_key(game):
    played = raw_env(**game())
    keys = []
    for _ in range(2):
        played.reset()
        keys.append(played.observe("agent_0")["key"].tolist())
    played.reset(options={"iteration": 9, "episode": 4})
    keys.append(played.observe("agent_0")["key"].tolist())
    played.reset(seed=5)
    assert [*keys, played.observe("agent_0")["key"].tolist()] == [[0, 0], [1, 0], [9, 4], [0, 0]]
    copies = MultiPrompterRLlib({"num_envs": 1, **game()})
    copies.set_iteration(7)
    assert copies.reset(seed=1)[0]["agent_0:0"]["key"].tolist() == [7, 0]
    copies.step({"agent_0:0": 1})
    assert copies.reset()[0]["agent_0:0"]["key"].tolist() == [7, 0]  # abandoned: played again
    with pytest.raises(ConfigError, match="'iteration' must be an integer"):
        played.reset(options={"iteration": -1})


def test_the_game_of_the_page_finds_the_planted_prompt(tmp_path, capsys):
    page = Path(__file__).parents[3] / "docs" / "multiprompter.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    script = tmp_path / "block.py"
    script.write_text(block, encoding="utf-8")
    names = runpy.run_path(str(script))
    best = names["env"].unwrapped.game.scorer.target.optimum
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["first", "second"]
    assert all(best in line for line in lines)
