"""The base of all configuration sections, and values that several of them share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Section(BaseModel):
    """Base of all sections: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _as_written(value: Any) -> Any:
    """Takes back what YAML makes of an unquoted on or off."""
    return ("off", "on")[value] if isinstance(value, bool) else value


CacheMode = Annotated[Literal["on", "read-only", "refresh", "off"], BeforeValidator(_as_written)]
"""How a cache of answers is used."""
