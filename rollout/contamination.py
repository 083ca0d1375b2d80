"""Finds problems and texts that also stand in another data set, by n-grams of words as for GPT-3 (arXiv 2005.14165, appendix C)."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from rollout.records import Problem

NGRAM = 13  # words
SHORTEST = 3  # words of a text that is looked for as a whole
Words = tuple[str, ...]
_WORD = re.compile(r"\w+")


def contaminated(problems: Sequence[Problem], others: Sequence[Problem], size: int = NGRAM) -> dict[str, str]:
    """Problem id -> an n-gram that the problem shares with one of the others. A shorter prompt counts as one n-gram.

    An n-gram that at least a tenth of either data set has, and at least three of its problems, belongs to a template and is ignored.
    """
    held = [set(ngrams(problem, size)) for problem in problems]
    seen = [set(ngrams(problem, size)) for problem in others]
    common = _of_a_tenth(held) | _of_a_tenth(seen)
    elsewhere = set[Words]().union(*seen) - common
    shared = {p.id: min(own & elsewhere) for p, own in zip(problems, held, strict=True) if own & elsewhere}
    return {name: " ".join(words) for name, words in shared.items()}


class NGramIndex:
    """Runs of words of test sets, to look for in a stream of other texts.

    A text of at least `size` words is held as its n-grams. A shorter one of 3 words or more is looked for as a whole, as DeepSeekMath
    does with n = 10 (arXiv 2402.03300, section 2.1); s1 has n = 8 (arXiv 2501.19393, section 2.1). An n-gram that at least a tenth of
    a set's texts have, and at least three of them, belongs to a template and is not held.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.by_length: defaultdict[int, set[Words]] = defaultdict(set)

    def add(self, texts: Iterable[str]) -> None:
        """Adds the texts of one set."""
        runs = [words_of(text) for text in texts]
        held = [set(runs_of(words, self.size)) for words in runs if len(words) >= SHORTEST]
        for run in set[Words]().union(*held) - _of_a_tenth(held):
            self.by_length[len(run)].add(run)

    def found_in(self, text: str) -> str | None:
        """The first run of words that the text shares with the sets; None if there is none."""
        words = words_of(text)
        for length, held in self.by_length.items():
            if not held.isdisjoint(windows(words, length)):
                return " ".join(next(run for run in windows(words, length) if run in held))
        return None


def _of_a_tenth(sets: Sequence[set[Words]]) -> set[Words]:
    counts = Counter(gram for grams in sets for gram in grams)
    return {gram for gram, count in counts.items() if count >= max(3, len(sets) / 10)}


def ngrams(problem: Problem, size: int) -> Iterator[Words]:
    return runs_of(words_of("\n".join(message["content"] for message in problem.messages)), size)


def words_of(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def runs_of(words: list[str], size: int) -> Iterator[Words]:
    """The n-grams; all words as one, if there are fewer."""
    return windows(words, min(size, len(words)))


def windows(words: list[str], size: int) -> Iterator[Words]:
    return zip(*(words[start:] for start in range(size))) if size else iter([()])
