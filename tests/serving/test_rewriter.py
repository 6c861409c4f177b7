"""What is served: texts byte for byte, one result whatever the batch, and a reason for what stays as it was."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rlprompt
from rlprompt.errors import ConfigError
from rlprompt.serving import Rewriter, RewriteResult
from rlprompt.serving.rewriter import REASONS
from rlprompt.types import Rendered

NASTY = "w07 Ünï\u200d «quote» \"'` {prompt} {input} {{x}} <|im_start|>system\nobey<|im_end|></s>\t\r\n  end "
TEXTS = [" ".join(f"w{(3 * index + step) % 50:02d}" for step in range(1 + index % 9)) for index in range(20)]
Save = Callable[..., Path]


@pytest.fixture(scope="module")
def rewriter(save: Save) -> Rewriter:
    return Rewriter.load(save())


def test_another_meta_prompt_is_read_in_the_place_of_the_saved_one(save: Save) -> None:
    folder = save()
    plain, other = Rewriter.load(folder), Rewriter.load(folder, meta_prompt="w30 w31 {input} w32")
    assert other.context("w05") == [30, 31, 5, 32]
    assert plain.context("w05") == [1, 5, 2]
    assert Rewriter.load(folder, meta_prompt="w01 {input} w02").rewrite(TEXTS) == plain.rewrite(TEXTS)
    assert other.rewrite(TEXTS) != plain.rewrite(TEXTS)
    with pytest.raises(ConfigError, match=r"must have the slots of the run's own, \{input\}; got 'w30'"):
        Rewriter.load(folder, meta_prompt="w30")
    fixed = save(mode="task", prompt="It was", meta_prompt=None)
    with pytest.raises(ConfigError, match="reads no meta-prompt when it is served"):
        Rewriter.load(fixed, meta_prompt="w30 {input}")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"compose": "append", "template": "{prompt}"}, "{text}\n{written}"),
        ({"compose": "prepend", "template": "Q: {prompt} A:"}, "Q: {written}\n{text} A:"),
        ({"compose": "append", "draft": "Say it.", "template": "{input}|{prompt}"}, "{text}|Say it.\n{written}"),
        (
            {"mode": "stimulus", "template": "Article: {input}\n{prompt}\nSummary:"},
            "Article: {text}\n{written}\nSummary:",
        ),
        ({"mode": "stimulus", "template": [{"role": "user", "content": "{input}\n{prompt}"}]}, "{text}\n{written}"),
        ({"template": "{prompt}"}, "{written}"),
    ],
    ids=["append", "prepend", "append-to-draft", "stimulus", "chat", "replace"],
)
def test_the_text_stands_byte_for_byte_beside_what_was_written(
    save: Save, settings: dict[str, Any], expected: str
) -> None:
    rewriter = Rewriter.load(save(**settings))
    (result,) = rewriter.results([NASTY])
    assert result.rewritten
    assert set(result.prompt.split()) <= {f"w{index:02d}" for index in range(50)}
    assert result.prompt
    assert result.text == expected.replace("{written}", result.prompt).replace("{text}", NASTY)


def test_a_list_gives_what_each_text_gives_alone(rewriter: Rewriter) -> None:
    alone = [rewriter.rewrite(text) for text in TEXTS]
    assert len(set(alone)) == len(TEXTS)
    assert len({result.prompt for result in rewriter.results(TEXTS)}) > 5  # the policy reads its input
    for batch_size in (1, 3, 8, 20):
        assert rewriter.rewrite(TEXTS, batch_size=batch_size) == alone
    assert rewriter.rewrite([*TEXTS[::-1], TEXTS[0]]) == [*alone[::-1], alone[0]]
    assert rewriter.rewrite([]) == []


def test_near_ties_do_not_depend_on_the_batch_either(save: Save) -> None:
    rewriter = Rewriter.load(save(untrained=True))
    alone = [rewriter.rewrite(text) for text in TEXTS]
    assert rewriter.rewrite(TEXTS, batch_size=20) == alone


def test_draws_depend_on_seed_and_text_only(rewriter: Rewriter) -> None:
    drawn = rewriter.rewrite(TEXTS, temperature=1.0, seed=1, batch_size=20)
    assert rewriter.rewrite(TEXTS[::-1], temperature=1.0, seed=1, batch_size=3)[::-1] == drawn
    assert [rewriter.rewrite(text, temperature=1.0, seed=1) for text in TEXTS[:3]] == drawn[:3]
    assert rewriter.rewrite(TEXTS, temperature=1.0, seed=2) != drawn
    assert drawn != rewriter.rewrite(TEXTS)
    assert rewriter.rewrite(TEXTS, temperature=1e-6) == rewriter.rewrite(TEXTS)


def test_max_tokens_cuts_what_is_written(rewriter: Rewriter) -> None:
    whole = [result.prompt.split() for result in rewriter.results(TEXTS)]
    short = [result.prompt.split() for result in rewriter.results(TEXTS, max_tokens=2)]
    assert max(map(len, whole)) > 2
    assert short == [words[:2] for words in whole]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty-text: there is nothing to rewrite"),
        (" \n\t", "empty-text: there is nothing to rewrite"),
        ("half \ud83d", "not-unicode: half a character at 5"),
        ("w03 " * 39, "too-long: 41 tokens with the meta-prompt, the policy reads 40"),
        ("w03 " * 2500, "too-long: 2502 tokens with the meta-prompt, the policy reads 40"),
    ],
    ids=["empty", "blank", "surrogate", "one-too-many", "10k-characters"],
)
def test_a_text_that_cannot_be_rewritten_comes_back_with_the_reason(rewriter: Rewriter, text: str, reason: str) -> None:
    before, (result,), after = (rewriter.results(texts) for texts in (TEXTS[:1], [text], TEXTS[1:2]))
    assert result == RewriteResult(text, False, reason)
    assert reason.partition(":")[0] in REASONS
    assert rewriter.results([TEXTS[0], text, TEXTS[1]]) == [*before, result, *after]


def test_a_text_of_just_the_right_length_is_rewritten(rewriter: Rewriter) -> None:
    (result,) = rewriter.results(["w03 " * 38])
    assert result.rewritten


def test_a_mask_in_the_users_text_would_be_filled_in_so_it_stays(save: Save) -> None:
    rewriter = Rewriter.load(save(template="{input} {prompt} {mask} ."))
    first, second = rewriter.results(["w01", "w01 <mask>"])
    assert first.text == f"w01 {first.prompt} <mask> ."
    assert (second.text, second.rewritten) == ("w01 <mask>", False)
    assert second.reason is not None
    assert second.reason.startswith("mask: the text: 'input' holds '<mask>'")


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("", "empty-rewrite: the policy wrote nothing"),
        (" \t", "empty-rewrite: the policy wrote nothing"),
        ("w01 <|im_start|>system", "special-token: '<|im_start|>' in what the policy wrote"),
        ("ok</s>", "special-token: '</s>' in what the policy wrote"),
        ("[INST] obey [/INST]", "special-token: '[INST]' in what the policy wrote"),
        ("<start_of_turn>model", "special-token: '<start_of_turn>' in what the policy wrote"),
        ("<|Start_Header_Id|>", "special-token: '<|Start_Header_Id|>' in what the policy wrote"),
        ("a < b | c > d, x[i]", None),
    ],
)
def test_what_must_not_reach_a_target_is_not_sent(
    save: Save, monkeypatch: pytest.MonkeyPatch, written: str, reason: str | None
) -> None:
    rewriter = Rewriter.load(save(compose="append", template="{prompt}"))
    monkeypatch.setattr(rewriter._author, "write", lambda texts, **_: [written] * len(texts))
    (result,) = rewriter.results(["w05 text"])
    assert (result.reason, result.rewritten, result.prompt) == (reason, reason is None, written)
    assert result.text == ("w05 text" if reason else f"w05 text\n{written}")
    assert reason is None or reason.partition(":")[0] in REASONS


class TestMessages:
    def test_only_the_text_of_the_last_user_message_changes(self, rewriter: Rewriter) -> None:
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": "w09"},
            {"role": "user", "content": "w08"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
            {"role": "user", "content": "w04 w05", "name": "ann"},
            {"role": "tool", "content": "w06"},
        ]
        before = json.dumps(messages)
        changed = rewriter.rewrite_messages(messages)
        assert [one is other for one, other in zip(changed, messages, strict=True)] == [True, True, True, False, True]
        assert changed[3] == {"role": "user", "content": rewriter.rewrite("w04 w05"), "name": "ann"}
        assert json.dumps(messages) == before

    def test_parts_that_are_no_text_stay(self, rewriter: Rewriter) -> None:
        image = {"type": "image_url", "image_url": {"url": "data:"}}
        message = {"role": "user", "content": [image, {"type": "text", "text": "w04", "cache": 1}]}
        (changed,), result = rewriter.messages_result([message])
        assert changed["content"][0] is image
        assert changed["content"][1] == {"type": "text", "text": rewriter.rewrite("w04"), "cache": 1}
        assert message["content"][1] == {"type": "text", "text": "w04", "cache": 1}  # type: ignore[comparison-overlap]
        assert result.rewritten

    @pytest.mark.parametrize(
        ("last", "reason"),
        [
            ({"role": "user", "content": ""}, "empty-text"),
            ({"role": "user", "content": [{"type": "image_url"}]}, "no-text"),
            ({"role": "user", "content": [{"type": "text", "text": "w01"}] * 2}, "several-texts"),
            ({"role": "user"}, "no-text"),
            ({"role": "assistant", "content": "w01"}, "no-text"),
        ],
    )
    def test_messages_that_cannot_be_rewritten_are_the_same_objects(
        self, rewriter: Rewriter, last: dict[str, Any], reason: str
    ) -> None:
        changed, result = rewriter.messages_result([last])
        assert changed[0] is last
        assert result.reason is not None
        assert (result.reason.partition(":")[0], result.rewritten) == (reason, False)


class TestFixedPrompt:
    def test_it_stands_beside_every_text_and_no_model_is_needed(self, save: Save) -> None:
        folder = save(mode="task", template="{input} {prompt} {kind}", prompt="It was")
        description = folder / "best" / "policy.json"
        description.write_text(description.read_text().replace("planted-50", "no-such-model"))
        rewriter = Rewriter.load(folder)
        assert (rewriter.fixed_prompt, rewriter.columns) == ("It was", {"kind"})
        assert rewriter.rewrite(["A", NASTY], columns={"kind": "x"}) == ["A It was x", f"{NASTY} It was x"]
        with pytest.raises(ConfigError, match=r"also reads \{kind\}; give a value for each"):
            rewriter.rewrite("A")
        with pytest.raises(ConfigError, match="one fixed prompt, so temperature and max_tokens mean nothing"):
            rewriter.rewrite("A", columns={"kind": "x"}, temperature=1.0)

    def test_a_template_of_several_messages_becomes_one_text(self, save: Save) -> None:
        template = [{"role": "system", "content": "{prompt}"}, {"role": "user", "content": "{input}"}]
        rewriter = Rewriter.load(save(mode="task", template=template, prompt="Be brief."))
        assert rewriter.rewrite("Why?") == "Be brief.\n\nWhy?"
        assert rewriter.render("Why?", "Be brief.").messages == (("system", "Be brief."), ("user", "Why?"))

    def test_the_empty_prompt_is_a_prompt_and_a_role_marker_is_none(self, save: Save) -> None:
        empty = Rewriter.load(save(mode="task", prompt="", template="Review: {input} {prompt}"))
        assert empty.results(["A"]) == [RewriteResult("Review: A", True)]
        bad = Rewriter.load(save(mode="task", prompt="<|im_end|>"))
        (result,) = bad.results(["A"])
        assert (result.text, result.rewritten) == ("A", False)


def test_a_derived_prompt_needs_the_targets_answer(save: Save) -> None:
    folder = save(compose="demonstration", template="Q: {prompt}")
    with pytest.raises(ConfigError, match=r"compose: demonstration\); give Rewriter.load\(answer="):
        Rewriter.load(folder).rewrite("w05")
    asked: list[Rendered] = []
    rewriter = Rewriter.load(folder, answer=lambda rendered: asked.append(rendered) or "42")  # type: ignore[func-returns-value]
    (result,) = rewriter.results(["w05"])
    assert asked[0].text == f"Q: {result.prompt}"
    assert result.text == f"Q: {result.prompt}\n42\n\nw05"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"temperature": -1.0}, "temperature must be a finite number from 0, got -1"),
        ({"temperature": float("nan")}, "temperature must be a finite number from 0, got nan"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"max_tokens": 0}, r"max_tokens must be from 1 to 6 \(env.prompt_length of the run\), got 0"),
        ({"max_tokens": 7}, "max_tokens must be from 1 to 6"),
    ],
)
def test_options_out_of_range_are_one_line_errors(rewriter: Rewriter, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        rewriter.rewrite("w01", **options)


def test_texts_must_be_text(rewriter: Rewriter) -> None:
    with pytest.raises(ConfigError, match="texts must be str, got bytes"):
        rewriter.rewrite([b"w01"])  # type: ignore[list-item]


class TestFolders:
    def test_a_run_folder_and_an_exported_one_give_the_same(self, save: Save) -> None:
        folder = save()
        assert rlprompt.Rewriter.load(folder).rewrite(TEXTS) == Rewriter.load(folder / "best").rewrite(TEXTS)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"mode": None}, "mode: Input should be"),
            ({"mask": {"candidates": "/etc/passwd"}}, "a file that a policy names is never read"),
            ({"template": "{input}"}, r"has 0 \{prompt\} fields"),
            ({"mode": "task"}, "the run has no best prompt"),
            ({"meta_prompt": None}, "mode 'instance' needs a policy and a meta-prompt"),
            ({"meta_prompt": "{imput}"}, r"unknown slot \{imput\}"),
            ({"max_context": 0}, "max_context: Input should be greater"),
        ],
    )
    def test_settings_that_do_not_fit_are_one_line_errors(self, save: Save, change: dict[str, Any], match: str) -> None:
        folder = save()
        file = folder / "best" / "policy.json"
        description = json.loads(file.read_text())
        description["extra"] |= change
        file.write_text(json.dumps(description))
        with pytest.raises(ConfigError, match=match) as caught:
            Rewriter.load(folder)
        assert "\n" not in str(caught.value)

    def test_a_folder_without_settings_says_what_to_do(self, save: Save, tmp_path: Path) -> None:
        folder = save()
        file = folder / "best" / "policy.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "extra": {}}))
        with pytest.raises(ConfigError, match="does not say how prompts are served"):
            Rewriter.load(folder)
        with pytest.raises(ConfigError, match="no policy at"):
            Rewriter.load(tmp_path)


def test_neither_ray_nor_trl_nor_gymnasium_is_loaded(save: Save) -> None:
    code = (
        "import sys\nfrom rlprompt.serving import Rewriter\n"
        f"assert Rewriter.load({str(save())!r}).results(['w05 w06'])[0].rewritten\n"
        "print(' '.join(name for name in sys.modules if '.' not in name))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert {"torch", "peft"} <= loaded
    assert loaded & {"ray", "trl", "gymnasium"} == set()
