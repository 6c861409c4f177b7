"""What `dpo` and `rrhf` learn from: pairs of a better and a worse text, or several texts with scores, from files."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlprompt.algorithms.trl.model import PolicyModel
from rlprompt.algorithms.trl.pairs import Encoder
from rlprompt.algorithms.trl.sft import can_write
from rlprompt.errors import ConfigError, did_you_mean
from rlprompt.preferences import PreferencePair, json_lines, read_pairs
from rlprompt.types import Json, RunContext

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preference:
    """Two texts for one context, as ids."""

    context_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    margin: float | None = None
    """Reward of the chosen text less that of the rejected one, above 0; None where it is not known."""
    weight: float = 1.0


@dataclass(frozen=True)
class Ranked:
    """Several texts for one context, as ids, with their scores; two of the scores differ."""

    context_ids: tuple[int, ...]
    text_ids: tuple[tuple[int, ...], ...]
    scores: tuple[float, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class Line:
    """One checked line of a file: texts from best to worst (pairs) or in their own order, with scores."""

    source: Json
    """`context` or `input`."""
    texts: tuple[str, ...]
    scores: tuple[float, ...]
    margin: float | None
    weight: float


def check_data(data: Mapping[str, Any] | None, algorithm: str, sources: Sequence[str]) -> tuple[str, Path]:
    """Returns (source, file) of a stage's `data`.

    Args:
        data: `{pairs: FILE}` or another of the sources, with `val` and `val_every` if wanted.
        algorithm: whose data it is.
        sources: the names that the algorithm knows.

    Raises:
        ConfigError: an unknown key, none or two sources, or a value of a wrong type.
    """
    wanted = " or ".join(f"{name}: FILE" for name in sources)
    if not data:
        raise ConfigError(f"{algorithm} has no data; give data: {{{wanted}}} beside its algorithm: or in its stage")
    known = (*sources, "val", "val_every")
    for key in data:
        if key not in known:
            raise ConfigError(f"data of {algorithm}: unknown key '{key}'{did_you_mean(key, known)}; give {wanted}")
    given = [name for name in sources if name in data]
    if len(given) != 1:
        raise ConfigError(f"data of {algorithm} needs one of {wanted}, got {dict(data)}")
    every = data.get("val_every", 10)
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise ConfigError(f"data.val_every of {algorithm} must be a whole number from 1, got {every!r}")
    return given[0], Path(str(data[given[0]]))


def load_preferences(run: RunContext, path: Path, model: PolicyModel) -> list[Preference]:
    """Returns the pairs of a file that the policy may write.

    Pairs that tie (the same tokens after the cut at `env.prompt_length`) and pairs with a text that `env.mask` forbids
    are left out and counted in the log. A margin of 0 or less says nothing about the gap: a rule decided.

    Args:
        run: says what the policy reads for an input, and how a text becomes tokens.
        path: a JSONL file with `chosen`, `rejected`, one of `context` and `input`, and perhaps `margin` and `weight`.
        model: the policy under its masks.

    Raises:
        ConfigError: the file cannot be used, or no pair is left.
    """
    encoder = Encoder(run)
    found, tied, forbidden = [], 0, 0
    for number, line in enumerate(lines := read_lines(path, "pairs")):
        context, (chosen, rejected) = _encode(encoder, line, f"{path.name}/{number}")
        if chosen == rejected:
            tied += 1
        elif not (can_write(model, chosen) and can_write(model, rejected)):
            forbidden += 1
        else:
            found.append(Preference(context, chosen, rejected, line.margin, line.weight))
    _tell(path, "pairs", len(lines), len(found), tied, forbidden)
    return found


def load_ranked(run: RunContext, path: Path, model: PolicyModel, *, source: str) -> list[Ranked]:
    """Returns the ranked texts of a file; texts that the policy may not write are left out, and so is what ties.

    Args:
        run: as of `load_preferences`.
        path: a JSONL file with `texts`, `scores` and one of `context` and `input`; or a pairs file.
        model: the policy under its masks.
        source: "ranked" or "pairs". A pair counts as two texts with the scores 1 and 0.

    Raises:
        ConfigError: the file cannot be used, or nothing is left.
    """
    encoder = Encoder(run)
    found, tied, forbidden = [], 0, 0
    for number, line in enumerate(lines := read_lines(path, source)):
        context, texts = _encode(encoder, line, f"{path.name}/{number}")
        kept = [at for at, ids in enumerate(texts) if can_write(model, ids)]
        scores = tuple(line.scores[at] for at in kept)
        distinct = len({texts[at] for at in kept})
        if len(kept) < 2 <= len(texts):
            forbidden += 1
        elif len(set(scores)) < 2 or distinct < 2:
            tied += 1
        else:
            found.append(Ranked(context, tuple(texts[at] for at in kept), scores, line.weight))
    _tell(path, "rankings", len(lines), len(found), tied, forbidden)
    return found


def read_lines(path: Path, source: str) -> list[Line]:
    """Reads and checks a file.

    Raises:
        ConfigError: it cannot be read, is empty, has an id twice, or a line without what it needs.
    """
    if source == "pairs":
        return [_line(pair) for pair in read_pairs(path)]
    found: list[Line] = []
    ids: dict[str, int] = {}
    for number, row in json_lines(path, f"the file of data.{source},"):
        where = f"{path}, line {number}"
        if not isinstance(row, dict):
            raise ConfigError(f"{where} is no JSON object")
        name = row.get("id")
        if name is not None and ids.setdefault(str(name), number) != number:
            raise ConfigError(f"{where} has the id '{name}' of line {ids[str(name)]}; give every line its own id")
        found.append(_ranking(row, where))
    if not found:
        raise ConfigError(f"{path} holds no {source}; give one JSON object a line")
    return found


def _line(pair: PreferencePair) -> Line:
    source = {pair.reads: pair.reading}
    return Line(source, (pair.chosen, pair.rejected), (1.0, 0.0), pair.known_margin, pair.weight)


def _ranking(row: Json, where: str) -> Line:
    texts, scores = row.get("texts"), row.get("scores")
    if not isinstance(texts, list) or len(texts) < 2 or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{where} needs 'texts', a list of two texts or more")
    if not isinstance(scores, list) or len(scores) != len(texts):
        raise ConfigError(f"{where} needs 'scores', one number for each of its {len(texts)} texts")
    numbers = tuple(_number(score, f"{where}: 'scores'") for score in scores)
    return Line(_source(row, where), tuple(texts), numbers, None, _weight(row, where))


def _source(row: Json, where: str) -> Json:
    texts = {key: row[key] for key in ("context", "input") if isinstance(row.get(key), str)}
    if len(texts) != 1:
        raise ConfigError(f"{where} must have one of 'context' and 'input', as text")
    return texts


def _weight(row: Json, where: str) -> float:
    weight = _number(row.get("weight", 1.0), f"{where}: 'weight'")
    if weight < 0:
        raise ConfigError(f"{where}: weight is {weight}; give 0 or more")
    return weight


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{what} must be a finite number, got {value!r}")
    return float(value)


def _encode(encoder: Encoder, line: Line, name: str) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    context = encoder.context(line.source, name)
    return tuple(context), tuple(encoder.target(context, text) for text in line.texts)


def _tell(path: Path, what: str, total: int, kept: int, tied: int, forbidden: int) -> None:
    told = f"of {total} {what} in {path} {tied} tie and {forbidden} hold texts that are empty or that env.mask forbids"
    if not kept:
        raise ConfigError(f"{told}: none is left to learn from; give other {what}, or loosen env.mask")
    if kept < total:
        logger.warning("%s; they are left out", told)
