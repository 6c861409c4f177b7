"""What a run leaves behind for its user: its result, and reading it again without importing any code it names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlprompt.config import RunConfig, load_config
from rlprompt.errors import RunError
from rlprompt.runs.events import read_events
from rlprompt.runs.folder import RunFolder, read_json
from rlprompt.runs.records import Answer, PromptRecord, read_answers, read_prompts
from rlprompt.types import Json

EXIT_CODES = {"done": 0, "stop-file": 0, "budget": 3, "wall": 3, "interrupt": 130, "terminated": 143}


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        folder: the run folder.
        best_prompt: chosen on dev; on train where the run was stopped before dev; None where nothing was scored.
        selected_on: "dev" or "train"; None without a best prompt.
        dev_accuracy: of the best prompt, in [0, 1]; None where it is unknown.
        dev_reward: mean raw reward of the best prompt on dev; None where it is unknown.
        stop_reason: "done", "budget", "wall", "stop-file", "interrupt" or "terminated"; "failures" or "error" in the
            `result.json` of a run that raised.
        iterations: completed iterations, those before a resume included.
        target_calls: target calls used, the final choice on dev included.
        seconds: wall-clock time of all sessions.
        ledger: the ledger's snapshot.
    """

    folder: Path
    best_prompt: str | None
    selected_on: str | None
    dev_accuracy: float | None
    dev_reward: float | None
    stop_reason: str
    iterations: int
    target_calls: int
    seconds: float
    ledger: Json

    @property
    def exit_code(self) -> int:
        """What the command line exits with."""
        return EXIT_CODES.get(self.stop_reason, 1)

    def __str__(self) -> str:
        """Says it in three lines."""
        if self.selected_on is None:
            best = "no prompt was scored"
        else:
            numbers = [
                f"{name} {value:.4f}"
                for name, value in (("accuracy", self.dev_accuracy), ("reward", self.dev_reward))
                if value is not None
            ]
            where = f"dev {', '.join(numbers)}" if numbers else "best on train, not scored on dev"
            best = (
                f"best prompt {self.best_prompt!r} ({where})" if self.best_prompt is not None else f"policy ({where})"
            )
        return (
            f"{best}\n"
            f"{self.iterations} iterations, {self.target_calls:,} target calls, {self.seconds:.0f} s; "
            f"stopped: {self.stop_reason}\n"
            f"run folder: {self.folder}"
        )

    def summary(self, config: RunConfig, policy_iterations: int | None) -> list[Json]:
        """Returns the rows of `summary.json`: one, or none where nothing was chosen.

        Args:
            config: of the run.
            policy_iterations: after how many iterations the chosen policy was, where a policy was chosen.
        """
        if self.selected_on is None:
            return []
        return [
            {
                "name": config.name,
                "kind": "random" if config.algorithm.name == "random" else "trained",
                "calibration": config.calibration,
                "prompt": self.best_prompt,
                "policy_iterations": policy_iterations,
                "dev_accuracy": self.dev_accuracy,
                "dev_reward": self.dev_reward,
                "test_accuracy": None,  # the test split is for `eval` and the recipes
                "ci95": None,
                "target_calls": self.target_calls,
                "seconds": round(self.seconds, 1),
            }
        ]

    def to_json(self) -> Json:
        """Returns what `result.json` holds: no paths."""
        return {
            "best_prompt": self.best_prompt,
            "selected_on": self.selected_on,
            "dev_accuracy": self.dev_accuracy,
            "dev_reward": self.dev_reward,
            "stop_reason": self.stop_reason,
            "exit_code": self.exit_code,
            "iterations": self.iterations,
            "target_calls": self.target_calls,
            "seconds": self.seconds,
            "ledger": self.ledger,
        }


@dataclass(frozen=True)
class SavedRun:
    """A run folder, read. Nothing that it names is imported."""

    folder: RunFolder
    config: RunConfig

    @property
    def result(self) -> RunResult | None:
        """How the run ended; None while it is running or after a kill."""
        if not self.folder.result.exists():
            return None
        return read_result(self.folder)

    @property
    def best_prompt(self) -> str:
        """The best prompt of the run.

        Raises:
            RunError: the run has none (yet).
        """
        result = self.result
        if result is None or result.best_prompt is None:
            raise RunError(
                f"{self.folder.root} has no best prompt yet; finish it with rlprompt train CONFIG --resume "
                f"{self.folder.root}"
            )
        return result.best_prompt

    def events(self) -> list[Json]:
        """Returns all events, first to last."""
        return read_events(self.folder.events)

    def prompts(self) -> list[PromptRecord]:
        """Returns every scored prompt, in the order of scoring."""
        return [record for _, path in self.folder.parts("prompts") for record in read_prompts(path)]

    def answers(self) -> list[Answer]:
        """Returns every stored answer of the target, in the order of asking."""
        texts = {record.prompt_id: record.prompt for record in self.prompts()}
        return [answer for _, path in self.folder.parts("outputs") for answer in read_answers(path, texts)]

    def summary(self) -> list[Any]:
        """Returns the rows of `summary.json`."""
        rows = read_json(self.folder.summary, "the summary")
        if not isinstance(rows, list):
            raise RunError(f"{self.folder.summary} must hold a list, got {type(rows).__name__}")
        return rows


def load_run(path: str | Path) -> SavedRun:
    """Reads a run folder.

    Raises:
        RunError: no run folder.
        ConfigError: its configuration is not one of this version.
    """
    folder = RunFolder(Path(path))
    if not folder.config.is_file():
        raise RunError(f"{path} is no run folder: it has no config.yaml; give the folder runs/<name>/<id>")
    return SavedRun(folder, load_config(folder.config))


def load_run_config(path: str | Path) -> RunConfig:
    """Returns the resolved configuration of a run; raises as `load_run` does."""
    return load_run(path).config


def best_prompt(path: str | Path) -> str:
    """Returns the best prompt of a run; raises RunError where there is none, and as `load_run` does."""
    return load_run(path).best_prompt


def read_result(folder: RunFolder) -> RunResult:
    """Reads `result.json`.

    Raises:
        RunError: missing or damaged.
    """
    values = read_json(folder.result, "the result")
    try:
        return RunResult(folder=folder.root, **{name: value for name, value in values.items() if name != "exit_code"})
    except (TypeError, AttributeError) as error:
        raise RunError(f"{folder.result} is damaged: {error}") from error
