import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

from rlprompt.envs import SequenceActionVector, TokenPromptEnv, TokenPromptVectorEnv
from rlprompt.errors import ConfigError
from rlprompt.masks import step_mask

ENV_ID = "rlprompt.envs:rlprompt/TokenPrompt-v0"
EOS = 50


def play(env, rows):
    """Writes a (B, T) list of tokens from a fresh reset; returns the steps."""
    env.reset()
    return [env.step(column) for column in np.array(rows).T]


def test_it_is_made_as_rllib_makes_it(kwargs):
    env = DictInfoToList(
        gymnasium.make_vec(
            ENV_ID,
            num_envs=2,
            vectorization_mode=gymnasium.VectorizeMode("vector_entry_point"),
            **kwargs(action="token", seed=0),
        )
    )
    assert isinstance(env.unwrapped, TokenPromptVectorEnv)
    assert env.num_envs == 2
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    observations, infos = env.reset(seed=None, options=None)
    assert observations in env.observation_space
    assert [set(info) for info in infos] == [{"masked_action", "action_mask"}] * 2
    for action in (1, 2, 3):
        observations, rewards, terminated, truncated, infos = env.step(np.array([action, action + 1]))
    assert terminated.tolist() == [True, True]
    assert truncated.tolist() == [False, False]
    assert [info["prompt"] for info in infos] == ["w01 w02 w03", "w02 w03 w04"]
    assert [bool(info["valid"]) for info in infos] == [True, True]
    assert "failure" not in infos[0]
    for index in range(2):
        single = {name: values[index] for name, values in observations.items()}
        assert single in env.single_observation_space
    assert rewards.dtype == np.float64


def test_the_constructor_makes_the_same_and_the_vector_entry_point_is_the_default(kwargs):
    made = gymnasium.make_vec(ENV_ID, num_envs=2, **kwargs())
    built = TokenPromptVectorEnv(2, **kwargs())
    assert made.observation_space == built.observation_space
    assert made.action_space == built.action_space
    assert gymnasium.make_vec(made.spec).num_envs == 2


def test_sub_envs_agree_with_the_single_environment(kwargs):
    rows = [[1, 2, 3], [4, 5, 6]]
    steps = play(TokenPromptVectorEnv(2, **kwargs()), rows)
    env = TokenPromptEnv(**kwargs())
    for index, row in enumerate(rows):
        env.reset()
        for (observations, rewards, terminated, truncated, _), token in zip(steps, row, strict=True):
            observation, reward, *ends, info = env.step(token)
            assert observations["tokens"][index].tolist() == observation["tokens"].tolist()
            assert rewards[index] == pytest.approx(reward)
            assert [terminated[index], truncated[index]] == ends
        finals = steps[-1][4]
        assert finals["prompt"][index] == info["prompt"]
        assert finals["raw_reward"][index] == pytest.approx(info["raw_reward"])


def test_all_finished_prompts_are_scored_in_one_call(kwargs, count_calls):
    env = TokenPromptVectorEnv(3, **kwargs())
    calls = count_calls(env)
    play(env, [[1, 2, 3], [4, 5, 6], [1, 2, 3]])
    assert calls == [["w01 w02 w03", "w04 w05 w06", "w01 w02 w03"]]
    assert env.last_scores.prompts == tuple(calls[0])


def test_stabilisers_see_all_prompts_of_the_step(kwargs):
    env = TokenPromptVectorEnv(2, **kwargs(stabilisers=["leave-one-out"]))
    *_, (_, rewards, *_) = play(env, [[1, 2, 3], [4, 5, 6]])
    assert rewards.sum() == pytest.approx(0.0)
    assert env.last_training_rewards == pytest.approx(rewards)


def test_the_next_step_begins_anew_and_ignores_its_actions(kwargs):
    env = TokenPromptVectorEnv(2, **kwargs())
    *_, last = play(env, [[1, 2, 3], [4, 5, 6]])
    assert last[4]["action_mask"].any(axis=1).all()  # the mask of the prompts that come next
    observations, rewards, terminated, truncated, infos = env.step(np.array([7, 8]))
    assert (observations["tokens"] == -1).all()
    assert rewards.tolist() == [0.0, 0.0]
    assert not terminated.any()
    assert not truncated.any()
    assert "prompt" not in infos
    observations, *_ = env.step(np.array([7, 8]))
    assert observations["tokens"][:, 0].tolist() == [7, 8]


