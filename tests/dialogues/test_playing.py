"""Dialogues in the environment, in training, on dev, and as demonstrations: a target that does as it is told."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray_sessions import one_ray_with
from rllib_runs import found_by

from rlprompt.config import RunConfig, parse_config
from rlprompt.dialogues import dialogue_of
from rlprompt.envs.configured import configured_env
from rlprompt.envs.rewrite import RewriteVectorEnv
from rlprompt.errors import ConfigError
from rlprompt.json_lines import write_json_lines
from rlprompt.policies import build_policy, load_policy
from rlprompt.registry import BUILT_IN
from rlprompt.rewards import check_rewards
from rlprompt.runs import load_run, train
from rlprompt.runs.limits import scorings
from rlprompt.scoring import build_scorer
from rlprompt.search.dialogues import demonstrations, play

HERE = Path(__file__).parent
EOS = 50


@pytest.fixture(autouse=True)
def plugged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for an installed plug-in with the target."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setitem(BUILT_IN["targets"], "speaker", "speaker:Speaker")


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    with one_ray_with(num_env_runners=2):
        yield


def make_config(folder: Path, **overrides: Any) -> RunConfig:
    sections: dict[str, Any] = {
        "seed": 0,
        "task": {"name": "negotiation", "shots": None},
        "target": {"name": "speaker:obedient"},
        "policy": {"kind": "categorical", "model": "planted-50"},
        "env": {
            "kind": "rewrite",
            "level": "instance",
            "dialogue": True,
            "meta_prompt": "w01 {input} {feedback}",
            "turns": 3,
            "prompt_length": 2,
            "num_envs": 32,
        },
        "reward": [{"name": "dialogue"}],
        "algorithm": {"name": "ppo", "lr": 0.2, "iterations": 12, "baseline": "critic"},
        "run": {"dir": str(folder), "tensorboard": False},
    }
    for key, value in overrides.items():
        sections[key] = {**sections[key], **value} if isinstance(sections.get(key), dict) else value
    return parse_config(sections)


def offers(env: RewriteVectorEnv, shares: list[int]) -> Any:
    """Writes a word and EOS in every dialogue; word n offers 2n percent of the list price."""
    env.step(np.array(shares))
    return env.step(np.full(len(shares), EOS))


def compared_env(folder: Path, **env: Any) -> RewriteVectorEnv:
    """Two scenarios, each in four dialogues that are compared with each other."""
    sections = {"stabilisers": [{"name": "leave-one-out"}], "env": {"num_envs": 8, "rewrites_per_input": 4, **env}}
    config = make_config(folder, **sections)
    _, arguments = configured_env(config, build_scorer(config).spec)
    arguments.pop("action")
    made = RewriteVectorEnv(8, **arguments)
    made.reset(seed=0)
    return made


def left_out(raw: np.ndarray) -> np.ndarray:
    """Each reward less the mean of the other three that began alike."""
    rows = raw.reshape(2, 4)
    return np.asarray(rows - (rows.sum(axis=1, keepdims=True) - rows) / 3).reshape(-1)


SHARES = [47, 40, 10, 49, 45, 49, 49, 30]


def test_dialogues_that_began_alike_are_compared_however_they_went_on(tmp_path: Path) -> None:
    env = compared_env(tmp_path)
    rewards = np.zeros(8)
    for _ in range(3):
        rewards += offers(env, SHARES)[1]
    scores = env.writing.last_scores
    assert scores is not None
    assert len(set(scores.row_example_ids or ())) > 2  # they went on differently
    assert (scores.mean_rewards.reshape(2, 4).std(axis=1) > 0.1).all()
    np.testing.assert_allclose(rewards, left_out(scores.mean_rewards))


def test_with_differences_a_turn_brings_what_it_added_to_the_raw_reward(tmp_path: Path) -> None:
    env = compared_env(tmp_path, step_reward="difference")
    before, total, paid = np.zeros(8), np.zeros(8), set()
    for turn in range(3):
        rewards = offers(env, SHARES)[1]
        scores = env.writing.last_scores
        assert scores is not None
        np.testing.assert_allclose(rewards, scores.mean_rewards - before)
        paid |= {turn} if (rewards > 0).any() else set()
        before, total = scores.mean_rewards, total + rewards
    assert len(paid) > 1  # not all in the last turn
    np.testing.assert_allclose(total, before)


@pytest.mark.ray
@pytest.mark.parametrize("step_reward", ["terminal", "difference"])
@pytest.mark.usefixtures("one_ray")
def test_t5_the_number_of_env_runners_changes_nothing(step_reward: str, tmp_path: Path) -> None:
    short = {"env": {"step_reward": step_reward, "num_envs": 8}, "algorithm": {"iterations": 3}}
    alone = found_by(make_config(tmp_path, **short), tmp_path / "alone")
    several = found_by(make_config(tmp_path, **short, ray={"num_env_runners": 2}), tmp_path / "two")
    for one, other in zip(alone, several, strict=True):
        assert one == other


def test_difference_rewards_of_dialogues_cost_no_more_calls(tmp_path: Path) -> None:
    found = [scorings(make_config(tmp_path, env={"step_reward": kind})) for kind in ("terminal", "difference")]
    assert found == [3, 3]


@pytest.mark.parametrize("name", ["negotiation", "workflow"])
@pytest.mark.parametrize("seed", range(4))
def test_the_check_of_rewards_does_not_take_references_for_words(tmp_path: Path, name: str, seed: int) -> None:
    config = make_config(tmp_path, seed=seed, task={"name": name})
    scorer = build_scorer(config)
    check_rewards(scorer.rewards, scorer.task)


def test_turn_after_turn_the_target_reads_more_and_the_policy_the_critic(tmp_path: Path) -> None:
    config = make_config(tmp_path, env={"num_envs": 3})
    scorer = build_scorer(config)
    _, arguments = configured_env(config, scorer.spec)
    arguments.pop("action")
    env = RewriteVectorEnv(3, **arguments)
    observations, _ = env.reset(seed=0)
    examples = list(env.writing.examples)
    first = observations["context"]
    observations, rewards, terminated, *_ = offers(env, [47, 10, 49])  # 94 %: a deal; 20 %: an insult; silence
    assert rewards.tolist() == [0.0] * 3
    assert not terminated.any()
    later = list(env.writing.examples)
    assert later[0] == examples[0]  # who is done waits
    assert later[1].input.splitlines()[-1] == "Seller: That is an insult."
    assert "far too low" in env.writing.turns.feedback[1]
    assert env.writing.turns.feedback[0] == ""
    assert (observations["context"][0] == first[0]).all()
    offers(env, [0, 10, 49])
    _, rewards, terminated, *_ = offers(env, [0, 10, 40])  # 80 % of the list price is more than the reserve
    assert terminated.all()
    partner, state = dialogue_of(examples[0].reference)
    price = round(0.94 * state["list"])
    assert rewards[0] == pytest.approx((state["list"] - price) / (state["list"] - state["reserve"]), abs=1e-6)
    assert rewards[1] == 0.0
    state = dialogue_of(examples[2].reference)[1]
    for words in ("Well.", "Well.", f"I offer ${0.8 * state['list']:.0f}."):
        state = partner.reply(state, words)
    assert rewards[2] == pytest.approx(state["score"])
    assert state["score"] > 0


def test_a_target_that_fails_ends_its_dialogue_and_is_not_scored(tmp_path: Path) -> None:
    config = make_config(tmp_path, env={"num_envs": 2})
    scorer = build_scorer(config)
    _, arguments = configured_env(config, scorer.spec)
    arguments.pop("action")
    env = RewriteVectorEnv(2, **arguments)
    env.reset(seed=0)
    offers(env, [48, 10])
    offers(env, [0, 10])
    *_, infos = offers(env, [0, 10])
    assert [bool(valid) for valid in infos["valid"]] == [False, True]
    assert infos["failure"][0].kind == "timeout"


@pytest.mark.ray
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_trained_policy_bargains_better_than_its_untrained_self(seed: int, tmp_path: Path) -> None:
    config = make_config(tmp_path, seed=seed)
    result = train(config, progress=False)
    scorer = build_scorer(config)
    untrained = build_policy(config.policy, prompt_length=2, seed=seed)
    trained = load_policy(result.folder)
    test = scorer.task.test[:60]
    scores = [
        float(np.nanmean(play(policy, config, scorer, test, iteration=0).scores.accuracies))
        for policy in (untrained, trained)
    ]
    assert scores[1] > scores[0] + 0.1
    on_dev = [record for record in load_run(result.folder).prompts() if record.phase == "dev"]
    assert result.dev_accuracy == pytest.approx(np.mean([record.accuracy for record in on_dev[-64:]]))


def test_good_dialogues_become_demonstrations(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    scorer = build_scorer(config)
    policy = build_policy(config.policy, prompt_length=2, seed=0)
    examples = scorer.task.train[:24]
    played = play(policy, config, scorer, examples, phase="train", iteration=0)
    assert len(played.said) == 24
    assert played.said[0][0] == ("Seller", played.said[0][0][1])
    again = play(policy, config, scorer, examples, phase="train", iteration=0, rows=5)
    assert again.said == played.said
    scores = played.scores.accuracies
    lines = demonstrations(played, examples, at_least=0.3)
    good = [example.id for example, score in zip(examples, scores, strict=True) if score >= 0.3]
    assert 0 < len(good) < 24
    assert len(lines) == sum(one.example_id in good for one in played.turns)
    assert all(set(line) == {"context", "target"} for line in lines)
    gaining = [{"context": one.context, "target": one.prompt} for one in played.turns if one.gain > 0]
    assert demonstrations(played, examples, at_least=0.0, gaining=True) == gaining
    assert 0 < len(gaining) < len(played.turns)
    for example, score in zip(examples, np.nan_to_num(scores).tolist(), strict=True):  # NaN where the target failed
        assert sum(one.gain for one in played.turns if one.example_id == example.id) == pytest.approx(score)
    assert any(len(said) > 3 for said in played.said)
    assert json.loads(json.dumps(lines)) == lines


def test_what_good_dialogues_demonstrate_is_learnt(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    scorer = build_scorer(config)
    untrained = build_policy(config.policy, prompt_length=2, seed=0)
    examples = scorer.task.train
    played = play(untrained, config, scorer, examples, iteration=0)
    lines = demonstrations(played, examples, at_least=0.5, gaining=True)
    write_json_lines(tmp_path / "good.jsonl", lines)
    learnt = {
        "algorithm": {"name": "sft", "iterations": 20, "minibatch_size": 8, "lr": 0.2, "baseline": "none"},
        "data": {"pairs": str(tmp_path / "good.jsonl")},
    }
    trained = load_policy(train(make_config(tmp_path, **learnt)).folder)
    test = scorer.task.test[:60]
    before, after = (
        play(policy, config, scorer, test, iteration=0).scores.accuracies for policy in (untrained, trained)
    )
    assert np.nanmean(after) > np.nanmean(before) + 0.1


@pytest.mark.parametrize(
    ("sections", "match"),
    [
        ({"env": {"level": "task"}}, "dialogue is for env.kind=rewrite and env.level=instance"),
        ({"env": {"kind": "token-prompt"}}, "dialogue is for env.kind=rewrite"),
    ],
)
def test_what_is_no_dialogue_is_a_one_line_error(sections: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        make_config(tmp_path, **sections)
    assert "\n" not in str(caught.value)


def test_another_task_is_a_one_line_error(tmp_path: Path) -> None:
    config = make_config(
        tmp_path,
        task={"name": "planted", "template": "{input}\n{prompt}"},
        target={"name": "planted:separable"},
        reward=[{"name": "gap"}],
    )
    scorer = build_scorer(config)
    _, arguments = configured_env(config, scorer.spec)
    arguments.pop("action")
    with pytest.raises(ConfigError, match=r"a task of dialogues \(task.name=negotiation or workflow\)"):
        RewriteVectorEnv(2, **arguments)
