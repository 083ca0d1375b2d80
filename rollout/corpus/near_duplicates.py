"""Near duplicates by MinHash and locality-sensitive hashing, with the numbers of FineWeb (arXiv 2406.17557). The only file
that imports datasketch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from zlib import crc32

import numpy as np

from rewards.errors import UserError
from rollout.contamination import runs_of, words_of

try:
    from datasketch import MinHash
except ImportError:
    raise UserError(
        'near duplicates need datasketch, which is not installed: pip install "plumbline-rl[mining]"'
    ) from None

SHINGLE = 5  # words
BANDS, ROWS = 14, 8
SIMILAR = 0.75
HASHES = BANDS * ROWS
AT_ONCE = 1 << 16  # pages whose signatures are in memory
Mask = np.ndarray


def signatures(texts: Iterable[str]) -> Iterator[np.ndarray]:
    """The 112 MinHashes (uint32) of each text's set of 5 words in a row; two sets share each of them with probability |A & B| / |A | B|."""
    shingles = ({" ".join(run).encode() for run in runs_of(words_of(text), SHINGLE)} for text in texts)
    for found in MinHash.generator(shingles, num_perm=HASHES, seed=1, hashfunc=crc32, scheme="affine32"):
        yield found.hashvalues


def read_signatures(file: Path, first: int = 0, count: int = -1) -> np.ndarray:
    size = HASHES * np.dtype(np.uint32).itemsize
    flat = np.fromfile(file, np.uint32, count * HASHES if count >= 0 else -1, offset=first * size)
    return flat.reshape(-1, HASHES)


class Signatures:
    """The signatures of a collection, in files with 448 bytes a page; at most AT_ONCE of them are in memory."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self.sizes = [file.stat().st_size // (HASHES * 4) for file in files]
        self.starts = np.cumsum([0, *self.sizes])

    def band(self, number: int) -> np.ndarray:
        """A 64-bit key of each page: pages with the same key have the same 8 hashes of this band."""
        keys = np.zeros(self.starts[-1], np.uint64)
        place = 0
        for file, size in zip(self.files, self.sizes, strict=True):
            for first in range(0, size, AT_ONCE):
                part = read_signatures(file, first, AT_ONCE)[:, number * ROWS : (number + 1) * ROWS]
                keys[place : place + len(part)] = _mixed(part)
                place += len(part)
        return keys

    def of(self, pages: np.ndarray) -> np.ndarray:
        found = np.empty((len(pages), HASHES), np.uint32)
        which = np.searchsorted(self.starts, pages, side="right") - 1
        for index in np.unique(which):
            stored = np.memmap(self.files[index], np.uint32, "r").reshape(-1, HASHES)
            found[which == index] = stored[pages[which == index] - self.starts[index]]
        return found


def _mixed(rows: np.ndarray) -> np.ndarray:
    key = np.zeros(len(rows), np.uint64)
    for column in rows.T:  # FNV-1a, a hash a step
        key = (key ^ column) * np.uint64(0x100000001B3)
        key ^= key >> np.uint64(29)
    return key


def near_duplicates(found: Signatures, among: Mask) -> Mask:
    """Which of the pages `among` resemble an earlier one of them: they share a band with it, and 3 in 4 of all hashes.

    A pair of similarity s shares a band with probability 1 - (1 - s^8)^14: 0.77 for s = 0.75, 0.999 for 0.9. In each band a page is
    compared with the first that has its key, so that time is linear in the pages.
    """
    pages = np.flatnonzero(among)
    duplicate = np.zeros(len(among), bool)
    for number in range(BANDS):
        keys = found.band(number)[pages]
        _, first, group = np.unique(keys, return_index=True, return_inverse=True)
        earlier = pages[first[group]]
        open_pairs = np.flatnonzero((earlier != pages) & ~duplicate[pages])
        for start in range(0, len(open_pairs), AT_ONCE):
            pairs = open_pairs[start : start + AT_ONCE]
            alike = (found.of(pages[pairs]) == found.of(earlier[pairs])).mean(axis=1) >= SIMILAR
            duplicate[pages[pairs[alike]]] = True
    return duplicate
