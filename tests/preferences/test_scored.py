"""The builders that let scores decide, on candidates whose pairs are worked out by hand."""

import math
from typing import Any

import pytest

from rlprompt.errors import ConfigError, UnknownNameError
from rlprompt.preferences import Built, Candidate, PreferencePair, build_pairs, ranked_rows


def _c(text: str, reward: float | None = None, *, index: int = 0, example: str = "train/0", **more: Any) -> Candidate:
    scores = more.pop("scores", {})
    return Candidate(
        text, scores, reward, example_id=example, input=f"input of {example}" if example else "", index=index, **more
    )


def _texts(built: Built) -> list[tuple[str, str]]:
    return [(pair.chosen, pair.rejected) for pair in built.pairs]


GROUP = [_c("low", 0.1, index=0), _c("high", 0.9, index=1), _c("middle", 0.5, index=2), _c("twin", 0.9, index=3)]


def test_best_and_worst_of_each_example() -> None:
    other = [_c("a", 1.0, example="train/1"), _c("b", 2.0, example="train/1", index=1)]
    built = build_pairs("best-worst", [*GROUP, *other])
    assert _texts(built) == [("high", "low"), ("b", "a")]  # of the equal ones, "high" came before "twin"
    first = built.pairs[0]
    assert (first.input, first.context, first.example_id, first.source) == (
        "input of train/0",
        None,
        "train/0",
        "best-worst",
    )
    assert first.margin == pytest.approx(0.8)
    assert (first.chosen_scores, first.rejected_scores, first.weight) == ({"reward": 0.9}, {"reward": 0.1}, 1.0)
    assert (built.num_groups, built.num_candidates, built.num_unusable, built.ties) == (2, 6, 0, 0)


def test_at_task_level_the_whole_task_is_one_group() -> None:
    built = build_pairs("best-worst", [_c("a", 1.0, example=""), _c("b", 3.0, example="", iteration=7)])
    assert _texts(built) == [("b", "a")]
    assert (built.pairs[0].input, built.pairs[0].example_id) == ("", "")


def test_iterations_can_be_compared_apart() -> None:
    rows = [("a", 1.0, 0), ("b", 3.0, 0), ("a", 1.0, 1), ("c", 0.0, 1), ("a", 1.0, 2), ("c", 0.0, 2)]
    candidates = [_c(text, reward, iteration=iteration, example="") for text, reward, iteration in rows]
    built = build_pairs("best-worst", candidates, per_iteration=True)
    assert _texts(built) == [("b", "a"), ("a", "c")]
    assert [pair.columns for pair in built.pairs] == [{"iteration": 0}, {"iteration": 1}]
    assert (built.num_groups, built.num_repeated) == (3, 1)  # iteration 2 finds the pair of iteration 1 again


def test_a_text_that_was_scored_twice_has_the_mean_over_its_answers() -> None:
    # "a": (1 answer of 0.0, 3 answers of 1.0) -> 0.75, above 0.7; each alone would put "b" elsewhere
    candidates = [
        _c("a", 0.0, example="", count=1),
        _c("b", 0.7, example="", index=1),
        _c("a", 1.0, example="", iteration=1, count=3),
        _c("a", 9.0, example="", iteration=2, failed=True),
    ]
    (pair,) = build_pairs("best-worst", candidates).pairs
    assert (pair.chosen, pair.chosen_scores) == ("a", {"reward": 0.75})


def test_merging_does_not_break_a_tie() -> None:
    # (0.1 + 0.1 + 0.1) / 3 is not 0.1 in floating point
    candidates = [_c("a", 0.1, example="", iteration=number) for number in range(3)] + [_c("b", 0.1, example="")]
    assert build_pairs("best-worst", candidates).ties == 1


