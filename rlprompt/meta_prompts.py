"""Meta-prompts: what a policy is told to write, with slots for what it is written for. Registered by name.

Slots: `{draft}`, the draft instruction; `{input}`, one example's input; `{examples}`, a few train examples with their
answers; `{feedback}`, what went wrong in the turn before (empty in the first turn, its line break goes with it);
`{composed}`, what other agents have written of the prompt before (empty for the first agent, likewise).
`{{` and `}}` are literal braces. Slots are filled in one pass: braces in a user's text stay what they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlprompt.errors import ConfigError, UnknownNameError, did_you_mean

SLOTS = ("draft", "input", "examples", "feedback", "composed")
_TOKEN = re.compile(r"\{\{|\}\}|(\n?)\{([^{}]*)\}|[{}]")
_NAME = re.compile(r"[a-z][a-z0-9-]*")

_PREWRITE = (
    "Rewrite the following instruction via rephrasing and/or adding specific requirements. Add instructions which "
    "would be helpful to solve the problem correctly. Output the new instruction only."
)

_ROLE_LINE = (
    "A prompt is written in parts. Write the part that says who answers: one sentence that begins with 'You are' and "
    "names an expert for the text below. Output that sentence only."
)
_INSTRUCTION = (
    "A prompt is written in parts. Write the part that says what to do, for the text below, in one or two clear "
    "sentences. Do not do it yourself. Output those sentences only."
)
_CONSTRAINTS = (
    "A prompt is written in parts. Write the part that says what an answer has to keep to, for the text below: its "
    "form, its length, what it must not contain. Output that part only."
)
_CLOSING_HINT = (
    "A prompt is written in parts. Write its last part, a short hint that leads to right answers, for the text below. "
    "Do not give an answer. Output the hint only."
)


@dataclass(frozen=True)
class Registered:
    """A meta-prompt with a name."""

    text: str
    source: str
    """Where the method comes from, and whose words these are."""


META_PROMPTS: dict[str, Registered] = {
    "prewrite": Registered(
        _PREWRITE + "\nInstruction: {draft}", "arXiv:2401.08189 (PRewrite), its wording as its replications quote it"
    ),
    "rewrite-input": Registered(
        "Rewrite the question below so that an assistant can answer it fully and correctly: keep its meaning, say "
        "what is only implied, and name what a good answer must cover. Output the new question only."
        "\nQuestion: {input}",
        "after arXiv:2408.10573 (Question Rewriter), in our own words",
    ),
    "rewrite-instruction": Registered(
        "Adapt the instruction to the input below, so that it helps most with exactly this input. Do not solve the "
        "task. Output the new instruction only.\nInstruction: {draft}\nInput: {input}",
        "the PRewrite setting (arXiv:2401.08189) with one input, in our own words",
    ),
    "hint": Registered(
        "List the few keywords that a short summary of this text has to contain, separated by semicolons. Output the "
        "keywords only.\nText: {input}",
        "after arXiv:2302.11520 (Directional Stimulus Prompting), in our own words",
    ),
    "append": Registered(
        "Write one or two sentences to be put after the request below: what the answer should pay attention to, in "
        "which form and in how much detail. Do not answer the request, and do not repeat it.\nRequest: {input}",
        "after PAS (plug-and-play prompt augmentation), in our own words",
    ),
    "derived": Registered(
        "Write another question of the same kind as the one below, whose answer would be a helpful model for "
        "answering it. Output the new question only.\nQuestion: {input}",
        "after derived prompts, whose answer becomes a demonstration before the query, in our own words",
    ),
    "role": Registered(
        "Name the expert who could answer the question below best, in one sentence that begins with 'You are'. Output "
        "that sentence only.\nQuestion: {input}",
        "after Self-Prompt Tuning (expert roles for single questions), in our own words",
    ),
    "prewrite-feedback": Registered(
        _PREWRITE + "\nInstruction: {draft}\n{feedback}",
        "arXiv:2401.08189 (PRewrite) with the failed answer of the turn before, for env.turns above 1",
    ),
    "rewrite-input-feedback": Registered(
        "Rewrite the question below so that an assistant can answer it fully and correctly. Keep its meaning. Output "
        "the new question only.\nQuestion: {input}\n{feedback}",
        "`rewrite-input` with the failed answer of the turn before, for env.turns above 1",
    ),
    "negotiation-advice": Registered(
        "Which price should the buyer offer next?\n{input}\n{feedback}\nAdvice:",
        "our own, for env.dialogue: the critic's comment on the turn before stands in {feedback}",
    ),
    "workflow-advice": Registered(
        "What should the agent ask for next?\n{input}\n{feedback}\nAdvice:",
        "our own, for env.dialogue: the critic's comment on the turn before stands in {feedback}",
    ),
    "prewrite-reason": Registered(
        "Improve the following instruction so that whoever follows it thinks the problem through step by step before "
        "giving the answer. Output the new instruction only.\nInstruction: {draft}",
        "ablation after prior prompts for reinforcement fine-tuning (reason), in our own words",
    ),
    "prewrite-plan": Registered(
        "Improve the following instruction so that whoever follows it first makes a plan and then carries it out. "
        "Output the new instruction only.\nInstruction: {draft}",
        "ablation after prior prompts for reinforcement fine-tuning (plan), in our own words",
    ),
    "prewrite-code": Registered(
        "Improve the following instruction so that whoever follows it works the problem out as a short program or as "
        "pseudocode. Output the new instruction only.\nInstruction: {draft}",
        "ablation after prior prompts for reinforcement fine-tuning (code), in our own words",
    ),
    "prewrite-recall": Registered(
        "Improve the following instruction so that whoever follows it first recalls the facts and definitions that the "
        "problem needs. Output the new instruction only.\nInstruction: {draft}",
        "ablation after prior prompts for reinforcement fine-tuning (recall), in our own words",
    ),
    "prewrite-null-example": Registered(
        "Improve the following instruction so that whoever follows it first imagines a case in which the usual answer "
        "does not hold. Output the new instruction only.\nInstruction: {draft}",
        "ablation after prior prompts for reinforcement fine-tuning (null-example), in our own words",
    ),
    "role-line": Registered(
        _ROLE_LINE + "\nInstruction: {draft}\n{composed}", "a segment of a composed prompt, in our own words"
    ),
    "role-line-input": Registered(
        _ROLE_LINE + "\nRequest: {input}\n{composed}", "a segment of a composed prompt, in our own words"
    ),
    "instruction": Registered(
        _INSTRUCTION + "\nTask: {draft}\n{composed}", "a segment of a composed prompt, in our own words"
    ),
    "instruction-input": Registered(
        _INSTRUCTION + "\nTask: {input}\n{composed}", "a segment of a composed prompt, in our own words"
    ),
    "constraints": Registered(
        _CONSTRAINTS + "\nInstruction: {draft}\n{composed}", "a segment of a composed prompt, in our own words"
    ),
    "constraints-input": Registered(
        _CONSTRAINTS + "\nRequest: {input}\n{composed}", "a segment of a composed prompt, in our own words"
    ),
    "closing-hint": Registered(
        _CLOSING_HINT + "\nInstruction: {draft}\n{composed}", "a segment of a composed prompt, in our own words"
    ),
    "closing-hint-input": Registered(
        _CLOSING_HINT + "\nRequest: {input}\n{composed}", "a segment of a composed prompt, in our own words"
    ),
}


class MetaPrompt:
    r"""A parsed meta-prompt.

    Attributes:
        text: the text with its slots.
        slots: the slots that it has.

    >>> MetaPrompt("Improve: {draft}\n{feedback}").fill({"draft": "Say {it}."})
    'Improve: Say {it}.'
    """

    def __init__(self, text: str, known: Sequence[str] = SLOTS) -> None:
        """Parses a text.

        Args:
            text: with its slots.
            known: the slots that it may have.

        Raises:
            ConfigError: an unknown slot, or a lone brace.
        """
        self.text = text
        self._parts: list[tuple[str, str, str]] = []  # literal, line break of the slot, slot
        literal: list[str] = []
        position = 0
        for match in _TOKEN.finditer(text):
            literal.append(text[position : match.start()])
            position = match.end()
            token, slot = match.group(0), match.group(2)
            if token in ("{{", "}}"):
                literal.append(token[0])
            elif slot is None:
                raise ConfigError(
                    f"meta-prompt has a lone '{token}' at character {match.start()}; a literal brace is written twice"
                )
            elif slot not in known:
                raise ConfigError(f"meta-prompt has an unknown slot {{{slot}}}{did_you_mean(slot, known)}")
            else:
                self._parts.append(("".join(literal), match.group(1), slot))
                literal = []
        self._tail = "".join(literal) + text[position:]
        self.slots = frozenset(slot for _, _, slot in self._parts)

    def fill(self, values: Mapping[str, str]) -> str:
        """Returns the text with its slots filled; one without a value is empty and takes its line break with it."""
        pieces: list[str] = []
        for literal, line_break, slot in self._parts:
            value = values.get(slot, "")
            pieces += [literal, line_break if value else "", value]
        return "".join(pieces) + self._tail


def load_meta_prompt(
    name_or_text: str, *, per_input: bool = False, turns: int = 1, composed: bool | None = None
) -> MetaPrompt:
    """Returns the meta-prompt of a registered name, or the given text, checked for the slots that it needs.

    Args:
        name_or_text: one lower-case word with hyphens is a name; anything else is a text.
        per_input: whether it is read once for each input: it then needs {input}, otherwise {draft}.
        turns: with more than one it needs {feedback} as well.
        composed: whether other agents write before this one: it then needs {composed}; False allows the slot, None
            is for a policy that writes alone, which has no use for it.

    Raises:
        UnknownNameError: nothing is registered under the name.
        ConfigError: a slot is missing or unknown.
    """
    text, named = name_or_text, ""
    if name_or_text in META_PROMPTS:
        text, named = META_PROMPTS[name_or_text].text, f" '{name_or_text}'"
    elif _NAME.fullmatch(name_or_text):
        raise UnknownNameError(
            "meta-prompt", name_or_text, META_PROMPTS, "; or give the text itself, with its slots (env.meta_prompt)"
        )
    meta = MetaPrompt(text)
    needed = ["input" if per_input else "draft"] + (["feedback"] if turns > 1 else [])
    needed += ["composed"] if composed else []
    why = {
        "input": "it is read once for each input",
        "draft": "it is read with the draft instruction (env.draft)",
        "feedback": f"env.turns is {turns}",
        "composed": "other agents write before the one that reads it",
    }
    for slot in needed:
        if slot not in meta.slots:
            raise ConfigError(f"meta-prompt{named} has no slot {{{slot}}}, but {why[slot]}; add it, or choose another")
    if composed is None and "composed" in meta.slots:
        raise ConfigError(
            f"meta-prompt{named} has the slot {{composed}}, which is for agents that compose one prompt "
            "(env.kind=multi); choose another"
        )
    if not per_input and "input" in meta.slots:
        raise ConfigError(
            f"meta-prompt{named} has the slot {{input}}, but one prompt is written for all inputs; set "
            "env.level=instance, or choose another"
        )
    return meta
