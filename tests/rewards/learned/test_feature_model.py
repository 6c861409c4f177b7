import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from preference_pairs import ruled_pairs

from rlprompt.config import RewardConfig
from rlprompt.errors import CheckpointError, ConfigError
from rlprompt.preference_pairs import PreferencePair
from rlprompt.rewards import load_component
from rlprompt.rewards.learned.bradley_terry import compare_models, fit_bradley_terry
from rlprompt.rewards.learned.feature_model import (
    DESCRIPTION,
    FeatureModel,
    FeatureModelReward,
    train_feature_model,
)
from rlprompt.rewards.learned.features import numbers
from rlprompt.rewards.learned.pairs import hold_out
from rlprompt.types import TargetOutput

NOUNS = ("trains", "houses", "apples", "letters", "rivers", "books", "stones", "roads")


def sentence(rng: Any, number: int) -> tuple[str, str]:
    """A context with two numbers of its own, and a text that keeps some of them and is of any length."""
    first, second = 100 + 2 * number, 101 + 2 * number
    kept = [str(value) for value in (first, second) if rng.random() < 0.5]
    filler = [NOUNS[int(place)] for place in rng.integers(0, len(NOUNS), size=int(rng.integers(2, 8)))]
    return f"{first} trains and {second} books", " ".join([*filler, *kept])


def keeps_numbers(context: str, text: str) -> float:
    return float(len(set(numbers(context)) & set(numbers(text))))


def make_pairs(count: int = 120) -> list[PreferencePair]:
    return ruled_pairs(sentence, keeps_numbers, count)


class BagOfNouns:
    """A text-only model: a weight for each word that the training texts have, fitted to the same pairs."""

    def __init__(self, pairs: list[PreferencePair]) -> None:
        self.words = sorted({word for pair in pairs for text in (pair.chosen, pair.rejected) for word in text.split()})
        gaps = np.stack([self.counts(pair.chosen) - self.counts(pair.rejected) for pair in pairs])
        self.weight = fit_bradley_terry(gaps, np.ones(len(pairs)), 1.0)

    def counts(self, text: str) -> np.ndarray:
        return np.array([float(text.split().count(word)) for word in self.words])

    def score(self, contexts: list[str], texts: list[str]) -> np.ndarray:
        return np.array([self.counts(text) @ self.weight for text in texts])


def test_the_feature_of_the_rule_gets_the_weight_and_names_it() -> None:
    done = train_feature_model(make_pairs())
    ordered = sorted(done.model.weights, key=lambda entry: -abs(entry.weight))
    assert ordered[0].name == "kept-numbers"
    assert ordered[0].weight > 2 * abs(ordered[1].weight)
    assert done.held_out.low > 0.5
    assert done.held_out.share > 0.95
    assert (done.num_pairs, done.held_out.total) == (96, 24)


def test_named_features_beat_a_model_that_reads_only_the_words_on_new_contexts() -> None:
    """The numbers of a new context were never seen as words: only the feature knows what to look for."""
    pairs = make_pairs()
    learnt, rest = hold_out(pairs, 0.2, seed=0)
    features = train_feature_model(pairs, seed=0).model
    found = compare_models(features, BagOfNouns(learnt), rest)
    assert found.first.share > found.second.share + 0.2
    assert found.p_value < 0.05
    assert found.only_first > found.only_second


def test_the_reward_is_the_weighted_sum_of_standardised_features() -> None:
    pairs = [
        PreferencePair("1", "a b c", "a", input=""),
        PreferencePair("2", "a b", "a b c d", input=""),
        PreferencePair("3", "a b c d", "a b", input=""),
    ]
    model = train_feature_model(pairs, features=["type-token-ratio", "length"], held_out=0.0).model
    constant, length = model.weights
    assert (constant.weight, constant.scale) == (0.0, 1.0)  # every word is different, everywhere
    logs = np.log1p([3, 2, 4, 1, 4, 2])
    assert [length.mean, length.scale] == pytest.approx([logs.mean(), logs.std()])
    expected = length.weight * (np.log1p([1, 5]) - length.mean) / length.scale
    assert model.score(["", ""], ["x", "x y z u v"]) == pytest.approx(expected)
    assert model.score(["", ""], ["x", "x y z u v"])[0] == model.score([""], ["x"])[0]


