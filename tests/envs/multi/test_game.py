"""The rules: turns, what is read, masks, rewards in one call, and what does not fit."""

import gymnasium
import numpy as np
import pytest

from rlprompt.envs.multi import Game
from rlprompt.errors import ConfigError
from rlprompt.models import load_tokenizer

EOS = 50
MODEL = "smollm2-135m-instruct"
ENDING = [{"name": "a", "length": 3, "ends": "eos"}, {"name": "b", "length": 2, "ends": "eos"}]


def play(game, rows):
    """Writes a (B, P) list of tokens from a fresh start; returns the moves."""
    game.start(0, np.arange(game.batch))
    return [game.write(np.array(column)) for column in np.array(rows).T]


def test_agents_take_turns_and_read_what_was_composed_before(game):
    played = Game(batch=2, **game())
    assert played.observations(0)["context"].tolist() == [[EOS], [EOS]]  # this tokenizer has no BOS
    moves = play(played, [[1, 2, 3], [4, 5, 6]])
    assert [move.turn_over for move in moves] == [False, True, True]
    seen = played.observations(1)
    assert seen["context"].tolist() == [[EOS, 1, 2], [EOS, 4, 5]]
    assert seen["tokens"].tolist() == [[3], [6]]
    assert seen["prefix"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert seen["agent"].tolist() == [[1], [1]]
    assert seen["position"].tolist() == [[3], [3]]
    assert played.observations(0)["prefix"].tolist() == [[1, 2, -1], [4, 5, -1]]  # what came later is not shown
    assert moves[-1].finals[0]["prompt"] == "w01 w02 w03"
    assert moves[-1].finals[0]["segments"] == ["w01 w02", "w03"]


def test_no_two_agents_share_their_random_draws(game):
    played = Game(batch=2, **game())
    played.start(3, np.array([4, 5]))
    keys = [tuple(key) for place in (0, 1) for key in played.observations(place)["key"].tolist()]
    assert keys[:2] == [(3, 4), (3, 5)]
    assert len(set(keys)) == 4


def test_every_observation_is_in_its_space_at_every_step(game):
    played = Game(batch=2, **game(agents=ENDING))
    spaces = [played.observation_space(place) for place in (0, 1)]
    for _ in play(played, [[1, EOS, 0, 4, EOS], [1, 2, 3, EOS, 7]])[:1]:
        for place, space in enumerate(spaces):
            columns = played.observations(place)
            for row in range(2):
                assert {name: values[row] for name, values in columns.items()} in space


def test_what_ended_waits_and_leaves_nothing_in_the_prompt(game):
    played = Game(batch=2, **game(agents=ENDING))
    moves = play(played, [[1, EOS, 9, 4, EOS], [1, 2, 3, 5, 6]])
    assert not np.any([move.masked for move in moves])
    assert [final["prompt"] for final in moves[-1].finals] == ["w01 w04", "w01 w02 w03 w05 w06"]
    assert played.prefix(1).tolist() == [[1, EOS, -1, 4, EOS], [1, 2, 3, 5, 6]]
    assert played.observations(1)["context"].tolist() == [[EOS, 1, -1, -1], [EOS, 1, 2, 3]]


def test_a_segment_never_begins_with_its_end_and_only_its_own_mask_counts(game):
    played = Game(batch=1, **game(agents=ENDING, mask={"candidates": ["w03 w07 w09"]}))
    assert np.flatnonzero(played.allowed[0]).tolist() == [3, 7, 9]
    played.write(np.array([3]))
    assert np.flatnonzero(played.allowed[0]).tolist() == [3, 7, 9, EOS]
    played.write(np.array([EOS]))
    assert played.turn == 1
    assert np.flatnonzero(played.allowed[0]).tolist() == [3, 7, 9]
    assert played.write(np.array([EOS])).masked.tolist() == [True]
    assert played.prompts() == ["w03"]
    assert not played.allowed.any()


def test_no_repeat_is_about_the_whole_prompt(game):
    played = Game(batch=1, **game(agents=ENDING, mask={"no_repeat": True}))
    play(played, [[1, 2, EOS]])
    assert np.flatnonzero(~played.allowed[0]).tolist() == [1, 2, EOS]
    assert played.write(np.array([2])).masked.tolist() == [True]


def test_a_separator_that_is_a_token_ends_a_segment_and_stands_between(game):
    agents = [{"name": "a", "length": 3, "ends": "separator", "separator": " w49 "}, {"name": "b", "length": 1}]
    played = Game(batch=1, **game(agents=agents, mask={"candidates": ["w01 w02"]}))
    play(played, [[1, 49]])
    assert played.turn == 1
    assert played.observations(1)["context"][0, :3].tolist() == [EOS, 1, 49]
    assert played.write(np.array([2])).finals[0]["prompt"] == "w01 w49 w02"


def test_finished_prompts_of_all_copies_are_scored_in_one_call_and_the_reward_is_shared(game, count_calls):
    played = Game(batch=3, **game(stabilisers=["leave-one-out"]))
    calls = count_calls(played)
    move = play(played, [[1, 2, 3], [4, 5, 6], [1, 2, 3]])[-1]
    assert calls == [["w01 w02 w03", "w04 w05 w06", "w01 w02 w03"]]
    assert move.rewards.shape == (2, 3)
    assert move.rewards[0].tolist() == move.rewards[1].tolist() == played.last_training_rewards.tolist()
    assert move.rewards[0].sum() == pytest.approx(0.0)  # the stabiliser saw all copies
    assert played.last_scores.prompts == tuple(calls[0])


def test_differences_of_all_prefixes_of_all_copies_are_scored_in_one_call(game, count_calls):
    played = Game(batch=2, **game(step_reward="difference"))
    calls = count_calls(played)
    moves = play(played, [[1, 2, 3], [4, 5, 6]])
    assert calls == [["", "", "w01 w02", "w04 w05", "w01 w02 w03", "w04 w05 w06"]]
    assert not np.any([move.rewards for move in moves[:-1]])
    raw = played.scorer.score(calls[0], played.scorer.minibatch(0, None)).mean_rewards
    assert moves[-1].rewards == pytest.approx(np.array([raw[2:4] - raw[:2], raw[4:] - raw[2:4]]))
    assert played.last_scores.prompts == ("w01 w02 w03", "w04 w05 w06")
    assert played.last_scores.mean_rewards == pytest.approx(raw[4:])
    assert [final["raw_reward"] for final in moves[-1].finals] == pytest.approx(raw[4:])


def test_a_failed_prompt_has_no_reward_and_is_not_valid(game):
    for step_reward in ("terminal", "difference"):
        rules = game(step_reward=step_reward, target={"failure_rate": 0.4}, examples_per_step=1)
        played = Game(batch=12, **rules)
        move = play(played, [[word, word, word] for word in range(12)])[-1]
        valid = np.array([final["valid"] for final in move.finals])
        assert 0 < valid.sum() < 12
        assert ["failure" in final for final in move.finals] == (~valid).tolist()
        if step_reward == "terminal":
            assert not move.rewards[:, ~valid].any()


def test_whole_segments_are_the_same_game(game):
    tokens, whole = (Game(batch=2, **game(agents=ENDING)) for _ in range(2))
    *_, last = play(tokens, [[1, EOS, EOS, 4, EOS], [1, 2, EOS, 5, 6]])
    first = whole.write_segment(np.array([[1, EOS, 9], [1, 2, EOS]]))
    assert first.turn_over
    assert first.finals is None
    final = whole.write_segment(np.array([[4, EOS], [5, 6]]))
    assert final.finals == last.finals
    assert final.rewards.tolist() == last.rewards.tolist()


def test_roles_read_their_meta_prompt_with_the_draft_and_the_prompt_so_far(game):
    agents = [{"name": "who", "role": "role-line", "length": 8}, {"name": "what", "role": "instruction", "length": 8}]
    played = Game(batch=1, **game(agents=agents, tokenizer=MODEL, draft="Say {it}."))
    tokenizer = load_tokenizer(MODEL)
    first, second = (played.observations(place)["context"][0] for place in (0, 1))
    assert tokenizer.decode(first[first >= 0]).endswith("Instruction: Say {it}.<|im_end|>\n<|im_start|>assistant\n")
    written = [*tokenizer.encode(" You are a critic."), tokenizer.eos_token_id]
    for token in written:
        played.write(np.array([token]))
    assert played.turn == 1
    second = played.observations(1)["context"][0]
    text = tokenizer.decode(second[second >= 0])
    assert text.endswith("Task: Say {it}.\nThe prompt so far: You are a critic.<|im_end|>\n<|im_start|>assistant\n")
    assert {name: values[0] for name, values in played.observations(1).items()} in played.observation_space(1)
    for token in [*tokenizer.encode(" Say it."), tokenizer.eos_token_id]:
        move = played.write(np.array([token]))
    assert move.finals[0]["prompt"] == "You are a critic.\nSay it."


def test_a_token_agent_writes_after_a_rewriter_with_another_tokenizer(game):
    agents = [
        {"name": "what", "role": "instruction", "length": 6, "model": MODEL, "separator": " "},
        {"name": "words", "length": 2},
    ]
    played = Game(batch=1, **game(agents=agents, draft="Say it."))
    tokenizer = load_tokenizer(MODEL)
    for token in [*tokenizer.encode(" w07 w08"), tokenizer.eos_token_id][:6]:
        played.write(np.array([token]))
        if played.turn:
            break
    assert played.observations(1)["context"][0, :2].tolist() == [EOS, 7]
    for word in (1, 2):
        move = played.write(np.array([word]))
    assert move.finals[0]["prompt"].startswith("w07")
    assert move.finals[0]["prompt"].endswith(" w01 w02")


def test_at_instance_level_every_copy_writes_for_its_own_input(game):
    agents = [
        {"name": "a", "meta_prompt": "Begin: {input}\n{composed}", "length": 2},
        {"name": "b", "meta_prompt": "End: {input}\n{composed}", "length": 2},
    ]
    rules = game(agents=agents, level="instance", rewrites_per_input=2)
    played = Game(batch=4, **rules)
    drawn = played.scorer.draw_inputs(0, 2)
    assert [example.id for example in played.inputs] == [drawn[0].id] * 2 + [drawn[1].id] * 2
    move = play(played, [[1, EOS, 2, EOS]] * 4)[-1]
    assert played.last_scores.row_example_ids == tuple(example.id for example in played.inputs)
    assert move.finals[0]["prompt"] == "w01 w02"
    difference = Game(batch=4, **{**rules, "step_reward": "difference"})
    rewards = play(difference, [[1, EOS, 2, EOS]] * 4)[-1].rewards
    empty = played.scorer.score_pairs([""] * 4, played.inputs).mean_rewards
    assert rewards.sum(axis=0) == pytest.approx(played.last_scores.mean_rewards - empty)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"agents": []}, "env.agents is empty"),
        ({"agents": [{"name": "a", "length": 0}]}, r"^agents.0.length: .*greater than or equal to 1, got 0$"),
        ({"agents": [{"name": "a"}, {"name": "a"}]}, "two of env.agents are called 'a'"),
        ({"agents": [{"name": "a:1"}]}, "agents.0.name"),
        ({"agents": [{"name": "a", "role": "rol-line"}]}, "unknown role 'rol-line'; did you mean 'role-line'"),
        ({"agents": [{"name": "a", "lenght": 1}]}, "unknown key 'lenght'; did you mean 'length'"),
        ({"agents": [{"name": "a", "ends": "separator"}]}, "'a' ends with its separator, but has none"),
        (
            {"agents": [{"name": "a", "ends": "separator", "separator": " w01 w02 "}]},
            "which is 2 tokens of its tokenizer",
        ),
        (
            {"agents": [{"name": "a"}, {"name": "b", "model": "planted-20"}]},
            "'a' and 'b' have different tokenizers",
        ),
        (
            {
                "agents": [{"name": "a", "separator": " "}, {"name": "b", "model": "planted-20"}],
                "mask": {"no_repeat": True},
            },
            "no_repeat compares tokens",
        ),
        ({"mask": {"no_repeat": True, "candidates": ["w01", "w02"]}}, "leaves 2 tokens for 3 positions"),
        ({"agents": [{"name": "a", "role": "hint"}]}, "env.draft is empty"),
        (
            {
                "agents": [{"name": "a"}, {"name": "b", "meta_prompt": "Go on: {draft}"}],
                "draft": "x",
            },
            r"no slot \{composed\}, but other agents write before",
        ),
        ({"level": "instance"}, "neither role nor meta_prompt, so it would not see the input"),
        ({"step_reward": "often"}, "must be 'terminal' or 'difference', got 'often'"),
        ({"batch": 0}, "num_envs must be at least 1, got 0"),
        ({"samples": 2}, "env.samples is for env.level=instance"),
    ],
)
def test_wrong_arguments_are_one_line_errors(game, change, match):
    batch = change.pop("batch", 1)
    with pytest.raises(ConfigError, match=match) as caught:
        Game(batch=batch, **game(**change))
    assert "\n" not in str(caught.value)


def test_wrong_calls_are_one_line_errors(game):
    played = Game(batch=2, **game())
    with pytest.raises(ConfigError, match=r"actions must be 2 token ids, got shape \(3,\)"):
        played.write(np.array([1, 2, 3]))
    with pytest.raises(ConfigError, match=r"token ids in \[0, 51\), got 1 to 51"):
        played.write(np.array([1, 51]))
    with pytest.raises(ConfigError, match=r"of 'agent_0' has shape \(2, 2\), got \(2, 3\)"):
        played.write_segment(np.ones((2, 3), dtype=int))
    play(played, [[1, 2, 3], [4, 5, 6]])
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
        played.write(np.array([1, 1]))
