"""Which tokens are read and may be written: pure functions of a vocabulary, its mask and the tokens written so far.

Environments, policies and learners all call these functions, so that they cannot disagree. Shapes: B prompts, t
tokens written so far (-1 where none), V = len(tokenizer) tokens.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlprompt.config import MaskConfig
from rlprompt.errors import ConfigError
from rlprompt.types import BoolArray, IntArray

NOT_WRITTEN = -1
_CACHE: dict[tuple[Any, ...], BoolArray] = {}


def static_mask(tokenizer: Any, config: MaskConfig, *, eos: bool) -> BoolArray:
    """Returns which tokens may ever be written, computed once per process, tokenizer and configuration.

    Never allowed: special and added control tokens; tokens whose text is empty, is not valid Unicode on its own
    (U+FFFD), or holds a control, format, surrogate, private or unassigned character or a line break, none of
    which a reader of the prompt would see.

    Args:
        tokenizer: what `rlprompt.models.load_tokenizer` returned.
        config: the further restrictions.
        eos: whether EOS is a token that may be written.

    Returns:
        Booleans (V,), read-only.

    Raises:
        ConfigError: no token is left, the candidates' file cannot be read, or EOS is wanted and there is none.
    """
    candidates = _candidate_texts(config.candidates)
    key = _cache_key(tokenizer, config, candidates, eos)
    if key is not None and key in _CACHE:
        return _CACHE[key]
    pieces, texts = _vocabulary(tokenizer)
    allowed = np.array([_is_readable(text) for text in texts], dtype=np.bool_)
    if config.readable_ascii:
        allowed &= np.array([text.isascii() and not text.isspace() for text in texts], dtype=np.bool_)
    if config.word_start:
        allowed &= _begins_word(pieces, texts)
    if candidates is not None:
        chosen = np.zeros(len(texts), dtype=np.bool_)
        chosen[_candidate_ids(tokenizer, candidates)] = True
        allowed &= chosen
    allowed[_special_ids(tokenizer)] = False
    if not allowed.any():
        raise ConfigError("the mask allows no token of this tokenizer; loosen env.mask")
    if eos:
        allowed[eos_token(tokenizer)] = True
    allowed.setflags(write=False)
    if key is not None:
        _CACHE[key] = allowed
    return allowed


def without_files(config: MaskConfig) -> MaskConfig:
    """Returns the same restrictions with the texts of the candidates' file in the place of its path.

    Raises:
        ConfigError: the file cannot be read.
    """
    candidates = _candidate_texts(config.candidates)
    return config.model_copy(update={"candidates": None if candidates is None else list(candidates)})


def step_mask(
    static: BoolArray, tokens: IntArray, *, eos_id: int | None, no_repeat: bool, before: IntArray | None = None
) -> BoolArray:
    """Returns which token may be written next.

    Args:
        static: what `static_mask` returned, (V,).
        tokens: token ids written so far, (B, t) with t >= 0; -1 where nothing was written.
        eos_id: the id that ends a prompt, or None for prompts of fixed length. A prompt never begins with it
            (an empty prompt is no prompt), and a prompt that has written it may only write it again: it waits
            for the others.
        no_repeat: forbids tokens that the prompt already holds.
        before: what other agents wrote into the prompt before, (B, p), -1 where nothing; counts for `no_repeat` only.

    Returns:
        Booleans (B, V).
    """
    written = np.asarray(tokens, dtype=np.int64)
    mask = np.repeat(np.asarray(static, dtype=np.bool_)[None], len(written), axis=0)
    if no_repeat:
        held = written if before is None else np.concatenate([before, written], axis=1)
        rows, columns = np.nonzero(held >= 0)
        mask[rows, held[rows, columns]] = False
    if eos_id is not None:
        mask[:, eos_id] = bool(static[eos_id])  # no_repeat is about words
        mask[~(written >= 0).any(axis=1), eos_id] = False
        waiting = (written == eos_id).any(axis=1)
        mask[waiting] = False
        mask[waiting, eos_id] = True
    return mask


def decode(tokenizer: Any, ids: Iterable[int]) -> str:
    """Returns the text of a prompt: exactly what the target gets.

    Ids of -1 are ignored, the text ends before the first EOS, and one leading space is dropped: words of
    byte-level vocabularies begin with a space, and the template brings its own.
    """
    kept: list[int] = []
    for token in ids:
        if int(token) == tokenizer.eos_token_id:
            break
        if int(token) >= 0:
            kept.append(int(token))
    if not kept:
        return ""
    return _text(tokenizer, kept).removeprefix(" ")


def context_ids(tokenizer: Any, text: str) -> list[int]:
    """Returns the token ids that a policy reads; an empty text is the tokenizer's BOS, else its EOS token.

    Raises:
        ConfigError: the text is empty and the tokenizer has neither token.
    """
    found: list[int] = list(tokenizer.encode(text, add_special_tokens=False)) if text else []
    if found:
        return found
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return [int(token)]
    raise ConfigError("the tokenizer has neither BOS nor EOS; give the policy a context (policy.context)")


def eos_token(tokenizer: Any) -> int:
    """Returns the id of EOS.

    Raises:
        ConfigError: the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError("env.eos is true but the policy's tokenizer has no EOS token; set env.eos=false")
    return int(tokenizer.eos_token_id)


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    # Clean-up would turn "word ," into "word,": text that the tokens do not spell.
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _vocabulary(tokenizer: Any) -> tuple[list[str], list[str]]:
    """Returns each token as the vocabulary spells it and as text."""
    ids = list(range(len(tokenizer)))
    pieces = ["" if piece is None else str(piece) for piece in tokenizer.convert_ids_to_tokens(ids)]
    texts = tokenizer.batch_decode(
        [[token] for token in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return pieces, [str(text) for text in texts]


def _special_ids(tokenizer: Any) -> list[int]:
    """Special ids, and added ones (chat and repository markers) that the tokenizer does not list as special."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    found = set(tokenizer.all_special_ids) | {token for token, entry in added.items() if entry.special}
    return sorted(token for token in found if token < len(tokenizer))


def _is_readable(text: str) -> bool:
    if text.isascii():
        return bool(text) and text.isprintable()
    return "\ufffd" not in text and all(
        unicodedata.category(character)[0] != "C" and unicodedata.category(character) not in ("Zl", "Zp")
        for character in text
    )


def _begins_word(pieces: list[str], texts: list[str]) -> BoolArray:
    """A token begins a word where the vocabulary says so: a leading space, or (WordPiece) no leading "##"."""
    spaced = np.array(
        [piece.startswith(("▁", "Ġ")) or text.startswith(" ") for piece, text in zip(pieces, texts, strict=True)],
        dtype=np.bool_,
    )
    if spaced.any():
        visible = np.array([bool(text.strip()) for text in texts], dtype=np.bool_)
        return np.asarray(spaced & visible, dtype=np.bool_)
    return np.array([not piece.startswith("##") for piece in pieces], dtype=np.bool_)


def _candidate_texts(candidates: list[str] | str | None) -> tuple[str, ...] | None:
    if candidates is None:
        return None
    if isinstance(candidates, str):
        try:
            lines = Path(candidates).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"env.mask.candidates: cannot read {candidates}: {error}") from error
        candidates = [line for line in lines if line.strip()]
    return tuple(candidates)


def _candidate_ids(tokenizer: Any, candidates: Sequence[str]) -> list[int]:
    """The tokens of the texts, both at the start of a text and after a space."""
    found: set[int] = set()
    for text in candidates:
        for form in (text, " " + text.lstrip()):  # two spaces would allow one alone, a word that says nothing
            found.update(tokenizer.encode(form, add_special_tokens=False))
    return sorted(found)


def _cache_key(
    tokenizer: Any, config: MaskConfig, candidates: tuple[str, ...] | None, eos: bool
) -> tuple[Any, ...] | None:
    name = getattr(tokenizer, "name_or_path", "")
    if not name:  # two tokenizers without a name cannot be told apart
        return None
    return name, len(tokenizer), config.readable_ascii, config.word_start, candidates, eos
