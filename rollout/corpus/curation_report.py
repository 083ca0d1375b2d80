"""What a curation did: how many rows each stage removed and why, with examples, as text and as JSON."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rewards.errors import UserError
from rollout.corpus.diversity import Remaining
from rollout.corpus.rows import Skipped

STAGES = ("quality", "difficulty", "contamination")  # those that look at one row
EXAMPLES = 10  # of contaminated rows
MOST_DOMAINS = 40  # in the table
SHOWN = 80  # characters of a question
QUANTILES = {"least": 0.0, "10 %": 0.1, "median": 0.5, "90 %": 0.9, "most": 1.0}


@dataclass(kw_only=True)
class CurationReport:
    """Is filled while rows are read. unread: lines that are no rows. words_before: of worked solutions, after the stage quality."""

    unread: Skipped = field(default_factory=Skipped)
    removed: dict[str, Skipped] = field(default_factory=lambda: {stage: Skipped() for stage in STAGES})
    duplicates: int = 0
    duplicate: str = ""
    domains: Counter[str] = field(default_factory=Counter)
    chosen: Counter[str] = field(default_factory=Counter)
    words_before: array[int] = field(default_factory=lambda: array("I"))
    words_after: array[int] = field(default_factory=lambda: array("I"))
    contaminated: list[dict[str, str]] = field(default_factory=list)
    matched: Counter[str] = field(default_factory=Counter)
    without_rate: int = 0
    renamed: int = 0

    def fell(self, stage: str, reason: str, where: str, text: str) -> None:
        self.removed[stage].add(reason, f"{where}: {text[:SHOWN]!a}")

    def show_contaminated(self, where: str, question: str, shared: str) -> None:
        if len(self.contaminated) < EXAMPLES:
            self.contaminated.append({"row": where, "question": question[:SHOWN], "shared words": shared})

    def choose(self, kept: Remaining, places: Sequence[int]) -> None:
        names = list(kept.names)
        self.chosen = Counter(names[kept.domains[place]] for place in places)
        self.words_after = array("I", (kept.words[place] for place in places))

    @property
    def left(self) -> dict[str, int]:
        """Rows after each stage."""
        left = {"rows read": self.domains.total()}
        for stage in STAGES:
            left[stage] = [*left.values()][-1] - self.removed[stage].counts.total()
        left["duplicates"] = left[STAGES[-1]] - self.duplicates
        left["diversity"] = self.chosen.total()
        return left

    def require_some_left(self) -> None:
        """Raises UserError with the stage that removed the last row."""
        for stage in STAGES:
            if self.left[stage] == 0:
                reasons = "; ".join(_reasons(self.removed[stage]))
                raise UserError(
                    f"rows: none of {self.domains.total():,} is left after the stage {stage} ({reasons}); fix the rows, or change the "
                    "options of this stage (docs/curation.md)"
                )

    def as_json(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "options": options,
            "unread lines": {"counts": self.unread.counts, "first": self.unread.first},
            "left after": self.left,
            "removed": {stage: {"counts": of.counts, "first": of.first} for stage, of in self.removed.items()}
            | {"duplicates": {"counts": {"the same question": self.duplicates}, "first": self.duplicate}},
            "without a pass rate": self.without_rate,
            "renamed ids": self.renamed,
            "domains": {name: [count, self.chosen[name]] for name, count in self.domains.most_common(MOST_DOMAINS)},
            "number of domains": [len(self.domains), len(self.chosen)],
            "words": {"before": _quantiles(self.words_before), "after": _quantiles(self.words_after)},
            "contaminated": self.contaminated,
        }

    def write(self, out: Path, options: Mapping[str, Any]) -> None:
        """Writes FILE.report.json beside FILE.jsonl."""
        text = json.dumps(self.as_json(options), indent=2, default=str)
        out.with_suffix(".report.json").write_text(text + "\n", encoding="utf-8")

    def text(self, size: int) -> str:
        """The same for the screen. size: the rows that were asked for."""
        lines, before = [*self.unread.lines()], None
        for stage, count in self.left.items():
            change = "" if before is None else f"{count - before:,}"
            lines.append(f"{stage:<15}{change:>12}{count:>12,}")
            lines += [f"    {reason}" for reason in _reasons(self.removed.get(stage, Skipped()))]
            before = count
        lines += [f"{self.without_rate:,} rows have no pass rate and were kept"] * bool(self.without_rate)
        lines += [f"first of the duplicates: {self.duplicate}"] * bool(self.duplicates)
        lines += [f"{self.renamed:,} rows were given another id: an earlier row has theirs"] * bool(self.renamed)
        if self.chosen.total() < size:
            lines.append(f"{self.chosen.total():,} rows are chosen and not {size:,}: no more are left")
        return "\n".join([*lines, *self._domain_lines(), *self._word_lines(), *self._contaminated_lines()])

    def _domain_lines(self) -> list[str]:
        lines = ["", f"{'domain':<40}{'rows read':>12}{'chosen':>12}"]
        lines += [
            f"{ascii(name)[1:-1][:39]:<40}{count:>12,}{self.chosen[name]:>12,}"
            for name, count in self.domains.most_common(MOST_DOMAINS)
        ]
        more = len(self.domains) - MOST_DOMAINS
        return [*lines, f"and {more:,} more domains"] if more > 0 else lines

    def _word_lines(self) -> list[str]:
        before, after = _quantiles(self.words_before), _quantiles(self.words_after)
        head = f"{'words of worked solutions':<40}" + "".join(f"{name:>10}" for name in QUANTILES)
        rows = [("after the stage quality", before), ("chosen", after)]
        return ["", head, *(f"{what:<40}" + "".join(f"{n:>10,}" for n in of.values()) for what, of in rows)]

    def _contaminated_lines(self) -> list[str]:
        lines = [f"{one['row']} shares {one['shared words']!a}" for one in self.contaminated]
        return ["", "contaminated, for example", *lines] if lines else []


def _reasons(removed: Skipped) -> list[str]:
    return [f"{count:,} {reason}, first {removed.first[reason]}" for reason, count in removed.counts.most_common()]


def _quantiles(words: array[int]) -> dict[str, int]:
    found = np.quantile(np.asarray(words), [*QUANTILES.values()], method="inverted_cdf").tolist() if words else []
    return dict(zip(QUANTILES, map(int, found)))
