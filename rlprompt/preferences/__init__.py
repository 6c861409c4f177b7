"""Preference pairs: the file of pairs, and builders that make them of scored candidates."""

from rlprompt.json_lines import json_lines, json_text, write_json_lines
from rlprompt.preference_pairs import PreferencePair, read_pairs, sft_rows, split_pairs, write_pairs
from rlprompt.preferences.builders import BUILDERS, Built, build_pairs, builder_names, check_builder
from rlprompt.preferences.candidates import Candidate
from rlprompt.preferences.elected import Elected, VotedPrompts, pairs_of_votes
from rlprompt.preferences.scored import ranked_rows
from rlprompt.preferences.votes import Vote, VoteFile, VoteHeader, VoteLog, check_annotator, read_votes

__all__ = [
    "BUILDERS",
    "Built",
    "Candidate",
    "Elected",
    "PreferencePair",
    "Vote",
    "VoteFile",
    "VoteHeader",
    "VoteLog",
    "VotedPrompts",
    "build_pairs",
    "builder_names",
    "check_annotator",
    "check_builder",
    "json_lines",
    "json_text",
    "pairs_of_votes",
    "ranked_rows",
    "read_pairs",
    "read_votes",
    "sft_rows",
    "split_pairs",
    "write_json_lines",
    "write_pairs",
]
