"""The pair builders by name, and `build_pairs`: from scored candidates to pairs with ids, weights and a report."""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from rlprompt.errors import ConfigError, UnknownNameError, did_you_mean
from rlprompt.preference_pairs import PreferencePair
from rlprompt.preferences.candidates import REWARD, TIE, Candidate, Draft, Group, Verdict, check_flag, make_groups
from rlprompt.preferences.scored import best_worst, dominance, margin, merit, self_judged
from rlprompt.preferences.worded import constraint, counterfactual, critique_revision, directive, slots
from rlprompt.types import Json

Builder: TypeAlias = Callable[..., Verdict]

BUILDERS: dict[str, Builder] = {
    "best-worst": best_worst,
    "dominance": dominance,
    "margin": margin,
    "merit": merit,
    "slots": slots,
    "counterfactual": counterfactual,
    "directive": directive,
    "constraint": constraint,
    "self-judged": self_judged,
    "critique-revision": critique_revision,
}
"""Name -> function of (group) and keyword arguments."""

COMMON = ("weight_by", "per_iteration")
"""Arguments that all builders have."""
_TWO_SETS = ("counterfactual",)
_NAME_SCORES = ("criteria", "floors", "ceilings", "weights")


@dataclass(frozen=True)
class Built:
    """The pairs that a builder made, and what became of the rest."""

    builder: str
    pairs: tuple[PreferencePair, ...]
    num_groups: int
    num_candidates: int
    """Distinct texts in the groups."""
    num_unusable: int
    """Those that failed, or have no number where one is needed."""
    num_repeated: int = 0
    """Pairs that came again in another iteration, and are kept once."""
    without_pair: Mapping[str, int] = field(default_factory=dict)
    """Groups that made no pair, by reason."""

    @property
    def ties(self) -> int:
        """Groups whose texts are all equal in what decides."""
        return self.without_pair.get(TIE, 0)

    def to_json(self) -> Json:
        """Returns the counts."""
        return {
            "builder": self.builder,
            "groups": self.num_groups,
            "candidates": self.num_candidates,
            "unusable": self.num_unusable,
            "pairs": len(self.pairs),
            "ties": self.ties,
            "repeated": self.num_repeated,
            "without_pair": dict(self.without_pair),
        }

    def why_empty(self) -> str:
        """Says in one line why there is no pair."""
        if not self.num_candidates:
            return "there are no candidates"
        reasons = ", ".join(f"{count} x {reason}" for reason, count in self.without_pair.items())
        of = f"{self.num_groups} groups with {self.num_candidates} candidates, {self.num_unusable} of them unusable"
        return f"{of}: {reasons}"


def builder_names() -> list[str]:
    """Returns the registered names."""
    return sorted(BUILDERS)


def check_builder(name: str, arguments: Mapping[str, Any] | None = None) -> None:
    """Checks a builder before it is used.

    Raises:
        UnknownNameError: nothing is registered under the name.
        ConfigError: an argument that it does not have, or one that it needs is missing.
    """
    if name not in BUILDERS:
        raise UnknownNameError("pair builder", name, BUILDERS)
    parameters = dict(list(inspect.signature(BUILDERS[name]).parameters.items())[1:])
    for key in arguments or {}:
        if key not in parameters and key not in COMMON:
            known = [*parameters, *COMMON]
            raise ConfigError(f"pair builder '{name}' has no argument '{key}'{did_you_mean(key, known)}")
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in (arguments or {}):
            raise ConfigError(f"pair builder '{name}' needs the argument '{key}'")


