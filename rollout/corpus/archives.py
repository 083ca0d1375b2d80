"""Web archives (WARC, and WET with text already extracted). The only file that imports warcio and resiliparse."""

from __future__ import annotations

import codecs
import logging
import zlib
from collections.abc import Iterator
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
    from warcio.bufferedreaders import BufferedReader
    from warcio.exceptions import ArchiveLoadFailed
    from warcio.recordloader import ArcWarcRecordLoader
    from warcio.statusandheaders import StatusAndHeadersParserException
except ImportError:
    raise UserError(
        'web archives need warcio and resiliparse, which are not installed: pip install "plumbline-rl[mining]"'
    ) from None

logging.getLogger("warcio").setLevel(logging.ERROR)  # it warns of each header that it corrects
Record = tuple[int, str | None, str]  # number, URL, text
HTML = ("text/html", "application/xhtml+xml")
DEEPEST = 512  # elements inside each other, as in Chromium
FEW_TAGS = 2 * DEEPEST  # with fewer no document is so deep that it takes long
# Codecs that no page is written in, of which some take a time that grows with the square of the length.
OF_NAMES = ("punycode", "idna", "unicode-escape", "raw-unicode-escape", "utf-7")
_loader = ArcWarcRecordLoader(verify_http=False)


def read_archive(file: Path, skipped: Skipped, only: np.ndarray | None) -> Iterator[Record]:
    """The text of each HTML response and of each extracted text. Other records (requests, metadata) hold no page and are passed over."""
    number = -1
    with file.open("rb") as stream:
        records: Any = ArchiveIterator(stream, no_record_parse=True)  # a broken HTTP header would end the iterator
        try:
            for number, record in enumerate(records):
                if record.length is None:
                    raise ArchiveLoadFailed("the file ends in the header of a record")
                if record.rec_type not in ("response", "conversion") or not wanted(number, only):
                    continue
                url = record.rec_headers.get_header("WARC-Target-URI")
                try:
                    text = _text(record, url or "")
                except _NoPage as reason:
                    skipped.add(str(reason), f"{file.name}, record {number + 1}")
                else:
                    yield number, url, text
            is_whole = records.offset == file.stat().st_size  # warcio ends silently where the last record has no header
        except (ArchiveLoadFailed, OSError, EOFError, zlib.error, ValueError):
            is_whole = False  # and where the next record begins is unknown
    if not is_whole:
        skipped.add(DAMAGED, f"{file.name}, record {number + 2}")


class _NoPage(Exception):
    """The reason why a record holds no page."""


def _text(record: Any, url: str) -> str:
    headers = record.rec_headers
    if record.rec_type == "response":
        headers = record.http_headers = _html_headers(record, url)
    data = _read(record.content_stream())
    record.raw_stream.read()
    if record.raw_stream.limit:  # bytes that the header has announced
        raise _NoPage(DAMAGED)
    content_type = (headers.get_header("Content-Type") or "").lower()
    text = decoded(data, content_type.partition("charset=")[2].split(";")[0].strip(" \"'"))
    return html_text(text) if record.rec_type == "response" else text


def _html_headers(record: Any, url: str) -> Any:
    """The HTTP headers of an answer with HTML."""
    try:
        headers = _loader.load_http_headers("response", url, record.raw_stream, record.length)
    except (EOFError, ValueError, StatusAndHeadersParserException):
        raise _NoPage("broken HTTP header") from None
    if headers is None:
        raise _NoPage("not from HTTP")
    if headers.get_statuscode() != "200":
        raise _NoPage("HTTP status other than 200")
    if (headers.get_header("Content-Type") or "").lower().partition(";")[0].strip() not in HTML:
        raise _NoPage("no HTML")
    packed = (headers.get_header("Content-Encoding") or "identity").lower()
    if packed not in ("identity", *BufferedReader.get_supported_decompressors()):
        raise _NoPage("unknown content encoding")
    return headers


def _read(stream: Any) -> bytes:
    data = bytearray()
    while len(data) <= LONGEST and (block := stream.read(1 << 16)):
        data += block
    if len(data) > LONGEST:
        raise _NoPage(f"record longer than {LONGEST >> 20} MiB")
    return bytes(data)


def decoded(data: bytes, charset: str) -> str:
    """By the charset of the header, or UTF-8, whichever the bytes are valid in; else by the document's own or the detected one."""
    text = _valid(data, charset) or _valid(data, "utf-8")
    if text is None:
        detected = detect_encoding(data, from_html_meta=True) or "utf-8"
        text = _valid(data, detected) or data.decode("utf-8", errors="replace")
    if "\0" in text:
        raise _NoPage("binary")
    return text


def _valid(data: bytes, encoding: str) -> str | None:
    try:
        if not encoding or codecs.lookup(encoding).name in OF_NAMES:
            return None
        return data.decode(encoding)
    except (LookupError, ValueError):  # an unknown encoding, or bytes that it has not
        return None


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
