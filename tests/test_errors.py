"""The exceptions: their exit codes, and that workers can return them."""

import pickle

import pytest

from rlprompt import errors
from rlprompt.errors import RLPromptError, UnknownNameError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RLPromptError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_survives_the_way_between_processes(kind: type[RLPromptError]) -> None:
    made = kind("reward", "gapp", ["gap"]) if kind is UnknownNameError else kind("what, got, what to do")
    back = pickle.loads(pickle.dumps(made))
    assert type(back) is kind
    assert (str(back), back.exit_code) == (str(made), made.exit_code)


def test_an_unknown_name_keeps_what_is_known() -> None:
    back = pickle.loads(pickle.dumps(UnknownNameError("reward", "gapp", ["length", "gap"], "; or write your own")))
    assert str(back) == "unknown reward 'gapp'; did you mean 'gap'?; or write your own"
    assert (back.name, back.known) == ("gapp", ["gap", "length"])
