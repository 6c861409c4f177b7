"""Plays the commands of a method's page with small models: what the page tells is what is tested."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlprompt.cli.main import main

ROOT = Path(__file__).parents[2]
SMALL = (
    "task={name: planted, shots: 4, dev_shots: 2, test_limit: 4, template: '{input}\\n{prompt}'}",
    "target={name: 'planted:separable'}",
    "policy={kind: causal-lm, model: planted-50, kwargs: {lora: {r: 2, targets: [c_attn]}}}",
    "env.num_envs=16",
    "env.prompt_length=3",
    "env.chat=false",
    "env.mask={candidates: [w34, w43, w10, w01]}",  # the best prompt is w34 w43 w10
    "run.tensorboard=false",
)
"""A rewrite for each of 4 inputs, in the words of the planted target."""


def commands(page: str, block: int = 0) -> list[list[str]]:
    """Returns the words of each command of one of the page's blocks of commands, its variables filled in."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    known: dict[str, str] = {}
    blocks: list[list[list[str]]] = []
    for source in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL):
        blocks.append([])
        for line in source.replace("\\\n", " ").splitlines():
            filled = re.sub(r"\$([A-Z]+)", lambda match: known[match[1]], line)
            words = shlex.split(filled, comments=True)
            variable = re.fullmatch("([A-Z]+)=(.*)", words[0]) if len(words) == 1 else None
            if variable is not None:
                known[variable[1]] = variable[2]
            elif words:
                blocks[-1].append(words)
    return blocks[block]


def play(
    page: str,
    folder: Path,
    *,
    small: Sequence[str] = SMALL,
    replaced: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
    steps: int = 6,
    model: str | None = None,
    block: int = 0,
) -> dict[str, Path]:
    """Plays a block in a folder, which must be the working directory and that of the runs.

    Args:
        page: its file name.
        folder: where.
        small: overrides behind those of the page, for every training.
        replaced: parts of words that do not fit the small models, and what stands there.
        arguments: further ones of the first `rlprompt pairs`.
        steps: iterations of what learns from files; everything else has 2.
        model: the policy's frozen LM for `rlprompt rewrite`, where it is a local folder.
        block: which block.

    Returns:
        The newest run of each name.
    """
    more = list(arguments)
    for command in commands(page, block):
        words = [_fitted(word, folder, replaced or {}, steps) for word in command]
        if words[0] == "cat":
            *files, _, output = words[1:]
            Path(folder / output).write_text("".join((folder / file).read_text() for file in files))
        elif words[1] != "check":
            if words[1] == "train":
                words += [*small, *_short(words)]
            if words[1] == "pairs":
                words, more = words + more, []
            if words[1] == "rewrite" and model is not None:
                words += ["--model", model]
            assert main(words[1:]) == 0, shlex.join(words)
    return {path.name: max(path.iterdir()) for path in (folder / "runs").iterdir()}


def _fitted(word: str, folder: Path, replaced: Mapping[str, str], steps: int) -> str:
    word = re.sub(r"\biterations: \d+", f"iterations: {steps}", word)
    word = re.sub(r"\blr: [0-9.e-]+", "lr: 0.05", word)
    word = re.sub(r"\bname: (random|ppo), iterations: \d+", r"name: \1, iterations: 2", word)
    for old, new in replaced.items():
        word = word.replace(old, new)
    if word.startswith("experiments/"):
        return str(ROOT / word)
    if match := re.fullmatch(r"runs/([a-z0-9-]+)/ID", word):
        return str(max((folder / "runs" / match[1]).iterdir()))
    return word


def _short(words: Sequence[str]) -> list[str]:
    return [] if any(word.startswith("algorithm={") for word in words) else ["algorithm.iterations=2"]
