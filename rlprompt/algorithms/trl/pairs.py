"""Pairs for SFT: what the policy reads and what it should write, from a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlprompt.algorithms.trl.rollout import contexts_of
from rlprompt.envs.contexts import MetaContexts
from rlprompt.errors import ConfigError, RunError, did_you_mean
from rlprompt.masks import eos_token
from rlprompt.types import Example, Json, RunContext


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
        data: `{pairs: file}`, a JSONL file with `target` and either `context` (read as it is) or `input` in each line.

    Raises:
        ConfigError: another key, or a file that cannot be used.
    """
    for key in data:
        if key != "pairs":
            raise ConfigError(
                f"data of stage sft: unknown key '{key}'{did_you_mean(key, ('pairs',))}; give pairs: FILE"
            )
    encoder = _Encoder(run)
    return [encoder(row, f"pairs/{number}") for number, row in enumerate(_from_file(Path(str(data["pairs"]))))]


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


class _Encoder:
    """Makes pairs of lines."""

    def __init__(self, run: RunContext) -> None:
        self._policy, self._env = run.policy, run.config.env
        self._contexts = contexts_of(run)

    def __call__(self, source: Json, name: str) -> Pair:
        """Reads one line; `name` is that of its example."""
        tokenizer, env = self._policy.tokenizer, self._env
        if "context" in source:
            context = list(self._policy.context_ids(source["context"]))
        elif isinstance(self._contexts, MetaContexts):
            _, context = self._contexts.one(Example(id=name, input=source["input"]))
        else:
            context = list(self._policy.context_ids(self._contexts.text))
        tokens = tokenizer.encode(_spaced(tokenizer, context, source["target"]), add_special_tokens=False)
        if env.ends_with_eos and tokens:
            tokens = [*tokens, eos_token(tokenizer)]
        return Pair(source, tuple(context), tuple(tokens[: env.prompt_length]))


def _from_file(path: Path) -> list[Json]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
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