def test_prompts_that_ended_wait_for_the_others(kwargs, count_calls):
    env = TokenPromptVectorEnv(3, **kwargs(eos=True, prompt_length=4))
    calls = count_calls(env)
    steps = play(env, [[1, EOS, EOS, EOS], [1, 2, EOS, 9], [1, 2, 3, 4]])
    assert [step[2].tolist() for step in steps[:-1]] == [[False] * 3] * 3
    assert not any(step[3].any() for step in steps[:-1])
    assert steps[-1][2].tolist() == [True, True, False]
    assert steps[-1][3].tolist() == [False, False, True]  # the third reached the limit without EOS
    assert steps[-1][4]["prompt"].tolist() == ["w01", "w01 w02", "w01 w02 w03 w04"]
    assert np.flatnonzero(steps[1][4]["action_mask"][0]).tolist() == [EOS]
    assert steps[-1][0]["tokens"][1].tolist() == [1, 2, EOS, EOS]  # the action 9 came while waiting
    assert not steps[-1][4]["masked_action"].any()
    assert len(calls) == 1


def test_a_round_ends_when_the_last_prompt_does(kwargs):
    env = TokenPromptVectorEnv(2, **kwargs(eos=True, prompt_length=5))
    steps = play(env, [[1, EOS, EOS], [1, 2, EOS]])
    assert steps[-1][2].tolist() == [True, True]
    assert steps[-1][4]["prompt"].tolist() == ["w01", "w01 w02"]


def test_sampled_lengths_have_the_exact_frequencies(kwargs):
    # EOS has probability 0.4 at every position but the first, so with at most 3 words:
    # P(1 word) = 0.4, P(2) = 0.6 * 0.4 = 0.24, P(3) = 0.36.
    env = TokenPromptVectorEnv(16, **kwargs(eos=True))
    rng = np.random.default_rng(0)
    lengths = []
    _, infos = env.reset()
    for _ in range(100):  # rounds; a loop that stops after N finished prompts has no short ones in excess
        over = False
        while not over:
            weights = np.where(np.arange(51) == EOS, 0.4, 0.6 / 50)[None] * infos["action_mask"]
            cumulative = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)
            actions = (cumulative < rng.random((16, 1))).sum(axis=1).clip(max=50)
            _, _, terminated, truncated, infos = env.step(actions)
            over = bool((terminated | truncated).all())
            assert over == bool((terminated | truncated).any())
        lengths += [len(prompt.split()) for prompt in infos["prompt"]]
        _, _, _, _, infos = env.step(actions)
    frequencies = np.bincount(lengths, minlength=4)[1:] / len(lengths)
    # 1,600 prompts: a standard error of at most sqrt(0.24 / 1600) = 0.0123
    assert frequencies == pytest.approx([0.4, 0.24, 0.36], abs=0.045)


def test_iterations_advance_after_a_finished_round_only(kwargs):
    env = TokenPromptVectorEnv(2, first_episode=6, **kwargs())
    observations, _ = env.reset()
    assert observations["key"].tolist() == [[0, 6], [0, 7]]
    env.step(np.array([1, 2]))
    assert env.reset()[0]["key"][:, 0].tolist() == [0, 0]  # abandoned: played again
    play(env, [[1, 2, 3], [4, 5, 6]])
    assert env.step(np.array([1, 2]))[0]["key"].tolist() == [[1, 6], [1, 7]]
    assert env.reset(seed=3)[0]["key"][:, 0].tolist() == [0, 0]


