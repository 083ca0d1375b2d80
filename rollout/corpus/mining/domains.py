"""Domains of which many pages were recalled, and a person's decisions on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from rewards.errors import UserError
from rollout.corpus.mining.collection import Collection
from rollout.corpus.pages import path_of
from rollout.corpus.rows import Row, Skipped, read_rows
from rollout.whole_file import whole


@dataclass(frozen=True, kw_only=True)
class Domain:
    """A line of domains.jsonl. paths: with which of its URLs' paths begin pages that may join the seed; () is all."""

    domain: str
    pages: int
    recalled: int
    share: float
    accepted: bool
    paths: tuple[str, ...]

    def takes(self, url: str) -> bool:
        return not self.paths or path_of(url).startswith(self.paths)


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """By domain: whether it is accepted, and its paths. digest: of the file that a person wrote; "" without one."""

    by_domain: dict[str, tuple[bool, tuple[str, ...]]]
    digest: str

    @staticmethod
    def read(path: Path | None) -> Decisions:
        """Raises UserError for a line that is none of domains.jsonl."""
        if path is None:
            return Decisions(by_domain={}, digest="")
        if not path.is_file():
            raise UserError(
                f"reviewed is {str(path)!r}: there is no such file; give a domains.jsonl that was looked through"
            )
        skipped = Skipped()
        found = dict(_decision(row, f"reviewed is {str(path)!r}: {where}") for where, row in read_rows([path], skipped))
        if skipped.counts:
            raise UserError(f"reviewed is {str(path)!r}: {skipped.lines()[0]}; fix it")
        return Decisions(by_domain=found, digest=sha256(path.read_bytes()).hexdigest()[:16])


def _decision(row: Row, where: str) -> tuple[str, tuple[bool, tuple[str, ...]]]:
    domain, accepted, paths = row.get("domain"), row.get("accepted"), row.get("paths", [])
    if not isinstance(domain, str) or not isinstance(accepted, bool):
        raise UserError(f"{where} needs domain, a text, and accepted, true or false; fix it")
    if not isinstance(paths, list) or not all(isinstance(path, str) and path.startswith("/") for path in paths):
        raise UserError(f'{where} has paths {paths!r}: they must be a list of beginnings such as "/questions/"; fix it')
    return domain.lower(), (accepted, tuple(paths))


def domains_of(pages: Collection, collected: np.ndarray, accept_above: float, decisions: Decisions) -> list[Domain]:
    """The domains with recalled pages, or with a decision; those with most recalled pages first.

    A domain is accepted if more than accept_above of its pages were recalled so far (DeepSeekMath: 10 %), unless a person decided.
    """
    total = np.bincount(pages.hosts, minlength=len(pages.names))
    recalled = np.bincount(pages.hosts[collected], minlength=len(pages.names))
    decided = np.array([name in decisions.by_domain for name in pages.names])
    found = []
    for host in np.flatnonzero((recalled > 0) | (decided & (total > 0))):
        name, share = pages.names[host], recalled[host] / total[host]
        accepted, paths = decisions.by_domain.get(name, (bool(share > accept_above), ()))
        found.append(
            Domain(domain=name, pages=int(total[host]), recalled=int(recalled[host]), share=round(float(share), 4),
                   accepted=accepted, paths=paths)
        )  # fmt: skip
    return sorted(found, key=lambda one: (-one.recalled, one.domain))


def write_domains(path: Path, domains: Sequence[Domain]) -> None:
    with whole(path) as aside, aside.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(asdict(one)) + "\n" for one in domains)


def read_domains(path: Path) -> list[Domain]:
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [Domain(**{**row, "paths": tuple(row["paths"])}) for row in rows]
