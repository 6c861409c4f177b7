"""`Rewriter`: the one thing that rewrites a user's text, in `rlprompt rewrite`, in evaluations and in serving.

It needs a policy's folder and its frozen LM, and neither Ray, TRL nor Gymnasium. Where a text cannot be rewritten it
comes back as it was, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from rlprompt.errors import ConfigError, TaskError
from rlprompt.meta_prompts import MetaPrompt
from rlprompt.pairs import compose_prompt
from rlprompt.served import Served
from rlprompt.tasks.template import Template
from rlprompt.types import Example, Rendered

if TYPE_CHECKING:
    from rlprompt.policies import PromptPolicy, PromptTeam

Message = Mapping[str, Any]
"""A chat message with `role` and `content`: a text, or a list of parts of which {"type": "text"} is a text."""

BATCH_SIZE = 8
REASONS = (
    "empty-text",
    "not-unicode",
    "mask",
    "too-long",
    "empty-rewrite",
    "special-token",
    "no-text",
    "several-texts",
)
"""Kinds of reasons why a text stays as it is."""
_MARKER = re.compile(
    r"<\|[^|<>\n]{1,60}\|>"  # ChatML, Llama 3, Phi, ...
    r"|</?s>|\[/?INST\]|<</?SYS>>"  # Llama 2, Mistral
    r"|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>"  # Gemma
    r"|<\uff5c[^<>\n]{1,60}\uff5c>",  # DeepSeek
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class RewriteResult:
    """What became of one text."""

    text: str
    """To be sent in the place of the user's text; where `rewritten` is False the user's text itself."""
    rewritten: bool
    reason: str | None = None
    """Why it was not rewritten: one of `REASONS`, a colon, and the details."""
    prompt: str = ""
    """What the policy wrote for the text, or the fixed prompt."""


@dataclass(frozen=True)
class _Options:
    temperature: float
    seed: int
    max_tokens: int | None
    batch_size: int


class Rewriter:
    """Rewrites texts with a saved policy; made by `Rewriter.load`.

    A task-level run has one best prompt, which stands beside every text as in the task's template. Otherwise the
    policy writes for each text: a new text, an addition to it, or a hint for the template's slot. Except where the
    run replaces the text, the user's text is in the result byte for byte.

    Args:
        served: what the policy's folder says about serving.
        policy: who writes; not needed in the mode "task".
        answer: what the target answers to a rendered question; only for the composition "demonstration".

    Raises:
        ConfigError: the settings do not fit together.
    """

    def __init__(
        self,
        served: Served,
        policy: PromptPolicy | PromptTeam | None = None,
        *,
        answer: Callable[[Rendered], str] | None = None,
    ) -> None:
        self.served = served
        self.policy = policy
        self.template = Template(served.template)
        self._answer = answer
        self._marker = _MARKER
        if served.mode == "task":
            if served.prompt is None:
                raise ConfigError("the run has no best prompt: nothing was scored; train it further")
            return
        if policy is None:
            raise ConfigError(f"the mode '{served.mode}' needs a policy; load a run's folder")
        from rlprompt.policies import PromptTeam
        from rlprompt.serving.authors import Author, SingleAuthor, TeamAuthor

        self._author: Author
        if isinstance(policy, PromptTeam):
            self._author = TeamAuthor(served, policy)
        else:
            self._author = SingleAuthor(served, policy)
        self._marker = _with_tokens(self._author.tokenizers)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        model: str | None = None,
        device: str = "auto",
        answer: Callable[[Rendered], str] | None = None,
        meta_prompt: str | None = None,
    ) -> Rewriter:
        """Loads a rewriter; nothing that the folder names is imported, and no file that it names is read.

        Args:
            path: a run folder (its best policy), or a folder with a `policy.json`.
            model: the policy's frozen LM, where it is not found under the saved name.
            device: where the policy works: "auto", "cpu", "cuda", ...; a fixed prompt needs none.
            answer: see the class.
            meta_prompt: a text that the policy reads in the place of the one of its training, with the same slots: for
                a policy that learnt to follow what stands there.

        Raises:
            ConfigError: nothing is saved there, or it does not say how to serve it.
            CheckpointError: a file is truncated or altered.
            ModelNotFoundError: the policy's frozen LM is not on this machine.
        """
        from rlprompt.models import pick_device
        from rlprompt.policies import load_policy, load_team, read_policy_json
        from rlprompt.policies.saving import TEAM

        description = read_policy_json(path)
        served = Served.from_json(description, str(path))
        if meta_prompt is not None:
            served = _with_meta_prompt(served, meta_prompt)
        policy = None
        if served.mode != "task":
            where = pick_device(device)
            load = load_team if description["kind"] == TEAM else load_policy
            policy = load(path, model=model).to(where)
        return cls(served, policy, answer=answer)

    @property
    def mode(self) -> str:
        """What is served: "task", "instance" or "stimulus"."""
        return self.served.mode

    @property
    def fixed_prompt(self) -> str | None:
        """The one prompt of the mode "task"; None where the policy writes."""
        return self.served.prompt if self.mode == "task" else None

    @property
    def columns(self) -> frozenset[str]:
        """What the template reads besides the text."""
        return self.template.fields - {"input"}

    @overload
    def rewrite(self, text: str, **options: Any) -> str: ...

    @overload
    def rewrite(self, text: Sequence[str], **options: Any) -> list[str]: ...

    def rewrite(self, text: str | Sequence[str], **options: Any) -> str | list[str]:
        """Returns what takes the place of a text, or of each of several; options and errors as of `results`."""
        texts = [text] if isinstance(text, str) else list(text)
        found = [result.text for result in self.results(texts, **options)]
        return found[0] if isinstance(text, str) else found

    def results(
        self,
        texts: Sequence[str],
        *,
        columns: Mapping[str, Any] | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        max_tokens: int | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> list[RewriteResult]:
        """Rewrites texts; each result is that of the text alone.

        Args:
            texts: what users wrote.
            columns: values of the template's other fields, the same for all texts.
            temperature: 0 writes the most probable text; above, one is drawn, with the policy's log-probabilities
                divided by it.
            seed: of the draws; the same text is drawn alike, wherever it stands.
            max_tokens: most tokens that the policy writes, at most those of its training.
            batch_size: texts that are written for at once.

        Raises:
            ConfigError: an option is out of range or does not apply, or the template needs further columns.
        """
        options = _Options(temperature, seed, max_tokens, batch_size)
        self._check(options, texts, columns or {})
        distinct = list(dict.fromkeys(texts))
        found = {text: self._refusal(text, columns or {}) for text in distinct}
        open_texts = [text for text, result in found.items() if result is None]
        for text, written in zip(open_texts, self._prompts(open_texts, options, found), strict=True):
            if found[text] is None and written is not None:
                found[text] = self._composed(text, written, columns or {})
        return [result for text in texts if (result := found[text]) is not None]

    def write_for(self, examples: Sequence[Example], *, batch_size: int = BATCH_SIZE) -> list[RewriteResult]:
        """Writes for the rows of a task, greedily; what the template reads besides the text comes from each row.

        Args:
            examples: the rows; their answers are not looked at.
            batch_size: rows that are written for at once.

        Returns:
            One result per row, as `results`, whose `text` stays the row's input: `prompt` is what counts.

        Raises:
            ConfigError: a row lacks a field of the template.
        """
        texts = list(dict.fromkeys(example.input for example in examples))
        found = {example.input: self._refusal(example.input, example.columns) for example in examples}
        open_texts = [text for text in texts if found[text] is None]
        written = self._prompts(open_texts, _Options(0.0, 0, None, batch_size), found)
        for text, prompt in zip(open_texts, written, strict=True):
            if found[text] is None and prompt is not None:
                found[text] = self._unusable(text, prompt) or RewriteResult(text, True, prompt=prompt)
        return [result for example in examples if (result := found[example.input]) is not None]

    def rewrite_messages(self, messages: Sequence[Message], **options: Any) -> list[Message]:
        """Returns the messages with the text of the last user message rewritten; all others are the same objects.

        Of that message everything but the text stays: other keys, images and other parts. A template of several
        messages becomes one text, its messages one after the other with an empty line between.
        """
        return self.messages_result(messages, **options)[0]

    def messages_result(self, messages: Sequence[Message], **options: Any) -> tuple[list[Message], RewriteResult]:
        """As `rewrite_messages`, with what became of the text; options and errors as of `results`.

        Without one text in the last user message, all stays as it was.
        """
        kept = list(messages)
        place = next((at for at in reversed(range(len(kept))) if kept[at].get("role") == "user"), None)
        content = None if place is None else kept[place].get("content")
        if place is None or content is None:
            return kept, RewriteResult("", False, "no-text: no user message with a content")
        if isinstance(content, str):
            (result,) = self.results([content], **options)
            if result.rewritten:
                kept[place] = {**kept[place], "content": result.text}
            return kept, result
        parts = list(content)
        texts = [at for at, part in enumerate(parts) if _is_text(part)]
        if len(texts) != 1:
            kind = "several-texts" if texts else "no-text"
            return kept, RewriteResult("", False, f"{kind}: the last user message has {len(texts)} parts of text")
        (result,) = self.results([parts[texts[0]]["text"]], **options)
        if result.rewritten:
            parts[texts[0]] = {**parts[texts[0]], "text": result.text}
            kept[place] = {**kept[place], "content": parts}
        return kept, result

    def context(self, text: str) -> list[int]:
        """Returns the tokens that the policy, or the first of several, reads for a text; nothing in the mode "task"."""
        return [] if self.policy is None else self._author.context(text)

    def render(self, text: str, prompt: str, columns: Mapping[str, Any] | None = None) -> Rendered:
        """Returns what the target reads for a text and what was written for it, as in training."""
        example = Example("request", text, columns=columns or {})
        answer = ""
        if self.served.compose == "demonstration" and prompt:
            if self._answer is None:
                raise ConfigError(
                    "the run shows the target's answer to what the policy writes (compose: demonstration); give "
                    "Rewriter.load(answer=...) a function that asks the target"
                )
            answer = self._answer(self.template.render(prompt, example))
        composed = compose_prompt(self.served.compose, prompt, example, self.served.draft, answer=answer)
        return self.template.render(composed, example)

    def _check(self, options: _Options, texts: Sequence[str], columns: Mapping[str, Any]) -> None:
        for text in texts:
            if not isinstance(text, str):
                raise ConfigError(f"texts must be str, got {type(text).__name__}")
        missing = sorted(self.columns - set(columns))
        if missing:
            raise ConfigError(
                f"the run's template also reads {', '.join(f'{{{name}}}' for name in missing)}; give a value for each "
                "(columns=, or --column NAME=VALUE)"
            )
        if not 0 <= options.temperature < float("inf"):
            raise ConfigError(f"temperature must be a finite number from 0, got {options.temperature}")
        for name in ("seed", "batch_size"):
            least = 0 if name == "seed" else 1
            if getattr(options, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(options, name)}")
        if self.policy is None:
            if options.temperature or options.max_tokens is not None:
                raise ConfigError("the run has one fixed prompt, so temperature and max_tokens mean nothing; omit them")
        elif options.max_tokens is not None:
            most = self._author.max_tokens
            if most is None:
                raise ConfigError("the run's agents have segments of their own lengths; omit max_tokens")
            if not 1 <= options.max_tokens <= most:
                raise ConfigError(
                    f"max_tokens must be from 1 to {most} (env.prompt_length of the run), got {options.max_tokens}"
                )

    def _refusal(self, text: str, columns: Mapping[str, Any]) -> RewriteResult | None:
        """Returns why a text stays as it is, as far as the text alone decides."""
        if not text.strip():
            return RewriteResult(text, False, "empty-text: there is nothing to rewrite")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            return RewriteResult(text, False, f"not-unicode: half a character at {error.start}")
        try:
            self.template.check(Example("the text", text, columns=columns))
        except TaskError as error:
            return RewriteResult(text, False, f"mask: {error}")
        return None

    def _prompts(
        self, texts: Sequence[str], options: _Options, found: dict[str, RewriteResult | None]
    ) -> list[str | None]:
        """Returns the prompt for each text; None, and the result in `found`, for what the policy cannot read."""
        if self.policy is None:
            return [self.served.prompt] * len(texts)
        readable: list[str] = []
        for text in texts:
            long = self._author.too_long(text)
            if long is None:
                readable.append(text)
            else:
                found[text] = RewriteResult(
                    text, False, f"too-long: {long[0]} tokens with the meta-prompt, the policy reads {long[1]}"
                )
        written = self._author.write(
            readable,
            length=options.max_tokens,
            batch_size=options.batch_size,
            temperature=options.temperature,
            seed=options.seed,
        )
        by_text = dict(zip(readable, written, strict=True))
        return [by_text.get(text) for text in texts]

    def _unusable(self, text: str, written: str) -> RewriteResult | None:
        """Returns why what the policy wrote must not reach a target; None where it may."""
        kept = RewriteResult(text, False, prompt=written)
        if not written.strip() and self.policy is not None:
            return replace(kept, reason="empty-rewrite: the policy wrote nothing")
        marker = self._marker.search(written)
        if marker is not None:
            return replace(kept, reason=f"special-token: {marker[0]!r} in what the policy wrote")
        return None

    def _composed(self, text: str, written: str, columns: Mapping[str, Any]) -> RewriteResult:
        """Puts text and prompt together, unless the prompt must not reach a target."""
        refused = self._unusable(text, written)
        if refused is not None:
            return refused
        rendered = self.render(text, written, columns)
        if rendered.messages is not None:
            whole = "\n\n".join(content for _, content in rendered.messages)
        else:
            whole = rendered.text or ""
        return RewriteResult(whole, True, prompt=written)


def _with_meta_prompt(served: Served, text: str) -> Served:
    if served.meta_prompt is None or served.mode == "task":
        raise ConfigError("the run has one fixed prompt and reads no meta-prompt when it is served; leave it out")
    wanted, given = MetaPrompt(served.meta_prompt).slots, MetaPrompt(text).slots
    if given - {"feedback"} != wanted - {"feedback"}:
        slots = " and ".join(f"{{{name}}}" for name in sorted(wanted - {"feedback"}))
        raise ConfigError(f"the meta-prompt must have the slots of the run's own, {slots}; got {text!r}")
    return served.model_copy(update={"meta_prompt": text})


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _with_tokens(tokenizers: Sequence[Any]) -> re.Pattern[str]:
    """The known role markers, and the special tokens of those who write."""
    names: set[str] = set()
    for tokenizer in tokenizers:
        added = getattr(tokenizer, "added_tokens_decoder", {})
        names |= {*tokenizer.all_special_tokens, *(str(entry.content) for entry in added.values() if entry.special)}
    own = "|".join(re.escape(name) for name in sorted(names) if name.strip())
    return re.compile(f"{_MARKER.pattern}|{own}" if own else _MARKER.pattern, re.IGNORECASE)
