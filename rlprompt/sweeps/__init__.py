"""Sweeps: many runs over the values of dotted keys, scheduled by Ray Tune, on one budget."""

from rlprompt.sweeps.settings import SweepConfig, load_sweep
from rlprompt.sweeps.sweeping import SweepResult, sweep

__all__ = ["SweepConfig", "SweepResult", "load_sweep", "sweep"]
