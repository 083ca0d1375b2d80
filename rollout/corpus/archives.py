"""Web archives (WARC, and WET with text already extracted). The only file that imports warcio and resiliparse."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from rewards.errors import UserError
from rollout.corpus.pages import wanted
from rollout.corpus.rows import DAMAGED, LONGEST, Skipped

try:
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import detect_encoding
    from resiliparse.parse.html import HTMLTree, traverse_dom
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed
except ImportError:
    raise UserError(
        'web archives need warcio and resiliparse, which are not installed: pip install "plumbline-rl[mining]"'
    ) from None

Record = tuple[int, str | None, str]  # number, URL, text
HTML = ("text/html", "application/xhtml+xml")
DEEPEST = 512  # elements inside each other, as in Chromium
FEW_TAGS = 2 * DEEPEST  # with fewer no document is so deep that it takes long


def read_archive(file: Path, skipped: Skipped, only: np.ndarray | None) -> Iterator[Record]:
    """The text of each HTML response and of each extracted text. Other records (requests, metadata) hold no page and are passed over."""
    number = -1
    with file.open("rb") as stream:
        records: Any = ArchiveIterator(stream)
        try:
            for number, record in enumerate(iter(partial(_next, records), None)):
                if record.rec_type not in ("response", "conversion") or not wanted(number, only):
                    continue
                try:
                    text = _text(record)
                except _NoPage as reason:
                    skipped.add(str(reason), f"{file.name}, record {number + 1}")
                else:
                    yield number, record.rec_headers.get_header("WARC-Target-URI"), text
            is_whole = records.offset == file.stat().st_size  # warcio ends silently where the last record has no header
        except (ArchiveLoadFailed, OSError, EOFError, zlib.error, ValueError):
            is_whole = False  # and where the next record begins is unknown
    if not is_whole:
        skipped.add(DAMAGED, f"{file.name}, record {number + 2}")


def _next(records: Iterator[Any]) -> Any:
    with redirect_stderr(StringIO()):  # warcio prints what it corrects in headers
        return next(records, None)


class _NoPage(Exception):
    """The reason why a record holds no page."""


def _text(record: Any) -> str:
    is_html = record.rec_type == "response"
    content_type = _content_type(record)
    if is_html and record.http_headers is not None and record.http_headers.get_statuscode() != "200":
        raise _NoPage("HTTP status other than 200")
    if is_html and content_type.partition(";")[0].strip() not in HTML:
        raise _NoPage("no HTML")
    data = record.content_stream().read(LONGEST + 1)
    if len(data) > LONGEST:
        raise _NoPage(f"record longer than {LONGEST >> 20} MiB")
    record.raw_stream.read()
    if getattr(record.raw_stream, "limit", 0):  # bytes that its header announced
        raise _NoPage(DAMAGED)
    text = decoded(data, content_type.partition("charset=")[2].split(";")[0].strip(" \"'"))
    return html_text(text) if is_html else text


def _content_type(record: Any) -> str:
    headers = record.http_headers or record.rec_headers
    return (headers.get_header("Content-Type") or "").lower()


def decoded(data: bytes, charset: str) -> str:
    """By the charset of the header, unless the bytes are none of it or it is unknown; else by the document's own or the detected one."""
    try:
        text = data.decode(charset or "ascii")
    except (LookupError, ValueError):
        text = _detected(data)
    if "\0" in text:
        raise _NoPage("binary")
    return text


def _detected(data: bytes) -> str:
    try:
        return data.decode(detect_encoding(data, from_html_meta=True) or "utf-8", errors="replace")
    except (LookupError, ValueError):  # an encoding of the web that Python has not
        return data.decode("utf-8", errors="replace")


def html_text(html: str) -> str:
    """The main text, one block a line."""
    if html.count("<") > FEW_TAGS and _depth(html) > DEEPEST:  # its time grows with the square of the depth
        raise _NoPage(f"HTML nested deeper than {DEEPEST}")
    return extract_plain_text(html, main_content=True)


def _depth(html: str) -> int:
    document: Any = HTMLTree.parse(html).document
    depths = [0]
    traverse_dom(document, lambda context: depths.append(max(depths.pop(), context.depth)), elements_only=False)
    return depths[0]
