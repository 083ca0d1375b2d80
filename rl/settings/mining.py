"""Options of `plumbline mine`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rl.settings.declare import POSITIVE_SHARE, SHARE, at_least, require_possible


@dataclass(frozen=True, kw_only=True)
class MineOptions:
    """Options of `plumbline mine`."""

    pages: tuple[Path, ...]
    """The web collection: files, or folders of them. .jsonl and .jsonl.gz with a URL and a text in each row; .warc, .warc.gz with HTML,
    and .wet, .wet.gz. Files are read in parallel, each by one worker."""
    seed_pages: tuple[Path, ...]
    """Pages of the kind to be found, in the same formats. Their URLs may be missing."""
    out: Path
    """Folder of the results. The same command goes on where it was interrupted; other settings are refused."""
    test_sets: tuple[Path, ...] = ()
    """.jsonl files of test sets. Mined pages with 10 words in a row of a question or an answer in them, or with all of a shorter one of
    at least 3 words, are left out."""
    keep: Annotated[float, POSITIVE_SHARE] = 0.05
    """Share of the collection's words that a round recalls, in the pages of the highest scores."""
    accept_above: Annotated[float, SHARE] = 0.1
    """A domain is accepted if more than this share of its pages was recalled. Its other pages join the seed of the next round."""
    reviewed: Path | None = None
    """A domains.jsonl of an earlier call that a person looked through: "accepted" decides on each of its domains, and "paths", such as
    ["/questions/"], on the URLs. It holds for the rounds that are not done yet; domains that it lacks are accepted by their share."""
    rounds: Annotated[int, at_least(1)] = 4
    """Most rounds. With more than before a folder goes on."""
    stop_at: Annotated[float, SHARE] = 0.98
    """Stop after a round of whose pages this share had been recalled before."""
    train_pages: Annotated[int, at_least(1)] = 500_000
    """Most pages of the seed, and most random pages, that the classifier of a round is trained on."""
    url_column: str | None = None
    """Column of the URL in rows. If not given, it is found by its usual names."""
    text_column: str | None = None
    """Column of the text in rows. If not given, it is found by its usual names."""
    workers: Annotated[int, at_least(1)] = 1
    """Processes that read and score. The result does not depend on it."""
    seed: Annotated[int, at_least(0)] = 0
    """Random seed of the pages that are trained on, and of their order."""

    def __post_init__(self) -> None:
        require_possible(self, declared_in=MineOptions)
