"""Streams of web pages, each with its URL, from JSON lines and from web archives. What is no page is counted with its reason."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from rewards.errors import UserError
from rollout.corpus.rows import ENDINGS as JSON_ENDINGS
from rollout.corpus.rows import Row, Skipped, files_of, read_rows

ARCHIVES = (".warc", ".warc.gz", ".wet", ".wet.gz")
ENDINGS = (*JSON_ENDINGS, *ARCHIVES)
URL_COLUMNS = ("url", "uri", "link", "source_url")
TEXT_COLUMNS = ("text", "content", "raw_content", "page_content", "body", "markdown")
LONGEST_URL = 4096  # characters
_A_WORD = re.compile(r"\w")
_A_HOST = re.compile(r"[\w.:-]+\Z")


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page. number: the place of its record in the file, from 0, counting records that hold no page too."""

    number: int
    url: str
    text: str

    @property
    def host(self) -> str:
        return host_of(self.url)


@dataclass(frozen=True, kw_only=True)
class PageReader:
    """How pages are read. Columns of JSON rows: None is the first of the usual names that the row has."""

    url_column: str | None = None
    text_column: str | None = None
    needs_url: bool = True

    def files(self, paths: Sequence[Path], option: str) -> list[Path]:
        return list(dict.fromkeys(files_of(paths, option, ENDINGS)))

    def pages(self, file: Path, skipped: Skipped, only: np.ndarray | None = None) -> Iterator[Page]:
        """The pages of a file in their order. only: which of its first records to look at (bool), where not all are wanted."""
        records = self._archive(file, skipped, only) if file.name.endswith(ARCHIVES) else self._rows(file, skipped)
        for number, url, text in records:
            if not wanted(number, only):
                continue
            reason = self._problem(url, text)
            if reason is None:
                yield Page(number=number, url=str(url or ""), text=encodable(str(text)))
            else:
                skipped.add(reason, f"{file.name}, record {number + 1}")

    def _rows(self, file: Path, skipped: Skipped) -> Iterator[tuple[int, Any, Any]]:
        for where, row in read_rows([file], skipped):
            url, text = _cell(row, self.url_column, URL_COLUMNS), _cell(row, self.text_column, TEXT_COLUMNS)
            yield int(where.rpartition(":")[2]) - 1, url, text

    def _archive(self, file: Path, skipped: Skipped, only: np.ndarray | None) -> Iterator[tuple[int, str | None, str]]:
        from rollout.corpus.archives import read_archive  # optional packages, which JSON lines need not

        return read_archive(file, skipped, only)

    def _problem(self, url: Any, text: Any) -> str | None:
        if not isinstance(text, str) or not _A_WORD.search(text):
            return "page without text"
        if "\0" in text:
            return "binary"
        if self.needs_url and not isinstance(url, str):
            return "page without a URL"
        if self.needs_url and not host_of(url):
            return "URL without a domain"
        return None


def wanted(number: int, only: np.ndarray | None) -> bool:
    return only is None or (number < len(only) and bool(only[number]))


def _cell(row: Row, named: str | None, usual: Sequence[str]) -> Any:
    column = named if named is not None else next((name for name in usual if name in row), "")
    return row.get(column)


def host_of(url: str) -> str:
    """The host, in lower case and without port: the base URL by which pages are grouped. "" where there is none."""
    if len(url) > LONGEST_URL:
        return ""
    try:
        host = urlsplit(url.strip()).hostname or ""
    except ValueError:  # such as of brackets that are no IPv6 address
        return ""
    return host if _A_HOST.match(host) else ""


def path_of(url: str) -> str:
    return urlsplit(url.strip()).path or "/"


def encodable(text: str) -> str:
    """The text with halves of surrogate pairs, which JSON can hold and UTF-8 cannot, as question marks."""
    return text.encode("utf-8", "replace").decode()


def require_pages(count: int, skipped: Skipped, option: str) -> None:
    """Raises UserError where no page could be read, with what was there instead."""
    if not count:
        found = "; ".join(skipped.lines()) or "the files are empty"
        raise UserError(
            f"{option} has no page: {found}; give rows with the columns url and text, or name theirs with "
            "url_column and text_column"
        )
