"""The success model on logs whose rule is known: a prompt is right on the inputs of its own kind."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlprompt.config import RewardConfig
from rlprompt.errors import CheckpointError, ConfigError
from rlprompt.rewards import load_component
from rlprompt.rewards.learned.success_fit import CANDIDATES
from rlprompt.rewards.learned.success_model import (
    DESCRIPTION,
    WEIGHTS,
    SuccessModel,
    SuccessModelReward,
    pair_features,
)
from rlprompt.rewards.learned.success_training import LoggedOutcome, SuccessTraining, train_success_model
from rlprompt.seeding import generator
from rlprompt.types import TargetOutput

QUICK = ("logistic-0.01", "logistic-0.1")


class Kinds:
    """Unit vectors of four numbers; the first says whether the text is about "sea" or "hills"."""

    name = "kinds"

    def __init__(self, size: int = 4) -> None:
        self.size = size
        self.texts = 0

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self.texts += len(texts)
        rows = [
            [1.0 if "sea" in text else -1.0, *generator(0, text).normal(0, 0.3, size=self.size - 1)] for text in texts
        ]
        return np.array([np.array(row) / np.linalg.norm(row) for row in rows], dtype=np.float32)


def kind(number: int) -> str:
    return ("sea", "hills")[number % 2]


def make_outcomes(inputs: int = 40, prompts: int = 10, *, ruled: bool = True) -> list[LoggedOutcome]:
    rng = generator(3, "outcomes")
    found = []
    for i in range(inputs):
        for p in range(prompts):
            chance = (0.9 if i % 2 == p % 2 else 0.15) if ruled else 0.5
            found.append(LoggedOutcome(f"{kind(i)} {i}", f"about {kind(p)} {p}", bool(rng.random() < chance)))
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[SuccessTraining, Path]:
    folder = tmp_path_factory.mktemp("success")
    return train_success_model(make_outcomes(64), folder, encoder=Kinds(), held_out=0.4, resamples=200), folder


def test_features_are_both_embeddings_their_product_and_their_difference() -> None:
    values = pair_features(np.array([[1.0, 2.0]]), np.array([[3.0, -1.0]]))
    assert values.tolist() == [[1.0, 2.0, 3.0, -1.0, 3.0, -2.0, -2.0, 3.0]]


def test_the_probability_is_the_logistic_of_the_standardised_features() -> None:
    class Plain:
        name = "plain"

        def __call__(self, texts: Sequence[str]) -> np.ndarray:
            return np.array([[float(text)] for text in texts])

    tensors = {
        "mean": np.array([1.0, 0.0, 0.0, 0.0]),
        "scale": np.array([2.0, 1.0, 1.0, 1.0]),
        "weight": np.array([1.0, 0.5, 0.25, 0.0]),
        "bias": np.array([-1.0]),
    }
    # x = 5, p = 2: features 5, 2, 10, 3 -> (5 - 1) / 2 + 0.5 * 2 + 0.25 * 10 - 1 = 4.5
    model = SuccessModel(Plain(), "logistic", tensors)
    assert model.probabilities(["5"], ["2"])[0] == pytest.approx(1 / (1 + math.exp(-4.5)))
    hidden = {"hidden_weight": np.array([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]), "hidden_bias": np.array([0.0, -2.0])}
    network = {**tensors, **hidden, "weight": np.array([2.0, 3.0])}
    # tanh(2) * 2 + tanh(2 - 2) * 3 - 1
    logit = 2 * math.tanh(2) - 1
    found = SuccessModel(Plain(), "mlp", network).probabilities(["5"], ["2"])[0]
    assert found == pytest.approx(1 / (1 + math.exp(-logit)))


def test_it_knows_new_inputs_and_new_prompts_of_a_rule(trained: tuple[SuccessTraining, Path]) -> None:
    done, _ = trained
    assert done.by_input.low > 0.5
    assert done.by_input.auc > 0.8
    assert done.by_input.within_low > 0.5
    assert done.by_prompt is not None
    assert done.by_prompt.auc > 0.8
    assert (done.by_input.groups, done.by_prompt.groups) == (26, 4)
    assert set(done.validation) == set(CANDIDATES)
    assert done.chosen == min(done.validation, key=lambda name: done.validation[name])


def test_the_best_of_n_beats_the_best_fixed_prompt_without_a_call(trained: tuple[SuccessTraining, Path]) -> None:
    done, _ = trained
    assert done.selection is not None
    assert (done.selection.inputs, done.selection.prompts) == (26, 10)
    assert done.selection.low > 0
    prompts = ["about sea 1", "about hills 2"]
    assert done.model.best_of(["sea 99", "hills 98"], prompts) == prompts
    scores = done.model.rank(["sea 99", "hills 98"], prompts)
    assert scores.shape == (2, 2)
    assert ((scores > 0) & (scores < 1)).all()
    assert scores[0, 1] == done.model.probabilities(["sea 99"], ["about hills 2"])[0]  # whatever stands beside it
    assert done.model.rank([], prompts).shape == (0, 2)


def test_ranking_prompts_leaves_the_ledger_of_a_target_where_it_was(trained: tuple[SuccessTraining, Path]) -> None:
    from rlprompt.rewards import RewardSet
    from rlprompt.scoring import Scorer
    from rlprompt.targets import load_target
    from rlprompt.tasks.planted import planted_task

    task = planted_task()
    reward = RewardSet.from_config([RewardConfig(name="gap")])
    scorer = Scorer(task, load_target("planted:separable"), reward)
    scorer.score(["w00 w01"], task.train[:2])
    before = scorer.ledger.snapshot()
    trained[0].model.best_of([example.input for example in task.train[:4]], ["w00 w01", "w02"])
    assert scorer.ledger.snapshot() == before
    assert before["used"]["calls"] == 2


def test_outcomes_without_a_rule_are_reported_as_such() -> None:
    done = train_success_model(make_outcomes(ruled=False), encoder=Kinds(), classifiers=QUICK, resamples=200)
    assert done.by_input.low < 0.5 < done.by_input.high
    assert done.selection is not None
    assert done.selection.low <= 0


def test_two_trainings_write_the_same_bytes(tmp_path: Path) -> None:
    outcomes = make_outcomes(16, 6)
    for name in ("a", "b"):
        train_success_model(outcomes, tmp_path / name, encoder=Kinds(), resamples=20, classifiers=("mlp",))
    for file in (DESCRIPTION, WEIGHTS):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    train_success_model(outcomes, tmp_path / "c", encoder=Kinds(), resamples=20, classifiers=("mlp",), seed=1)
    assert (tmp_path / "c" / WEIGHTS).read_bytes() != (tmp_path / "a" / WEIGHTS).read_bytes()
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}


def test_a_limit_takes_fewer_to_learn_from_and_measures_all() -> None:
    done = train_success_model(make_outcomes(), encoder=Kinds(), classifiers=QUICK, resamples=20, limit=100)
    assert (done.num_triples, done.by_input.triples) == (100, 80)


def test_the_folder_gives_the_model_back_and_is_a_reward(
    trained: tuple[SuccessTraining, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    done, folder = trained
    again = SuccessModel.load(folder, encoder=Kinds())
    inputs, prompts = ["sea 7", "hills 8"], ["about sea 3", "about sea 3"]
    assert again.probabilities(inputs, prompts).tolist() == done.model.probabilities(inputs, prompts).tolist()
    assert again.facts["chosen"] == done.chosen
    assert json.loads((folder / DESCRIPTION).read_text())["by_input"]["auc"] == done.by_input.auc
    monkeypatch.setattr("rlprompt.rewards.learned.success_model.Encoder", lambda *args, **options: Kinds())
    component = load_component(RewardConfig(name="success-model", kwargs={"model": str(folder)}))
    given: dict[str, Any] = {"completions": prompts, "outputs": [TargetOutput(text="")] * 2}
    assert (
        component.call({**given, "input": inputs, "prompts": ["", ""]}) == again.probabilities(inputs, prompts).tolist()
    )
    assert component.needs == "any"
    odds = SuccessModelReward(str(folder), log_odds=True)(**given, input=inputs)
    p = again.probabilities(inputs, prompts)
    assert odds == pytest.approx(np.log(p / (1 - p)).tolist())
    with pytest.raises(ValueError, match="the task has no column 'input'"):
        component.call(given)


def test_folders_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no success model: no success-model\.json in it"):
        SuccessModel.load(tmp_path)
    train_success_model(make_outcomes(8, 4), tmp_path, encoder=Kinds(), classifiers=QUICK, resamples=5)
    with pytest.raises(CheckpointError, match="was trained on embeddings of size 4, encoder 'kinds' has 6"):
        SuccessModel.load(tmp_path, encoder=Kinds(6))
    values, weights = json.loads((tmp_path / DESCRIPTION).read_text()), (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match="is truncated or altered"):
        SuccessModel.load(tmp_path, encoder=Kinds())
    (tmp_path / WEIGHTS).write_bytes(weights)
    for change, message in (
        ({"classifier": "mlp"}, "a mlp success model has other tensors: hidden_bias, hidden_weight"),
        ({"classifier": "tree"}, "a success model is one of logistic, mlp, got 'tree'"),
        ({"files": {}}, "is not a safetensors file"),
        ({"encoder": None}, "'encoder' is missing or of the wrong type"),
    ):
        (tmp_path / DESCRIPTION).write_text(json.dumps({**values, **change}))
        with pytest.raises(CheckpointError, match=message):
            SuccessModel.load(tmp_path, encoder=Kinds())


@pytest.mark.parametrize(
    ("outcomes", "changes", "message"),
    [
        ([], {}, "there are no outcomes to learn from"),
        ([LoggedOutcome("a", "p", True), LoggedOutcome("b", "p", True)], {}, "all 2 outcomes are right"),
        ([LoggedOutcome("a", "p", True), LoggedOutcome("a", "q", False)], {}, "all outcomes are of one input"),
        (make_outcomes(4, 2), {"held_out": 0.0}, "held_out must be between 0 and 1, got 0"),
        (make_outcomes(4, 2), {"limit": 0}, "limit must be at least 1, got 0"),
        (make_outcomes(4, 2), {"classifiers": ["tree"]}, "unknown classifier 'tree'; use some of logistic"),
        (make_outcomes(4, 2), {"classifiers": []}, "there is no classifier to choose from"),
    ],
)
def test_logs_that_teach_nothing_are_refused(
    outcomes: list[LoggedOutcome], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train_success_model(outcomes, encoder=Kinds(), **changes)


def test_two_inputs_and_one_prompt_are_the_least() -> None:
    outcomes = [LoggedOutcome("sea", "p", True), LoggedOutcome("hills", "p", False)]
    done = train_success_model(outcomes, encoder=Kinds(), resamples=5)
    assert done.by_prompt is None
    assert done.selection is None
    assert done.chosen == next(iter(CANDIDATES))
    assert done.model.facts["by_input"]["auc"] is None
