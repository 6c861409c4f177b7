"""The scripted partners, by hand; and how the state of a dialogue travels with its example."""

import json

import pytest

from rlprompt.dialogues import derived, dialogue_of, feedback, opened, reference_of
from rlprompt.dialogues.negotiation import Negotiation
from rlprompt.dialogues.workflow import Workflow
from rlprompt.errors import ConfigError, UnknownNameError
from rlprompt.tasks import load_task
from rlprompt.types import Example, Json

# List 100, reserve 60: taken from 84 in round 0, from 72 in round 1, from 60 in round 2.
START = opened([["Seller", "The lamp is $100."]], list=100, reserve=60, ask=100, round=0, deal=None)


def talk(partner: Negotiation | Workflow, state: Json, *words: str) -> Json:
    for said in words:
        assert not state["over"]
        state = partner.reply(state, said)
    return state


@pytest.mark.parametrize(
    ("words", "score", "asks"),
    [
        (("I offer $84.",), 0.4, []),
        (("80", "72 then"), 0.7, [90]),  # half way between 100 and 80
        (("40", "50", "$60"), 1.0, [72, 61]),  # 70 would be half way, but 72 is what is taken next
        (("70", "$1,000"), 0.375, [85]),  # whoever offers more than the ask pays the ask, 85
        (("not $100, I offer $90",), 0.25, []),  # the last number counts
        (("60", "61", "59"), 0.0, [80, 70]),
        (("20", "60", "60"), 1.0, [100, 80]),  # an insult moves nobody
        (("Too much!", "", "60"), 1.0, [100, 100]),
        (("100",), 0.0, []),
    ],
)
def test_negotiations_by_hand(words: tuple[str, ...], score: float, asks: list[int]) -> None:
    states = [START]
    for said in words:
        states.append(Negotiation().reply(states[-1], said))
    assert states[-1]["over"]
    assert states[-1]["score"] == pytest.approx(score)
    assert [state["ask"] for state in states[1 : len(asks) + 1]] == asks
    assert START["said"] == [["Seller", "The lamp is $100."]]  # states are never changed in place


def test_the_seller_and_the_critic_say_what_happened() -> None:
    state = talk(Negotiation(), START, "I will\nSeller: I give it away")
    assert state["said"][1:] == [["You", "I will"], ["Seller", "What do you offer?"]]
    assert state["comment"] == "You named no price. You have 2 more offers."
    state = talk(Negotiation(), state, "I offer 70.5")
    assert state["said"][-1] == ["Seller", "I can do $85."]
    assert state["comment"] == "$70.5 was too low. You have 1 more offer."
    state = talk(Negotiation(), state, "10")
    assert (state["over"], state["deal"], state["score"]) == (True, None, 0.0)
    assert state["said"][-1] == ["Seller", "No deal then."]


CALL = opened([["Client", "Hello."]], steps=["name", "date", "email"], values=["A", "B", "C"], done=0, turns=0)


@pytest.mark.parametrize(
    ("words", "score", "last"),
    [
        (("Your name?", "The DATE, please.", "And your email?"), 1.0, "C"),
        (("Your name and date?", "Name?", "Date?"), 2 / 3, "B"),
        (("Date?", "Name?", "Email?"), 1 / 3, "Why do you need that now?"),
        (("Hi", "Name?", "Name?"), 1 / 3, "Why do you need that now?"),
        (("Hi", "Hello", "Yes\nname"), 0.0, "What do you need from me?"),
    ],
)
def test_workflows_by_hand(words: tuple[str, ...], score: float, last: str) -> None:
    state = talk(Workflow(), CALL, *words)
    assert state["over"]
    assert state["score"] == pytest.approx(score)
    assert state["said"][-1] == ["Client", last]


def test_the_critic_says_what_is_open() -> None:
    state = talk(Workflow(), CALL, "Your name?")
    assert feedback(state) == "You: Your name?\nClient: A\nCritic: That was right. Still open: date, then email."


def test_what_the_target_reads_grows_and_equal_dialogues_are_equal_examples() -> None:
    example = Example("train/3", "Buy a lamp.\nSeller: The lamp is $100.", reference_of("negotiation", START))
    partner, state = dialogue_of(example.reference)
    state = partner.reply(state, "I offer $70")
    second = derived(example, state)
    assert second.input == f"{example.input}\nYou: I offer $70\nSeller: I can do $85."
    assert second == derived(example, partner.reply(START, "I offer $70"))
    assert second.id.startswith("train/3#")
    third = derived(second, dialogue_of(second.reference)[0].reply(state, "75"))
    assert third.input == f"{second.input}\nYou: 75\nSeller: Deal."
    assert third.id != second.id


@pytest.mark.parametrize("reference", [None, "deal", "{}", json.dumps({"partner": "negotiation"}), "[1]"])
def test_an_example_that_is_no_dialogue_is_a_one_line_error(reference: str | None) -> None:
    with pytest.raises(ConfigError, match="example 'train/1' is no dialogue; take a task of dialogues") as caught:
        dialogue_of(reference, "train/1")
    assert "\n" not in str(caught.value)
    with pytest.raises(UnknownNameError, match="nobody"):
        dialogue_of(reference_of("nobody", START))


@pytest.mark.parametrize("name", ["negotiation", "workflow"])
def test_the_scenarios_are_distinct_and_can_be_won(name: str) -> None:
    task = load_task(name)
    examples = (*task.train, *task.dev, *task.test)
    assert len({example.input for example in examples}) == len(examples) == 96 + 64 + 200
    for example in task.train[:20]:
        partner, state = dialogue_of(example.reference)
        if name == "negotiation":
            best = talk(partner, state, "1", "1", str(state["reserve"]))  # type: ignore[arg-type]
        else:
            best = talk(partner, state, *(f"{step}?" for step in state["steps"]))  # type: ignore[arg-type]
        assert best["score"] == 1.0
