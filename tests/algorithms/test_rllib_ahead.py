"""`algorithm.mode: async`: prompts are written with weights that are one update old, while the learner learns."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray_sessions import one_ray_with
from rllib_runs import TOKENS, FakeRun, found_by, merged, weights_after

from rlprompt.algorithms.rllib.ahead import AheadRollouts
from rlprompt.algorithms.rllib.batches import CONTEXT, MASK, OLD_LOGP, VALUES, token_logp
from rlprompt.algorithms.rllib.batches import TOKENS as WRITTEN
from rlprompt.algorithms.rllib.engine import Engine
from rlprompt.algorithms.rllib.learner import PromptLearner
from rlprompt.config import RunConfig
from rlprompt.errors import BudgetExceededError, ConfigError
from rlprompt.registry import BUILT_IN
from rlprompt.runs import load_run, train
from rlprompt.targets.planted import PlantedTarget
from rlprompt.types import Failure, TargetOutput

pytestmark = pytest.mark.ray


def make_config(**overrides: Any) -> RunConfig:
    algorithm = {**TOKENS["algorithm"], "mode": "async", **overrides.pop("algorithm", {})}
    env = {**TOKENS["env"], "action": "sequence"}
    few_words = {
        "target": {"name": "planted:separable", "kwargs": {"length": 3, "vocabulary": 8}},
        "policy": {**TOKENS["policy"], "model": "planted-8"},
    }  # so that every iteration has something to learn
    return merged({**TOKENS, **few_words, "env": env, "algorithm": algorithm}, overrides)


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    with one_ray_with(num_env_runners=2):
        yield


def flat(state: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.flatten() for value in state.values()])


def test_every_round_but_the_first_is_written_with_the_weights_before_the_newest_update() -> None:
    engine = Engine(FakeRun(make_config()))  # type: ignore[arg-type]
    given: dict[int, torch.Tensor] = {}
    before: list[torch.Tensor] = []
    inner = engine._ahead._inner
    prepare = inner.prepare

    def noted(iteration: int, weights: Any) -> None:
        given[iteration] = flat(weights[DEFAULT_MODULE_ID]["policy"])
        prepare(iteration, weights)

    inner.prepare = noted  # type: ignore[method-assign]
    lags = []
    for iteration in range(4):
        before.append(flat(engine.state()["head"]))
        engine.iterate(iteration)
        lags.append(engine.weight_lag)
    engine.close()
    assert lags == [0, 1, 1, 1]
    assert list(given) == [0, 1, 2, 3]
    assert torch.equal(given[0], before[0])
    for iteration in (1, 2, 3):
        assert torch.equal(given[iteration], before[iteration - 1])
        assert not torch.equal(before[iteration], before[iteration - 1])


def test_old_log_probabilities_are_the_writers_and_values_those_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"baseline": "critic", "kl_in": "reward", "kl_coeff": 0.1}
    engine = Engine(FakeRun(make_config(algorithm=settings)))  # type: ignore[arg-type]
    seen: list[dict[str, torch.Tensor]] = []
    make = PromptLearner._minibatches

    def noted(learner: PromptLearner, columns: Any, *rest: Any) -> Any:
        seen.append(dict(columns[DEFAULT_MODULE_ID]))
        return make(learner, columns, *rest)

    monkeypatch.setattr(PromptLearner, "_minibatches", noted)
    engine.iterate(0)
    writer = engine._written_with
    assert writer is not None
    now = engine.state()["head"]
    module = engine._learner._prompt_module
    _, metrics = engine.iterate(1)
    columns = seen[1]
    found = []
    for weights in (writer[DEFAULT_MODULE_ID]["policy"], now):
        module.policy.load_trainable_state(weights)
        with torch.no_grad():
            logits, values = module.policy.evaluate(columns[CONTEXT], columns[WRITTEN])
        logp = token_logp(logits, columns[WRITTEN], module.allowed_each(columns[WRITTEN]))
        found.append((logp, values * columns[MASK]))
    engine.close()
    assert torch.allclose(columns[OLD_LOGP], found[0][0], atol=1e-6)
    assert not torch.allclose(columns[OLD_LOGP], found[1][0], atol=1e-3)
    assert torch.allclose(columns[VALUES], found[1][1], atol=1e-6)
    reference = module.policy.reference_logits(columns[CONTEXT], columns[WRITTEN])
    started = token_logp(reference, columns[WRITTEN], module.allowed_each(columns[WRITTEN]))
    assert metrics["kl/prompt"] == pytest.approx(float((found[0][0] - started).sum(dim=1).mean()), abs=1e-5)
    assert metrics["kl/prompt"] != pytest.approx(float((found[1][0] - started).sum(dim=1).mean()), abs=1e-3)


def test_the_next_round_is_scored_while_the_learner_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(FakeRun(make_config()))  # type: ignore[arg-type]
    asked, rounds = threading.Event(), []
    run, update = PlantedTarget.run, PromptLearner._update

    def answering(target: PlantedTarget, requests: Any) -> Any:
        rounds.append(threading.current_thread().name)
        if len(rounds) == 2:
            asked.set()
        return run(target, requests)

    def updating(learner: PromptLearner, *arguments: Any, **keywords: Any) -> Any:
        assert asked.wait(60), "the target was not asked before the update ended"
        return update(learner, *arguments, **keywords)

    monkeypatch.setattr(PlantedTarget, "run", answering)
    monkeypatch.setattr(PromptLearner, "_update", updating)
    engine.iterate(0)
    engine.close()
    assert rounds == ["MainThread", "iteration-1"]


@pytest.mark.parametrize("algorithm", [{"name": "ppo"}, {"name": "sql"}], ids=["ppo", "sql"])
def test_whether_there_was_time_to_go_ahead_changes_nothing(algorithm: dict[str, Any]) -> None:
    found = []
    for goes_ahead in (True, False):
        run = FakeRun(make_config(algorithm=algorithm))
        run.goes_ahead = goes_ahead
        engine = Engine(run)  # type: ignore[arg-type]
        found.append(weights_after(engine, range(4)))
        engine.close()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_lag_changes_what_is_learnt() -> None:
    found = []
    for mode in ("sync", "async"):
        engine = Engine(FakeRun(make_config(algorithm={"mode": mode})))  # type: ignore[arg-type]
        found.append([weights_after(engine, range(one, one + 1)) for one in range(3)])
        engine.close()
    sync, lagging = found
    assert torch.equal(flat(sync[0]), flat(lagging[0]))  # the first round has no lag
    assert not torch.equal(flat(sync[2]), flat(lagging[2]))


GAME = {"kind": "multi", "prompt_length": 5, "agents": [{"name": "a", "length": 2}, {"name": "b", "length": 1}]}
WHOLE_LM = {
    "target": {"name": "planted:separable", "kwargs": {"length": 3, "vocabulary": 8}},
    "policy": {"kind": "causal-lm", "model": "planted-8", "kwargs": {}},
}


JUDGE = {
    "name": "judge",
    "kwargs": {
        "target": {"name": "planted:separable", "kwargs": {"length": 3, "vocabulary": 8}},
        "rubric": "Is it good?",
        "mode": "yes-no",
        "of": "prompt",
    },
}


@pytest.mark.parametrize(
    "overrides",
    [
        {"stabilisers": [{"name": "running-normalisation"}], "selection": {"every": 2}},
        {"env": GAME},
        WHOLE_LM,
        {"budget": {"max_target_calls": 150}},
        {"reward": [{"name": "gap"}, JUDGE]},
    ],
    ids=["dev-in-between", "game", "whole-lm", "budget", "judge"],
)
def test_t5_the_number_of_env_runners_changes_nothing_in_an_asynchronous_run_either(
    overrides: dict[str, Any], tmp_path: Path
) -> None:
    alone = found_by(make_config(**overrides), tmp_path / "alone")
    several = found_by(make_config(**overrides, ray={"num_env_runners": 2}), tmp_path / "two")
    for one, other in zip(alone, several, strict=True):
        assert one == other
    if "budget" in overrides:
        assert alone[3] == "budget"
        assert alone[2] <= 150


def test_what_fails_ahead_is_excluded_and_counted_in_its_own_iteration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = PlantedTarget.run

    def failing(target: PlantedTarget, requests: Any) -> Any:
        broken = TargetOutput(failure=Failure("target", "timeout", "no answer in 5 s"))
        answers = zip(requests, run(target, requests), strict=True)
        return [broken if "w02" in str(request.rendered.text) else answer for request, answer in answers]

    monkeypatch.setattr(PlantedTarget, "run", failing)
    found = []
    for runners in (0, 2):
        config = make_config(ray={"num_env_runners": runners}, run={"dir": str(tmp_path), "max_failed_fraction": 1.0})
        result = train(config, progress=False)
        records = [record for record in load_run(result.folder).prompts() if record.phase == "train"]
        failed = [record for record in records if np.isnan(record.raw_reward)]
        assert failed == [record for record in records if "w02" in record.prompt]
        assert {record.iteration for record in failed} > {0}
        weights = [path.read_bytes() for path in sorted((result.folder / "best").rglob("*.safetensors"))]
        found.append((records, result.ledger["failed"], weights))
    assert found[0][1:] == found[1][1:]
    assert found[0][1] > 0
    assert repr(found[0][0]) == repr(found[1][0])


ADAPTOR_THAT_REWRITES = {
    "task": {"shots": 8},
    "env": {
        "kind": "rewrite",
        "level": "instance",
        "meta_prompt": "w01 {input} {feedback}",
        "turns": 2,
        "chat": False,
        "rewrites_per_input": 4,
    },
}


def test_sampler_and_learner_that_share_a_frozen_lm_do_not_meet(tmp_path: Path) -> None:
    """The learner reads its contexts while the sampler reads the next ones."""
    config = make_config(**ADAPTOR_THAT_REWRITES)
    ahead = found_by(config, tmp_path / "ahead")
    apart = found_by(make_config(**ADAPTOR_THAT_REWRITES, ray={"num_env_runners": 2}), tmp_path / "apart")
    assert ahead == apart


class Seeing:
    """A reward with a state that it hands out as it is, and that changes the reward."""

    gold_not_ordered = True

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    def __call__(self, *, completions: Any, outputs: Any, **columns: Any) -> list[float]:
        for completion in completions:
            self.seen[completion] = self.seen.get(completion, 0) + 1
        return [float(output.choice_logprobs[0]) / self.seen[c] for output, c in zip(outputs, completions, strict=True)]

    def state_dict(self) -> Any:
        return {"seen": self.seen}

    def load_state_dict(self, state: Any) -> None:
        self.seen = dict(state["seen"])


def test_a_reward_with_a_state_does_not_see_the_round_ahead_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BUILT_IN["rewards"], "seeing", f"{__name__}:Seeing")
    settings = {"reward": [{"name": "seeing"}], "run": {"checkpoint_every": 1}}
    whole = found_by(make_config(**settings), tmp_path / "whole")
    update = PromptLearner._update
    calls = iter(range(100))

    def dying(learner: PromptLearner, *arguments: Any, **keywords: Any) -> Any:
        if next(calls) == 5:  # in the third update, when the fourth round is scored, or is not
            raise RuntimeError("the machine is gone")
        return update(learner, *arguments, **keywords)

    config = make_config(**{**settings, "run": {"checkpoint_every": 1, "dir": str(tmp_path / "cut")}})
    with monkeypatch.context() as patched:
        patched.setattr(PromptLearner, "_update", dying)
        with pytest.raises(RuntimeError, match="the machine is gone"):
            train(config, progress=False)
    (folder,) = (tmp_path / "cut" / "run").iterdir()
    train(config, resume=folder, progress=False)
    weights = [path.read_bytes() for path in sorted((folder / "best").rglob("*.safetensors"))]
    assert weights == whole[5]


def test_the_lag_is_recorded_with_every_prompt(tmp_path: Path) -> None:
    result = train(make_config(run={"dir": str(tmp_path)}), progress=False)
    records = load_run(result.folder).prompts()
    lags = {(record.phase, record.iteration): record.weight_lag for record in records}
    assert lags == {("train", 0): 0, **{("train", later): 1 for later in (1, 2, 3)}, ("dev", 4): 0}
    events = [json.loads(line) for line in (result.folder / "events.jsonl").read_text().splitlines()]
    assert [event["metrics"]["weight_lag"] for event in events if "metrics" in event] == [0, 1, 1, 1]


def test_a_run_that_was_stopped_between_two_updates_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Also one that got more iterations: the lag does not depend on who knew of them."""
    whole = found_by(make_config(), tmp_path / "whole")
    first = train(make_config(algorithm={"iterations": 2}, run={"dir": str(tmp_path / "cut")}), progress=False)
    config = make_config(run={"dir": str(tmp_path / "cut")})
    train(config, resume=first.folder, progress=False)
    weights = [path.read_bytes() for path in sorted((first.folder / "best").rglob("*.safetensors"))]
    assert weights == whole[5]