@pytest.mark.parametrize("builder", ["best-worst", "margin", "merit", "slots"])
def test_ties_make_no_pairs(builder: str) -> None:
    tied = [_c("Tell me one thing.", 0.3), _c("Tell me two things.", 0.1 + 0.2, index=1)]  # 0.30000000000000004
    built = build_pairs(builder, tied)
    assert (built.pairs, built.ties, built.without_pair) == ((), 1, {"tie": 1})


def test_all_tied_scores_of_a_run_make_no_pairs() -> None:
    candidates = [_c(f"text {number}", 1.0, example=f"train/{number % 4}", index=number) for number in range(12)]
    for candidate in candidates:
        object.__setattr__(candidate, "scores", {"gap": 1.0, "judge": 2.0})
    for builder, arguments in (("best-worst", {}), ("dominance", {}), ("self-judged", {"score": "judge"})):
        built = build_pairs(builder, candidates, **arguments)
        assert (built.pairs, built.ties) == ((), 4)
        assert built.why_empty() == "4 groups with 12 candidates, 0 of them unusable: 4 x tie"


@pytest.mark.parametrize("spoilt", [None, math.nan, math.inf])
@pytest.mark.parametrize("builder", ["best-worst", "margin", "merit", "slots"])
def test_a_candidate_without_a_number_or_with_a_failure_is_in_no_pair(builder: str, spoilt: float | None) -> None:
    candidates = [
        _c("Tell me all the rules.", 0.9),
        _c("Tell me some rules.", 0.1, index=1),
        _c("Tell me most of the rules.", spoilt, index=2),
        _c("Tell me no rules.", 99.0, index=3, failed=True),
    ]
    built = build_pairs(builder, candidates, **({"checks": ["short"]} if builder == "merit" else {}))
    assert _texts(built) == [("Tell me all the rules.", "Tell me some rules.")]
    assert built.num_unusable == 2
    alone = build_pairs(builder, candidates[:1] + candidates[2:])
    assert alone.without_pair == {"fewer than two usable candidates": 1}


def test_one_criterion_can_decide_alone() -> None:
    candidates = [_c("a", 1.0, scores={"gap": 5.0, "length": 1.0}), _c("b", 2.0, scores={"gap": 4.0, "length": 3.0})]
    (pair,) = build_pairs("best-worst", candidates, score="gap").pairs
    assert (pair.chosen, pair.margin) == ("a", 1.0)
    assert pair.chosen_scores == {"reward": 1.0, "gap": 5.0, "length": 1.0}


THREE = [
    _c("best", index=0, scores={"gap": 3.0, "fluency": 2.0}),
    _c("equal-in-one", index=1, scores={"gap": 3.0, "fluency": 1.0}),
    _c("other-strength", index=2, scores={"gap": 4.0, "fluency": 0.0}),
    _c("worst", index=3, scores={"gap": 1.0, "fluency": 0.0}),
]


def test_dominance_needs_all_criteria_at_least_equal_and_one_better() -> None:
    built = build_pairs("dominance", THREE, n=9)
    # margins: best over worst 2 + 2; equal-in-one over worst 2 + 1; other-strength over worst 3 + 0; best over
    # equal-in-one 0 + 1. best and other-strength: one better in each.
    assert [(*texts, pair.margin) for texts, pair in zip(_texts(built), built.pairs, strict=True)] == [
        ("best", "worst", 4.0),
        ("equal-in-one", "worst", 3.0),
        ("other-strength", "worst", 3.0),
        ("best", "equal-in-one", 1.0),
    ]


def test_dominance_makes_at_most_n_pairs_a_group() -> None:
    assert _texts(build_pairs("dominance", THREE)) == [("best", "worst")]
    assert len(build_pairs("dominance", THREE, n=3).pairs) == 3


