"""Rounds: which inputs get new texts, what is paired, what ties teach, budgets, and exact resume."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from toy import ToyRun, assert_same, make_config, resumed

from rlprompt.algorithms.trl.rollout import Rollout
from rlprompt.algorithms.trl.rounds import Rounds
from rlprompt.config import RunConfig, parse_config
from rlprompt.errors import CheckpointError, ConfigError
from rlprompt.masks import decode, static_mask
from rlprompt.policies.sampling import write_prompts
from rlprompt.registry import resolve
from rlprompt.scoring import build_scorer

IN_ROUNDS = ["online-dpo", "expert-iteration"]


def value(prompt: str) -> float:
    """1 for each w01, and one more in the second place."""
    return float(sum((1 + place) * (word == "w01") for place, word in enumerate(prompt.split())))


def toy(name: str, reward: Callable[[str], float] = value, **algorithm: Any) -> ToyRun:
    return ToyRun(make_config(algorithm={"name": name, "lr": 0.1, "iterations": 5, **algorithm}), reward)


def greedy_text(policy: Any) -> str:
    tokens = write_prompts(
        policy,
        torch.tensor([[3]]),
        static_mask=static_mask(policy.tokenizer, make_config().env.mask, eos=False),
        eos_id=None,
        no_repeat=False,
        length=2,
        uniforms=None,
    )
    return decode(policy.tokenizer, tokens[0].tolist())


def play(run: Any) -> Any:
    resolve("algorithms", run.config.algorithm.name)(run)
    return run


@pytest.mark.parametrize("name", IN_ROUNDS)
def test_the_policy_learns_from_round_to_round_within_its_calls(name: str) -> None:
    run = play(toy(name, iterations=12, lr=0.2, **({"pairs_per_input": 4} if name == "online-dpo" else {})))
    rewards = [entry["metrics"]["reward/mean"] for entry in run.iterations]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:1]) + 1.0  # of at most 3
    assert run.scorer.calls == 12 * 8


def test_the_greedy_reward_of_expert_iteration_does_not_fall_over_two_rounds() -> None:
    for seed in range(3):
        config = make_config(seed=seed, algorithm={"name": "expert-iteration", "iterations": 2, "lr": 0.3, "epochs": 3})
        run = ToyRun(config, value)
        greedy = [value(greedy_text(run.policy))]
        end = run.end_iteration

        def measured(*args: Any, run: ToyRun = run, end: Any = end, greedy: Any = greedy, **values: Any) -> None:
            end(*args, **values)
            greedy.append(value(greedy_text(run.policy)))

        run.end_iteration = measured  # type: ignore[method-assign]
        play(run)
        assert greedy == sorted(greedy)
        assert greedy[-1] > greedy[0]


@pytest.mark.parametrize("name", IN_ROUNDS)
def test_scores_that_all_tie_train_nothing_and_say_so(name: str, caplog: pytest.LogCaptureFixture) -> None:
    run = toy(name, lambda prompt: 52.7, iterations=2)
    before = run.policy.trainable_state()["table"]
    with caplog.at_level(logging.WARNING):
        play(run)
    for entry in run.iterations:
        assert torch.equal(entry["weights"]["table"], before)
        assert (entry["metrics"]["pairs/made"], entry["metrics"]["pairs/inputs_without"]) == (0.0, 1.0)
        assert entry["state"]["optimizer"] == {}
    assert caplog.text.count("for each of its 1 inputs tie (or failed)") == 2
    assert "round 1: no " in caplog.text


def test_texts_that_failed_are_in_no_pair() -> None:
    run = toy("online-dpo", iterations=1, pairs_per_input=4)
    run.scorer.fails = lambda prompt, place: place != 5
    play(run)
    assert run.iterations[0]["metrics"]["pairs/made"] == 0
    assert run.iterations[0]["metrics"]["failed"] == 7
    assert np.flatnonzero(run.iterations[0]["rewards"]).tolist() in ([5], [])


def test_the_first_gradient_is_that_of_the_best_and_the_worst_text() -> None:
    run = play(toy("online-dpo", iterations=1, epochs=1))
    scores = run.iterations[0]["scores"]
    order = np.argsort(-scores.rewards[:, 0], kind="stable")
    better, worse = (scores.prompts[order[place]].split() for place in (0, -1))
    expected = np.zeros((2, 4))
    for place in range(2):
        expected[place, int(better[place][1:])] -= 0.05  # beta / 2
        expected[place, int(worse[place][1:])] += 0.05
    moment = run.iterations[0]["state"]["optimizer"]["table"]["exp_avg"].numpy() * 10
    np.testing.assert_allclose(moment, expected, atol=1e-6)
    assert run.iterations[0]["metrics"]["loss/kl"] == 0.0
    assert run.iterations[0]["metrics"]["pairs/margin"] == np.ptp(scores.rewards)


@pytest.mark.parametrize("name", IN_ROUNDS)
def test_texts_of_the_first_round_are_those_that_rloo_writes_first(name: str) -> None:
    ours, other = play(toy(name, iterations=1)), play(ToyRun(make_config(algorithm={"iterations": 1}), value))
    assert ours.iterations[0]["scores"].prompts == other.iterations[0]["scores"].prompts


@pytest.mark.parametrize("name", IN_ROUNDS)
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(name: str) -> None:
    whole, again = resumed(lambda: toy(name, minibatch_size=1, epochs=3), resolve("algorithms", name), after=2)
    assert_same(whole, again)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"algorithm": {"kl_coeff": 0.1}}, "algorithm.kl_coeff is 0.1, but online-dpo does not use it"),
        ({"algorithm": {"label_smoothing": 0.1}}, "label_smoothing is 0.1, but preference_loss 'sigmoid'"),
        ({"algorithm": {"regenerate": 0.5}}, "this env writes one prompt for all of them; remove them, or set"),
        ({"algorithm": {"items": "regret"}}, "this env writes one prompt for all of them; remove them, or set"),
        ({"env": {"num_envs": 1}}, "env.num_envs must be at least 2"),
        ({"env": {"step_reward": "difference"}}, "online-dpo gives one reward to a whole prompt"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(sections: dict[str, Any], message: str) -> None:
    sections = {**sections, "algorithm": {"name": "online-dpo", **sections.get("algorithm", {})}}
    run = ToyRun(make_config(**sections), value)
    with pytest.raises(ConfigError, match=message):
        play(run)
    assert run.scorer.calls == 0


def test_expert_iteration_refuses_settings_of_dpo() -> None:
    with pytest.raises(ConfigError, match=r"algorithm\.beta is 0\.5, but expert-iteration does not use it"):
        play(toy("expert-iteration", beta=0.5))


class PlantedRun(ToyRun):
    """A run in memory on the planted target: four inputs, three rewrites of each."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.scorer: Any = build_scorer(config)

    @property
    def calls(self) -> int:
        """Calls that count in the budget."""
        used: int = self.scorer.ledger.snapshot()["used"]["calls"]
        return used


