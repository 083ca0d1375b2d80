"""Finds problems of one data set that also stand in another, by n-grams of words as for GPT-3 (arXiv 2005.14165, appendix C)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from rollout.records import Problem

NGRAM = 13  # words
_WORD = re.compile(r"\w+")


def contaminated(problems: Sequence[Problem], others: Sequence[Problem], size: int = NGRAM) -> dict[str, str]:
    """Problem id -> an n-gram that the problem shares with one of the others. A shorter prompt counts as one n-gram.

    An n-gram that at least a tenth of either data set has, and at least three of its problems, belongs to a template and is ignored.
    """
    held = [set(ngrams(problem, size)) for problem in problems]
    seen = [set(ngrams(problem, size)) for problem in others]
    common = _of_a_tenth(held) | _of_a_tenth(seen)
    elsewhere = set[tuple[str, ...]]().union(*seen) - common
    shared = {p.id: min(own & elsewhere) for p, own in zip(problems, held, strict=True) if own & elsewhere}
    return {name: " ".join(words) for name, words in shared.items()}


def _of_a_tenth(sets: Sequence[set[tuple[str, ...]]]) -> set[tuple[str, ...]]:
    counts = Counter(gram for grams in sets for gram in grams)
    return {gram for gram, count in counts.items() if count >= max(3, len(sets) / 10)}


def ngrams(problem: Problem, size: int) -> Iterator[tuple[str, ...]]:
    words = _WORD.findall("\n".join(message["content"] for message in problem.messages).lower())
    for start in range(max(1, len(words) - size + 1)):
        yield tuple(words[start : start + size])
