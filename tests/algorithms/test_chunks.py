"""Runs of rows: how many fit is counted by hand."""

import pytest
import torch

from rlprompt.algorithms import chunks
from rlprompt.algorithms.chunks import row_chunks


def prompts(*lengths: int, width: int = 4) -> torch.Tensor:
    return torch.tensor([[1] * length + [-1] * (width - length) for length in lengths])


@pytest.fixture
def at_most(monkeypatch: pytest.MonkeyPatch):
    def limit(tokens: int, logit_bytes: int = 10**9) -> None:
        monkeypatch.setattr(chunks, "TOKENS_WITH_GRADIENT", tokens)
        monkeypatch.setattr(chunks, "LOGIT_BYTES", logit_bytes)

    return limit


def cut(context: torch.Tensor, tokens: torch.Tensor) -> list[tuple[int, int, int]]:
    return [(rows.start, rows.stop, width) for rows, width in row_chunks(context, tokens, 10, gradient=True)]


def test_a_shared_context_counts_once(at_most) -> None:
    at_most(10)
    same = torch.tensor([[7, 7, -1]] * 4)
    different = torch.tensor([[1, 7, -1], [2, 7, -1], [3, 7, -1], [4, 7, -1]])
    tokens = prompts(4, 4, 4, 4)
    assert cut(same, tokens) == [(0, 2, 4), (2, 4, 4)]  # 2 + 2 * 4 = 10
    assert cut(different, tokens) == [(0, 1, 4), (1, 2, 4), (2, 3, 4), (3, 4, 4)]  # 2 * 2 + 2 * 4 = 12


def test_columns_that_no_row_of_the_run_uses_are_left_out(at_most) -> None:
    at_most(8)
    context = torch.tensor([[7, 7]] * 4)
    # 2 + 3 * 2 = 8; then 2 + 1 * 4
    assert cut(context, prompts(1, 2, 2, 4)) == [(0, 3, 2), (3, 4, 4)]


def test_a_row_that_is_too_long_goes_alone(at_most) -> None:
    at_most(1)
    assert cut(torch.tensor([[7], [7]]), prompts(4, 4)) == [(0, 1, 4), (1, 2, 4)]


def test_logits_are_bounded_too(at_most) -> None:
    at_most(10**6, logit_bytes=2 * 4 * 10 * 4)  # two rows of four tokens, ten logits of four bytes each
    assert cut(torch.tensor([[7]] * 3), prompts(4, 4, 4)) == [(0, 2, 4), (2, 3, 4)]