def planted_config(**sections: Any) -> RunConfig:
    data: dict[str, Any] = {
        "seed": 5,
        "task": {"name": "planted", "shots": 4, "dev_shots": 4},
        "target": {"name": "planted:separable", "kwargs": {"length": 2, "vocabulary": 20}},
        "policy": {"kind": "causal-lm", "model": "planted-20", "kwargs": {"lora": {"r": 2, "targets": ["c_attn"]}}},
        "env": {
            "kind": "rewrite",
            "level": "instance",
            "meta_prompt": "w01 {input} w02",
            "chat": False,
            "prompt_length": 3,
            "num_envs": 12,
            "rewrites_per_input": 3,
        },
        "algorithm": {"name": "online-dpo", "lr": 0.02, "iterations": 4, "epochs": 1},
    }
    for key, value_ in sections.items():
        data[key] = {**data[key], **value_} if isinstance(data.get(key), dict) else value_
    return parse_config(data)


def make_rounds(**sections: Any) -> tuple[PlantedRun, Rounds]:
    run = PlantedRun(planted_config(**sections))
    rollout = Rollout(run)  # type: ignore[arg-type]
    return run, Rounds(rollout, rollout.model())


def test_only_the_lowest_inputs_are_written_again_and_the_others_keep_texts_and_scores() -> None:
    run, rounds = make_rounds(algorithm={"regenerate": 0.5})
    rounds.write_and_score(0)
    first = [(item.texts, item.scores.copy()) for item in rounds.used]
    assert len(first) == 4
    means = np.array([scores.mean() for _, scores in first])
    lowest = set(np.argsort(means)[:2].tolist())
    calls = run.calls
    metrics = rounds.write_and_score(1)
    assert (metrics["items/used"], metrics["items/regenerated"]) == (4.0, 2.0)
    assert 0 < run.calls - calls <= 2 * 3
    assert len(rounds.scores.prompts) == 6
    for place, item in enumerate(rounds.used):
        same = item.texts == first[place][0] and item.scores.tolist() == first[place][1].tolist()
        assert same == (place not in lowest)
    assert metrics["reward/items"] == pytest.approx(np.mean([item.scores.mean() for item in rounds.used]))


def test_without_a_choice_every_round_has_other_inputs() -> None:
    run, rounds = make_rounds()
    drawn = []
    for number in range(2):
        rounds.write_and_score(number)
        drawn.append([item.example.id for item in rounds.used if item.example is not None])
        assert drawn[-1] == [example.id for example in run.scorer.draw_inputs(number, 4)]
        assert rounds.state_dict() == []
    assert set(drawn[0]) & set(drawn[1]) == set()  # an epoch of eight inputs


