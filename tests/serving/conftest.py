"""Saved policies over the tiny planted LM, each with settings of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlprompt.config import PolicyConfig
from rlprompt.policies import build_policy
from rlprompt.served import Served

LORA = {"lora": {"r": 2, "targets": ["c_attn"]}}
PROMPT_LENGTH = 6


@pytest.fixture(scope="session")
def save(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves a policy whose texts differ with what it reads; `untrained` ones are near ties everywhere."""

    def make(*, untrained: bool = False, **settings: Any) -> Path:
        config = PolicyConfig(kind="causal-lm", model="planted-50", dtype="float32", kwargs=LORA)
        policy = build_policy(config, prompt_length=PROMPT_LENGTH, seed=0)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in policy.parameters():
                if not untrained:
                    parameter.add_(2.0 * torch.randn(parameter.shape, generator=generator))
        values = {"mode": "instance", "template": "{input} {prompt}", "meta_prompt": "w01 {input} w02", "eos": True}
        served = Served.model_validate({**values, "max_context": 40, **settings})
        folder = tmp_path_factory.mktemp("saved")
        policy.save(folder / "best", served.model_dump(mode="json"))
        return folder

    return make
