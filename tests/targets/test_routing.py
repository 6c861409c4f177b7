"""Which replica answers what: known prefixes at home, new ones where there is least to do, idle ones help out."""

from rlprompt.targets.routing import LEAST, MOST, Plan, Router, prefix_of
from rlprompt.types import Rendered, TargetRequest


def request(text: str, split: int = 0) -> TargetRequest:
    return TargetRequest(Rendered(text=text, split=split))


def everything(plan: Plan, replica: int) -> list[int]:
    found: list[int] = []
    while batch := plan.take(replica):
        found += batch
    return found


def test_the_prefix_is_the_text_up_to_the_split() -> None:
    assert prefix_of(Rendered(text="good film: ", split=4)) == "good"
    assert prefix_of(Rendered(text="good film: ")) == ""
    assert prefix_of(Rendered(messages=(("system", "Be brief."), ("user", "good film")), split=13)) == "Be brief.good"


def test_a_prefix_stays_with_its_replica_between_calls() -> None:
    router = Router(2)
    first = router.plan([request("aaaa1", 4), request("bb1", 2)])
    assert (first.take(0), first.take(1)) == ([0], [1])  # the heavier one first
    # What is new goes where there is least to do: 5 characters of the known one at replica 0, so to replica 1.
    second = router.plan([request("aaaa2", 4), request("cccc2", 4), request("bb2", 2)])
    assert second.waiting == [1, 2]
    assert second.take(0) == [0]
    assert second.take(1) == [2, 1]


def test_a_shared_prefix_is_weighed_once() -> None:
    # Three texts of 100 + 1 characters with one prefix: 103; two texts of 60 alone: 60 each.
    texts = [request("a" * 100 + str(index), 100) for index in range(3)]
    plan = Router(2).plan([*texts, request("b" * 60), request("c" * 60)])
    assert plan.waiting == [3, 2]  # the second text of 60 goes to replica 1, which then has 60, not 103, to do


def test_batches_are_half_of_what_waits_and_no_larger_than_the_most() -> None:
    plan = Plan([[list(range(1000))], []])
    assert [len(plan.take(0)) for _ in range(3)] == [MOST, MOST, 244]  # 500 -> 256, 372 -> 256, 488 / 2
    assert plan.waiting == [244, 0]


def test_small_rests_are_not_cut() -> None:
    plan = Plan([[list(range(LEAST))]])
    assert len(plan.take(0)) == LEAST
    assert plan.take(0) == []


def test_an_idle_replica_takes_from_the_end_of_the_longest_queue() -> None:
    plan = Plan([[[0, 1], [2]], [], [[3]]])
    assert plan.take(1) == [2, 0, 1]
    assert plan.waiting == [0, 0, 1]


def test_everything_is_asked_once_also_after_a_batch_came_back() -> None:
    plan = Router(3).plan([request(f"{index % 5}{'x' * index}", 1) for index in range(500)])
    lost = plan.take(1)
    plan.give_back(1, lost)
    found = everything(plan, 0)
    assert sorted(found) == list(range(500))
    assert plan.waiting == [0, 0, 0]


def test_the_oldest_prefixes_are_forgotten() -> None:
    router = Router(2, remembered=1)
    router.plan([request("aaaa", 4)])
    router.plan([request("bbbbbbbb", 8)])
    assert list(router._home) == ["bbbbbbbb"]
