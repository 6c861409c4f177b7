"""SFT: the loss is on the written text only, batches are keyed, pairs come from files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy import ToyRun, make_config

from rlprompt.algorithms.trl.pairs import load_pairs
from rlprompt.algorithms.trl.sft import Order, fit
from rlprompt.errors import ConfigError


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
    ],
)
def test_bad_data_is_refused(tmp_path: Path, data: dict[str, Any] | None, message: str) -> None:
    run = make_run(tmp_path, PAIRS)
    run.data = data
    with pytest.raises(ConfigError, match=message):
        fit(run)
