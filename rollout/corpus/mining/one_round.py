"""One round of mining, in steps whose files a further call finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from rollout.corpus.mining.collection import Collection
from rollout.corpus.mining.domains import Decisions, domains_of, read_domains, write_domains
from rollout.corpus.mining.settings import Mining, write_json
from rollout.corpus.mining.training import JOINED, copy_pages, selected, write_examples
from rollout.corpus.mining.workers import Workers
from rollout.corpus.page_classifier import AT_ONCE, PageClassifier, train_classifier
from rollout.corpus.pages import PageReader
from rollout.whole_file import whole

CLASSIFIER, DOMAINS = "classifier.npz", "domains.jsonl"


@dataclass(frozen=True, kw_only=True)
class Round:
    """What a round did. seed: pages of the seed, with those that joined it until now. recalled: pages; known: those of them that earlier
    rounds had recalled; collected: by all rounds. reviewed: the digest of
    the decisions on domains, "" without."""

    number: int
    accepted_domains: int
    new_domains: int
    joined: int
    seed: int
    positives: int
    negatives: int
    recalled: int
    recalled_words: int
    known: int
    collected: int
    reviewed: str

    @property
    def known_share(self) -> float:
        return self.known / self.recalled


@dataclass(frozen=True, kw_only=True)
class State:
    """Arrays over the collection after some rounds. first_round: the round that recalled a page first, 0 for none. joined: pages that
    joined the seed. scores: those of the last round."""

    first_round: np.ndarray
    joined: np.ndarray
    scores: np.ndarray

    @property
    def collected(self) -> np.ndarray:
        return self.first_round > 0

    @staticmethod
    def at_start(size: int) -> State:
        return State(
            first_round=np.zeros(size, np.uint8), joined=np.zeros(size, bool), scores=np.zeros(size, np.float32)
        )


def run_round(
    mining: Mining,
    pages: Collection,
    number: int,
    before: State,
    decisions: Decisions,
    seed_size: int,
    workers: Workers,
) -> None:
    """Writes round.json at the end, and before it arrays over the collection: joined.npz, scores.npy, recalled.npy."""
    folder = mining.round_folder(number)
    folder.mkdir(exist_ok=True)
    joined, reviewed = _join_seed(mining, pages, number, before, decisions, workers)
    positives, negatives = _train(mining, number, seed_size, joined, workers)
    scores = _score(mining, pages, number, workers)
    recalled = best(scores, pages.words, mining.keep)
    save(folder / "scores.npy", scores)
    save(folder / "recalled.npy", recalled)
    accepted, accepted_before = _accepted(mining, number), _accepted(mining, number - 1)
    result = Round(
        number=number,
        accepted_domains=len(accepted),
        new_domains=len(accepted - accepted_before),
        joined=int((joined & ~before.joined).sum()),
        seed=seed_size + int(joined.sum()),
        positives=positives,
        negatives=negatives,
        recalled=int(recalled.sum()),
        recalled_words=int(pages.words[recalled].sum()),
        known=int((recalled & before.collected).sum()),
        collected=int((recalled | before.collected).sum()),
        reviewed=reviewed,
    )
    write_json(folder / "round.json", asdict(result))


def best(scores: np.ndarray, words: np.ndarray, keep: float) -> np.ndarray:
    """Which pages have the highest scores: as many as make up a share `keep` of all words, at least one. Equal ones: the first."""
    order = np.argsort(-scores, kind="stable")
    total = np.cumsum(words[order], dtype=np.int64)
    chosen = np.zeros(len(scores), bool)
    chosen[order[: np.searchsorted(total, keep * total[-1]) + 1]] = True
    return chosen


def save(path: Path, array: np.ndarray) -> None:
    with whole(path) as aside, aside.open("wb") as out:
        np.save(out, array)


def _join_seed(
    mining: Mining, pages: Collection, number: int, before: State, decisions: Decisions, workers: Workers
) -> tuple[np.ndarray, str]:
    """Which pages have joined the seed: those of accepted domains that no round has recalled. In round 1 there are none."""
    folder = mining.round_folder(number)
    done = folder / "joined.npz"
    if not done.exists():
        found = domains_of(pages, before.collected, mining.accept_above, decisions) if number > 1 else []
        write_domains(folder / DOMAINS, found)
        takes = {one.domain: one for one in found if one.accepted}
        accepted = np.array([name in takes for name in pages.names], bool)
        open_pages = accepted[pages.hosts] & ~before.collected & ~before.joined
        new = copy_pages(mining, pages, open_pages, folder / JOINED, workers, takes)
        with whole(done) as aside, aside.open("wb") as out:
            np.savez(out, joined=before.joined | new, reviewed=decisions.digest)
    with np.load(done) as saved:
        return saved["joined"], str(saved["reviewed"])


def _accepted(mining: Mining, number: int) -> set[str]:
    """The domains that were accepted before the round; none before the first."""
    found = read_domains(mining.round_folder(number) / DOMAINS) if number else []
    return {one.domain for one in found if one.accepted}


def _train(mining: Mining, number: int, seed_size: int, joined: np.ndarray, workers: Workers) -> tuple[int, int]:
    """Trains the round's classifier; returns the numbers of positives and negatives."""
    folder = mining.round_folder(number)
    examples = folder / "examples.jsonl"
    workers.report(f"round {number}: training")
    counts = write_examples(mining, number, seed_size, joined, examples)
    if not (folder / CLASSIFIER).exists():
        with whole(folder / CLASSIFIER) as aside:
            train_classifier(examples, mining.seed).save(aside)
    examples.unlink()
    return counts


def _score(mining: Mining, pages: Collection, number: int, workers: Workers) -> np.ndarray:
    folder = mining.round_folder(number)
    tasks, parts = [], []
    for file, indices in pages.by_file(np.ones(len(pages), bool)):
        parts.append(folder / f"scores.{file:05}.npy")
        tasks.append((mining.reader, mining.files[file], pages.numbers[indices], folder / CLASSIFIER, parts[-1]))
    for _ in workers.map(f"round {number}: scoring", _score_file, tasks):
        pass
    scores = np.concatenate([np.load(part) for part in parts])
    for part in parts:
        part.unlink()
    return scores


def _score_file(reader: PageReader, file: Path, numbers: np.ndarray, classifier: Path, part: Path) -> None:
    if part.exists():
        return
    model = PageClassifier.load(classifier)
    texts = (page.text for page in selected(reader, file, numbers))
    scores = [model.scores(block) for block in iter(lambda: list(islice(texts, AT_ONCE)), [])]
    save(part, np.concatenate(scores))
