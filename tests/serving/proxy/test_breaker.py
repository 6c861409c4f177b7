"""The circuit breaker: when it opens, who may try, and when it closes."""

from rlprompt.serving.proxy.breaker import Breaker


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_it_opens_after_failures_in_a_row_and_lets_one_try_after_the_pause() -> None:
    clock = Clock()
    breaker = Breaker(3, 10.0, clock)
    for success in (False, False, True, False, False):  # never three in a row
        assert breaker.allows()
        breaker.note(success=success)
    assert breaker.state == "closed"
    breaker.note(success=False)
    assert breaker.state == "open"
    assert not breaker.allows()
    clock.now = 10.0
    assert breaker.state == "half-open"
    assert breaker.allows()
    assert not breaker.allows()  # one at a time
    breaker.note(success=False)
    assert breaker.state == "open"
    clock.now = 20.0
    assert breaker.allows()
    breaker.withdraw()  # its client has gone: the next one tries
    assert breaker.allows()
    breaker.note(success=True)
    assert breaker.state == "closed"
