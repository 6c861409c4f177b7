"""Preference pairs: the file of pairs, and builders that make them of scored candidates."""

from rlprompt.preferences.builders import BUILDERS, Built, build_pairs, builder_names, check_builder
from rlprompt.preferences.candidates import Candidate
from rlprompt.preferences.pairs import (
    PreferencePair,
    json_lines,
    read_pairs,
    sft_rows,
    split_pairs,
    write_json_lines,
    write_pairs,
)
from rlprompt.preferences.scored import ranked_rows

__all__ = [
    "BUILDERS",
    "Built",
    "Candidate",
    "PreferencePair",
    "build_pairs",
    "builder_names",
    "check_builder",
    "json_lines",
    "ranked_rows",
    "read_pairs",
    "sft_rows",
    "split_pairs",
    "write_json_lines",
    "write_pairs",
]
