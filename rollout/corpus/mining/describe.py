"""The report of mining as Markdown that also reads well on a console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEAD = ("round", "seed", "joined", "domains", "new", "recalled", "known", "collected")


def describe(found: Mapping[str, Any]) -> str:
    """found: as in report.json."""
    pages, domains, contaminated = found["pages"], found["domains"], found["contaminated"]
    lines = [
        f"{found['mined']:,} pages mined of {pages['used']:,} in {len(found['rounds'])} rounds",
        "",
        *_table([HEAD, *(_row(one) for one in found["rounds"])]),
        "",
        f"- {pages['duplicate_urls']:,} pages left out: another had the URL",
        f"- {pages['near_duplicates']:,} pages left out: near duplicates of another",
        f"- {contaminated['pages']:,} mined pages left out: they hold text of a test set (contaminated.jsonl)",
        *(f'  - such as "{one["ngram"]}" in {one["url"]}' for one in contaminated["first"]),
        f"- {domains['accepted']:,} of {domains['recalled']:,} domains with recalled pages are accepted (domains.jsonl)",
        *(f"- {count:,} records of pages skipped: {reason}" for reason, count in pages["skipped"].items()),
        *(f"- {count:,} records of the seed skipped: {reason}" for reason, count in found["seed"]["skipped"].items()),
    ]
    return "\n".join(lines)


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    numbers = [one[name] for name in ("seed", "joined", "accepted_domains", "new_domains", "recalled")]
    return str(one["number"]), *(f"{n:,}" for n in numbers), f"{one['known_share']:.1%}", f"{one['collected']:,}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.rjust, row, widths)) + " |" for row in rows]
    return [lines[0], "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|", *lines[1:]]
