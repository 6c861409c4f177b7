"""Pseudo-hints for Directional Stimulus: what a hint for an input could be, from its text and its gold answer.

An extractor is a pure function of (document, reference, arguments) and returns the hint's parts in order; it learns
nothing and draws nothing. A policy is warmed up on such hints of the train split (SFT), and then trained by RL.

Reference: Li et al. 2023, arXiv:2302.11520, whose pseudo-hints are TextRank keywords of the article that stand in the
summary as well.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from rlprompt.errors import ConfigError, UnknownNameError, did_you_mean
from rlprompt.types import Example

Extractor: TypeAlias = Callable[..., tuple[str, ...]]

SEPARATOR = "; "
"""Between the parts of a hint, as published."""

_STOP_TEXT = """
a about above across after again against ago all almost along already also although always am among an and another
any anyone anything are aren't around as at away back be became because been before being below between both but by
came can can't cannot could couldn't did didn't do does doesn't doing don't done down during each either else even
ever every everyone everything few for from further gave get gets getting given go goes going gone got had hadn't
has hasn't have haven't having he he'd he'll he's hence her here here's hers herself him himself his how however i
i'd i'll i'm i've if in indeed instead into is isn't it it's its itself just keep kept last least less let let's
like made make makes making many may maybe me might mine more most much must my myself near neither never next no
nobody none nor not nothing now of off often on once one only onto or other others otherwise our ours ourselves out
over own per perhaps put quite rather really said same saw say says see seem seemed seems seen several shall she
she'd she'll she's should shouldn't since so some someone something sometimes still such take taken than that
that's the their theirs them themselves then there there's therefore these they they'd they'll they're they've this
those though through thus to told together too took toward towards two under until up upon us use used using very
via was wasn't way we we'd we'll we're we've well went were weren't what what's when where whether which while who
who's whom whose why will with within without won't would wouldn't yes yet you you'd you'll you're you've your
yours yourself yourselves
"""
STOP_WORDS = frozenset(_STOP_TEXT.split())
"""English words that name nothing; a hint of them says nothing."""

WORD = re.compile(r"[^\W_]+(?:['\N{RIGHT SINGLE QUOTATION MARK}\-.,][^\W_]+)*")
"""Letters and digits of any script, with apostrophes, hyphens, points and commas between them ("O'Neill", "1,000")."""
_BREAK = re.compile(r"[.!?;:](?=\s|$)|[()\[\]\"\n]|,\s|\s[-\N{EN DASH}\N{EM DASH}]\s")


def extractor_names() -> list[str]:
    """Returns the registered names."""
    return sorted(EXTRACTORS)


def check_extractor(name: str, arguments: Mapping[str, Any] | None = None) -> None:
    """Checks a configured extractor before it is used.

    Raises:
        UnknownNameError: nothing is registered under the name.
        ConfigError: an argument that it does not have.
    """
    if name not in EXTRACTORS:
        raise UnknownNameError("extractor", name, EXTRACTORS)
    parameters = list(inspect.signature(EXTRACTORS[name]).parameters)[2:]
    for key in arguments or {}:
        if key not in parameters:
            raise ConfigError(f"extractor '{name}' has no argument '{key}'{did_you_mean(key, parameters)}")


def extract_hint(name: str, example: Example, **arguments: Any) -> str:
    """Returns the pseudo-hint of one example: the extractor's parts with "; " between them; "" where it finds none.

    Args:
        name: a registered extractor.
        example: its input is the document, its reference the text that the target should write.
        **arguments: of the extractor.

    Raises:
        ConfigError: as `check_extractor`, or an example without a text as reference.
    """
    check_extractor(name, arguments)
    if not isinstance(example.reference, str):
        raise ConfigError(f"extractor '{name}': {example.id} has no text as reference, got {example.reference!r}")
    return SEPARATOR.join(EXTRACTORS[name](example.input, example.reference, **arguments))


def keywords(document: str, reference: str, *, n: int = 6, phrase_words: int = 3) -> tuple[str, ...]:
    """Words and short phrases of the reference that the document has too, in the order of the reference.

    Phrases are runs of content words (no stop word, no mark between them) of at most `phrase_words` words that stand
    in the document in the same way; the longest are taken first, and their words are not used again. Ranked by words,
    then names and numbers, then how often the document has them, then by the order in the reference; the best n stay.

    Args:
        document: the input.
        reference: the gold answer.
        n: most parts, at least 1.
        phrase_words: most words of a phrase, at least 1.

    >>> keywords("Storm Doris hit Leeds. The storm cut power.", "Power was cut as Storm Doris hit the north.")
    ('Power', 'cut', 'Storm Doris hit')
    """
    _check_at_least_one(n=n, phrase_words=phrase_words)
    runs = list(_runs(document))
    spans = Counter(
        " ".join(run[first : first + size]).casefold()
        for run in runs
        for size in range(1, phrase_words + 1)
        for first in range(len(run) - size + 1)
    )
    found: dict[str, tuple[int, str]] = {}
    place = 0
    for run in _runs(reference):
        for phrase in _longest_known(run, spans, phrase_words):
            found.setdefault(phrase.casefold(), (place, phrase))
            place += 1
    ranked = sorted(
        found.items(),
        key=lambda item: (-len(item[0].split()), not _is_name(item[1][1]), -spans[item[0]], item[1][0]),
    )
    return tuple(phrase for _, phrase in sorted(entry for _, entry in ranked[:n]))


def shared_words(document: str, reference: str, *, n: int = 8) -> tuple[str, ...]:
    """`keywords` without phrases: the best n single content words of the reference that the document has too.

    >>> shared_words("The storm cut power in Leeds.", "Leeds lost power in a storm.")
    ('Leeds', 'power', 'storm')
    """
    return keywords(document, reference, n=n, phrase_words=1)


def textrank(document: str, reference: str, *, n: int = 6, window: int = 4) -> tuple[str, ...]:
    """The words of the document that TextRank ranks highest and the reference has too, in the order of the reference.

    Reference: Mihalcea and Tarau 2004, "TextRank: Bringing Order into Texts": words that stand less than `window`
    words apart are neighbours, a word's rank is (1 - d) + d times the sum of its neighbours' shares with d = 0.85.

    Args:
        document: the input.
        reference: the gold answer.
        n: most words, at least 1.
        window: at least 2.
    """
    _check_at_least_one(n=n, window=window - 1)
    ranks = _ranks([word.casefold() for run in _runs(document) for word in run], window)
    first: dict[str, tuple[int, str]] = {}
    for place, word in enumerate(word for run in _runs(reference) for word in run):
        if word.casefold() in ranks:
            first.setdefault(word.casefold(), (place, word))
    # Rounded: the last bits of a sum must not decide between words of equal rank.
    best = sorted(first.items(), key=lambda item: (-round(ranks[item[0]], 9), item[1][0]))[:n]
    return tuple(word for _, word in sorted(entry for _, entry in best))


def hint_keywords(reference: str) -> tuple[str, ...]:
    """Returns the different content words of a gold answer, case-folded, in order: what a hint can hit.

    They are what the step reward of `rlprompt.envs.keywords` pays for.

    >>> hint_keywords("The storm cut power in Leeds and cut the lines.")
    ('storm', 'cut', 'power', 'leeds', 'lines')
    """
    return tuple(dict.fromkeys(word.casefold() for run in _runs(reference) for word in run))


EXTRACTORS: dict[str, Extractor] = {
    "keywords": keywords,
    "shared-words": shared_words,
    "textrank": textrank,
}
"""Name -> function of (document, reference) and keyword arguments."""


def _runs(text: str) -> Iterable[tuple[str, ...]]:
    """Runs of content words: nothing but spaces stands between the words of one."""
    for part in _BREAK.split(text):
        run: list[str] = []
        for word in WORD.findall(part):
            plain = word.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
            if plain.casefold() in STOP_WORDS or (len(plain) == 1 and not plain.isdigit()):
                if run:
                    yield tuple(run)
                run = []
            else:
                run.append(plain.removesuffix("'s"))
        if run:
            yield tuple(run)


def _longest_known(run: Sequence[str], known: Mapping[str, int], most: int) -> Iterable[str]:
    """Cuts a run, from its beginning, into the longest phrases that are known; other words fall away."""
    first = 0
    while first < len(run):
        sizes = range(min(most, len(run) - first), 0, -1)
        size = next((size for size in sizes if known.get(" ".join(run[first : first + size]).casefold())), 0)
        if size:
            yield " ".join(run[first : first + size])
        first += max(size, 1)


def _is_name(phrase: str) -> bool:
    return any(word[0].isupper() or word[0].isdigit() for word in phrase.split())


def _ranks(words: Sequence[str], window: int, *, damping: float = 0.85, rounds: int = 50) -> dict[str, float]:
    neighbours: dict[str, dict[str, None]] = {word: {} for word in words}
    for place, word in enumerate(words):
        for other in words[place + 1 : place + window]:
            if other != word:
                neighbours[word][other] = None
                neighbours[other][word] = None
    ranks = dict.fromkeys(neighbours, 1.0)
    for _ in range(rounds):
        ranks = {
            word: (1 - damping) + damping * sum(ranks[other] / len(neighbours[other]) for other in beside)
            for word, beside in neighbours.items()
        }
    return ranks


def _check_at_least_one(**values: int) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            least = 2 if name == "window" else 1
            raise ConfigError(f"extractor: {name} must be an integer of at least {least}")
