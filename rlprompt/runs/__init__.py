"""Runs: `train`, the run folder with its records and checkpoints, and reading it again."""

from rlprompt.runs.result import RunResult, SavedRun, best_prompt, load_run, load_run_config
from rlprompt.runs.run import Run
from rlprompt.runs.training import train

__all__ = ["Run", "RunResult", "SavedRun", "best_prompt", "load_run", "load_run_config", "train"]
