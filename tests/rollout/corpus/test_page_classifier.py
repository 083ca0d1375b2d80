"""The classifier beside its formula, restated with a dictionary of n-grams."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.utils import murmurhash3_32

from rollout.corpus.page_classifier import BUCKETS, PageClassifier, train_classifier


def ngrams(text: str) -> Counter[int]:
    """Buckets of the runs of 1 to 3 words and symbols, by MurmurHash3."""
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    runs = (" ".join(words[start : start + size]) for size in (1, 2, 3) for start in range(len(words) - size + 1))
    return Counter(abs(murmurhash3_32(run)) % BUCKETS for run in runs)


def test_a_score_is_the_product_of_weights_and_counts_of_length_1() -> None:
    weights = np.random.default_rng(0).normal(size=BUCKETS).astype(np.float32)
    texts = ["Let $x=2$, then x = 2.", "one", "Füße und\tFüße"]
    for score, text in zip(PageClassifier(weights, 0.5).scores(texts), texts, strict=True):
        counts = ngrams(text)
        length = math.sqrt(sum(count**2 for count in counts.values()))
        expected = 0.5 + sum(float(weights[bucket]) * count / length for bucket, count in counts.items())
        assert score == pytest.approx(expected, abs=1e-5)  # sums of up to 30 terms of about 1 in float32


def test_a_score_does_not_depend_on_the_pages_beside_it() -> None:
    classifier = PageClassifier(np.random.default_rng(1).normal(size=BUCKETS).astype(np.float32), 0.0)
    texts = [f"page {number} has words and {number} numbers" for number in range(50)]
    together = classifier.scores(texts)
    assert together.tolist() == [classifier.scores([text])[0] for text in texts]


def write(path: Path, examples: list[tuple[int, str]]) -> Path:
    path.write_text("".join(json.dumps(example) + "\n" for example in examples), encoding="utf-8")
    return path


def test_words_tell_positives_and_what_two_pages_have_tells_nothing(tmp_path: Path) -> None:
    examples = [(label, f"{word} {number}") for label, word in ((1, "proof"), (0, "soup")) for number in range(60)]
    examples += [(1, "thrice")] * 3 + [(1, "twice")] * 2
    classifier = train_classifier(write(tmp_path / "examples", examples), seed=0)
    proof, soup, thrice, twice = (
        classifier.weights[next(iter(ngrams(w)))] for w in ("proof", "soup", "thrice", "twice")
    )
    assert proof > 1 and soup < -1 and thrice > 0 and twice == 0


def test_blocks_and_seeds_decide_on_the_order_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stochastic gradient descent takes a page at a time, so that cutting the order into other blocks changes nothing."""
    examples = write(tmp_path / "examples", [(n % 2, f"a{n % 7} b{n % 5}") for n in range(200)])
    found = train_classifier(examples, seed=3)
    assert not np.array_equal(train_classifier(examples, seed=4).weights, found.weights)
    found.save(tmp_path / "saved")
    again = PageClassifier.load(tmp_path / "saved")
    assert np.array_equal(again.weights, found.weights) and again.intercept == found.intercept
    assert np.array_equal(train_classifier(examples, seed=3).weights, found.weights)
