"""Which payloads of a target can be kept: those that JSON gives back as they were."""

from __future__ import annotations

import json
from typing import Any


def payload_text(payload: Any) -> str | None:
    """Returns a payload as JSON, or None where it would not come back as it was (a tuple, an array, integer keys).

    >>> payload_text({"images": ["a.png"]})
    '{"images":["a.png"]}'
    >>> payload_text((1, 2)) is None
    True
    """
    try:
        text = json.dumps(payload, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        return None
    return text if json.loads(text) == payload else None


def can_be_kept(payload: Any) -> bool:
    """Whether a run and a cache can keep a payload; true of None, which is no payload."""
    return payload is None or payload_text(payload) is not None
