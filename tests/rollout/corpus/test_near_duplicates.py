"""Near duplicates beside all pairs of sets, compared one by one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from rollout.corpus import near_duplicates
from rollout.corpus.near_duplicates import HASHES, Signatures, signatures


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[start : start + 5]) for start in range(max(1, len(words) - 4))}


def jaccard(one: set, other: set) -> float:
    return len(one & other) / len(one | other)


def with_changes(text: str, count: int, draw: random.Random) -> str:
    words = text.split()
    for place in draw.sample(range(len(words)), count):
        words[place] = f"other{draw.random()}".replace(".", "")
    return " ".join(words)


def made_texts(draw: random.Random) -> list[str]:
    texts: list[str] = []
    for _ in range(30):
        base = " ".join(f"w{draw.randrange(10_000)}" for _ in range(200))
        texts += [base, *(with_changes(base, count, draw) for count in (1, 2, 40))]
    draw.shuffle(texts)
    return [*texts, "too short", "too short", "also short"]


def stored(folder: Path, parts: Sequence[Sequence[str]]) -> Signatures:
    files = [folder / str(number) for number in range(len(parts))]
    for file, texts in zip(files, parts, strict=True):
        file.write_bytes(b"".join(signature.tobytes() for signature in signatures(texts)))
    return Signatures(files)


def test_the_share_of_equal_hashes_estimates_the_similarity_of_the_sets() -> None:
    """Of 112 hashes the share has a standard deviation of at most sqrt(0.25 / 112) = 0.047; over 100 pairs the mean's is 0.0047."""
    draw = random.Random(0)
    errors = []
    for count in range(100):
        base = " ".join(f"w{draw.randrange(10_000)}" for _ in range(200))
        other = with_changes(base, count % 25, draw)
        one, two = signatures([base, other])
        assert one.shape == (HASHES,) and one.dtype == np.uint32
        errors.append((one == two).mean() - jaccard(shingles(base), shingles(other)))
    assert max(map(abs, errors)) < 4 * 0.047 and abs(np.mean(errors)) < 4 * 0.0047


@pytest.mark.parametrize("at_once", [1 << 16, 7])
def test_pages_that_resemble_an_earlier_one_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """One or two changed words of 200 leave at least 186 of 206 shingles (0.9): missed with probability below (1 - 0.9^8)^14 = 0.0004.
    With 40 changes less than half is left. The first of a family stays."""
    monkeypatch.setattr(near_duplicates, "AT_ONCE", at_once)
    texts = made_texts(random.Random(1))
    found = near_duplicates.near_duplicates(
        stored(tmp_path, [texts[:50], [], texts[50:]]), among=np.ones(len(texts), bool)
    )
    sets = [shingles(text) for text in texts]
    for number, own in enumerate(sets):
        most = max((jaccard(own, earlier) for earlier in sets[:number]), default=0.0)
        assert most >= 0.8 or most < 0.6
        assert found[number] == (most >= 0.8), number


def test_pages_that_are_left_out_already_are_no_originals(tmp_path: Path) -> None:
    text = " ".join(f"w{number}" for number in range(50))
    among = np.array([False, True, True, False])
    found = near_duplicates.near_duplicates(stored(tmp_path, [[text] * 4]), among)
    assert found.tolist() == [False, False, True, False]


def test_pages_that_share_a_band_are_compared_in_all_hashes(tmp_path: Path) -> None:
    """Of 112 hashes 84 are 3 in 4. The second page has 84 of the first one's and the third 83, each its first band."""
    rows = np.arange(3 * HASHES, dtype=np.uint32).reshape(3, HASHES)
    rows[1, :84], rows[2, :83] = rows[0, :84], rows[0, :83]
    (tmp_path / "0").write_bytes(rows.tobytes())
    found = near_duplicates.near_duplicates(Signatures([tmp_path / "0"]), np.ones(3, bool))
    assert found.tolist() == [False, True, False]
