"""SFT: the loss is on the written text only, batches are keyed, pairs come from files."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from toy import ToyRun, make_config

from rlprompt.algorithms.trl.order import Order
from rlprompt.algorithms.trl.pairs import load_pairs
from rlprompt.algorithms.trl.sft import fit
from rlprompt.errors import ConfigError
from rlprompt.types import Example


def make_run(folder: Path, rows: list[dict[str, Any]], **sections: Any) -> ToyRun:
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return ToyRun(
        make_config(**{"algorithm": {"name": "sft", "minibatch_size": 2, "iterations": 1}, **sections}),
        folder=folder,
        data={"pairs": str(path)},
    )


PAIRS = [{"context": "w00 w01 w02", "target": "w01 w02"}, {"context": "w00", "target": "w01"}]


def test_the_gradient_is_that_of_the_mean_over_the_written_tokens(tmp_path: Path) -> None:
    run = make_run(tmp_path, PAIRS)
    fit(run)
    # Three tokens are written: w01 and w01 first, w02 second. d(-log p)/d logits = p - 1[token], at p = 1/3.
    expected = np.array([[2 / 3, 2 / 3 - 2, 2 / 3, 0], [1 / 3, 1 / 3, 1 / 3 - 1, 0]]) / 3
    moment = run.iterations[0]["state"]["optimizer"]["table"]["exp_avg"].numpy() * 10
    np.testing.assert_allclose(moment, expected, atol=1e-6)
    assert run.iterations[0]["metrics"]["loss/total"] == pytest.approx(np.log(3))
    assert run.iterations[0]["scores"] is None
    assert run.scorer.calls == 0


def test_the_policy_learns_the_texts_and_when_to_end(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        [{"context": "w00", "target": "w01"}, {"context": "w01", "target": "w02"}],
        policy={"kind": "causal-lm", "kwargs": {"lora": {"r": 4, "targets": ["c_attn", "c_fc"]}}},
        env={"prompt_length": 3, "eos": True},
        algorithm={"name": "sft", "minibatch_size": 2, "iterations": 60, "lr": 0.03},
    )
    fit(run)
    from rlprompt.masks import static_mask
    from rlprompt.policies.sampling import write_prompts

    tokens = write_prompts(
        run.policy.eval(),
        torch.tensor([[0], [1]]),
        static_mask=static_mask(run.policy.tokenizer, run.config.env.mask, eos=True),
        eos_id=3,
        no_repeat=False,
        length=3,
        uniforms=None,
    )
    assert tokens.tolist() == [[1, 3, 3], [2, 3, 3]]
    assert run.iterations[-1]["metrics"]["loss/token_accuracy"] == 1.0
    assert (tmp_path / "stages" / "toy" / "pairs.jsonl").read_text().count("\n") == 2


def test_every_pair_comes_once_per_epoch_and_a_later_start_goes_on_where_it_was() -> None:
    whole = list(Order(5, 2, seed=1, first=0, last=5))
    assert [sorted(whole[:5]), sorted(whole[5:])] == [[0, 1, 2, 3, 4]] * 2
    assert whole[:5] != whole[5:]
    assert list(Order(5, 2, seed=1, first=3, last=5)) == whole[6:]
    assert list(Order(5, 2, seed=2, first=0, last=5)) != whole


def test_texts_are_cut_to_the_most_tokens_and_end_with_eos_where_they_fit(tmp_path: Path) -> None:
    rows = [{"context": "w00", "target": "w01"}, {"context": "w00", "target": "w01 w02 w00"}]
    run = make_run(tmp_path, rows, env={"eos": True, "prompt_length": 2})
    assert run.data is not None
    assert [pair.target_ids for pair in load_pairs(run, run.data)] == [(1, 3), (1, 2)]  # type: ignore[arg-type]


def test_what_the_policy_may_not_write_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"context": "w00", "target": "w01"}, {"context": "w00", "target": "w02"}]
    fit(make_run(tmp_path, rows, env={"mask": {"candidates": ["w01"]}}))
    assert "1 of 2 pairs are left out" in caplog.text
    with pytest.raises(ConfigError, match="of 2 pairs none can be written by the policy"):
        fit(make_run(tmp_path, rows, env={"mask": {"candidates": ["w00"]}}))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is not JSON"),
        ('{"context": "a"}', "line 1 must have 'target' and one of 'context' and 'input'"),
        ('{"context": "a", "input": "b", "target": "c"}', "one of 'context' and 'input'"),
        ("[1]", "line 1 must have 'target'"),
        ("", "holds no pair"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    run = make_run(tmp_path, [])
    (tmp_path / "pairs.jsonl").write_text(line)
    with pytest.raises(ConfigError, match=message):
        fit(run)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "sft has no pairs; make it a stage"),
        ({"pair": "a"}, "unknown key 'pair'.*did you mean 'pairs'"),
        ({"pairs": "nowhere.jsonl"}, "cannot read nowhere.jsonl"),
        ({"pairs": "a", "limit": 1}, "unknown key 'limit'"),
        ({"pairs": "a", "extractor": "keywords"}, "needs one of pairs: FILE and extractor: NAME"),
        ({"kwargs": {"n": 1}}, "needs one of pairs: FILE and extractor: NAME"),
        ({"pairs": "a", "kwargs": {"n": 1}}, "data.kwargs of stage sft are the arguments of an extractor"),
        ({"extractor": "keyword"}, "unknown extractor 'keyword'.*did you mean 'keywords'"),
        ({"extractor": "keywords", "kwargs": {"m": 2}}, "extractor 'keywords' has no argument 'm'"),
        ({"extractor": "keywords"}, "an extractor writes a hint for each input, but this env writes one prompt"),
    ],
)
def test_bad_data_is_refused(tmp_path: Path, data: dict[str, Any] | None, message: str) -> None:
    run = make_run(tmp_path, PAIRS)
    run.data = data
    with pytest.raises(ConfigError, match=message):
        fit(run)


def test_an_extractor_writes_a_hint_for_every_train_example_that_has_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(
        policy={"kind": "causal-lm", "kwargs": {"lora": {"r": 2, "targets": ["c_attn"]}}},
        env={"kind": "stimulus", "meta_prompt": "w00 {input}", "chat": False, "prompt_length": 4},
        algorithm={"name": "sft", "minibatch_size": 2, "iterations": 1},
    )
    run = ToyRun(config, folder=tmp_path, data={"extractor": "shared-words", "kwargs": {"n": 1}})
    rows = [("w01 w02", "w02 it is"), ("w01", "w00"), ("w02 w01", "w01")]
    examples = tuple(Example(f"train/{at}", text, reference) for at, (text, reference) in enumerate(rows))
    run.scorer.task = SimpleNamespace(train=examples)  # type: ignore[attr-defined]
    assert run.data is not None
    pairs = load_pairs(run, run.data)  # type: ignore[arg-type]
    # The context is what the env shows: the meta-prompt with the input. 3 is EOS.
    assert [(pair.context_ids, pair.target_ids) for pair in pairs] == [((0, 1, 2), (2, 3)), ((0, 2, 1), (1, 3))]
    assert "finds no hint for 1 of 3 train examples; they are left out" in caplog.text
    fit(run)  # type: ignore[arg-type]
    kept = tmp_path / "stages" / "toy" / "pairs.jsonl"
    again = load_pairs(run, {"pairs": str(kept)})  # type: ignore[arg-type]
    assert [(pair.context_ids, pair.target_ids) for pair in again] == [
        (pair.context_ids, pair.target_ids) for pair in pairs
    ]
    run.scorer.task = SimpleNamespace(train=examples[1:2])  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="finds no hint for any of the 1 train examples"):
        load_pairs(run, run.data)  # type: ignore[arg-type]
