"""Judges: a target as reward, several of them as one, checklists, and the verifier-first hybrid.

`formats` has the questions and what counts as a verdict, `asking` the metered and remembered calls.
"""

from rlprompt.rewards.judges.checklist import Checklist
from rlprompt.rewards.judges.ensemble import Ensemble
from rlprompt.rewards.judges.formats import ABSTENTIONS, Reading
from rlprompt.rewards.judges.hybrid import Hybrid
from rlprompt.rewards.judges.judge import Comparison, LLMJudge

__all__ = ["ABSTENTIONS", "Checklist", "Comparison", "Ensemble", "Hybrid", "LLMJudge", "Reading"]
