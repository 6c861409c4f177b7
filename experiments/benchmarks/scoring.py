"""How fast prompts are scored, against a straightforward loop, on this machine.

    python experiments/benchmarks/scoring.py [--model smollm2-135m-instruct] [--prompts 16] [--inputs 32]

The loop takes one prompt at a time, reads all inputs with it as one padded batch and computes logits over the whole
vocabulary at every position in float32, as the reward of the RLPrompt paper does. Both are timed in the same run;
only ratios mean something on a shared machine. The loop is timed on a few prompts (`--loop-prompts`), and the time
per pair is taken from those.

Prompts are random words of one token, inputs are random words of about 25 tokens: the time does not depend on what
they say. "first call" has to read the inputs, "later calls" score new prompts on inputs that were read before.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from rlprompt.model_files import quiet
from rlprompt.models import load_frozen, load_tokenizer, pick_device, pick_dtype
from rlprompt.seeding import generator
from rlprompt.targets.masked import MASK
from rlprompt.targets.transformers import TransformersTarget
from rlprompt.types import Rendered, TargetRequest

CHOICES = (" terrible", " great")
PROMPT_TOKENS = 5


def words(tokenizer: Any) -> list[str]:
    """Returns words of the vocabulary that are one token after a space."""
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return [piece[1:] for piece in pieces if piece[0] == "Ġ" and piece[1:].isascii() and piece[1:].isalpha()]


def texts(vocabulary: Sequence[str], count: int, lengths: Sequence[int], stream: str, round_: int) -> list[str]:
    """Returns random texts of so many words."""
    rng = generator(0, stream, round_)
    return [" ".join(rng.choice(vocabulary, size=length)) for _, length in zip(range(count), lengths, strict=True)]


def requests(prompts: Sequence[str], inputs: Sequence[str], tail: str = "") -> list[TargetRequest]:
    """Returns every prompt on every input, prompt-major, with the template `{input} {prompt}`."""
    return [
        TargetRequest(Rendered(text=f"{text} {prompt}{tail}", split=len(text)), choices=CHOICES)
        for prompt in prompts
        for text in inputs
    ]


@torch.inference_mode()
def loop(model: Any, tokenizer: Any, prompts: Sequence[str], inputs: Sequence[str], masked: bool) -> np.ndarray:
    """The straightforward way. Returns log-probabilities of the choices, (prompts, inputs, choices)."""
    ids = [tokenizer(choice, add_special_tokens=False)["input_ids"][0] for choice in CHOICES]
    tokenizer.padding_side = "right"
    found = []
    for prompt in prompts:
        tail = f" {tokenizer.mask_token}" if masked else ""
        batch = tokenizer([f"{text} {prompt}{tail}" for text in inputs], padding=True, return_tensors="pt")
        logits = model(**batch).logits
        if masked:
            where = (batch["input_ids"] == tokenizer.mask_token_id).int().argmax(1)
        else:
            where = batch["attention_mask"].sum(1) - 1
        found.append(logits[torch.arange(len(inputs)), where][:, ids].log_softmax(-1).numpy())
    return np.stack(found)


def timed(work: Callable[[], Any]) -> tuple[np.ndarray, Any]:
    """Returns seconds by the clock and of processor time, and the result."""
    started = np.array([time.perf_counter(), time.process_time()])
    result = work()
    return np.array([time.perf_counter(), time.process_time()]) - started, result


def compare(target: TransformersTarget, model: Any, tokenizer: Any, options: argparse.Namespace, masked: bool) -> None:
    """Times both ways in turns, so that other load on the machine meets both, and prints the ratio of the medians."""
    vocabulary = words(tokenizer)
    lengths = generator(0, "lengths").integers(15, 36, size=options.inputs).tolist()
    inputs = texts(vocabulary, options.inputs, lengths, "inputs", 0)
    tail = f" {MASK}" if masked else ""
    loop_rates, rates = [], []
    for round_ in range(options.rounds + 1):
        prompts = texts(vocabulary, options.prompts, [PROMPT_TOKENS] * options.prompts, "prompts", round_)
        seconds, outputs = timed(lambda prompts=prompts: target.run(requests(prompts, inputs, tail)))
        pairs = options.prompts * options.inputs
        if round_ == 0 and not masked:
            print(f"  first call: {pairs / seconds[0]:.1f} pairs/s")
        else:
            rates.append(pairs / seconds)
        few = prompts[: options.loop_prompts]
        seconds, expected = timed(lambda few=few: loop(model, tokenizer, few, inputs, masked))
        loop_rates.append(len(few) * options.inputs / seconds)
    got = np.array([output.choice_logprobs for output in outputs]).reshape(options.prompts, options.inputs, -1)
    difference = np.abs(got[: len(few)] - expected).max()
    rate, loop_rate = np.median(rates, axis=0), np.median(loop_rates, axis=0)
    ratio = rate / loop_rate
    print(f"  later calls: {rate[0]:.1f} pairs/s")
    print(f"  loop: {loop_rate[0]:.1f} pairs/s (timed on {options.loop_prompts} of {options.prompts} prompts)")
    print(f"  ratio: {ratio[0]:.1f} by the clock, {ratio[1]:.1f} in processor time")
    print(f"  largest difference of a log-probability: {difference:.1e}")
    stats = target.stats()
    share = stats["tokens_computed"] / stats["perfect_tokens"]
    print(f"  tokens computed / tokens of a perfect prefix cache: {share:.3f}")


def small_masked(folder: str) -> None:
    """Saves a BERT of six layers with random weights and the default model's vocabulary."""
    from transformers import BertConfig, BertForMaskedLM

    tokenizer = load_tokenizer("smollm2-135m-instruct")
    tokenizer.add_special_tokens({"mask_token": MASK, "pad_token": "<|endoftext|>"})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=6,
            intermediate_size=1536,
            pad_token_id=tokenizer.pad_token_id,
        )
        with quiet():
            BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> int:
    """Prints the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--inputs", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loop-prompts", type=int, default=1)
    parser.add_argument("--batch-tokens", type=int, default=None)
    parser.add_argument("--no-masked", action="store_true")
    options = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"{options.prompts} prompts of {PROMPT_TOKENS} tokens on {options.inputs} inputs, {threads} threads")
    tokenizer = load_tokenizer(options.model)
    model = load_frozen(options.model, dtype="float32", device="cpu")
    best = pick_dtype("auto", pick_device("cpu"))
    for dtype in dict.fromkeys(["float32", str(best).removeprefix("torch.")]):
        print(f"{options.model}, {dtype} (the loop: float32)")
        target = TransformersTarget(options.model, dtype=dtype, device="cpu", batch_tokens=options.batch_tokens)
        compare(target, model, tokenizer, options, masked=False)
    if best == torch.float32:
        print("bfloat16 is not measured: this CPU has neither AVX512-BF16 nor AMX")
    if not options.no_masked:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            small_masked(folder)
            print("masked LM with random weights (6 layers of 384), float32")
            target = TransformersTarget(folder, dtype="float32", device="cpu", batch_tokens=options.batch_tokens)
            model = load_frozen(folder, dtype="float32", device="cpu", head="masked")
            compare(target, model, load_tokenizer(folder), options, masked=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
