import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlprompt.config import RewardConfig
from rlprompt.errors import CheckpointError, ConfigError, ModelNotFoundError
from rlprompt.rewards import RewardSet, check_rewards
from rlprompt.rewards.attribute import Attribute
from rlprompt.rewards.classifier import SETTINGS, WEIGHTS, SentenceClassifier, train_attribute_classifier
from rlprompt.tasks import Task, Template
from rlprompt.tasks.planted import planted_task
from rlprompt.types import Example, TargetOutput

WORDS = ("[PAD]", "[UNK]", "good", "bad", "film", "the")
GOOD = ("a great film", "wonderful acting", "I loved it", "a joy to watch", "superb and moving", "the best movie")
BAD = ("a dull film", "terrible acting", "I hated it", "a pain to watch", "boring and flat", "the worst movie")


def score(reward: Attribute, *texts: str | None) -> list[float | None]:
    return reward(completions=["good"] * len(texts), outputs=[TargetOutput(text=text) for text in texts])


def save_model(folder: Path, *, labels: int = 2, head: bool = True, **settings: Any) -> Path:
    """A tiny BERT with random weights and a tokenizer of four words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    names = {index: f"label-{index}" for index in range(labels)}
    config = BertConfig(
        **{"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"intermediate_size": 16, "max_position_embeddings": 32, "id2label": names, **settings},
    )
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(3)
        model = BertForSequenceClassification(config) if head else BertModel(config)
    for parameter in model.parameters():
        parameter.data.mul_(8)  # so that the words tell on the output
    model.save_pretrained(folder)
    return folder


def logits_of(folder: Path, text: str) -> list[float]:
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([[WORDS.index(word) for word in text.split()]])
    with torch.no_grad():
        return [float(value) for value in model(input_ids=ids).logits[0]]


def test_it_is_the_softmax_probability_of_the_label(tmp_path: Path) -> None:
    folder = save_model(tmp_path, labels=3)
    reward = Attribute(str(folder), "label-1", device="cpu")
    texts = ["the good film", "bad"]
    expected = []
    for text in texts:
        powers = [math.exp(value) for value in logits_of(folder, text)]
        expected.append(powers[1] / sum(powers))
    values = score(reward, *texts, None)
    assert values[:2] == pytest.approx(expected, abs=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-3
    assert values[2] is None
    assert sum(
        score(Attribute(str(folder), label, device="cpu"), "bad")[0] or 0 for label in range(3)
    ) == pytest.approx(1)


def test_a_value_does_not_depend_on_the_texts_beside_it(tmp_path: Path) -> None:
    folder = str(save_model(tmp_path))
    texts = [" ".join([WORDS[2 + index % 4]] * (1 + index % 5)) for index in range(20)]
    together = score(Attribute(folder, 0, device="cpu"), *texts)
    assert [score(Attribute(folder, 0, device="cpu"), text)[0] for text in texts[:5]] == together[:5]


def test_independent_labels_have_their_own_probability(tmp_path: Path) -> None:
    folder = save_model(tmp_path, labels=2, problem_type="multi_label_classification")
    logits = logits_of(folder, "good")
    for label, logit in enumerate(logits):
        expected = 1 / (1 + math.exp(-logit))
        assert score(Attribute(str(folder), label, device="cpu"), "good") == pytest.approx([expected], abs=1e-5)
        decided = score(Attribute(str(folder), label, decide=True, device="cpu"), "good")
        assert decided == [float(expected > 0.5)]


def test_a_single_output_is_the_reward_itself(tmp_path: Path) -> None:
    folder = save_model(tmp_path, labels=1)
    assert score(Attribute(str(folder), 0, device="cpu"), "good") == pytest.approx(logits_of(folder, "good"), abs=1e-4)
    with pytest.raises(ConfigError, match="decides nothing; remove decide"):
        Attribute(str(folder), 0, decide=True, device="cpu")


def test_a_decision_is_one_for_the_most_probable_label_only(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    best = int(np.argmax(logits_of(folder, "bad")))
    assert score(Attribute(str(folder), best, decide=True, device="cpu"), "bad") == [1.0]
    assert score(Attribute(str(folder), 1 - best, decide=True, device="cpu"), "bad") == [0.0]


def test_a_model_without_a_trained_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="has no trained classifier"):
        Attribute(str(save_model(tmp_path, head=False)), 0, device="cpu")


def test_long_and_empty_texts_are_judged(tmp_path: Path) -> None:
    reward = Attribute(str(save_model(tmp_path)), 0, device="cpu")
    values = score(reward, "good " * 10_000, "")
    assert values[0] == score(reward, "good " * 32)[0]
    assert values[1] is not None


def test_the_check_passes_it(tmp_path: Path) -> None:
    config = RewardConfig(
        name="attribute", kwargs={"model": str(save_model(tmp_path)), "label": "label-0", "of": "prompt"}
    )
    (check,) = check_rewards(RewardSet.from_config([config]), planted_task(), prompt="good film")
    assert check.gold == check.wrong == check.empty
    assert check.gold is not None


def make_task() -> Task:
    rows = [(text, label) for pair in zip(BAD, GOOD, strict=True) for label, text in enumerate(pair)]
    train = tuple(Example(f"train/{index}", text, label) for index, (text, label) in enumerate(rows))
    held = [("an awful movie", 0), ("a lovely film", 1), ("I hated this film", 0), ("I loved this film", 1)]
    dev = tuple(Example(f"dev/{index}", text, label) for index, (text, label) in enumerate(held))
    test = tuple(Example(f"test/{index}", f"{text}.", label) for index, (text, label) in enumerate(held))
    return Task("films", train, dev, test, (" bad", " good"), None, Template("{input} {prompt}"))


def test_a_classifier_is_trained_saved_and_loaded(tmp_path: Path) -> None:
    trained = train_attribute_classifier(make_task(), tmp_path / "films", regularisation=10, device="cpu")
    assert trained.accuracy == 1.0
    assert (trained.majority, trained.train_rows, trained.held_out_rows) == (0.5, 12, 4)
    assert sorted(path.name for path in (tmp_path / "films").iterdir()) == [SETTINGS, WEIGHTS]
    facts = json.loads((tmp_path / "films" / SETTINGS).read_text())
    assert (facts["labels"], facts["held_out_accuracy"], facts["encoder"]) == (["bad", "good"], 1.0, "all-minilm-l6-v2")
    reward = Attribute(str(tmp_path / "films"), "good", device="cpu")
    fresh = trained.classifier(["a fine film"])[0]
    assert score(reward, "a fine film") == [pytest.approx(fresh[1], abs=1e-12)]
    assert fresh.sum() == pytest.approx(1.0)
    again = train_attribute_classifier(make_task(), regularisation=10, device="cpu")
    np.testing.assert_array_equal(again.classifier.weights, trained.classifier.weights)


def test_two_parts_share_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    call = train_attribute_classifier.__globals__["Encoder"].__call__

    def watching(self: Any, texts: list[str]) -> Any:
        seen.append(list(texts))
        return call(self, texts)

    monkeypatch.setattr("rlprompt.rewards.encoder.Encoder.__call__", watching)
    for part in ((0, 2), (1, 2)):
        train_attribute_classifier(make_task(), part=part, device="cpu")
    first, second = set(seen[0]), set(seen[2])  # each call trains, then measures
    assert not first & second
    assert first | second == {*GOOD, *BAD}


class Plane:
    name = "plane"

    def __call__(self, texts: list[str]) -> np.ndarray:
        return np.array([[float(len(text)), 1.0] for text in texts], dtype=np.float32)


def test_the_classifier_is_softmax_regression() -> None:
    weights, bias = np.array([[0.0, 0.0], [1.0, -2.0]]), np.array([0.0, 0.5])
    classifier = SentenceClassifier(Plane(), weights, bias, ["a", "b"])  # type: ignore[arg-type]
    # "xyz": logit of b = 3 * 1 + 1 * -2 + 0.5 = 1.5
    assert classifier(["xyz"])[0].tolist() == pytest.approx([1 / (1 + math.exp(1.5)), 1 / (1 + math.exp(-1.5))])
    with pytest.raises(ConfigError, match="a classifier takes weights"):
        SentenceClassifier(Plane(), weights, bias, ["a"])  # type: ignore[arg-type]


def test_damaged_classifiers_are_refused(tmp_path: Path) -> None:
    (tmp_path / SETTINGS).write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="holds no classifier that can be read"):
        Attribute(str(tmp_path), 0)
    train_attribute_classifier(make_task(), tmp_path, device="cpu")
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:40])
    with pytest.raises(CheckpointError, match="holds no classifier that can be read"):
        Attribute(str(tmp_path), 0)
    facts = json.loads((tmp_path / SETTINGS).read_text())
    (tmp_path / SETTINGS).write_text(json.dumps({**facts, "format_version": 9}), encoding="utf-8")
    train_attribute_classifier(make_task(), tmp_path / "good", device="cpu")
    (tmp_path / WEIGHTS).write_bytes((tmp_path / "good" / WEIGHTS).read_bytes())
    with pytest.raises(CheckpointError, match="another format_version than 1"):
        Attribute(str(tmp_path), 0)


def test_arguments_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = str(save_model(tmp_path))
    with pytest.raises(ConfigError, match="unknown label 'label-2'; did you mean"):
        Attribute(folder, "label-2", device="cpu")
    with pytest.raises(ConfigError, match="label 2 is out of range; there are 2: label-0, label-1"):
        Attribute(folder, 2, device="cpu")
    with pytest.raises(ConfigError, match="of must be output or prompt"):
        Attribute(folder, 0, of="input")
    with pytest.raises(ConfigError, match="'planted-10' is no classifier"):
        Attribute("planted-10", 0)
    with pytest.raises(ModelNotFoundError, match="no-such-folder"):
        Attribute("./no-such-folder", 0)
    task = make_task()
    for kwargs, match in (
        ({"labels": ["one"]}, "1 names for 2 choices"),
        ({"held_out": "train"}, "held_out must be dev or test"),
        ({"part": (2, 2)}, "part must be"),
        ({"regularisation": 0}, "regularisation must be above 0"),
        ({"limit": 1}, "the 1 rows to train on lack a label"),
    ):
        with pytest.raises(ConfigError, match=match):
            train_attribute_classifier(task, device="cpu", **kwargs)  # type: ignore[arg-type]
