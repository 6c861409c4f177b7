"""Encoder-decoder policies: what the encoder reads, and that they learn."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rlprompt.config import PolicyConfig, parse_config
from rlprompt.errors import ConfigError
from rlprompt.policies import build_policy
from rlprompt.policies.seq2seq_lm import Seq2SeqLMPolicy
from rlprompt.runs import train
from rlprompt.runs.checkpoints import load_checkpoint

TinyLM = Callable[[str], str]


def build(model: str, length: int = 4) -> Seq2SeqLMPolicy:
    config = PolicyConfig(kind="seq2seq-lm", model=model, dtype="float32")
    policy = build_policy(config, prompt_length=length, seed=0)
    assert isinstance(policy, Seq2SeqLMPolicy)
    return policy


def test_the_encoder_reads_the_context_with_the_tokenizers_special_tokens(tiny_lm: TinyLM) -> None:
    policy = build(tiny_lm("t5"))
    policy._surrounding = ((), (50,))  # as T5's tokenizer has it
    assert policy.context_rows(torch.tensor([[3, 1, -1], [3, 1, 50], [-1, -1, -1]])) == [(3, 1, 50), (3, 1, 50), (50,)]


def test_special_tokens_are_found_where_the_tokenizer_puts_them(tiny_lm: TinyLM) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    from rlprompt.policies.language_model import _surrounding

    tokenizer = AutoTokenizer.from_pretrained(tiny_lm("t5"))
    assert _surrounding(tokenizer, behind=True) == ((), ())
    template = TemplateProcessing(single="w07 $A <eos>", special_tokens=[("w07", 7), ("<eos>", 50)])
    tokenizer.backend_tokenizer.post_processor = template
    assert _surrounding(tokenizer, behind=True) == ((), (7, 50))  # 7 is no BOS: nothing says that it comes first
    tokenizer.bos_token = "w07"
    assert _surrounding(tokenizer, behind=True) == ((7,), (50,))
    assert _surrounding(tokenizer, behind=False) == ((7,), ())


def test_relative_positions_have_no_end_and_learned_ones_do(tiny_lm: TinyLM) -> None:
    tokens = torch.tensor([[1, 2, 3, 4]])
    assert build(tiny_lm("t5")).evaluate(torch.ones(1, 40, dtype=torch.long), tokens)[0].isfinite().all()
    policy = build(tiny_lm("bart"))
    assert policy.evaluate(torch.ones(1, 32, dtype=torch.long), tokens)[0].isfinite().all()
    with pytest.raises(ConfigError, match="at most 32 tokens each, but the context has 33; shorten it"):
        policy.writer(torch.ones(1, 33, dtype=torch.long))
    with pytest.raises(ConfigError, match="but the prompt has 33"):
        build(tiny_lm("bart"), length=33).writer(torch.ones(1, 3, dtype=torch.long))


@pytest.mark.ray
def test_it_learns_from_rewards_in_both_engines_and_in_both_action_modes(tiny_lm: TinyLM, tmp_path: Path) -> None:
    def run(name: str, action: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        config = parse_config(
            {
                "seed": 3,
                "task": {"name": "planted", "shots": 4, "dev_shots": 4},
                "target": {"name": "planted:separable"},
                "policy": {"kind": "seq2seq-lm", "model": tiny_lm("t5"), "dtype": "float32"},
                "env": {
                    "kind": "rewrite",
                    "meta_prompt": "w03 {draft}",
                    "draft": "w01 w02",
                    "prompt_length": 3,
                    "num_envs": 8,
                    "action": action,
                    "mask": {"candidates": ["w34 w43 w10"]},  # the words of the best prompt: rewards differ
                },
                "reward": [{"name": "log-probability"}],
                "stabilisers": [{"name": "leave-one-out"}] if name == "ppo" else [],
                "algorithm": {"name": name, "lr": 1e-2, "iterations": 2, "kl_coeff": 0.05, "kl_in": "reward"},
                "run": {"dir": str(tmp_path / name / action), "tensorboard": False},
            }
        )
        before = build_policy(config.policy, prompt_length=3, seed=3).trainable_state()
        result = train(config, progress=False)
        return before, load_checkpoint(result.folder / "checkpoint-000001")["policy"]

    start, token = run("ppo", "token")
    _, whole = run("ppo", "sequence")
    _, other = run("rloo", "sequence")
    assert start.keys() == token.keys() == whole.keys() == other.keys()
    assert max(float((token[name] - whole[name]).abs().max()) for name in token) < 1e-5
    for after in (token, other):
        assert max(float((after[name] - start[name]).abs().max()) for name in start if "value" not in name) > 1e-3