def test_dominance_turns_round_criteria_with_a_negative_weight_and_leaves_out_recorded_ones() -> None:
    candidates = [
        _c("short", index=0, scores={"gap": 1.0, "length": 3.0, "noted": 0.0}),
        _c("long", index=1, scores={"gap": 1.0, "length": 9.0, "noted": 5.0}),
    ]
    weights = {"gap": 1.0, "length": -0.5, "noted": 0.0}
    (pair,) = build_pairs("dominance", candidates, reward_weights=weights).pairs
    assert (pair.chosen, pair.margin) == ("short", pytest.approx(0.5 * 6))
    named = build_pairs("dominance", candidates, reward_weights=weights, criteria=["noted"])
    assert _texts(named) == [("long", "short")]


def test_dominance_over_the_original_needs_it_between_the_two() -> None:
    original = _c("input of train/0", index=9, scores={"gap": 3.0, "fluency": 1.0})
    built = build_pairs("dominance", [*THREE, original], over_original=True, n=9)
    # over (3, 1): best; under it: worst. equal-in-one equals it, other-strength is not comparable.
    assert _texts(built) == [("best", "worst")]
    missing = build_pairs("dominance", THREE, over_original=True)
    assert missing.without_pair == {"the original was not scored": 1}


def test_dominance_leaves_out_candidates_that_lack_a_criterion() -> None:
    candidates = [*THREE[:2], _c("half", index=4, scores={"gap": 9.0, "fluency": None})]
    built = build_pairs("dominance", candidates, n=9)
    assert (_texts(built), built.num_unusable) == ([("best", "equal-in-one")], 1)
    assert build_pairs("dominance", THREE[:3:2]).without_pair == {"no candidate dominates another": 1}
    assert build_pairs("dominance", GROUP).without_pair == {"no criteria": 1}


def test_dominance_over_many_candidates_finds_the_widest_gap() -> None:
    candidates = [
        _c(f"p{number}", index=number, example="", scores={"a": float(number), "b": float(number % 7)})
        for number in range(500)
    ]
    # b is at most 6: the widest is 496 (b = 6) or 499 (b = 2) over 0: 496 + 6 = 502, 499 + 2 = 501, 498 + 1
    assert _texts(build_pairs("dominance", candidates, n=2)) == [("p496", "p0"), ("p499", "p0")]


METRICS = [
    _c("one two three four", 0.0, index=0, scores={"vq": 3.0, "aes": 6.0}),
    _c("one two", 0.0, index=1, scores={"vq": 2.8, "aes": 6.0}),
    _c("three", 0.0, index=2, scores={"vq": 2.0, "aes": 7.0}),
    _c("four", 0.0, index=3, scores={"vq": 1.0, "aes": 5.0}),
]


def test_margin_with_weights_floors_and_the_two_best() -> None:
    # 1.1 vq + aes: 9.3, 9.08, 9.2, 6.1; the third is below the floor of vq
    arguments: dict[str, Any] = {"weights": {"vq": 1.1, "aes": 1.0}, "floors": {"vq": 2.8, "aes": 5.5}, "margin": 1.4}
    two = build_pairs("margin", METRICS, top=2, **arguments)
    assert _texts(two) == [("one two three four", "four"), ("one two", "four")]
    assert [pair.margin for pair in two.pairs] == pytest.approx([3.2, 2.98])
    assert _texts(build_pairs("margin", METRICS, **arguments)) == [("one two three four", "four")]
    assert _texts(build_pairs("margin", METRICS, max_words=3, **arguments)) == [("one two", "four")]
    assert build_pairs("margin", METRICS, **{**arguments, "floors": {"vq": 3.1}}).without_pair == {"below a floor": 1}
    assert _texts(build_pairs("margin", METRICS, ceilings={"aes": 6.0}, weights={"aes": 1.0})) == [
        ("one two three four", "four")
    ]


def test_the_margin_itself_is_not_enough() -> None:
    candidates = [_c("a", 1.5), _c("b", 0.5, index=1)]
    assert build_pairs("margin", candidates, margin=1.0).without_pair == {"within the margin": 1}
    assert _texts(build_pairs("margin", candidates, margin=0.99)) == [("a", "b")]


