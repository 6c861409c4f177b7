"""An agent of a service follows a workflow with a scripted client; the target speaks for the agent.

After the self-talk of Ulmer et al. 2024 (arXiv:2401.05033), whose dialogues are filtered by how much of a workflow they
complete; the workflows and the client are ours.
"""

from __future__ import annotations

from rlprompt.dialogues.base import after, one_line, opened
from rlprompt.seeding import generator
from rlprompt.types import Json

CASES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("a parcel service", "Where is my parcel?", ("name", "order number", "postcode")),
    ("a bank", "My card does not work.", ("birthday", "card number", "phone number")),
    ("a hotel", "I want to change my booking.", ("booking code", "name", "new date")),
    ("a clinic", "I need an appointment.", ("insurance", "symptoms", "preferred day")),
    ("a library", "I cannot renew a book.", ("member number", "title", "email")),
    ("a repair shop", "My washing machine is broken.", ("model", "address", "time")),
    ("an internet provider", "My connection is down.", ("customer number", "router light", "address")),
    ("a theatre", "I want my money back.", ("ticket code", "reason", "bank account")),
)
_VALUES = ("It is A{0}.", "That would be {0}.", "{0}, I think.", "I have {0} here.")


class Workflow:
    """The client tells what is asked for, one thing at a time and in the workflow's order.

    A step is done when the agent's words name it while it is next; naming another step, several or none brings nothing
    more than a question back. The score is the share of steps that are done. As many turns as steps.
    """

    template = "{input}\n(Advice: {prompt})\nYou: May I have your"
    max_tokens = 10

    def scenario(self, number: int) -> tuple[str, Json]:
        """Returns the situation and the state of a numbered dialogue; the order of the steps is drawn."""
        draws = generator(0, "workflow", number)
        place, opening, steps = CASES[int(draws.integers(len(CASES)))]
        order = [steps[int(index)] for index in draws.permutation(len(steps))]
        values = [_VALUES[int(draws.integers(len(_VALUES)))].format(int(draws.integers(100, 1000))) for _ in order]
        state = opened([["Client", opening]], steps=order, values=values, done=0, turns=0)
        listed = ", then ".join(order)
        text = (
            f"Call {number}. You work for {place}. Ask the client for one thing at a time, in this order: {listed}.\n"
            f"Client: {opening}"
        )
        return text, state

    def reply(self, state: Json, words: str) -> Json:
        """Returns the state after the agent said something."""
        steps, done, turns = state["steps"], state["done"], state["turns"] + 1
        named = [step for step in steps if step in one_line(words).lower()]
        if named == [steps[done]]:
            answer, done = state["values"][done], done + 1
            comment = "That was right."
        elif not named:
            answer, comment = "What do you need from me?", "You asked for nothing that is open."
        elif len(named) > 1:
            answer, comment = "One thing after the other, please.", "You asked for several things."
        else:
            answer, comment = "Why do you need that now?", f"It was not the turn of the {named[0]}."
        over = done == len(steps) or turns == len(steps)
        if done < len(steps):
            comment = f"{comment} Still open: {', then '.join(steps[done:])}."
        return after(
            state,
            words,
            answer,
            partner="Client",
            comment=comment,
            over=over,
            done=done,
            turns=turns,
            score=done / len(steps),
        )
