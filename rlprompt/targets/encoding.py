"""From rendered texts and chat messages to tokens, and to the point where texts that share a prefix part."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rlprompt.errors import ConfigError
from rlprompt.types import Failure, Rendered

_REMEMBERED = 8192
_STAND_INS = range(0xF0000, 0xFFFFE)
"""Private characters, one of which stands for a special token that a message spells while the rest is tokenised."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenised text."""

    tokens: tuple[int, ...]
    """At least one."""
    split: int
    """Number of leading tokens that other texts are likely to share; 0 <= split < len(tokens)."""


class TextEncoder:
    """Tokenises each text once and as a whole, with the special tokens that the tokenizer adds by default.

    In chat messages, special tokens come from the chat template alone. One that a content spells ("<|im_start|>") is
    tokenised as the characters that it is, so that no prompt and no user's text can end its turn or begin another. In
    plain text, which has no turns, the tokenizer's own reading holds: a template may spell special tokens there.

    Args:
        tokenizer: a transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._fast = bool(getattr(tokenizer, "is_fast", False))
        self._known: dict[Rendered, Encoded | Failure] = {}
        self._pieces: dict[str, tuple[int, ...]] = {}
        self._cuts: dict[tuple[tuple[str, str], ...], str] = {}
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._special = {int(token): str(text) for token, text in added.items() if text.special and str(text)}
        longest_first = sorted(self._special.values(), key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def encode(self, rendered: Sequence[Rendered]) -> list[Encoded | Failure]:
        """Returns tokens and split point of each text; a `Failure` for one that has no tokens or no encoding.

        Raises:
            ConfigError: messages, and the tokenizer has no chat template.
        """
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        new = list(dict.fromkeys(one for one in rendered if one not in self._known))
        for one in new:
            if any(self._spelled.search(content) for _, content in one.messages or ()):
                self._known[one] = self._chat_with_markers(one)
        new = [one for one in new if one not in self._known]
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

    def _chat_with_markers(self, rendered: Rendered) -> Encoded | Failure:
        """Tokenises messages in which a content spells special tokens; those are characters, the template's are not.

        A stand-in of one character takes the place of each of them. So the tokenizer itself says where the template's
        special tokens are, and only the stretches with a stand-in are tokenised anew, as plain characters.
        """
        messages = rendered.messages or ()
        said = "".join(content for _, content in messages)
        if not _is_unicode(said):
            return Failure("target", "malformed", "the text holds half of a surrogate pair")
        spelled = list(dict.fromkeys(self._spelled.findall(said)))
        if not self._fast:
            return Failure(
                "target", "unsupported", f"the text spells {spelled[0]!r}, which this tokenizer cannot split"
            )
        free = islice((chr(code) for code in _STAND_INS if chr(code) not in said), len(spelled))
        stand_ins = dict(zip(spelled, free, strict=True))
        back = {ord(stand_in): text for text, stand_in in stand_ins.items()}
        hidden = [(role, self._spelled.sub(lambda found: stand_ins[found[0]], content)) for role, content in messages]
        template = self._apply_template(hidden)
        tokens: list[int] = []
        ends: list[int] = []
        offset = 0
        for part, ids, places in self._stretches(template):
            text = part.translate(back)
            if text != part:
                plain = self.tokenizer(
                    text,
                    add_special_tokens=False,
                    split_special_tokens=True,
                    return_offsets_mapping=True,
                    verbose=False,
                )
                ids, places = plain["input_ids"], [end for _, end in plain["offset_mapping"]]
                if not self._special.keys().isdisjoint(ids):
                    return Failure("target", "unsupported", f"this tokenizer cannot split {spelled[0]!r}")
            tokens += ids
            ends += [offset + place for place in places]
            offset += len(text)
        text, split = self._chat(rendered)
        return self._cut(text, tuple(tokens), ends, split, special=False)

    def _stretches(self, text: str) -> list[tuple[str, list[int], list[int]]]:
        """Cuts a text at its special tokens: each part with its tokens, and their ends within it."""
        batch = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        found: list[tuple[str, list[int], list[int]]] = []
        done = 0
        ids: list[int] = []
        ends: list[int] = []
        for token, (start, end) in zip(batch["input_ids"], batch["offset_mapping"], strict=True):
            if token in self._special:
                found += [(text[done:start], ids, ends), (text[start:end], [token], [end - start])]
                done, ids, ends = end, [], []
            else:
                ids.append(token)
                ends.append(end - done)
        return [*found, (text[done:], ids, ends)]

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