def test_what_is_scored_ahead_is_not_reported_before_its_turn(tmp_path: Path) -> None:
    result = train(make_config(run={"dir": str(tmp_path)}), progress=False)
    events = [json.loads(line) for line in (result.folder / "events.jsonl").read_text().splitlines()]
    used = [event["used"]["calls"] for event in events if event["event"] == "iteration"]
    records = load_run(result.folder).prompts()
    calls = [sum(record.target_calls for record in records if record.iteration <= last) for last in range(4)]
    assert used == calls


class Nobody:
    """Rollouts without runners."""

    scores = training_rewards = None
    seconds = 0.0

    def prepare(self, iteration: int, weights: Any) -> None:
        pass


def test_an_error_of_the_round_ahead_comes_when_it_is_needed() -> None:
    class Broken(Nobody):
        def play(self) -> list[Any]:
            raise BudgetExceededError("nothing is left")

    class Quiet(FakeRun):
        def __init__(self) -> None:
            self.goes_ahead, self.ended = True, 0

        def end_ahead(self) -> None:
            self.ended += 1

    run = Quiet()
    rollouts = AheadRollouts(Broken(), run)  # type: ignore[arg-type]
    with rollouts.playing(1, {}):
        pass
    rollouts.prepare(1, {})
    assert run.ended == 0
    with pytest.raises(BudgetExceededError, match="nothing is left"):
        rollouts.play()
    assert run.ended == 1


def test_a_second_ctrl_c_stops_the_round_ahead_too() -> None:
    started, ended = threading.Event(), threading.Event()

    class Endless(Nobody):
        def play(self) -> list[Any]:
            started.set()
            try:
                while True:
                    threading.Event().wait(0.01)
            finally:
                ended.set()

    run = FakeRun.__new__(FakeRun)
    run.goes_ahead = True
    rollouts = AheadRollouts(Endless(), run)  # type: ignore[arg-type]

    def interrupted() -> None:
        with rollouts.playing(1, {}):
            assert started.wait(10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert ended.is_set()


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        ({"name": "reinforce"}, "mode is 'async', but reinforce learns from prompts of the newest weights only"),
        ({"name": "grpo"}, "use mode=sync, or name=ppo or sql"),
        ({"nlpo_top_p": 0.9}, "NLPO's masking copy must not lag; use mode=sync"),
    ],
    ids=["reinforce", "grpo", "nlpo"],
)
def test_what_cannot_lag_is_refused(algorithm: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(algorithm=algorithm)
