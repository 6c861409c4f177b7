"""Dialogues of the target with a scripted partner: what happens between the turns of an environment with `dialogue`.

A partner is named in the group "dialogues" of the registry.
"""

from rlprompt.dialogues.base import METRIC, Partner, derived, dialogue_of, feedback, opened, reference_of

__all__ = ["METRIC", "Partner", "derived", "dialogue_of", "feedback", "opened", "reference_of"]