def test_a_candidate_without_one_of_the_weighted_metrics_is_left_out() -> None:
    candidates = [*METRICS[:2], _c("none", 0.0, index=4, scores={"vq": math.nan, "aes": 0.0})]
    built = build_pairs("margin", candidates, weights={"vq": 1.0, "aes": 1.0})
    assert (_texts(built), built.num_unusable) == ([("one two three four", "one two")], 1)


def test_merit_chooses_the_best_text_with_all_merits() -> None:
    naive = 'Explain "left join" with 3 tables.'
    candidates = [
        Candidate(text, reward=reward, example_id="train/0", input=naive, index=index)
        for index, (text, reward) in enumerate(
            [
                ('Sure, here is it: explain the "left join" with 3 tables.', 0.9),
                ('Explain step by step what a "left join" with 3 tables returns.', 0.7),
                ('Explain a "left join" with three tables.', 0.8),
                ("Joins?", 0.2),
            ]
        )
    ]
    (pair,) = build_pairs("merit", candidates).pairs
    assert (pair.chosen, pair.rejected) == (candidates[1].text, "Joins?")
    assert pair.margin == pytest.approx(0.5)
    (loose,) = build_pairs("merit", candidates, checks=["keeps-quotes"]).pairs
    assert loose.chosen == candidates[0].text
    short = build_pairs("merit", candidates, checks=["short"], max_words=1)
    assert short.without_pair == {"no better candidate has all merits": 1}


def test_self_judged_pairs_follow_the_judge_and_not_the_reward() -> None:
    candidates = [
        _c("liked", 0.1, index=0, scores={"judge": 9.0}),
        _c("right", 0.9, index=1, scores={"judge": 4.0}),
        _c("no verdict", 0.0, index=2, scores={"judge": None}),
    ]
    built = build_pairs("self-judged", candidates, score="judge")
    assert (_texts(built), built.pairs[0].margin, built.num_unusable) == ([("liked", "right")], 5.0, 1)
    assert built.pairs[0].chosen_scores == {"reward": 0.1, "judge": 9.0}
    assert "judge" not in build_pairs("best-worst", candidates).pairs[0].rejected_scores


def test_weights_are_gaps_over_their_mean() -> None:
    candidates = [
        candidate
        for number, gap in enumerate((1.0, 2.0, 6.0))
        for candidate in (_c("a", gap, example=f"train/{number}"), _c("b", 0.0, example=f"train/{number}", index=1))
    ]
    pairs = build_pairs("best-worst", candidates, weight_by="gap").pairs
    assert [pair.weight for pair in pairs] == pytest.approx([1 / 3, 2 / 3, 2.0])  # mean gap 3


@pytest.mark.parametrize(
    ("builder", "arguments"),
    [("best-worst", {}), ("dominance", {"n": 5}), ("margin", {"top": 2}), ("merit", {}), ("slots", {})],
)
def test_the_order_of_the_candidates_has_no_part_in_the_result(builder: str, arguments: dict[str, Any]) -> None:
    candidates = [
        Candidate(
            f"text number {number % 11}",
            {"gap": float(number % 5), "fluency": float(number % 3)},
            float(number % 4),
            example_id=f"train/{number % 3}",
            input="Say it.",
            iteration=number // 10,
            index=number % 10,
        )
        for number in range(60)
    ]
    expected = build_pairs(builder, candidates, **arguments)
    shuffled = sorted(candidates, key=lambda candidate: (candidate.text[::-1], candidate.index))
    assert build_pairs(builder, candidates[::-1], **arguments) == expected
    assert build_pairs(builder, shuffled, **arguments) == expected
    assert len({pair.id for pair in expected.pairs}) == len(expected.pairs)


