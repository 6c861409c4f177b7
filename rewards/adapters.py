"""Metrics written for DSPy and verl, used as rewards.

A DSPy metric is `metric(example, prediction, trace=None)`; verl's is
`compute_score(data_source, solution_str, ground_truth, extra_info=None)`. Both score one sample; an adapter calls
them for each pair. They are recognised by the names of their parameters, or named by `adapter: dspy` or
`adapter: verl` in the reward's kwargs.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlprompt.errors import ConfigError, did_you_mean
from rlprompt.types import TargetOutput

ADAPTERS = ("dspy", "verl")
ADAPTER_KEYWORDS = ("adapter", "input_field", "answer_field", "data_source")


def adapt(
    name: str, reward: Callable[..., Any], kwargs: Mapping[str, Any]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Wraps a metric of another framework; leaves everything else as it is.

    Args:
        name: the reward's name, for messages.
        reward: the callable.
        kwargs: the configured keywords; those of the adapter are taken out: `adapter`, for DSPy `input_field` and
            `answer_field`, for verl `data_source`.

    Returns:
        The reward and the remaining keywords (an adapter hands these to the metric).

    Raises:
        ConfigError: an unknown adapter.
    """
    rest = dict(kwargs)
    kind = rest.pop("adapter", None) if "adapter" not in _names(reward) else None
    if kind is not None and kind not in ADAPTERS:
        raise ConfigError(f"reward '{name}': unknown adapter {kind!r}{did_you_mean(str(kind), ADAPTERS)}")
    kind = kind or _recognise(reward)
    if kind == "dspy":
        fields = {key: rest.pop(key) for key in ("input_field", "answer_field") if key in rest}
        return DSPyMetric(reward, metric_arguments=rest, **fields), {}
    if kind == "verl":
        source = {key: rest.pop(key) for key in ("data_source",) if key in rest}
        return VerlScore(reward, metric_arguments=rest, **source), {}
    return reward, rest


class Record(dict[str, Any]):
    """A mapping whose entries are attributes as well, as metrics expect of examples and predictions."""

    def __getattr__(self, name: str) -> Any:
        """Returns the entry of that name."""
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no field '{name}'; there are {', '.join(self)}") from None


class DSPyMetric:
    """Calls `metric(example, prediction, trace=None)` for each pair.

    `example` has the task's columns, `input` and `reference`; `prediction` has `text`. Both have the answer under
    `answer_field` too (the gold one, and the target's), and `example` the input under `input_field`. With choices
    an answer is the text of the choice, without surrounding white space. The metric returns a number, a bool, None
    to abstain, or an object with a `score`.

    Args:
        metric: the metric.
        input_field: name of the input in examples.
        answer_field: name of the answer in examples and predictions.
        metric_arguments: further keywords of the metric.
    """

    def __init__(
        self,
        metric: Callable[..., Any],
        input_field: str = "question",
        answer_field: str = "answer",
        metric_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.metric = metric
        self.input_field = input_field
        self.answer_field = answer_field
        self.metric_arguments = dict(metric_arguments or {})

    async def __call__(
        self,
        *,
        prompts: Sequence[str],
        completions: Sequence[str],
        outputs: Sequence[TargetOutput],
        references: Sequence[Any],
        **columns: Sequence[Any],
    ) -> list[Any]:
        """Scores N pairs; the keywords are those of every reward."""
        given = []
        for index, output in enumerate(outputs):
            row = {key: values[index] for key, values in columns.items()}
            gold, answer = _gold(references[index], row), _answer(output, row)
            example = Record({self.input_field: row.get("input"), self.answer_field: gold, **row, "reference": gold})
            prediction = Record({self.answer_field: answer, "text": answer, "prompt": completions[index]})
            given.append(self.metric(example, prediction, **self.metric_arguments))
        return [score.score if hasattr(score, "score") else score for score in await _finished(given)]


class VerlScore:
    """Calls `compute_score(data_source, solution_str, ground_truth, extra_info)` for each pair.

    `data_source` and `extra_info` are the columns of that name where the task has them, else the configured name
    and the pair's further columns with the prompt. With choices the solution is the text of the most probable
    choice. The function returns a number, None to abstain, or a dict with "score".

    Args:
        metric: the function.
        data_source: what it gets as data source when the task has no such column.
        metric_arguments: further keywords of the function.
    """

    def __init__(
        self,
        metric: Callable[..., Any],
        data_source: str = "rlprompt",
        metric_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.metric = metric
        self.data_source = data_source
        self.metric_arguments = dict(metric_arguments or {})

    async def __call__(
        self,
        *,
        prompts: Sequence[str],
        completions: Sequence[str],
        outputs: Sequence[TargetOutput],
        references: Sequence[Any],
        **columns: Sequence[Any],
    ) -> list[Any]:
        """Scores N pairs; the keywords are those of every reward."""
        given = []
        for index, output in enumerate(outputs):
            row = {key: values[index] for key, values in columns.items()}
            given.append(
                self.metric(
                    data_source=row.get("data_source", self.data_source),
                    solution_str=_answer(output, row),
                    ground_truth=_gold(references[index], row),
                    extra_info=row.get("extra_info", {**row, "prompt": completions[index]}),
                    **self.metric_arguments,
                )
            )
        return [score["score"] if isinstance(score, Mapping) else score for score in await _finished(given)]


async def _finished(values: list[Any]) -> list[Any]:
    """Awaits those of an async metric, all at once."""
    waiting = {index: value for index, value in enumerate(values) if inspect.isawaitable(value)}
    done = dict(zip(waiting, await asyncio.gather(*waiting.values()), strict=True))
    return [done.get(index, value) for index, value in enumerate(values)]


def _answer(output: TargetOutput, row: Mapping[str, Any]) -> str:
    if output.text is None and output.choice_logprobs is not None and "choices" in row:
        best = max(range(len(output.choice_logprobs)), key=output.choice_logprobs.__getitem__)
        return str(row["choices"][best]).strip()
    return output.text or ""


def _gold(reference: Any, row: Mapping[str, Any]) -> Any:
    if isinstance(reference, int) and "choices" in row:
        return str(row["choices"][reference]).strip()
    return reference


def _recognise(reward: Callable[..., Any]) -> str | None:
    names = _names(reward)
    if {"solution_str", "ground_truth"} <= set(names):
        return "verl"
    return "dspy" if len(names) >= 3 and names[2] == "trace" else None


def _names(reward: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(reward).parameters)
    except (TypeError, ValueError):  # not every callable written in C tells its signature
        return []
