"""`rlprompt eval` against a straightforward computation, one row at a time: no padding, no cache, float32."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rlprompt.cli.main import main

ROWS = [
    ("a fine film", 1),
    ("\"quoted\" and 'single'", 0),
    ("", 1),
    ("Ünïcödé 日本語 🎬", 0),
    ('he said "no" twice, "no"', 0),
    ("it is great , really great", 1),
    ("bad bad bad", 0),
    ("two  spaces inside", 1),
    ("braces {input} {prompt} stay", 0),
    ("a", 1),
    ("the end of a long and winding story about nothing much at all", 0),
    ("C'est déjà vu", 1),
    ("100 % of it", 0),
    ("\\backslash", 1),
    ('ends with a quote"', 0),
    ('"starts with one', 1),
    ("#hash and @at", 0),
    ("one, two; three: four.", 1),
    ("great", 1),
    ("not good", 0),
]
SINGLE = [" bad", " great"]
MULTI = [" really bad", " great"]
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<pad>", "<s>", "</s>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["It was great bad really good not in one word and then it was"] * 9, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", mask_token="<mask>"
    )
    small: dict[str, Any] = {**SIZE, "initializer_range": 0.2, "vocab_size": len(tokenizer), "pad_token_id": 0}
    made = {}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        built = {
            "causal": transformers.LlamaForCausalLM(transformers.LlamaConfig(num_key_value_heads=2, **small)),
            "masked": transformers.BertForMaskedLM(transformers.BertConfig(**small)),
            "seq2seq": transformers.T5ForConditionalGeneration(
                transformers.T5Config(
                    vocab_size=len(tokenizer),
                    d_model=32,
                    d_kv=8,
                    d_ff=48,
                    num_layers=2,
                    num_heads=4,
                    decoder_start_token_id=0,
                )
            ),
        }
    for name, model in built.items():
        made[name] = tmp_path_factory.mktemp(name)
        tokenizer.save_pretrained(made[name])
        model.save_pretrained(made[name])
    return made


def write_card(folder: Path, choices: list[str]) -> Path:
    for split, rows in {
        "test": ROWS,
        "train": [("t one", 0), ("t two", 1)],
        "dev": [("d one", 0), ("d two", 1)],
    }.items():
        lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in rows)]
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    card = folder / "card.yaml"
    card.write_text(
        "name: twenty\nsplits: {train: train.tsv, dev: dev.tsv, test: test.tsv}\n"
        f"columns: {{input: sentence, reference: label}}\nchoices: {json.dumps(choices)}\n"
        'template: "{input} {prompt}"\n',
        encoding="utf-8",
    )
    return card


@torch.inference_mode()
def plain_score(head: str, model: Any, tokenizer: Any, text: str, choice: str) -> float:
    answer = tokenizer(choice, add_special_tokens=False)["input_ids"]
    if head == "causal":
        ids = tokenizer(text)["input_ids"] or [tokenizer.bos_token_id]
        logprobs = model(torch.tensor([ids + answer])).logits[0].double().log_softmax(-1)
        return sum(float(logprobs[len(ids) - 1 + k, token]) for k, token in enumerate(answer))
    if head == "masked":
        ids = tokenizer(text + " " + "<mask>" * len(answer))["input_ids"]
        logprobs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        places = [place for place, token in enumerate(ids) if token == tokenizer.mask_token_id]
        return sum(float(logprobs[place, token]) for place, token in zip(places, answer, strict=True))
    ids = tokenizer(text)["input_ids"] or [tokenizer.bos_token_id]
    start = torch.tensor([[model.config.decoder_start_token_id, *answer[:-1]]])
    logprobs = model(input_ids=torch.tensor([ids]), decoder_input_ids=start).logits[0].double().log_softmax(-1)
    return sum(float(logprobs[k, token]) for k, token in enumerate(answer))


def plain_evaluation(head: str, folder: Path, prompt: str, choices: list[str]) -> tuple[float, float]:
    """Accuracy and mean gap reward: 200 gap when right, 180 gap when wrong; an empty prompt leaves no space."""
    classes = {"causal": "CausalLM", "masked": "MaskedLM", "seq2seq": "Seq2SeqLM"}
    model = getattr(transformers, f"AutoModelFor{classes[head]}").from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    right, rewards = 0, []
    for text, label in ROWS:
        whole = f"{text} {prompt}" if prompt else text
        weights = [math.exp(plain_score(head, model, tokenizer, whole, choice)) for choice in choices]
        gap = (weights[label] - weights[1 - label]) / sum(weights)
        right += gap > 0
        rewards.append(200 * gap if gap > 0 else 180 * gap)
    return right / len(ROWS), sum(rewards) / len(ROWS)


@pytest.mark.parametrize("prompt", ["It was", ""], ids=["prompt", "empty"])
@pytest.mark.parametrize("choices", [SINGLE, MULTI], ids=["single-token", "multi-token"])
@pytest.mark.parametrize("head", ["causal", "masked", "seq2seq"])
def test_eval_agrees_to_four_digits(
    tmp_path: Path,
    folders: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    head: str,
    choices: list[str],
    prompt: str,
) -> None:
    card = write_card(tmp_path, choices)
    arguments = ["eval", "--task", str(card), "--target", str(folders[head]), "--prompt", prompt, "--split", "test"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    accuracy, gap_reward = plain_evaluation(head, folders[head], prompt, choices)
    assert found["num_examples"] == len(ROWS)
    assert found["num_failed"] == 0
    assert found["accuracy"] == pytest.approx(accuracy, abs=1e-9)
    assert found["gap_reward"] == pytest.approx(gap_reward, abs=1e-4 * max(1.0, abs(gap_reward)))


def test_the_rows_need_no_quoting() -> None:
    assert len(ROWS) == 20
    assert any(row != next(csv.reader([row], delimiter="\t"), [""])[0] for row, _ in ROWS if row)
