import asyncio
import math
from pathlib import Path
from typing import Any

import pytest

from rlprompt.config import RewardConfig
from rlprompt.rewards import RewardResult, RewardSet
from rlprompt.types import TargetOutput

METRICS = """
def metric(example, prediction, trace=None):
    return example.answer == prediction.answer and example["question"].startswith("input")


def gepa(gold, pred, trace=None, pred_name=None, pred_trace=None):
    class Verdict(dict):
        score = 0.25
    return Verdict(feedback="because", score=0.25)


def fields(example, prediction, trace=None, bonus=0.0):
    return float(example.gold == prediction.gold == prediction.text) + bonus + example.difficulty


def missing(example, prediction, trace=None):
    return float(example.solution == prediction.answer)


def unlike(a, b):
    return float(a.answer == b.answer)


async def judge(example, prediction, trace=None):
    import asyncio
    await asyncio.sleep(0.05)
    return 1.0


class Metric:
    def __init__(self, value):
        self.value = value

    def __call__(self, example, prediction, trace=None):
        return self.value


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return float(solution_str == ground_truth)


def as_dict(data_source, solution_str, ground_truth, extra_info, factor=1.0):
    return {"score": factor * len(data_source), "acc": 1, "prompt": extra_info["prompt"]}


def told(**given):
    assert set(given) == {"data_source", "solution_str", "ground_truth", "extra_info"}
    return given["extra_info"]["index"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "foreign_metrics.py").write_text(METRICS, encoding="utf-8")
    return tmp_path


def run(folder: Path, name: str, outputs: list[TargetOutput], references: list[Any], **kwargs: Any) -> RewardResult:
    columns = kwargs.pop("columns", {})
    rewards = RewardSet.from_config([RewardConfig(name=f"foreign_metrics:{name}", kwargs=kwargs)], search_path=folder)
    count = len(outputs)
    return rewards(
        prompts=[""] * count,
        completions=["Answer:"] * count,
        outputs=outputs,
        references=references,
        columns={"input": [f"input {index}" for index in range(count)], **columns},
    )


TEXTS = [TargetOutput(text="Paris"), TargetOutput(text="Rome")]


def test_a_dspy_metric_is_recognised_and_called_for_each_pair(folder: Path) -> None:
    assert run(folder, "metric", TEXTS, ["Paris", "Paris"]).rewards.tolist() == [1.0, 0.0]


def test_a_dspy_metric_reads_the_text_of_the_most_probable_choice(folder: Path) -> None:
    outputs = [TargetOutput(choice_logprobs=(math.log(0.2), math.log(0.8)))] * 2
    columns = {"choices": [(" bad", " good")] * 2}
    assert run(folder, "metric", outputs, [1, 0], columns=columns).rewards.tolist() == [1.0, 0.0]


def test_a_metric_may_return_an_object_with_a_score(folder: Path) -> None:
    assert run(folder, "gepa", TEXTS, ["x", "y"]).rewards.tolist() == [0.25, 0.25]


def test_the_fields_of_examples_and_predictions_can_be_named(folder: Path) -> None:
    columns = {"difficulty": [10, 20]}
    result = run(folder, "fields", TEXTS, ["Paris", "Oslo"], answer_field="gold", bonus=0.5, columns=columns)
    assert result.rewards.tolist() == [11.5, 20.5]


def test_a_field_that_is_missing_is_named_with_those_that_are_there(folder: Path) -> None:
    failure = run(folder, "missing", TEXTS, ["x", "y"]).failures[0]
    assert "no field 'solution'; there are question, answer, input, reference" in failure.message


def test_the_adapter_can_be_named_where_the_signature_does_not_tell(folder: Path) -> None:
    assert run(folder, "unlike", TEXTS, ["Paris", "x"], adapter="dspy").rewards.tolist() == [1.0, 0.0]
    columns = {"extra_info": [{"index": 3}, {"index": 4}]}
    assert run(folder, "told", TEXTS, ["x", "y"], adapter="verl", columns=columns).rewards.tolist() == [3.0, 4.0]


def test_an_async_metric_judges_all_pairs_at_once(folder: Path) -> None:
    import time

    started = time.perf_counter()
    result = run(folder, "judge", [TargetOutput(text="x")] * 100, ["x"] * 100)
    assert result.rewards.sum() == 100
    assert time.perf_counter() - started < 2.5  # 100 times 0.05 s would be 5 s


def test_a_metric_may_be_a_class(folder: Path) -> None:
    assert run(folder, "Metric", TEXTS, ["x", "y"], value=0.75, answer_field="z").rewards.tolist() == [0.75, 0.75]


def test_verls_compute_score_is_recognised(folder: Path) -> None:
    assert run(folder, "compute_score", TEXTS, ["Paris", "Oslo"]).rewards.tolist() == [1.0, 0.0]


def test_verls_compute_score_may_return_a_dict_and_take_further_arguments(folder: Path) -> None:
    # data sources: "rlprompt" (8 letters) by default, "gsm" as configured, or the task's own column
    assert run(folder, "as_dict", TEXTS, ["x", "y"], factor=2).rewards.tolist() == [16.0, 16.0]
    assert run(folder, "as_dict", TEXTS, ["x", "y"], data_source="gsm").rewards.tolist() == [3.0, 3.0]
    columns = {"data_source": ["a", "bb"]}
    assert run(folder, "as_dict", TEXTS, ["x", "y"], columns=columns).rewards.tolist() == [1.0, 2.0]


def test_an_adapter_does_not_touch_a_reward_of_our_own() -> None:
    from rlprompt.rewards.adapters import adapt

    async def reward(*, prompts: list[str], completions: list[str], outputs: list[TargetOutput]) -> list[float]:
        return [0.0] * len(outputs)

    adapted, rest = adapt("mine", reward, {"a": 1})
    assert adapted is reward
    assert rest == {"a": 1}
    assert asyncio.iscoroutinefunction(adapted)
