import json
import random
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env

from rlprompt.envs import TokenPromptEnv
from rlprompt.errors import ConfigError
from rlprompt.types import Failure

ENV_ID = "rlprompt.envs:rlprompt/TokenPrompt-v0"
EOS = 50


def play(env, tokens, **reset):
    """Writes the tokens; returns the steps and the last info."""
    env.reset(**reset)
    steps = [env.step(token) for token in tokens]
    return steps, steps[-1][4]


@pytest.mark.parametrize(
    "options",
    [{}, {"eos": True}, {"step_reward": "difference"}, {"action": "sequence"}, {"action": "sequence", "eos": True}],
)
def test_t13_the_environment_checker_has_nothing_to_say(kwargs, options):
    env = gymnasium.make(ENV_ID, **kwargs(**options))
    base = env.unwrapped if options.get("action") != "sequence" else env.env.env
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if options.get("action") == "sequence":
            warnings.filterwarnings("ignore", message=".*different from the unwrapped version.*")
        check_env(base, skip_render_check=True)


@pytest.mark.parametrize("action", ["token", "sequence"])
def test_t13_a_spec_survives_json(kwargs, action):
    env = gymnasium.make(ENV_ID, action=action, **kwargs(mask={"no_repeat": True}, context="w01 w02"))
    spec = EnvSpec.from_json(env.spec.to_json())
    again = gymnasium.make(spec)
    assert again.action_space == env.action_space
    assert again.observation_space == env.observation_space
    assert again.spec.kwargs == env.spec.kwargs
    action_ = np.array([1, 2, 3]) if action == "sequence" else 1
    again.reset()
    assert again.step(action_)[0]["tokens"][0] == 1


def test_arguments_are_json(kwargs):
    assert json.loads(json.dumps(kwargs())) == kwargs()


def test_episode_statistics_are_recorded(kwargs):
    env = gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make(ENV_ID, **kwargs()))
    steps, info = play(env, [1, 2, 3])
    assert set(info["episode"]) == {"r", "l", "t"}
    assert info["episode"]["l"] == 3
    assert info["episode"]["r"] == pytest.approx(steps[-1][1])


def test_spaces_and_observations_follow_the_contract(kwargs):
    env = TokenPromptEnv(**kwargs(context="w05 w06"))
    assert env.action_space.n == 51
    observation, _ = env.reset()
    assert observation["tokens"].tolist() == [-1, -1, -1]
    assert observation["context"].tolist() == [5, 6]
    assert {array.dtype for array in observation.values()} == {np.dtype(np.int64)}
    observation, *_ = env.step(7)
    assert observation["tokens"].tolist() == [7, -1, -1]
    assert observation in env.observation_space


def test_an_empty_context_is_the_start_token(kwargs):
    observation, _ = TokenPromptEnv(**kwargs()).reset()
    assert observation["context"].tolist() == [EOS]  # the planted vocabulary has no BOS


def test_observations_are_copies(kwargs):
    env = TokenPromptEnv(**kwargs())
    observation, _ = env.reset()
    env.step(7)
    assert observation["tokens"].tolist() == [-1, -1, -1]


def test_a_fixed_length_prompt_terminates_with_the_stabilised_reward_of_its_text(kwargs):
    env = TokenPromptEnv(**kwargs())
    steps, info = play(env, [1, 2, 3])
    assert [step[1] for step in steps[:-1]] == [0.0, 0.0]
    assert [step[2] for step in steps] == [False, False, True]
    assert not any(step[3] for step in steps)
    scorer = env.writing.scorer
    scores = scorer.score(["w01 w02 w03"], scorer.minibatch(0, None))
    assert steps[-1][1] == pytest.approx(scorer.stabilise(scores)[0])
    assert info["prompt"] == "w01 w02 w03"
    assert info["valid"] is True
    assert info["raw_reward"] == pytest.approx(scores.mean_rewards[0])
    assert info["accuracy"] == pytest.approx(scores.accuracies[0])
    assert "failure" not in info


def test_the_planted_optimum_brings_the_best_reward(kwargs):
    env = TokenPromptEnv(**kwargs())
    best = [int(word[1:]) for word in env.writing.scorer.target.optimum.split()]
    steps, info = play(env, best)
    assert info["accuracy"] == 1.0
    worse, _ = play(env, [best[0], best[1], (best[2] + 1) % 50])
    assert worse[-1][1] < steps[-1][1]


def test_exactly_one_scoring_call_per_finished_prompt(kwargs, count_calls):
    env = TokenPromptEnv(**kwargs())
    calls = count_calls(env)
    play(env, [1, 2])
    assert calls == []
    env.step(3)
    assert calls == [["w01 w02 w03"]]


def test_eos_terminates_and_the_limit_truncates(kwargs):
    env = TokenPromptEnv(**kwargs(eos=True))
    steps, info = play(env, [4, EOS])
    assert [step[2:4] for step in steps] == [(False, False), (True, False)]
    assert info["prompt"] == "w04"
    steps, info = play(env, [4, 5, 6])
    assert [step[2:4] for step in steps] == [(False, False), (False, False), (False, True)]
    assert info["prompt"] == "w04 w05 w06"
    steps, _ = play(env, [4, 5, EOS])
    assert steps[-1][2:4] == (True, False)


