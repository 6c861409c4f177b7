"""Adapters: where they go and what they start from."""

from collections.abc import Callable

import pytest
import torch

from rlprompt.models import load_frozen
from rlprompt.policies.lora import LoRASettings, with_lora

TinyLM = Callable[[str], str]


def adapted(folder: str, seed: int = 0, **settings: object) -> dict[str, torch.Tensor]:
    model = load_frozen(folder, dtype="float32", device="cpu")
    wrapped = with_lora(model, LoRASettings.model_validate(settings), task="CAUSAL_LM", name="tiny", seed=seed)
    return {name: value.detach() for name, value in wrapped.named_parameters() if value.requires_grad}


@pytest.mark.parametrize(
    ("model", "targets", "layers"),
    [
        ("llama", None, 6),  # queries and values of 3 layers
        ("llama", ["q_proj", "mlp.up_proj"], 6),
        ("llama", "all-linear", 21),  # 4 of attention and 3 of the MLP, 3 layers; not the output layer
        ("gpt2", None, 2),  # c_attn of 2 layers
    ],
)
def test_targets(model: str, targets: object, layers: int, tiny_lm: TinyLM) -> None:
    found = adapted(tiny_lm(model), targets=targets)
    assert len(found) == 2 * layers
    assert all(".lora_A." in name or ".lora_B." in name for name in found)


def test_b_starts_at_zero_and_a_is_uniform_by_the_seed(tiny_lm: TinyLM) -> None:
    before = torch.random.get_rng_state()
    first = adapted(tiny_lm("llama"), seed=3, r=4)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(1)  # another state of the global generator changes nothing
    again, other = adapted(tiny_lm("llama"), seed=3, r=4), adapted(tiny_lm("llama"), seed=4, r=4)
    drawn = torch.cat([value.flatten() for name, value in first.items() if ".lora_A." in name])
    # 6 matrices of 4 x 16; +-1 / sqrt(16) = +-0.25, standard deviation 0.25 / sqrt(3) = 0.144
    assert len(drawn) == 384
    assert 0.24 < drawn.abs().max().item() <= 0.25
    assert drawn.std().item() == pytest.approx(0.144, abs=0.015)
    assert all((value == 0).all() for name, value in first.items() if ".lora_B." in name)
    for name in (name for name in first if ".lora_A." in name):
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
    assert len({value.sum().item() for name, value in first.items() if ".lora_A." in name}) == 6