@pytest.mark.parametrize("items", ["regret", "low-initial-reward", "disagreement"])
def test_later_rounds_have_the_inputs_that_are_chosen(items: str) -> None:
    _, rounds = make_rounds(algorithm={"items": items, "items_share": 0.5})
    rounds.write_and_score(0)
    everything = list(rounds.used)
    for number in (1, 2):
        metrics = rounds.write_and_score(number)
        assert (metrics["items/used"], metrics["items/regenerated"]) == (2.0, 2.0)
        assert all(any(item is known for known in everything) for item in rounds.used)
        if items == "low-initial-reward":
            hardest = sorted(everything, key=lambda item: item.first_mean)[:2]
            assert {item.place for item in rounds.used} == {item.place for item in hardest}


def test_the_initial_reward_is_that_of_the_first_round_for_ever() -> None:
    _, rounds = make_rounds(algorithm={"items": "low-initial-reward", "items_share": 1.0})
    rounds.write_and_score(0)
    first = [item.first_mean for item in rounds.used]
    rounds.write_and_score(1)
    assert [item.first_mean for item in rounds.used] == first
    assert any(item.scores.mean() != item.first_mean for item in rounds.used)


def test_selective_regeneration_asks_the_target_less_and_says_how_much() -> None:
    # `items_share: 1` keeps the inputs of the first round, so the two runs differ in what is written again only.
    kept = {"items": "low-initial-reward", "items_share": 1.0}
    everything = play(PlantedRun(planted_config(algorithm=kept)))
    selective = play(PlantedRun(planted_config(algorithm={**kept, "regenerate": 0.25})))
    assert selective.calls < everything.calls
    assert [len(entry["scores"].prompts) for entry in selective.iterations] == [12, 3, 3, 3]
    assert [len(entry["scores"].prompts) for entry in everything.iterations] == [12] * 4
    assert selective.iterations[0]["scores"].prompts == everything.iterations[0]["scores"].prompts
    for entry in selective.iterations:  # all four inputs are looked at, whether or not their texts are new
        assert entry["metrics"]["pairs/made"] + entry["metrics"]["pairs/inputs_without"] == 4


def test_the_judge_pairs_and_the_gold_reward_is_recorded() -> None:
    _, rounds = make_rounds(
        reward=[{"name": "log-probability"}, {"name": "gap", "weight": 0}],
        algorithm={"pair_by": "gap"},
    )
    rounds.write_and_score(0)
    judged, gold = rounds.scores.components["gap"][:, 0], rounds.scores.components["log-probability"][:, 0]
    assert np.concatenate([item.scores for item in rounds.used]).tolist() == judged.tolist()
    assert rounds.scores.rewards[:, 0].tolist() == gold.tolist()
    assert judged.tolist() != gold.tolist()
    assert rounds.rewards.tolist() == judged.tolist()
    wrong = PlantedRun(planted_config(algorithm={"pair_by": "gaps"}, reward=[{"name": "gap"}]))
    with pytest.raises(ConfigError, match="pair_by is 'gaps', which is no reward of this run; did you mean 'gap'"):
        play(wrong)
    assert wrong.calls == 0


def test_disagreement_needs_answers() -> None:
    run = PlantedRun(planted_config(algorithm={"items": "disagreement"}))
    run.scorer.asks = "logprob"
    with pytest.raises(ConfigError, match="is asked for log-probabilities and gives no answers"):
        play(run)


@pytest.mark.parametrize(
    ("name", "choice"),
    [
        ("online-dpo", {"items": "regret", "regenerate": 0.5}),
        ("online-dpo", {"items": "disagreement"}),
        ("expert-iteration", {"regenerate": 0.5}),
    ],
    ids=["regret", "disagreement", "selective"],
)
def test_stored_texts_survive_a_stop(name: str, choice: dict[str, Any]) -> None:
    def make() -> ToyRun:
        return PlantedRun(planted_config(algorithm={"name": name, **choice}))

    whole, again = resumed(make, resolve("algorithms", name), after=2)
    assert_same(whole, again)
    assert [entry["scores"].prompts for entry in whole.iterations] == [
        entry["scores"].prompts for entry in again.iterations
    ]
    assert np.isfinite(whole.iterations[-1]["metrics"]["loss/total"])


def test_a_checkpoint_for_other_examples_is_refused() -> None:
    _, rounds = make_rounds(algorithm={"regenerate": 0.5})
    rounds.write_and_score(0)
    state = rounds.state_dict()
    assert [set(item) for item in state] == [{"example", "texts", "scores", "answers", "first_mean"}] * 4
    state[0]["example"] = "train/99"
    with pytest.raises(CheckpointError, match="texts for the example 'train/99', which train does not have"):
        rounds.load_state_dict(state)
