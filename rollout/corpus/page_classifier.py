"""A linear classifier of pages over hashed word n-grams, in place of fastText (arXiv 1607.01759). The only file that imports scikit-learn."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rewards.errors import UserError

try:
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import SGDClassifier
except ImportError:
    raise UserError(
        'a classifier of pages needs scikit-learn, which is not installed: pip install "plumbline-rl[mining]"'
    ) from None

NGRAMS = (1, 3)  # words in a row; this, the count and the epochs are DeepSeekMath's (arXiv 2402.03300, section 2.1)
MIN_COUNT = 3  # pages of the training set
EPOCHS = 3
BUCKETS = 1 << 21  # fastText has 2,000,000
TOKEN = r"\w+|[^\w\s]"  # words, and symbols, of which formulas consist
AT_ONCE = 512  # pages
_ngrams: Any = HashingVectorizer(
    ngram_range=NGRAMS,
    token_pattern=TOKEN,
    n_features=BUCKETS,
    alternate_sign=False,
    dtype=np.float32,  # pyright: ignore[reportArgumentType]
)


@dataclass(frozen=True)
class PageClassifier:
    """score(page) = w . x + b, the log-odds that a page is one of the seed; x: counts of hashed n-grams, of length 1."""

    weights: np.ndarray
    intercept: float

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        return (_ngrams.transform(texts) @ self.weights + self.intercept).astype(np.float32)

    def save(self, path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, weights=self.weights, intercept=self.intercept)

    @staticmethod
    def load(path: Path) -> PageClassifier:
        with np.load(path) as saved:
            return PageClassifier(saved["weights"], float(saved["intercept"]))


def train_classifier(examples: Path, seed: int) -> PageClassifier:
    """Trains on lines of [is positive, text] by stochastic gradient descent on the log loss, in an order that the seed shuffles.

    Differs from fastText: no layer of embeddings between n-grams and classes, n-grams of words that are rare are hashed too, and a bucket
    that fewer than MIN_COUNT pages have gets no weight. Only AT_ONCE texts are in memory.
    """
    starts = _starts_of_lines(examples)
    model: Any = SGDClassifier(loss="log_loss", alpha=1e-4, random_state=seed)
    counts = np.zeros(BUCKETS, np.uint32)
    draw = np.random.default_rng(seed)
    with examples.open("rb") as file:
        for epoch in range(EPOCHS):
            order = draw.permutation(len(starts))
            for begin in range(0, len(order), AT_ONCE):
                labels, texts = zip(*_lines_at(file, starts[order[begin : begin + AT_ONCE]]), strict=True)
                found = _ngrams.transform(texts)
                if epoch == 0:
                    counts += np.bincount(found.indices, minlength=BUCKETS).astype(np.uint32)
                model.partial_fit(found, labels, classes=[0, 1])
    weights = np.where(counts >= MIN_COUNT, model.coef_[0], 0.0)
    return PageClassifier(weights.astype(np.float32), float(model.intercept_[0]))


def _starts_of_lines(file: Path) -> np.ndarray:
    with file.open("rb") as lines:
        lengths = np.fromiter((len(line) for line in lines), np.int64)
    return np.cumsum(lengths) - lengths


def _lines_at(file: BinaryIO, starts: np.ndarray) -> Iterator[tuple[int, str]]:
    for start in starts:
        file.seek(start)
        label, text = json.loads(file.readline())
        yield label, text
