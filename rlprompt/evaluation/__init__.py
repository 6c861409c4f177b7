"""Evaluation: prompts on held-out rows, with intervals, and the statistics to compare them."""

from rlprompt.evaluation.evaluate import Evaluation, evaluate, evaluate_calibrated
from rlprompt.evaluation.statistics import (
    PairedDifference,
    SeedSummary,
    paired_bootstrap,
    seed_summary,
    wilson_interval,
)
from rlprompt.evaluation.written import evaluate_written

__all__ = [
    "Evaluation",
    "PairedDifference",
    "SeedSummary",
    "evaluate",
    "evaluate_calibrated",
    "evaluate_written",
    "paired_bootstrap",
    "seed_summary",
    "wilson_interval",
]
