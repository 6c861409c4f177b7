"""Pair builders in which wording decides, or the context is made: each makes the pairs of one group of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rlprompt.errors import ConfigError, UnknownNameError
from rlprompt.meta_prompts import MetaPrompt
from rlprompt.preferences.candidates import (
    ALONE,
    REWARD,
    TIE,
    Candidate,
    Draft,
    Group,
    Verdict,
    check_flag,
    check_number,
    exceeds,
    reward_gap,
)
from rlprompt.preferences.checks import CONSTRAINTS, DIRECTIVES
from rlprompt.preferences.scored import ends

SLOTS_TASK = "Improve the prompt below, so that whoever answers it does so as well as possible. Keep its facts."
SLOTS_LIMIT = "Use at most {max_words} words."
SLOTS_END = "Output the new prompt only."
DIRECTIVE_TEMPLATE = (
    "Rewrite the question below so that an assistant can answer it fully and correctly. Be {directive}. Output the new "
    "question only.\nQuestion: {input}"
)
CONSTRAINT_TEMPLATE = "Write the prompt that the response below fulfils. Output the prompt only.\nResponse: {response}"
CRITIQUE_TEMPLATE = (
    "Revise the prompt below so that it meets the critique. Output the new prompt only.\nPrompt: {prompt}\n"
    "Critique: {critique}"
)


def slots(
    group: Group,
    *,
    score: str = REWARD,
    response: bool = False,
    reference: bool = False,
    max_words: int | None = None,
) -> Verdict:
    """The best and the worst by score, after a meta-prompt that is put together from slots.

    Reference: FIPO, arXiv:2402.11811: the optimizer reads the naive prompt, and where there are any the response to it
    and the best known response, and a limit on words. The wording is ours.

    Args:
        group: the candidates; their columns "naive_response" and "reference" fill the slots.
        score: which score.
        response: whether the context shows the response to the naive prompt; a group without one makes no pair.
        reference: the same for the gold answer.
        max_words: the limit that the context names; a chosen text that is longer makes no pair.
    """
    check_flag("response", response)
    check_flag("reference", reference)
    if max_words is not None:
        check_number("max_words", max_words, least=1, integer=True)
    ranked = group.ranked(score)
    best, worst, reason = ends(ranked)
    if best is None or worst is None:
        return Verdict(reason=reason, usable=len(ranked))
    columns = group.first.columns
    missing = [name for name, wanted in (("naive_response", response), ("reference", reference)) if wanted]
    missing = [name for name in missing if not isinstance(columns.get(name), str)]
    if not group.first.naive:
        missing = ["input or draft"]
    if missing:
        return Verdict(reason=f"no {missing[0]}", usable=len(ranked))
    if max_words is not None and len(best[1].text.split()) > max_words:
        return Verdict(reason="the best one is longer than max_words", usable=len(ranked))
    head = [SLOTS_TASK, *([] if max_words is None else [SLOTS_LIMIT.format(max_words=max_words)]), SLOTS_END]
    parts = [" ".join(head), f"Prompt: {group.first.naive}"]
    parts += [f"Response to it: {columns['naive_response']}"] if response else []
    parts += [f"Best known response: {columns['reference']}"] if reference else []
    return Verdict((Draft(best[1], worst[1], best[0] - worst[0], "\n".join(parts)),), usable=len(ranked))


def counterfactual(group: Group, *, reverse: bool = False, n: int = 1, keep_input: bool = False) -> Verdict:
    """The rewrite under the desired meta-prompt over the one under the plain meta-prompt, after the plain one.

    Reference: counterfactual DPO, arXiv:2401.09566: what the model writes when it is told the style is preferred to
    what it writes without, after the text without; the reverse teaches it to drop a style.

    Args:
        group: `candidates` were written under the desired meta-prompt, `against` under the plain one; their `context`
            is what the pair has as context.
        reverse: prefers the plain ones instead.
        n: most pairs; the first of either set are paired, then the second, ...
        keep_input: the pair has the input in the place of the context, for a training run whose own meta-prompt is the
            plain one.
    """
    check_number("n", n, least=1, integer=True)
    check_flag("reverse", reverse)
    check_flag("keep_input", keep_input)
    desired = group.sound()
    plain = [candidate for candidate in group.against if not candidate.unscored]
    usable = len(desired) + len(plain)
    if not desired or not plain:
        return Verdict(reason="nothing usable in one of the two sets", usable=usable)
    if not keep_input and not all(candidate.context for candidate in plain):
        return Verdict(reason="no context of the plain one", usable=usable)
    drafts = []
    for wanted, other in list(zip(desired, plain, strict=False))[:n]:
        chosen, rejected = (other, wanted) if reverse else (wanted, other)
        if chosen.text != rejected.text:
            context = None if keep_input else other.context
            drafts.append(Draft(chosen, rejected, reward_gap(chosen, rejected), context))
    return Verdict(tuple(drafts), reason="" if drafts else TIE, usable=usable)


def directive(
    group: Group, *, directives: str = "concise/detailed", least: int = 1, template: str = DIRECTIVE_TEMPLATE
) -> Verdict:
    """Two texts, and for each of two opposite directives a pair: the second has chosen and rejected swapped.

    Reference: configurable preference tuning, arXiv:2506.11702, where rubrics stand behind the directives; here a rule
    decides which text follows which (`rlprompt.preferences.checks.DIRECTIVES`).

    Args:
        group: the candidates; the two that differ most are taken, of equal ones the earlier.
        directives: a registered couple.
        least: the least difference in what is measured (words, or marked lines), at least 1.
        template: the context, with the slots {directive} and {input} (the draft at task level).
    """
    check_number("least", least, least=1, integer=True)
    if directives not in DIRECTIVES:
        raise UnknownNameError("couple of directives", str(directives), DIRECTIVES)
    meta = _template("directive", template, ("directive", "input"))
    texts, measure = group.sound(), DIRECTIVES[directives]
    if len(texts) < 2:
        return Verdict(reason=ALONE, usable=len(texts))
    low, high = min(texts, key=lambda c: measure(c.text)), max(texts, key=lambda c: measure(c.text))
    difference = measure(high.text) - measure(low.text)
    if difference < least:
        return Verdict(reason="the texts differ by less than `least`" if difference else TIE, usable=len(texts))
    drafts = [
        Draft(
            chosen,
            rejected,
            reward_gap(chosen, rejected),
            meta.fill({"directive": name, "input": group.first.naive}),
            {"directive": name},
        )
        for name, chosen, rejected in zip(directives.split("/"), (low, high), (high, low), strict=True)
    ]
    return Verdict(tuple(drafts), usable=len(texts))


def constraint(
    group: Group,
    *,
    constraints: Sequence[str] = tuple(CONSTRAINTS),
    words: int = 30,
    template: str = CONSTRAINT_TEMPLATE,
) -> Verdict:
    """For a fixed response, the prompt with a constraint that the response meets over the one with its opposite.

    Reference: MAPL, arXiv:2505.12845, its pairs of prompts within a sample; constraints and wording are ours
    (`rlprompt.preferences.checks.CONSTRAINTS`).

    Args:
        group: the candidates; their column "response" is the target's answer to them.
        constraints: names of constraints.
        words: the number in the constraint "words".
        template: the context, with the slot {response}.
    """
    check_number("words", words, least=1, integer=True)
    if isinstance(constraints, str):
        raise ConfigError(f"pair builder: constraints must be a list of names, such as [words]; got {constraints!r}")
    for name in constraints:
        if name not in CONSTRAINTS:
            raise UnknownNameError("constraint", str(name), CONSTRAINTS)
    meta = _template("constraint", template, ("response",))
    usable = [c for c in group.sound() if isinstance(c.columns.get("response"), str) and c.columns["response"].strip()]
    drafts = []
    for candidate in usable:
        response = candidate.columns["response"]
        for name in constraints:
            rule = CONSTRAINTS[name]
            held, broken = (rule.asks, rule.opposite) if rule.holds(response, words) else (rule.opposite, rule.asks)
            drafts.append(
                Draft(
                    _asking(candidate, held.format(n=words)),
                    _asking(candidate, broken.format(n=words)),
                    0.0,
                    meta.fill({"response": response}),
                    {"constraint": name, "response": response},
                )
            )
    return Verdict(tuple(drafts), reason="" if drafts else "no response", usable=len(usable))


def critique_revision(
    group: Group, *, score: str = REWARD, show_critique: bool = False, template: str = CRITIQUE_TEMPLATE
) -> Verdict:
    """A revision over the text that it revises, where the revision scores higher.

    Reference: Jin et al. 2023, arXiv:2311.14543, who fine-tune a model on critiques and revisions of responses; here
    prompts are revised.

    Args:
        group: the candidates; a revision has the columns "revises" (the text that it revises, a candidate of the group)
            and "critique".
        score: which score.
        show_critique: the context shows the text and its critique, so that the policy learns to revise; otherwise the
            pair has the input, so that it learns to write the better text at once.
        template: that context, with the slots {prompt} and {critique}.
    """
    check_flag("show_critique", show_critique)
    meta = _template("critique-revision", template, ("prompt", "critique"))
    by_text = {candidate.text: (value, candidate) for value, candidate in group.ranked(score)}
    drafts, compared, tied = [], 0, True
    for revision in group.candidates:
        columns = revision.columns
        if not isinstance(columns.get("critique"), str) or revision.text not in by_text:
            continue
        if columns.get("revises") not in by_text or columns["revises"] == revision.text:
            continue
        compared += 1
        (after, _), (before, original) = by_text[revision.text], by_text[columns["revises"]]
        tied = tied and not exceeds(after, before) and not exceeds(before, after)
        if exceeds(after, before):
            context = meta.fill({"prompt": original.text, "critique": columns["critique"]}) if show_critique else None
            drafts.append(Draft(revision, original, after - before, context, {"critique": columns["critique"]}))
    if drafts:
        return Verdict(tuple(drafts), usable=len(by_text))
    reason = "no revision of a scored text" if not compared else TIE if tied else "no revision scores higher"
    return Verdict(reason=reason, usable=len(by_text))


def _asking(candidate: Candidate, constraint: str) -> Candidate:
    """The candidate with a constraint behind it; its scores were not those of this text."""
    text = f"{candidate.text}\n{constraint}" if candidate.text else constraint
    return replace(candidate, text=text, scores={}, reward=None)


def _template(builder: str, text: str, needed: Sequence[str]) -> MetaPrompt:
    if not isinstance(text, str):
        raise ConfigError(f"pair builder: template must be a text, got {text!r}")
    meta = MetaPrompt(text, needed)
    for slot in needed:
        if slot not in meta.slots:
            raise ConfigError(f"pair builder '{builder}': the template has no slot {{{slot}}}; add it")
    return meta
