"""A buyer bargains with a scripted seller; the target speaks for the buyer.

After the self-play of Fu et al. 2023 (arXiv:2305.10142), where a critic's feedback is put into the context; the script,
the prices and the score are ours.
"""

from __future__ import annotations

import re

from rlprompt.dialogues.base import after, one_line, opened
from rlprompt.seeding import generator
from rlprompt.types import Json

ITEMS = (
    "bicycle",
    "lamp",
    "guitar",
    "camera",
    "table",
    "radio",
    "tent",
    "clock",
    "printer",
    "jacket",
    "mirror",
    "desk",
)
PATIENCE = (0.6, 0.3, 0.0)
"""The share of the room between reserve and list price that the seller still wants on top of the reserve, by round."""
INSULT = 0.5
"""An offer below this share of the reserve price is an insult: the seller does not move."""
_PRICE = re.compile(r"\d+(?:\.\d+)?")


class Negotiation:
    """The seller asks the list price, and accepts more the longer it takes; three rounds.

    An offer is the last number in the buyer's words. The seller takes one of at least reserve + patience x (list -
    reserve); otherwise the next ask is half way to the offer, but not below what the next round would be taken at.
    The score of a deal is (list - price) / (list - reserve), within [0, 1]; without a deal it is 0.
    """

    template = "{input}\n(Advice: {prompt})\nYou: I offer $"
    max_tokens = 8

    def scenario(self, number: int) -> tuple[str, Json]:
        """Returns the situation and the state of a numbered negotiation."""
        draws = generator(0, "negotiation", number)
        item = ITEMS[int(draws.integers(len(ITEMS)))]
        price = 5 * int(draws.integers(8, 41))
        reserve = round(price * float(draws.uniform(0.5, 0.75)))
        state = opened(
            [["Seller", f"The {item} is ${price}."]], list=price, reserve=reserve, ask=price, round=0, deal=None
        )
        text = (
            f"You want to buy a used {item} as cheaply as you can. You and the seller take turns, at most "
            f"{len(PATIENCE)} times each.\nSeller: The {item} is ${price}."
        )
        return text, state

    def reply(self, state: Json, words: str) -> Json:
        """Returns the state after an offer."""
        offer, left = _offer(words), len(PATIENCE) - state["round"] - 1
        low, room = state["reserve"], state["list"] - state["reserve"]
        if offer is not None and offer >= min(low + PATIENCE[state["round"]] * room, state["ask"]):
            price = min(offer, state["ask"])
            score = min(max((state["list"] - price) / room, 0.0), 1.0)
            comment = f"You bought it for ${_shown(price)}."
            return after(state, words, "Deal.", partner="Seller", comment=comment, over=True, deal=price, score=score)
        if offer is None:
            ask, answer, comment = state["ask"], "What do you offer?", "You named no price."
        elif offer < INSULT * low:
            ask, answer, comment = state["ask"], "That is an insult.", f"${_shown(offer)} was far too low."
        else:
            floor = low + PATIENCE[min(state["round"] + 1, len(PATIENCE) - 1)] * room
            ask = round(min(state["ask"], max(floor, (state["ask"] + offer) / 2)))
            answer, comment = f"I can do ${ask}.", f"${_shown(offer)} was too low."
        if left == 0:
            answer, comment = "No deal then.", f"{comment} There is no deal."
        else:
            comment = f"{comment} You have {left} more {'offer' if left == 1 else 'offers'}."
        return after(
            state, words, answer, partner="Seller", comment=comment, over=left == 0, ask=ask, round=state["round"] + 1
        )


def _offer(words: str) -> float | None:
    found = _PRICE.findall(one_line(words).replace(",", ""))
    return float(found[-1]) if found else None


def _shown(price: float) -> str:
    return f"{price:g}"
