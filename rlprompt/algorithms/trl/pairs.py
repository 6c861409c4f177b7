"""Pairs for SFT: what the policy reads and what it should write, from a file or by an extractor of pseudo-hints."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlprompt.algorithms.trl.rollout import contexts_of
from rlprompt.envs.contexts import MetaContexts
from rlprompt.errors import ConfigError, RunError, did_you_mean
from rlprompt.masks import eos_token
from rlprompt.tasks.extractors import check_extractor, extract_hint
from rlprompt.types import Example, Json, RunContext

logger = logging.getLogger(__name__)

_KEYS = ("pairs", "extractor", "kwargs")


@dataclass(frozen=True)
class Pair:
    """One text to learn."""

    source: Json
    """The line of a pairs file that gives this pair: `target`, and `context` or `input`."""
    context_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    """At most `env.prompt_length`; ends with EOS where `env.eos` is set and the text was not cut."""


def load_pairs(run: RunContext, data: Mapping[str, Any]) -> list[Pair]:
    """Returns the pairs that a stage's `data` names.

    Args:
        run: the run; its env says how a context is made of an input.
        data: `{pairs: file}`, a JSONL file with `target` and either `context` (read as it is) or `input` in each line;
            or `{extractor: name, kwargs: {...}}`, which writes a pseudo-hint for every train example (see
            `rlprompt.tasks.extractors`).

    Raises:
        ConfigError: another key, a file that cannot be used, or an extractor that finds no hint for any example.
    """
    check_data(data)
    encoder = Encoder(run)
    if "extractor" in data:
        return _extracted(run, str(data["extractor"]), data.get("kwargs") or {}, encoder)
    return [encoder(row, f"pairs/{number}") for number, row in enumerate(_from_file(Path(str(data["pairs"]))))]


def check_data(data: Mapping[str, Any]) -> None:
    """Checks a stage's `data` before anything is loaded.

    Raises:
        ConfigError: an unknown key, none or two sources of pairs, or an argument that the extractor does not have.
        UnknownNameError: the extractor is not registered.
    """
    for key in data:
        if key not in _KEYS:
            raise ConfigError(
                f"data of stage sft: unknown key '{key}'{did_you_mean(key, _KEYS)}; give pairs: FILE or extractor: NAME"
            )
    if ("pairs" in data) == ("extractor" in data):
        raise ConfigError(f"data of stage sft needs one of pairs: FILE and extractor: NAME, got {dict(data)}")
    arguments = data.get("kwargs") or {}
    if not isinstance(arguments, Mapping) or (arguments and "pairs" in data):
        raise ConfigError(f"data.kwargs of stage sft are the arguments of an extractor, got {arguments!r}")
    if "extractor" in data:
        check_extractor(str(data["extractor"]), arguments)


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Keeps the pairs in the run folder, as a file that `data: {pairs: ...}` reads.

    Raises:
        RunError: the file cannot be written.
    """
    lines = [json.dumps(pair.source, ensure_ascii=False) for pair in pairs]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; free or unlock it") from error


def _spaced(tokenizer: Any, context: Sequence[int], target: str) -> str:
    """A word that goes on after text begins with a space; one that begins a turn, or a text, does not."""
    last = tokenizer.decode(list(context[-1:]), skip_special_tokens=True)
    return f" {target}" if last and not last[-1].isspace() else target


class Encoder:
    """Makes ids of the lines of a file.

    Args:
        run: its env says what the policy reads for an input, its policy how a text becomes tokens.
    """

    def __init__(self, run: RunContext) -> None:
        self._policy, self._env = run.policy, run.config.env
        self._contexts = contexts_of(run)

    def __call__(self, source: Json, name: str) -> Pair:
        """Reads one line; `name` is that of its example."""
        return self._pair(source, self.context(source, name))

    def context(self, source: Json, name: str) -> list[int]:
        """Returns what the policy reads for a line with `context` or `input`; `name` is that of its example."""
        if "context" in source:
            return list(self._policy.context_ids(source["context"]))
        if isinstance(self._contexts, MetaContexts):
            return self._contexts.one(Example(id=name, input=source["input"]))[1]
        return list(self._policy.context_ids(self._contexts.text))

    def target(self, context: Sequence[int], text: str) -> tuple[int, ...]:
        """Returns the ids of a text behind a context: at most `env.prompt_length`, with EOS where one ends a prompt."""
        tokenizer, env = self._policy.tokenizer, self._env
        tokens = tokenizer.encode(_spaced(tokenizer, context, text), add_special_tokens=False)
        if env.ends_with_eos and tokens:
            tokens = [*tokens, eos_token(tokenizer)]
        return tuple(tokens[: env.prompt_length])

    def of(self, example: Example, target: str) -> Pair:
        """Pairs an example of an instance-level env with a text; the context is the one that the env shows for it."""
        if not isinstance(self._contexts, MetaContexts):
            raise ConfigError("this env shows no inputs; set env.level=instance")
        _, context = self._contexts.one(example)
        return self._pair({"id": example.id, "input": example.input, "target": target}, context)

    def _pair(self, source: Json, context: Sequence[int]) -> Pair:
        return Pair(source, tuple(context), self.target(context, source["target"]))


def _extracted(run: RunContext, name: str, arguments: Mapping[str, Any], encoder: Encoder) -> list[Pair]:
    """One pair for each train example of which the extractor finds something; the policy reads what RL will show it."""
    if not run.config.env.per_input:
        raise ConfigError(
            "an extractor writes a hint for each input, but this env writes one prompt for all inputs; set "
            "env.kind=stimulus or env.level=instance, or give pairs: FILE"
        )
    examples = run.scorer.task.train
    hints = [(example, extract_hint(name, example, **arguments)) for example in examples]
    found = [encoder.of(example, hint) for example, hint in hints if hint]
    if not found:
        raise ConfigError(f"extractor '{name}' finds no hint for any of the {len(examples)} train examples")
    if len(found) < len(examples):
        logger.warning(
            "extractor '%s' finds no hint for %d of %d train examples; they are left out",
            name,
            len(examples) - len(found),
            len(examples),
        )
    return found


def _from_file(path: Path) -> list[Json]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: U+2028 ends no line of JSONL
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"data.pairs of stage sft: cannot read {path}: {error}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{path}, line {number} is not JSON: {error}") from error
        texts = {key: value for key, value in row.items() if isinstance(value, str)} if isinstance(row, dict) else {}
        if "target" not in texts or ("context" in texts) == ("input" in texts):
            raise ConfigError(f"{path}, line {number} must have 'target' and one of 'context' and 'input', as texts")
        found.append({key: texts[key] for key in ("context", "input", "target") if key in texts})
    if not found:
        raise ConfigError(f"{path} holds no pair; give one JSON object a line")
    return found
