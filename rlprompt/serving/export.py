"""A run's policy as a folder that others load: its files, checked, and a model card."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import yaml

from rlprompt import __version__
from rlprompt.errors import ConfigError
from rlprompt.served import Served
from rlprompt.types import Json

CARD = "README.md"
MODES = {
    "task": "One fixed prompt stands beside every text.",
    "instance": "For each text the policy writes what the target reads.",
    "stimulus": "For each text the policy writes a hint, which stands beside it.",
}


def export_policy(run: str | Path, folder: str | Path) -> list[Path]:
    """Copies the policy that a run would serve, and writes a model card beside it.

    Only files that `policy.json` names are copied, and their checksums are compared first. No code is among them.

    Args:
        run: a run folder, or a folder with a `policy.json`.
        folder: to be made; its parent must exist.

    Returns:
        The files that were written, by their place in `folder`.

    Raises:
        ConfigError: nothing is saved in the run, it does not say how to serve it, or the folder is there already.
        CheckpointError: a file is truncated or altered.
    """
    from rlprompt.policies.saving import policy_folder, read_policy_json, saved_files

    target = Path(folder)
    if target.exists():
        raise ConfigError(f"{target} is there already; give a folder that is not, or remove it first")
    description = read_policy_json(run)
    served = Served.from_json(description, str(run))
    source = policy_folder(Path(run))
    files = saved_files(source)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as made:
            whole = Path(made) / "whole"
            for file in files:
                (whole / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / file, whole / file)
            (whole / CARD).write_text(card(description, served, target.resolve().name), encoding="utf-8")
            whole.rename(target)
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {error.strerror or error}") from error
    return [*files, Path(CARD)]


def card(description: Json, served: Served, name: str) -> str:
    """Returns the model card.

    Args:
        description: what `rlprompt.policies.read_policy_json` returned.
        served: the same, as far as it is about serving.
        name: of the folder.
    """
    base = description.get("base") or {}
    front: Json = {"library_name": "rlprompt", "tags": ["rlprompt", "prompt-rewriting"]}
    if base.get("source") == "hub":
        front["base_model"] = base["name"]
    facts = {
        "policy": description["kind"],
        "frozen LM": base.get("name"),
        "trained for the target": description.get("target"),
        "most tokens written": description.get("prompt_length"),
        "accuracy on dev": _number(description.get("dev_accuracy")),
        "reward on dev": _number(description.get("dev_reward")),
        "written by": f"rlprompt {__version__}",
    }
    rows = [f"| {key} | {value} |" for key, value in facts.items() if value is not None]
    return "\n".join(
        [
            "---",
            yaml.safe_dump(front, sort_keys=False).strip(),
            "---",
            "",
            f"# {name}",
            "",
            f"Rewrites users' texts on their way to an LLM. {MODES[served.mode]}",
            "",
            "| | |",
            "|---|---|",
            *rows,
            "",
            "```python",
            "from rlprompt import Rewriter",
            "",
            f'rewriter = Rewriter.load("{name}")  # this folder, or its id on a hub',
            'print(rewriter.rewrite("Why is the sky blue?"))',
            "```",
            "",
            "Numbers on dev are those by which this policy was chosen, so they are too good. It was trained for a",
            "reward with one target: with another LM, or on other texts, it may do harm, and it may drop what the",
            "reward did not see.",
            "",
        ]
    )


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"
