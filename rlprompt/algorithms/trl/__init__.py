"""Algorithms on TRL's trainers: `grpo`, `rloo` and `sft`.

TRL owns advantages, losses and the loop. Writing, scoring, budget and checkpoints stay ours: all algorithms keep the
same rules.
"""
