"""Keeps the values of secret environment variables out of what is shown and stored.

Code of users (rewards, policies) and libraries may put a key into an exception or a log line. Whatever rlprompt prints,
logs or records of such texts goes through `redact`.
"""

from __future__ import annotations

import logging
import os
import re

REDACTED = "[redacted]"
SHORTEST = 8
"""Shorter values ("none", "EMPTY") are no secrets, and replacing them would garble messages."""
_SECRET_NAME = re.compile(r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)


def secret_values() -> list[str]:
    """Returns the values of environment variables that are named like secrets, longest first."""
    values = {value.strip() for name, value in os.environ.items() if _SECRET_NAME.search(name)}
    return sorted((value for value in values if len(value) >= SHORTEST), key=len, reverse=True)


def redact(text: str) -> str:
    """Returns a text without the values of secret environment variables."""
    for value in secret_values():
        text = text.replace(value, REDACTED)
    return text


class RedactingFormatter(logging.Formatter):
    """A formatter whose lines, tracebacks included, hold no secret."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the record as text without secrets."""
        return redact(super().format(record))