def build_pairs(
    name: str,
    candidates: Sequence[Candidate],
    *,
    against: Sequence[Candidate] = (),
    reward_weights: Mapping[str, float] | None = None,
    weight_by: str | None = None,
    per_iteration: bool = False,
    **arguments: Any,
) -> Built:
    """Builds preference pairs. The order of the candidates has no part in the result.

    Args:
        name: a registered builder.
        candidates: scored texts.
        against: the second set of texts, for builders that compare two ("counterfactual": the plain ones).
        reward_weights: weight of each criterion in the reward; of one with a negative weight less is better, and one
            with weight 0 is no criterion unless it is named.
        weight_by: None weighs all pairs 1; "gap" weighs each by its margin over the mean margin, so that the mean
            weight is 1. Reference: OPTune, arXiv:2406.07657, weighs pairs by their reward gap; the scale is ours.
        per_iteration: whether only texts of one iteration are compared.
        **arguments: of the builder.

    Raises:
        UnknownNameError: no such builder, or a score that no candidate has.
        ConfigError: a wrong argument, one set where two are compared or the reverse, or no gap to weigh by.
    """
    check_builder(name, arguments)
    check_flag("per_iteration", per_iteration)
    if weight_by not in (None, "gap"):
        raise ConfigError(f"pair builder: weight_by must be gap, or left out; got {weight_by!r}")
    if name in _TWO_SETS and not against:
        raise ConfigError(f"pair builder '{name}' compares two sets of candidates; give the second one (--against RUN)")
    if against and name not in _TWO_SETS:
        raise ConfigError(f"pair builder '{name}' takes one set of candidates; leave out the second one (--against)")
    _check_scores(name, arguments, candidates)
    groups = make_groups(candidates, against, per_iteration=per_iteration, weights=reward_weights)
    verdicts = [BUILDERS[name](group, **arguments) for group in groups]
    if not groups:
        BUILDERS[name](Group(()), **arguments)  # wrong arguments are told of without candidates too
    pairs: dict[str, PreferencePair] = {}
    drafted = [
        pair_of(name, group, draft) for group, verdict in zip(groups, verdicts, strict=True) for draft in verdict.drafts
    ]
    for pair in drafted:
        pairs.setdefault(pair.id, pair)
    total = sum(len(group.candidates) + len(group.against) for group in groups)
    reasons = Counter(verdict.reason for verdict in verdicts if not verdict.drafts)
    return Built(
        builder=name,
        pairs=tuple(_weighted(list(pairs.values()), weight_by)),
        num_groups=len(groups),
        num_candidates=total,
        num_unusable=total - sum(verdict.usable for verdict in verdicts),
        num_repeated=len(drafted) - len(pairs),
        without_pair=dict(sorted(reasons.items())),
    )


def _check_scores(name: str, arguments: Mapping[str, Any], candidates: Sequence[Candidate]) -> None:
    """Refuses names that no candidate has a score of; where single candidates lack one is the builder's matter."""
    known = {score for candidate in candidates for score in candidate.scores}
    known |= {REWARD for candidate in candidates if candidate.reward is not None}
    parameters = inspect.signature(BUILDERS[name]).parameters
    named: list[Any] = []
    if "score" in parameters and not (name == "margin" and arguments.get("weights") is not None):
        named.append(arguments.get("score", parameters["score"].default))
    for key in _NAME_SCORES:
        given = arguments.get(key)
        named += list(given) if key in parameters and isinstance(given, Iterable) and not isinstance(given, str) else []
    for score in named:
        if candidates and score not in known:
            raise UnknownNameError("score", str(score), known, "" if known else "; the candidates have none")


def pair_of(name: str, group: Group, draft: Draft) -> PreferencePair:
    """Returns the pair of a draft, with an id that follows from its content and the weight 1."""
    chosen, rejected = draft.chosen, draft.rejected
    example = group.first
    read = example.input if draft.context is None else draft.context
    # The id follows from the content: the same pair has the same id in every run and file.
    content = "\0".join((name, example.example_id, str(draft.context is None), read, chosen.text, rejected.text))
    digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    iteration = {} if group.iteration is None else {"iteration": group.iteration}
    return PreferencePair(
        id=f"{name}-{digest}",
        chosen=chosen.text,
        rejected=rejected.text,
        input=example.input if draft.context is None else None,
        context=draft.context,
        chosen_scores=chosen.known_scores(),
        rejected_scores=rejected.known_scores(),
        margin=draft.margin,
        source=name,
        example_id=example.example_id,
        columns={**iteration, **draft.columns},
    )


def _weighted(pairs: list[PreferencePair], weight_by: str | None) -> list[PreferencePair]:
    if weight_by is None or not pairs:
        return pairs
    mean = sum(abs(pair.margin) for pair in pairs) / len(pairs)
    if mean == 0:
        raise ConfigError("weight_by=gap: no pair has a gap in the reward to weigh by; leave it out")
    return [replace(pair, weight=abs(pair.margin) / mean) for pair in pairs]