def test_an_id_follows_from_the_pair() -> None:
    first, again = (build_pairs("best-worst", GROUP).pairs[0] for _ in range(2))
    other = build_pairs("best-worst", [_c("low", 0.2), _c("high", 7.0, index=1)]).pairs[0]
    assert first.id == again.id == other.id  # scores are no part of it
    assert build_pairs("best-worst", [_c("low", 0.1), _c("higher", 0.9)]).pairs[0].id != first.id


@pytest.mark.parametrize(
    ("builder", "arguments", "message"),
    [
        ("best-wrost", {}, "unknown pair builder 'best-wrost'; did you mean 'best-worst'?"),
        ("best-worst", {"scor": "gap"}, "pair builder 'best-worst' has no argument 'scor'; did you mean 'score'?"),
        ("best-worst", {"score": "gapp"}, "unknown score 'gapp'; did you mean 'gap'?"),
        ("self-judged", {}, "pair builder 'self-judged' needs the argument 'score'"),
        ("dominance", {"n": 0}, "n must be an integer of at least 1, got 0"),
        ("dominance", {"criteria": "gap"}, "criteria must be a list of scores"),
        ("dominance", {"criteria": ["judge"]}, "unknown score 'judge'; known: fluency, gap, reward"),
        ("dominance", {"over_original": 1}, "over_original must be true or false, got 1"),
        ("margin", {"floors": {"gap": "high"}}, "floors.gap must be a number, got 'high'"),
        ("margin", {"floors": 3}, "floors must map scores to numbers"),
        ("margin", {"floors": {"gp": 3}}, "unknown score 'gp'; did you mean 'gap'?"),
        ("margin", {"margin": -1}, "margin must be a number of at least 0, got -1"),
        ("margin", {"top": 1.5}, "top must be an integer of at least 1, got 1.5"),
        ("merit", {"checks": ["claer"]}, "unknown merit check 'claer'; did you mean 'clear'?"),
        ("merit", {"checks": "clear"}, "checks must be a list of names"),
        ("best-worst", {"weight_by": "rank"}, "weight_by must be gap, or left out; got 'rank'"),
        ("best-worst", {"per_iteration": "yes"}, "per_iteration must be true or false, got 'yes'"),
        ("best-worst", {"against": GROUP}, "takes one set of candidates; leave out the second one"),
    ],
)
def test_wrong_arguments_are_one_line(builder: str, arguments: dict[str, Any], message: str) -> None:
    candidates = [_c(text, 1.0, index=index, scores={"gap": 1.0, "fluency": 2.0}) for index, text in enumerate("ab")]
    with pytest.raises(ConfigError) as caught:
        build_pairs(builder, candidates, **arguments)
    assert message in str(caught.value)


def test_candidates_without_any_score_say_so() -> None:
    with pytest.raises(UnknownNameError, match="unknown score 'reward'; the candidates have none"):
        build_pairs("best-worst", [Candidate("a"), Candidate("b")])
    assert build_pairs("best-worst", []).why_empty() == "there are no candidates"


def test_every_pair_is_a_valid_pair() -> None:
    for pair in build_pairs("dominance", THREE, n=9).pairs:
        assert PreferencePair.from_json(pair.to_json()) == pair


def test_rankings_hold_all_texts_of_a_group_and_leave_out_what_ties() -> None:
    failed = _c("failed", 2.0, index=4, failed=True)
    tied = [_c("a", 1.0, example="train/1"), _c("b", 1.0, example="train/1", index=1)]
    alone = [_c("a", 1.0, example="train/2")]
    (row,) = ranked_rows([*GROUP, failed, *tied, *alone])
    assert row == {
        "id": "ranked-0",
        "input": "input of train/0",
        "texts": ["high", "twin", "middle", "low"],
        "scores": [0.9, 0.9, 0.5, 0.1],
        "example_id": "train/0",
    }
    assert ranked_rows([_c("x", scores={"judge": 1}), _c("y", scores={"judge": 2}, index=1)], score="judge")
