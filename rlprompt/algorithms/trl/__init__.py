"""Algorithms on TRL's trainers: GRPO and RLOO, SFT, DPO and RRHF from data, online DPO and expert iteration in rounds.

TRL owns advantages, losses and the loop. Writing, scoring, budget and checkpoints stay ours: all algorithms keep the
same rules.
"""
