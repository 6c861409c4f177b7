"""Rewards that are learnt: from preference pairs (Bradley-Terry), or from logged outcomes.

Each has a model that scores texts, a training function, a folder of JSON and safetensors, and a reward by name.
"""
