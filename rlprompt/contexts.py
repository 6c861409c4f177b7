"""How a filled-in meta-prompt becomes the tokens that a policy reads; the same in training and in serving.

The user's text is data: it is tokenised as text even where it spells a role marker such as "<|im_start|>", so it
cannot open a message of its own.
"""

from __future__ import annotations

from typing import Any

from rlprompt.errors import ConfigError

FEEDBACK_TOKENS = 128
"""Most tokens of `{feedback}`; what is longer is cut at its end."""
_CONTENT = "rlprompt content"
"""Stands for the meta-prompt while the chat template around it is looked up."""


def context_ids(tokenizer: Any, text: str, *, chat: bool) -> list[int]:
    """Returns the tokens that a policy reads for a filled-in meta-prompt.

    With `chat`, and where the tokenizer has a chat template, the text is the user's message and the assistant's turn
    has begun. Role markers in the text are tokenised as the characters that they are.

    Raises:
        ConfigError: no tokens, and the tokenizer has neither BOS nor EOS.
    """
    if chat and getattr(tokenizer, "chat_template", None):
        messages = [{"role": "user", "content": _CONTENT}]
        around = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        before, _, after = around.partition(_CONTENT)
        markup = [list(tokenizer.encode(part, add_special_tokens=False)) for part in (before, after)]
        return [*markup[0], *text_ids(tokenizer, text), *markup[1]]
    return text_ids(tokenizer, text) or [start_token(tokenizer)]


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Returns the tokens of a text in which nothing is a special token."""
    if getattr(tokenizer, "is_fast", False):  # WordTokenizer and slow tokenizers do not know the argument
        return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False))
    return list(tokenizer.encode(text, add_special_tokens=False))


def cut_text(tokenizer: Any, text: str, tokens: int) -> str:
    """Returns the beginning of a text that has at most so many tokens; half a character at the cut is dropped."""
    ids = text_ids(tokenizer, text)
    if len(ids) <= tokens:
        return text
    cut = str(tokenizer.decode(ids[:tokens], skip_special_tokens=False, clean_up_tokenization_spaces=False))
    cut = cut.rstrip("\ufffd")
    return cut if text.startswith(cut) else text[: len(cut)]


def context_limit(tokenizer_name: str, prompt_length: int, max_context: int | None = None) -> int | None:
    """Returns how many tokens the named policy can read before it writes; None where positions are relative.

    Raises:
        ConfigError: `max_context` is below 1, or the model has no positions left for a context.
    """
    from rlprompt.models import load_config

    if max_context is not None and max_context < 1:
        raise ConfigError(f"max_context must be at least 1, got {max_context}")
    positions = getattr(load_config(tokenizer_name), "max_position_embeddings", None)
    if positions is None or int(positions) <= 0:
        return max_context
    left = int(positions) - prompt_length
    if left < 1:
        raise ConfigError(f"prompt_length is {prompt_length}, but the policy has {positions} positions; lower it")
    return left if max_context is None else min(left, max_context)


def feedback_room(turns: int) -> int:
    """Returns the tokens of a context that are kept free for `{feedback}`, with its line break."""
    return FEEDBACK_TOKENS + 2 if turns > 1 else 0


def start_token(tokenizer: Any) -> int:
    """Returns what a policy without a context reads: BOS, else EOS.

    Raises:
        ConfigError: the tokenizer has neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ConfigError("the tokenizer has neither BOS nor EOS; give the policy a context (policy.context)")
