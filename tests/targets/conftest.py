"""Folders of small random models."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from tiny_transformers import CHAT, causal_models, other_models, save_tokenizer


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Makes the folder of a small random model on demand."""
    made: dict[str, str] = {}

    def make(name: str) -> str:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            builders = {**causal_models(), **other_models()}
            tokenizer = save_tokenizer(
                folder, mask=name in ("bert", "roberta"), template=CHAT if name == "llama" else None
            )
            with torch.random.fork_rng():
                torch.manual_seed(7)
                model = builders[name](len(tokenizer))
                for parameter_name, parameter in model.named_parameters():
                    if parameter_name.endswith("bias"):
                        torch.nn.init.normal_(parameter, std=0.3)
            model.save_pretrained(folder)
            made[name] = str(folder)
        return made[name]

    return make


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Matrices as small as these are shared out among threads by their number of rows; larger ones are not."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