def test_two_trainings_write_the_same_bytes_and_the_folder_gives_the_model_back(tmp_path: Path) -> None:
    pairs = make_pairs(40)
    trained = train_feature_model(pairs, tmp_path / "a").model
    train_feature_model(pairs, tmp_path / "b")
    assert (tmp_path / "a" / DESCRIPTION).read_bytes() == (tmp_path / "b" / DESCRIPTION).read_bytes()
    assert [path.name for path in (tmp_path / "a").iterdir()] == [DESCRIPTION]
    contexts, texts = [pair.reading for pair in pairs], [pair.chosen for pair in pairs]
    again = FeatureModel.load(tmp_path / "a")
    assert again.score(contexts, texts).tolist() == trained.score(contexts, texts).tolist()
    assert again.facts["held_out"]["pairs"] == 8
    assert again.weights == trained.weights


def test_it_is_a_reward_by_name(tmp_path: Path) -> None:
    train_feature_model(make_pairs(40), tmp_path)
    component = load_component(RewardConfig(name="feature-model", kwargs={"model": str(tmp_path)}))
    outputs = [TargetOutput(text="no 1 here"), TargetOutput(text=None)]
    given = {"prompts": ["", ""], "completions": ["12 of 7", "none"], "outputs": outputs, "input": ["7 and 12"] * 2}
    kept, none = component.call(given)
    assert kept > none
    of_output = FeatureModelReward(str(tmp_path), of="output")
    assert of_output.needs == "text"
    values = of_output(**given)
    assert isinstance(values[0], float)
    assert values[1] is None
    with pytest.raises(ValueError, match="the task has no column 'input'; it has choices"):
        of_output(prompts=[""], completions=[""], outputs=outputs[:1], choices=[()])
    with pytest.raises(ConfigError, match="feature-model: of must be prompt or output, got 'input'"):
        FeatureModelReward(str(tmp_path), of="input")


def test_a_model_of_contexts_reads_what_the_policy_read(tmp_path: Path) -> None:
    pairs = [PreferencePair(str(n), f"I say {n}", "no", context=f"say {n}") for n in range(10)]
    train_feature_model(pairs, tmp_path, features=["kept-numbers"])
    reward = FeatureModelReward(str(tmp_path))
    outputs = [TargetOutput(text="")] * 2
    said, kept = reward(prompts=["say 3", "say 4"], completions=["4", "4"], outputs=outputs)
    assert kept > said  # type: ignore[operator]


def test_code_of_ones_own_in_a_folder_is_imported_only_where_the_configuration_allows_it(tmp_path: Path) -> None:
    (tmp_path / "my_numbers.py").write_text(
        "def digits(*, contexts, texts):\n    return [sum(c.isdigit() for c in text) for text in texts]\n"
    )
    folder = tmp_path / "saved"
    train_feature_model(make_pairs(40), folder, features=["my_numbers:digits"], search_path=tmp_path)
    named = RewardConfig(name="feature-model", kwargs={"model": str(folder)})
    with pytest.raises(ConfigError, match="names code outside the configuration's folder"):
        load_component(named)
    assert load_component(named, search_path=tmp_path).name == "feature-model"
    assert load_component(named, allow_modules=["my_numbers"]).name == "feature-model"
    sneaky = RewardConfig(name="feature-model", kwargs={"model": str(folder), "allow_modules": ["my_numbers"]})
    with pytest.raises(ConfigError, match="kwargs may not set 'allow_modules'"):
        load_component(sneaky)


def test_pairs_and_folders_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no feature differs within any pair, of line-breaks"):
        train_feature_model(make_pairs(20), features=["line-breaks"])
    with pytest.raises(ConfigError, match=r"holds no feature model: no feature-model\.json in it"):
        FeatureModel.load(tmp_path)
    train_feature_model(make_pairs(20), tmp_path)
    whole = json.loads((tmp_path / DESCRIPTION).read_text())
    for change, message in (
        ({"features": [{"name": "length"}]}, "a feature lacks name, weight, mean or scale"),
        ({"features": [{"name": "length", "weight": 1, "mean": 0, "scale": 0}]}, "the numbers of 'length' cannot be"),
        ({"reads": None}, "'reads' is missing or of the wrong type"),
        ({"format_version": 9}, "has format_version 9, this version reads 1"),
        ({"files": 3}, "describes no feature model"),
    ):
        (tmp_path / DESCRIPTION).write_text(json.dumps({**whole, **change}))
        with pytest.raises(CheckpointError, match=message):
            FeatureModel.load(tmp_path)
    (tmp_path / DESCRIPTION).write_text('{"format_version"')
    with pytest.raises(CheckpointError, match="cannot be read, or is cut off"):
        FeatureModel.load(tmp_path)
