"""Segment roles: what an agent writes when several compose one prompt, by name (`rlprompt list roles`).

A role chooses a meta-prompt for prompts that serve a whole task, one for prompts that serve a single input, and the
separator that stands between its segment and the next. All roles are our reading: the abstract of MultiPrompter
(arXiv:2310.16730) says that prompters take turns composing one prompt, not that they have different jobs.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Role:
    """A kind of segment."""

    task: str
    """The registered meta-prompt at task level."""
    instance: str
    """The registered meta-prompt at instance level."""
    separator: str = "\n"
    """The text between this segment and the next."""

    def meta_prompt(self, *, per_input: bool) -> str:
        """Returns the name of the meta-prompt of a level."""
        return self.instance if per_input else self.task


ROLE_LINE = Role("role-line", "role-line-input")
INSTRUCTION = Role("instruction", "instruction-input")
CONSTRAINTS = Role("constraints", "constraints-input")
HINT = Role("closing-hint", "closing-hint-input")
