"""Which requests a rewriter touches."""

from __future__ import annotations

import fnmatch
import re
from functools import cached_property

from pydantic import Field, field_validator

from rlprompt.sections import Section


class Trigger(Section):
    """A request is touched where all of this holds; by default every one with a text."""

    min_chars: int = Field(default=1, ge=0)
    max_chars: int = Field(default=20_000, ge=1)
    models: tuple[str, ...] = ("*",)
    """Names of models, with * and ?."""
    matches: str | None = None
    """A regular expression that is found in the text."""
    unless: str | None = None
    """A regular expression that is not found in the text."""

    @field_validator("matches", "unless")
    @classmethod
    def _is_expression(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"it is no regular expression: {error}") from error
        return value

    @cached_property
    def _expressions(self) -> tuple[re.Pattern[str] | None, re.Pattern[str] | None]:
        found = [None if one is None else re.compile(one) for one in (self.matches, self.unless)]
        return found[0], found[1]

    def refusal(self, text: str, model: str | None = None) -> str | None:
        """Returns why a text is not touched, None where it is.

        Args:
            text: the user's.
            model: that is asked, where it is known.

        >>> Trigger(min_chars=10).refusal("Hi")
        'trigger: shorter than 10 characters'
        """
        wanted, unwanted = self._expressions
        if len(text) < self.min_chars:
            return f"trigger: shorter than {self.min_chars} characters"
        if len(text) > self.max_chars:
            return f"trigger: longer than {self.max_chars} characters"
        if model is not None and not any(fnmatch.fnmatchcase(model, name) for name in self.models):
            return "trigger: another model"
        if wanted is not None and wanted.search(text) is None:
            return "trigger: does not match"
        if unwanted is not None and unwanted.search(text) is not None:
            return "trigger: matches what is left alone"
        return None
