"""How workers that were lost are started again: later and later, and not for ever."""

from __future__ import annotations

COMES_UP_S = 600.0
"""How long a worker may take: a cluster may have to notice a dead node, and to start another one."""
LONGEST_PAUSE_S = 30.0
MOST_IN_A_ROW = 8
"""Losses of one worker without any work in between that end the run: about a minute of trying."""


def pause_before(losses: int) -> float:
    """Returns the seconds to wait before a worker is started again that was lost so often in a row, from 1.

    >>> [pause_before(losses) for losses in (1, 2, 3, 10)]
    [0.5, 1.0, 2.0, 30.0]
    """
    return min(0.5 * 2.0 ** (losses - 1), LONGEST_PAUSE_S)
