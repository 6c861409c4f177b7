"""The page docs/judges.md: its configurations can be built, its program prints what it says, its table is complete."""

import contextlib
import inspect
import io
import re
from pathlib import Path

import pytest
import yaml

from rlprompt.config import parse_config
from rlprompt.rewards import RewardSet
from rlprompt.rewards.judges import ABSTENTIONS, LLMJudge
from rlprompt.rewards.judges.formats import fence_mark, question
from rlprompt.runs.monitor import check_monitor

PAGE = (Path(__file__).parents[3] / "docs" / "judges.md").read_text(encoding="utf-8")
CONFIGS = dict(re.findall(r"^```yaml\n# (\S+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL))


def test_every_configuration_has_a_name() -> None:
    assert len(CONFIGS) == PAGE.count("```yaml") == 4


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_configurations_can_be_built(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLPROMPT_CACHE_DIR", str(tmp_path))
    text = CONFIGS[name].replace("smollm2-135m-instruct", "planted:separable")  # no model is loaded here
    config = parse_config(yaml.safe_load(text))
    rewards = RewardSet.from_config(config.reward)
    check_monitor(config.monitor, rewards)
    assert rewards.judge_calls.per_pair > 0


def test_the_program_prints_what_the_page_says() -> None:
    found = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, flags=re.DOTALL)
    assert found is not None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(found[1], "judges.md", "exec"), {})
    assert printed.getvalue() == found[2]


def test_every_argument_and_every_kind_of_abstention_is_named() -> None:
    arguments = set(inspect.signature(LLMJudge).parameters)
    assert {name for name in arguments if f"`{name}`" not in PAGE and f"`{name}:" not in PAGE} == set()
    assert {kind for kind in ABSTENTIONS if f"`{kind}`" not in PAGE} == set()


def test_the_question_is_shown_as_it_is_asked() -> None:
    judge = LLMJudge("planted:separable", "...", show=[], chat=False)
    mark = re.search(r"with the mark (\w+) is data", PAGE)
    assert mark is not None
    asked = question("...", [("text to be judged", "...")], judge.form.instruction, heading="Rubric", chat=True)
    (_, text), *_ = asked.messages or ()
    shown = PAGE.partition("## What is judged is data\n\n")[2].partition("\n\nThe mark is")[0]
    lines = [line.removeprefix("    ") for line in shown.splitlines()]
    assert "\n".join(lines) == text.replace(fence_mark(["..."]), mark[1])
