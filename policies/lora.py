"""LoRA through PEFT: small trained matrices beside the frozen ones of an LM.

Reference: LoRA, Hu et al. 2022, arXiv:2106.09685.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from pydantic import Field

from rlprompt.config import Section
from rlprompt.errors import ConfigError, did_you_mean
from rlprompt.seeding import integer_seed

Task = Literal["CAUSAL_LM", "SEQ_2_SEQ_LM"]


class LoRASettings(Section):
    """Arguments of the adapter."""

    r: int = Field(8, ge=1, le=4096)
    """Rank."""
    alpha: int = Field(16, ge=1)
    """The adapter's output is multiplied by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of the adapter's input, in training; what is sampled and the reference never see it."""
    targets: list[str] | Literal["all-linear"] | None = None
    """Names of the layers that get an adapter, for example [q_proj, v_proj]; None takes PEFT's choice for the
    architecture (mostly the queries and values of attention)."""


def with_lora(model: Any, settings: LoRASettings, *, task: Task, name: str, seed: int) -> Any:
    """Puts an adapter into a frozen LM, in place; nothing else gets a gradient.

    B starts at 0, so that the adapted LM computes what the plain one does. A is drawn uniformly from
    +-1 / sqrt(inputs), PEFT's own start, with a generator keyed by the seed.

    Args:
        model: an LM of transformers; its modules must be one's own (`rlprompt.models.load_frozen`).
        settings: rank, targets, ...
        task: what PEFT calls the kind of LM.
        name: what the adapter's file calls the LM.
        seed: the run's seed.

    Returns:
        The `peft.PeftModel` around it; its adapter is called "default" and is float32.

    Raises:
        ConfigError: a target is no linear layer of this LM.
    """
    import peft

    layers = _linear_layers(model)
    targets = _targets(settings, model, layers)
    transposed = targets != "all-linear" and all(_is_transposed(layers[name]) for name in layers if _hit(name, targets))
    config = peft.LoraConfig(
        task_type=task,
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        fan_in_fan_out=transposed,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # PEFT draws what is drawn again below
        warnings.filterwarnings("ignore", category=FutureWarning)
        wrapped = peft.get_peft_model(model, config)
    written = wrapped.peft_config["default"]
    written.base_model_name_or_path = name  # instead of its place on this machine
    written.target_modules = sorted(written.target_modules)  # a set would be written in another order each time
    with torch.no_grad():
        for index, (_, parameter) in enumerate(sorted(_matrices_a(wrapped).items())):
            generator = torch.Generator().manual_seed(integer_seed(seed, "lora", index))
            bound = parameter.shape[1] ** -0.5
            parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
    return wrapped


def saved_name(name: str) -> str:
    """Returns the name of an adapter's tensor in its file; PEFT leaves the adapter's own name out.

    >>> saved_name("base_model.model.layers.0.q_proj.lora_A.default.weight")
    'base_model.model.layers.0.q_proj.lora_A.weight'
    """
    return name.replace(".default.", ".")


def _matrices_a(model: Any) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.named_parameters() if ".lora_A." in name}


def _linear_layers(model: Any) -> dict[str, torch.nn.Module]:
    """All layers that may get an adapter, by their full names; not the output layer, which may be tied to the input."""
    from transformers.pytorch_utils import Conv1D

    output = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not output
    }


def _targets(settings: LoRASettings, model: Any, layers: dict[str, torch.nn.Module]) -> list[str] | str:
    """Returns the checked targets."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as CHOICE

    targets = settings.targets
    architecture = model.config.model_type
    known = sorted({name.rpartition(".")[2] for name in layers})
    if targets is None:
        targets = [name for name in CHOICE.get(architecture, []) if any(_hit(layer, [name]) for layer in layers)]
    if not targets:
        raise ConfigError(f"LoRA needs targets for '{architecture}': set lora.targets to some of {', '.join(known)}")
    if targets == "all-linear":
        return targets
    for name in targets:
        if not any(_hit(layer, [name]) for layer in layers):
            raise ConfigError(f"lora.targets: '{name}' is no linear layer of this LM{did_you_mean(name, known)}")
    return list(targets)


def _hit(layer: str, targets: list[str] | str) -> bool:
    """PEFT's rule: a target is the end of a layer's full name."""
    return any(layer == target or layer.endswith(f".{target}") for target in targets)


def _is_transposed(layer: torch.nn.Module) -> bool:
    return not isinstance(layer, torch.nn.Linear)  # GPT-2's Conv1D keeps its weight as (inputs, outputs)