def test_differences_add_up_to_the_raw_reward_less_that_of_the_empty_prompt(kwargs):
    env = TokenPromptEnv(**kwargs(step_reward="difference"))
    best = [int(word[1:]) for word in env.writing.scorer.target.optimum.split()]
    steps, info = play(env, best)
    empty = env.writing.scorer.score([""], env.writing.scorer.minibatch(0, None)).mean_rewards[0]
    assert sum(step[1] for step in steps) == pytest.approx(info["raw_reward"] - empty)
    assert all(step[1] > 0 for step in steps)


def test_a_failed_target_brings_zero_and_says_why(kwargs):
    for step_reward in ("terminal", "difference"):
        env = TokenPromptEnv(**kwargs(target={"failure_rate": 1.0}, step_reward=step_reward))
        steps, info = play(env, [1, 2, 3])
        assert [step[1] for step in steps] == [0.0, 0.0, 0.0]
        assert info["valid"] is False
        assert isinstance(info["failure"], Failure)
        assert info["failure"].where == "target"
        assert "raw_reward" not in info
        assert "accuracy" not in info


def test_a_prompt_with_some_answers_is_valid(kwargs):
    env = TokenPromptEnv(**kwargs(target={"failure_rate": 0.5}))
    _, info = play(env, [1, 2, 3])
    assert len(env.writing.last_scores.failures) > 0
    assert info["valid"] is True


def test_actions_outside_the_mask_are_written_and_reported(kwargs):
    env = TokenPromptEnv(**kwargs(mask={"no_repeat": True}))
    steps, info = play(env, [1, 1, 2])
    assert [step[4]["masked_action"] for step in steps] == [False, True, False]
    assert info["prompt"] == "w01 w01 w02"
    steps, info = play(env, [1, EOS, 2])  # without eos the special token is masked, but written all the same
    assert [step[4]["masked_action"] for step in steps] == [False, True, False]
    assert info["prompt"] == "w01"


def test_an_empty_prompt_is_scored_as_such(kwargs):
    env = TokenPromptEnv(**kwargs(eos=True))
    steps, info = play(env, [EOS])
    assert steps[0][2] is True
    assert info["masked_action"] is True
    assert info["prompt"] == ""


def test_the_mask_in_info_is_what_the_action_space_samples_from(kwargs):
    env = TokenPromptEnv(**kwargs(eos=True, mask={"candidates": ["w03 w07"]}))
    _, info = env.reset()
    assert np.flatnonzero(info["action_mask"]).tolist() == [3, 7]  # never EOS first
    assert env.action_space.sample(info["action_mask"]) in (3, 7)
    *_, info = env.step(3)
    assert np.flatnonzero(info["action_mask"]).tolist() == [3, 7, EOS]
    *_, info = env.step(EOS)
    assert not info["action_mask"].any()
    quiet = TokenPromptEnv(**kwargs(action_mask_in_info=False))
    assert "action_mask" not in quiet.reset()[1]


def test_resets_count_iterations_and_options_set_the_key(kwargs):
    env = TokenPromptEnv(**kwargs())
    keys = [env.reset()[0]["key"].tolist() for _ in range(3)]
    assert keys == [[0, 0], [1, 0], [2, 0]]
    assert env.reset(options={"iteration": 9, "episode": 4})[0]["key"].tolist() == [9, 4]
    assert env.reset()[0]["key"].tolist() == [10, 0]
    assert env.reset(seed=5)[0]["key"].tolist() == [0, 0]


def test_the_iteration_chooses_the_minibatch(kwargs):
    env = TokenPromptEnv(**kwargs(examples_per_step=2))
    for iteration in (0, 3):
        play(env, [1, 2, 3], options={"iteration": iteration})
        expected = tuple(example.id for example in env.writing.scorer.minibatch(iteration, 2))
        assert env.writing.last_scores.example_ids == expected


def test_no_global_random_state_is_read_or_moved(kwargs):
    np.random.seed(0)
    random.seed(0)
    before = (np.random.get_state()[1].tolist(), random.getstate())
    first, _ = play(TokenPromptEnv(**kwargs()), [1, 2, 3])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before
    np.random.seed(1)
    second, _ = play(TokenPromptEnv(**kwargs()), [1, 2, 3])
    assert first[-1][1] == second[-1][1]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"prompt_length": 0}, "prompt_length must be at least 1, got 0"),
        ({"step_reward": "often"}, "must be 'terminal' or 'difference', got 'often'"),
        ({"mask": {"no_repeats": True}}, "unknown key 'no_repeats'; did you mean 'no_repeat'"),
        ({"mask": {"no_repeat": True, "candidates": ["w01", "w02"]}}, "leaves 2 tokens for 3 positions"),
    ],
)
def test_wrong_arguments_are_one_line_errors(kwargs, change, match):
    with pytest.raises(ConfigError, match=match):
        TokenPromptEnv(**kwargs(**change))


def test_wrong_calls_are_one_line_errors(kwargs):
    env = TokenPromptEnv(**kwargs())
    with pytest.raises(ConfigError, match="unknown reset option 'iterations'; known: iteration, episode"):
        env.reset(options={"iterations": 1})
    with pytest.raises(ConfigError, match=r"'iteration' must be an integer in \[0, 2\*\*31\), got -1"):
        env.reset(options={"iteration": -1})
    env.reset()
    with pytest.raises(ConfigError, match=r"token ids in \[0, 51\), got 51 to 51"):
        env.step(51)
    play(env, [1, 2, 3])
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
        env.step(1)
    with pytest.raises(ConfigError, match="action must be one of token, sequence, got 'word'"):
        gymnasium.make(ENV_ID, action="word", **kwargs())
