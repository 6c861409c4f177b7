"""From rendered texts and chat messages to tokens, and to the point where texts that share a prefix part."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlprompt.errors import ConfigError
from rlprompt.types import Failure, Rendered

_REMEMBERED = 8192


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenised text."""

    tokens: tuple[int, ...]
    """At least one."""
    split: int
    """Number of leading tokens that other texts are likely to share; 0 <= split < len(tokens)."""


class TextEncoder:
    """Tokenises each text once and as a whole, with the special tokens that the tokenizer adds by default.

    Args:
        tokenizer: a transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._fast = bool(getattr(tokenizer, "is_fast", False))
        self._known: dict[Rendered, Encoded | Failure] = {}
        self._pieces: dict[str, tuple[int, ...]] = {}
        self._cuts: dict[tuple[tuple[str, str], ...], str] = {}

    def encode(self, rendered: Sequence[Rendered]) -> list[Encoded | Failure]:
        """Returns tokens and split point of each text; a `Failure` for one that has no tokens or no encoding.

        Raises:
            ConfigError: messages, and the tokenizer has no chat template.
        """
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        new = list(dict.fromkeys(one for one in rendered if one not in self._known))
        for chat in (False, True):
            chosen = [one for one in new if (one.messages is not None) == chat]
            texts = [self._chat(one) if chat else (one.text or "", one.split) for one in chosen]
            for one, encoded in zip(chosen, self._encode_texts(texts, special=not chat), strict=True):
                self._known[one] = encoded
        found = [self._known[one] for one in rendered]
        return found

    def continuation(self, text: str) -> tuple[int, ...]:
        """Returns the tokens of a choice or continuation: tokenised on its own, without special tokens.

        Raises:
            ConfigError: it has no tokens.
        """
        if text not in self._pieces:
            if len(self._pieces) > _REMEMBERED:
                self._pieces.clear()
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            self._pieces[text] = tuple(int(token) for token in ids)
        if not self._pieces[text]:
            raise ConfigError(f"the choice or continuation {text!r} has no tokens; give one that can be written")
        return self._pieces[text]

    def _encode_texts(self, texts: Sequence[tuple[str, int]], *, special: bool) -> list[Encoded | Failure]:
        found: list[Encoded | Failure] = []
        sound = [_is_unicode(text) for text, _ in texts]
        good = [pair for pair, ok in zip(texts, sound, strict=True) if ok]
        tokenised = iter(self._tokenise([text for text, _ in good], special))
        for (text, split), ok in zip(texts, sound, strict=True):
            if not ok:
                found.append(Failure("target", "malformed", "the text holds half of a surrogate pair"))
                continue
            tokens, ends = next(tokenised)
            found.append(self._cut(text, tokens, ends, split, special))
        return found

    def _cut(
        self, text: str, tokens: tuple[int, ...], ends: Sequence[int] | None, split: int, special: bool
    ) -> Encoded | Failure:
        if not tokens:
            start = self.tokenizer.bos_token_id
            start = self.tokenizer.eos_token_id if start is None else start
            if start is None:
                return Failure("target", "empty", "the text is empty and the tokenizer has no BOS or EOS token")
            return Encoded((int(start),), 0)
        shared = 0
        if ends is None:  # no offsets: what the first part alone has in common with the whole
            if split > 0:
                first = self._tokenise([text[:split]], special)[0][0]
                shared = _agreement(first, tokens)
        else:
            while shared < len(ends) and ends[shared] <= split:
                shared += 1
        return Encoded(tokens, min(shared, len(tokens) - 1))

    def _tokenise(self, texts: Sequence[str], special: bool) -> list[tuple[tuple[int, ...], Sequence[int] | None]]:
        if not texts:
            return []
        if not self._fast:
            rows = [self.tokenizer(text, add_special_tokens=special)["input_ids"] for text in texts]
            return [(tuple(int(token) for token in row), None) for row in rows]
        # `verbose`: no warning about long texts, which are refused by the target and not cut.
        batch = self.tokenizer(list(texts), add_special_tokens=special, return_offsets_mapping=True, verbose=False)
        return [
            (tuple(ids), [end for _, end in offsets])
            for ids, offsets in zip(batch["input_ids"], batch["offset_mapping"], strict=True)
        ]

    def _chat(self, rendered: Rendered) -> tuple[str, int]:
        """Renders messages as the model was trained to read them; the split is where the text stops being shared."""
        messages = rendered.messages or ()
        text = self._apply_template(messages)
        left, kept = rendered.split, []
        for role, content in messages:
            kept.append((role, content[: max(left, 0)]))
            left -= len(content)
        cut = tuple(kept)
        if len(self._cuts) > _REMEMBERED:
            self._cuts.clear()
        if cut not in self._cuts:
            self._cuts[cut] = self._apply_template(cut)
        return text, _agreement(text, self._cuts[cut])

    def _apply_template(self, messages: Sequence[tuple[str, str]]) -> str:
        if not getattr(self.tokenizer, "chat_template", None):
            name = getattr(self.tokenizer, "name_or_path", "")
            raise ConfigError(
                f"the task's template is a list of messages, but the tokenizer of {os.path.basename(name)!r} has no "
                "chat template; use a plain text template or an instruction-tuned model"
            )
        conversation = [{"role": role, "content": content} for role, content in messages]
        return str(self.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True))


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _agreement(first: Sequence[object], second: Sequence[object]) -> int:
    """The length of the longest common prefix."""
    count = 0
    for left, right in zip(first, second, strict=False):
        if left != right:
            break
        count += 1
    return count
