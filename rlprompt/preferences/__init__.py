"""Preference pairs: the file of pairs, and builders that make them of scored candidates."""

from rlprompt.json_lines import json_lines, write_json_lines
from rlprompt.preference_pairs import PreferencePair, read_pairs, sft_rows, split_pairs, write_pairs
from rlprompt.preferences.builders import BUILDERS, Built, build_pairs, builder_names, check_builder
from rlprompt.preferences.candidates import Candidate

__all__ = [
    "BUILDERS",
    "Built",
    "Candidate",
    "PreferencePair",
    "build_pairs",
    "builder_names",
    "check_builder",
    "json_lines",
    "read_pairs",
    "sft_rows",
    "split_pairs",
    "write_json_lines",
    "write_pairs",
]
