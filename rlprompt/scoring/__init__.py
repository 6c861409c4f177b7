"""The scorer: template + target + rewards + ledger, prompts x examples -> scored prompts."""

from rlprompt.scoring.answers import failure_share, first_failure
from rlprompt.scoring.build import build_scorer, scorer_spec, shared_scorer
from rlprompt.scoring.rules import ScoringRules
from rlprompt.scoring.scorer import AnswerRecord, Scorer

__all__ = [
    "AnswerRecord",
    "Scorer",
    "ScoringRules",
    "build_scorer",
    "failure_share",
    "first_failure",
    "scorer_spec",
    "shared_scorer",
]