def test_set_iteration_holds_for_the_episodes_that_start_next(kwargs):
    env = TokenPromptVectorEnv(2, **kwargs(examples_per_step=2))
    env.set_iteration(7)
    assert env.reset(seed=1)[0]["key"][:, 0].tolist() == [7, 7]
    for column in ([1, 1], [2, 2]):
        env.step(np.array(column))
    env.set_iteration(20)
    env.step(np.array([3, 3]))
    expected = tuple(example.id for example in env.writing.scorer.minibatch(7, 2))
    assert env.last_scores.example_ids == expected  # the round that had begun is iteration 7
    assert env.step(np.array([0, 0]))[0]["key"][:, 0].tolist() == [20, 20]
    assert env.reset(options={"iteration": 4})[0]["key"][:, 0].tolist() == [4, 4]


def test_a_failed_prompt_has_zero_reward_and_leaves_the_others_alone(kwargs):
    arguments = kwargs(stabilisers=["leave-one-out"], examples_per_step=1, target={"failure_rate": 0.4})
    env = TokenPromptVectorEnv(12, **arguments)
    *_, (_, rewards, _, _, infos) = play(env, [[word, word, word] for word in range(12)])
    failed = ~infos["valid"]
    assert 0 < failed.sum() < 12
    assert (rewards[failed] == 0.0).all()
    assert infos["_valid"].all()
    assert infos["_failure"].tolist() == failed.tolist()
    assert infos["_raw_reward"].tolist() == infos["valid"].tolist()
    raw = infos["raw_reward"][~failed]
    others = (raw.sum() - raw) / (len(raw) - 1)
    assert np.sign(rewards[~failed].round(9)).tolist() == np.sign((raw - others).round(9)).tolist()


def test_differences_add_up_while_finished_prompts_wait(kwargs):
    env = TokenPromptVectorEnv(2, **kwargs(step_reward="difference", eos=True))
    steps = play(env, [[1, EOS, EOS], [1, 2, 3]])
    empty = env.writing.scorer.score([""], env.writing.scorer.minibatch(0, None)).mean_rewards[0]
    total = sum(step[1] for step in steps)
    assert total == pytest.approx(steps[-1][4]["raw_reward"] - empty)
    assert steps[2][1][0] == 0.0


def test_no_written_token_is_ever_outside_the_mask_when_agents_follow_it(kwargs):
    env = TokenPromptVectorEnv(4, **kwargs(mask={"no_repeat": True}, eos=True, prompt_length=6))
    observations, infos = env.reset()
    for _ in range(40):
        written = observations["tokens"]
        if not env.writing.is_over:
            expected = step_mask(env.writing.static_mask, written, eos_id=EOS, no_repeat=True)
            assert np.array_equal(infos["action_mask"] == 1, expected)
        actions = np.array([env.single_action_space.sample(mask) for mask in infos["action_mask"]])
        observations, _, _, _, infos = env.step(actions)
        assert not infos["masked_action"].any()


def test_vector_episode_statistics_are_recorded(kwargs):
    env = RecordEpisodeStatistics(TokenPromptVectorEnv(2, **kwargs()))
    *_, (_, rewards, _, _, infos) = play(env, [[1, 2, 3], [4, 5, 6]])
    assert infos["episode"]["r"] == pytest.approx(rewards)
    assert infos["episode"]["l"].tolist() == [3, 3]


def test_wrong_vector_calls_are_one_line_errors(kwargs):
    env = TokenPromptVectorEnv(2, **kwargs())
    env.reset()
    with pytest.raises(ConfigError, match=r"actions must be 2 token ids, got shape \(3,\)"):
        env.step(np.array([1, 2, 3]))
    with pytest.raises(ConfigError, match="actions must be 2 token ids, got shape"):
        env.step(np.array([0.5, 1.0]))
    with pytest.raises(ConfigError, match="num_envs must be at least 1, got 0"):
        TokenPromptVectorEnv(0, **kwargs())
    with pytest.raises(ConfigError, match="first_episode must be >= 0, got -1"):
        TokenPromptVectorEnv(1, first_episode=-1, **kwargs())


def test_the_sequence_action_is_an_argument_of_the_id(kwargs):
    env = gymnasium.make_vec(ENV_ID, num_envs=2, **kwargs(action="sequence"))
    assert isinstance(env, SequenceActionVector)
    assert isinstance(env.unwrapped, TokenPromptVectorEnv)
