"""Reward components and stabilisers.

A reward scores (prompt, example, output) pairs; `RewardSet` runs several, adds them up with weights and turns
their faults into `Failure` data. A stabiliser maps the raw rewards of one step to training rewards.
"""

from rlprompt.rewards.check import RewardCheck, check_rewards
from rlprompt.rewards.component import Component, load_component
from rlprompt.rewards.reward_set import RewardResult, RewardSet
from rlprompt.rewards.stabilisers import build_stabilisers

__all__ = [
    "Component",
    "RewardCheck",
    "RewardResult",
    "RewardSet",
    "build_stabilisers",
    "check_rewards",
    "load_component",
]
