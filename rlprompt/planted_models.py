"""The models named `planted-N`: a vocabulary of N words, and a tiny language model over it with random weights.

They need no download and no training, so that every policy and every algorithm can run on a planted task.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rlprompt.seeding import generator

POSITIONS = 512


class WordTokenizer:
    """A tokenizer of the words "w00", "w01", ...: ids 0 to N-1 are the words, id N is EOS.

    It answers to the part of the transformers interface that rlprompt uses.

    Args:
        words: N, at least 1.

    >>> tokenizer = WordTokenizer(50)
    >>> tokenizer.encode("w03 w49"), tokenizer.decode([3, 49, 50], skip_special_tokens=True)
    ([3, 49], 'w03 w49')
    """

    bos_token: str | None = None
    bos_token_id: int | None = None
    chat_template: str | None = None
    eos_token = "</s>"

    def __init__(self, words: int) -> None:
        self.name_or_path = f"planted-{words}"
        digits = max(2, len(str(words - 1)))
        self._pieces = [f"w{index:0{digits}d}" for index in range(words)] + [self.eos_token]
        self._ids = {piece: index for index, piece in enumerate(self._pieces)}
        self.eos_token_id = words
        self.pad_token, self.pad_token_id = self.eos_token, words
        self.vocab_size = words + 1

    def __len__(self) -> int:
        """Returns the size of the vocabulary, N + 1."""
        return len(self._pieces)

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """Returns the ids of a text under "input_ids"."""
        ids = self.encode(text, add_special_tokens=add_special_tokens)
        return {"input_ids": ids, "attention_mask": [1] * len(ids)}

    @property
    def all_special_ids(self) -> list[int]:
        """The id of EOS."""
        return [self.eos_token_id]

    @property
    def all_special_tokens(self) -> list[str]:
        """EOS."""
        return [self.eos_token]

    def get_vocab(self) -> dict[str, int]:
        """Returns the id of every token."""
        return dict(self._ids)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Returns the ids of the known words of a text; words are separated by white space, others are left out."""
        return [self._ids[word] for word in text.split() if word in self._ids]

    def decode(
        self, ids: Iterable[int], *, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool = False
    ) -> str:
        """Returns the words of the ids, joined by spaces."""
        kept = [int(token) for token in ids]
        if skip_special_tokens:
            kept = [token for token in kept if token != self.eos_token_id]
        return " ".join(self._pieces[token] for token in kept)

    def batch_decode(
        self,
        sequences: Iterable[Iterable[int]],
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> list[str]:
        """Decodes every sequence."""
        return [self.decode(ids, skip_special_tokens=skip_special_tokens) for ids in sequences]

    def convert_ids_to_tokens(self, ids: int | Sequence[int]) -> Any:
        """Returns the token of one id, or the list of the tokens of several."""
        return self._pieces[ids] if isinstance(ids, int) else [self._pieces[token] for token in ids]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """Returns the id of one token, or the list of the ids of several; None for an unknown one."""
        return self._ids.get(tokens) if isinstance(tokens, str) else [self._ids.get(token) for token in tokens]


def planted_config(words: int) -> Any:
    """Returns the transformers configuration of `planted-N`."""
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=words + 1,
        n_positions=POSITIONS,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=words,
        eos_token_id=words,
        pad_token_id=words,
        architectures=["GPT2LMHeadModel"],
    )


def planted_model(words: int) -> Any:
    """Returns the language model of `planted-N`: the same weights in every process and on every machine."""
    import torch
    from transformers import GPT2LMHeadModel

    with torch.random.fork_rng(devices=[]):  # the constructor draws weights that are replaced below
        model = GPT2LMHeadModel(planted_config(words))
    with torch.no_grad():
        for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
            if name.endswith("bias"):
                parameter.zero_()
            elif ".ln_" in name:
                parameter.fill_(1.0)
            else:  # GPT-2's own initialisation: normal with standard deviation 0.02
                drawn = generator(0, "planted-model", words, index).normal(0.0, 0.02, size=tuple(parameter.shape))
                parameter.copy_(torch.from_numpy(drawn))
    return model
