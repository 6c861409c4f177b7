"""The stored prompts of a run as comparisons for annotators, and whose votes on them there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlprompt.errors import ConfigError, RunError
from rlprompt.preference_pairs import PreferencePair
from rlprompt.preferences import build_pairs, check_builder
from rlprompt.preferences.candidates import Candidate, make_groups
from rlprompt.preferences.comparisons import Comparison, Shown, ShownGroup, What, draw_comparisons
from rlprompt.preferences.elected import VotedPrompts
from rlprompt.preferences.votes import VoteHeader, VoteLog, check_header, read_votes
from rlprompt.runs.candidates import CandidateSet, candidates_of, stored_texts
from rlprompt.runs.result import SavedRun
from rlprompt.runs.resume import config_hash
from rlprompt.types import Example

RANDOM = "random"
"""In the place of a pair builder: any two prompts may be compared."""


@dataclass(frozen=True)
class LabelQueue:
    """What annotators of a run are asked."""

    what: What
    comparisons: tuple[Comparison, ...]


class LabelledRun:
    """A run whose prompts are compared.

    Args:
        run: the run.
        phase: "train" or "dev".

    Raises:
        RunError: the run's tables are damaged, or it has no scored prompt in this phase.
        ConfigError: no such phase.
    """

    def __init__(self, run: SavedRun, *, phase: str = "train") -> None:
        self.run, self._phase = run, phase
        # A prompt of which examples failed may be judged all the same: the failures are not shown.
        self._set: CandidateSet = candidates_of(run, phase=phase, max_failed_fraction=1.0)
        if not self._set.candidates:
            raise RunError(f"{run.folder.root} has no scored prompt of phase '{phase}'; there is nothing to label")
        self.per_input = run.config.env.per_input
        self.run_id = config_hash(run.config)[:16]

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The scored prompts."""
        return self._set.candidates

    def prompts(self) -> VotedPrompts:
        """Returns what finds the prompts of votes."""
        return VotedPrompts(self.candidates, per_input=self.per_input)

    def header(self, annotator: str, simulated: Mapping[str, Any] | None = None) -> VoteHeader:
        """Returns what a file of votes on this run begins with."""
        return VoteHeader(self.run.folder.root.resolve().name, self.run_id, annotator, simulated)

    def votes_folder(self) -> Path:
        """The folder of the files of votes, one an annotator."""
        return self.run.folder.root / "votes"

    def read(self, path: Path) -> VoteLog:
        """Reads a file of votes on this run.

        Raises:
            ConfigError: as `read_votes`, or the votes are on another run.
        """
        log = read_votes(path)
        if log.header is not None:
            check_header(path, log.header, self.header(log.header.annotator, log.header.simulated))
        return log

    def queue(
        self,
        count: int,
        *,
        seed: int,
        what: What | None = None,
        builder: str = RANDOM,
        arguments: Mapping[str, Any] | None = None,
    ) -> LabelQueue:
        """Draws what is compared.

        Args:
            count: most comparisons.
            seed: of the draws.
            what: "outputs", the target's stored texts, or "prompts"; None takes outputs where any two can be compared.
            builder: "random", or a pair builder whose pairs are compared; which of the two it chose is not told.
            arguments: of the builder.

        Raises:
            ConfigError: the builder has no such argument, or makes pairs with a context of their own; or there are no
                two prompts to compare, or no outputs where they are asked for.
        """
        allowed = self._allowed(builder, dict(arguments or {}))
        for shown in ("outputs", "prompts") if what is None else (what,):
            groups = self._output_groups() if shown == "outputs" else self._prompt_groups()
            found = draw_comparisons(groups, count, what=shown, seed=seed, allowed=allowed)
            if found:
                return LabelQueue(shown, tuple(found))
        raise ConfigError(self._why_empty(what, builder))

    def _why_empty(self, what: What | None, builder: str) -> str:
        root = self.run.folder.root
        if what == "outputs" and not any(len(group.sides) > 1 for group in self._output_groups()):
            return f"{root} has stored no two texts of the target for one example; compare prompts with --what prompts"
        of = "" if builder == RANDOM else f" that '{builder}' makes a pair of"
        about = "of the task" if not self.per_input else "for one input"
        return f"{root} has no two comparable prompts {about}{of}; use a run that wrote more of them"

    def _allowed(self, builder: str, arguments: dict[str, Any]) -> tuple[PreferencePair, ...] | None:
        if builder == RANDOM:
            if arguments:
                raise ConfigError(f"--arg {next(iter(arguments))}: '{RANDOM}' has no arguments; name a --builder")
            return None
        check_builder(builder, arguments)
        pairs = build_pairs(builder, self.candidates, reward_weights=self._set.weights, **arguments).pairs
        if any(pair.context is not None for pair in pairs):
            raise ConfigError(
                f"pair builder '{builder}' gives its pairs a context of their own, which no annotator sees; label with "
                "best-worst, dominance, margin or merit"
            )
        return pairs

    def _prompt_groups(self) -> list[ShownGroup]:
        return [
            ShownGroup(
                group.first.example_id, group.first.input, tuple(Shown(found, found.text) for found in group.candidates)
            )
            for group in make_groups(self.candidates)
        ]

    def _output_groups(self) -> list[ShownGroup]:
        groups = make_groups(self.candidates)
        if self.per_input:
            return [
                ShownGroup(
                    group.first.example_id,
                    group.first.input,
                    tuple(Shown(c, c.columns["response"]) for c in group.candidates if "response" in c.columns),
                )
                for group in groups
            ]
        by_text = {candidate.text: candidate for group in groups for candidate in group.candidates}
        sides: dict[str, list[Shown]] = {}
        for (prompt, example_id), text in stored_texts(self.run).items():
            if prompt in by_text:
                sides.setdefault(example_id, []).append(Shown(by_text[prompt], text))
        if not sides:
            return []
        return [
            ShownGroup(
                example.id, example.input, tuple(sorted(sides[example.id], key=lambda side: side.candidate.text))
            )
            for example in self._examples()
            if example.id in sides
        ]

    def _examples(self) -> tuple[Example, ...]:
        """Those of the phase: prompts of "train" were asked about dev examples too, where the best was chosen."""
        from rlprompt.tasks import task_from_config

        task = task_from_config(self.run.config.task)
        return tuple(task.train if self._phase == "train" else task.dev)
