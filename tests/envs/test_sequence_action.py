import gymnasium
import numpy as np
import pytest

from rlprompt.envs import SequenceAction, SequenceActionVector, TokenPromptEnv, TokenPromptVectorEnv
from rlprompt.errors import ConfigError

EOS = 50


@pytest.mark.parametrize("step_reward", ["terminal", "difference"])
@pytest.mark.parametrize("tokens", [[1, 2, 3], [1, EOS, EOS], [4, 4, 4]])
def test_a_whole_prompt_has_the_reward_of_its_tokens(kwargs, step_reward, tokens):
    arguments = kwargs(step_reward=step_reward, eos=True, mask={"no_repeat": True})
    env = TokenPromptEnv(**arguments)
    env.reset()
    rewards, masked, ended = [0.0] * 3, False, False
    for place, token in enumerate(tokens):
        if not ended:
            observation, rewards[place], terminated, truncated, info = env.step(token)
            masked |= info["masked_action"]
            ended = terminated or truncated
    whole = SequenceAction(TokenPromptEnv(**arguments))
    whole.reset()
    observation_, reward_, terminated_, truncated_, info_ = whole.step(np.array(tokens))
    assert reward_ == pytest.approx(sum(rewards))
    assert info_["token_rewards"] == pytest.approx(rewards)
    assert (terminated_, truncated_) == (True, False)  # the length is part of the action, no limit of time
    assert (terminated, truncated) == ((False, True) if EOS not in tokens else (True, False))
    assert observation_["tokens"].tolist() == observation["tokens"].tolist()
    assert info_["prompt"] == info["prompt"]
    assert info_["masked_action"] == masked == (tokens == [4, 4, 4])


def test_whole_prompts_of_a_vector_have_the_rewards_of_their_tokens(kwargs, count_calls):
    arguments = kwargs(eos=True, stabilisers=["leave-one-out"])
    rows = np.array([[1, 2, 3], [1, EOS, EOS], [4, 5, EOS]])
    env = TokenPromptVectorEnv(3, **arguments)
    env.reset()
    for column in rows.T:
        observations, rewards, terminated, truncated, infos = env.step(column)
    whole = SequenceActionVector(TokenPromptVectorEnv(3, **arguments))
    calls = count_calls(whole)
    whole.reset()
    observations_, rewards_, terminated_, truncated_, infos_ = whole.step(rows)
    assert rewards_ == pytest.approx(rewards)
    assert (terminated.tolist(), truncated.tolist()) == ([False, True, True], [True, False, False])
    assert (terminated_.tolist(), truncated_.tolist()) == ([True] * 3, [False] * 3)
    assert np.array_equal(observations_["tokens"], observations["tokens"])
    assert infos_["prompt"].tolist() == infos["prompt"].tolist()
    assert len(calls) == 1


def test_spaces_are_whole_prompts(kwargs):
    env = SequenceAction(TokenPromptEnv(**kwargs()))
    assert env.action_space == gymnasium.spaces.MultiDiscrete([51, 51, 51])
    vector = SequenceActionVector(TokenPromptVectorEnv(4, **kwargs()))
    assert vector.single_action_space == gymnasium.spaces.MultiDiscrete([51, 51, 51])
    assert vector.action_space.shape == (4, 3)
    observations, infos = vector.reset()
    assert observations in vector.observation_space
    assert "action_mask" not in infos
    assert "action_mask" not in vector.step(vector.action_space.sample())[4]
    assert vector.metadata["autoreset_mode"] is gymnasium.vector.AutoresetMode.NEXT_STEP


def test_the_step_after_the_end_begins_anew(kwargs, count_calls):
    env = SequenceActionVector(TokenPromptVectorEnv(2, **kwargs()))
    calls = count_calls(env)
    actions = np.array([[1, 2, 3], [4, 5, 6]])
    env.reset()
    assert env.step(actions)[2].all()
    observations, rewards, terminated, _, _ = env.step(actions)
    assert (observations["tokens"] == -1).all()
    assert observations["key"][:, 0].tolist() == [1, 1]
    assert not terminated.any()
    assert rewards.tolist() == [0.0, 0.0]
    assert env.step(actions)[2].all()
    env.reset()
    assert env.step(actions)[2].all()
    assert len(calls) == 3


def test_random_whole_prompts_play_on(kwargs):
    env = SequenceAction(TokenPromptEnv(**kwargs(eos=True)))
    env.action_space.seed(0)
    for _ in range(5):
        env.reset()
        *_, terminated, truncated, info = env.step(env.action_space.sample())
        assert terminated or truncated
        assert info["valid"]


def test_actions_of_another_shape_and_other_environments_are_refused(kwargs):
    env = SequenceAction(TokenPromptEnv(**kwargs()))
    env.reset()
    with pytest.raises(ConfigError, match=r"shape \(3,\), got \(2,\)"):
        env.step(np.array([1, 2]))
    with pytest.raises(ConfigError, match="SequenceAction wraps TokenPromptEnv"):
        SequenceAction(gymnasium.make("CartPole-v1"))
