"""Run folders with written prompts, rewards and answers, for tests of what reads runs; nothing is trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planted_runs import INPUTS, TASK, text_card

from rlprompt.config import dump_config, parse_config
from rlprompt.runs.folder import RunFolder
from rlprompt.runs.records import Answer, PromptRecord, prompt_id, write_answers, write_prompts
from rlprompt.types import TargetOutput


def stored_run(
    root: Path,
    rewrites: Mapping[str, Mapping[str, float]],
    answers: Mapping[tuple[str, str], str] | None = None,
    *,
    phase: str = "train",
) -> Path:
    """Writes a run and returns its folder.

    rewrites: example id (of a run that writes for single inputs) or "" (for the task) -> text -> reward.
    answers: (text, example id) -> what the target wrote; the task then generates text.
    """
    per_input = "" not in rewrites
    base: dict[str, Any] = dict(INPUTS if per_input else TASK)
    if answers is not None:
        root.mkdir(parents=True, exist_ok=True)
        template = {"template": "{input}\n{prompt}"} if per_input else {}
        base |= {
            "task": {"name": str(text_card(root)), **template},
            "reward": [{"name": "exact-match"}],
        }
    folder = RunFolder(root)
    root.mkdir(parents=True, exist_ok=True)
    folder.config.write_text(dump_config(parse_config(base)), encoding="utf-8")
    records = [
        _record(text, reward, index, example_id, phase)
        for example_id, texts in rewrites.items()
        for index, (text, reward) in enumerate(texts.items())
    ]
    write_prompts(folder.part("prompts", 0), records)
    write_answers(
        folder.part("outputs", 0),
        [
            Answer(text, example_id, 0, TargetOutput(text=written), paired=per_input)
            for (text, example_id), written in (answers or {}).items()
        ],
    )
    return root


def _record(text: str, reward: float, index: int, example_id: str, phase: str) -> PromptRecord:
    return PromptRecord(
        prompt_id=prompt_id(text, example_id),
        prompt=text,
        iteration=0,
        index=index,
        phase=phase,
        raw_reward=reward,
        components={"gap": 2 * reward},
        training_reward=reward,
        accuracy=0.0,
        num_examples=1,
        num_valid=1,
        num_failed=0,
        target_calls=1,
        target_tokens=1,
        example_id=example_id,
    )
