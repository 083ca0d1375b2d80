"""Pages from rows and from archives: the text of each, and the reason for each record that holds none."""

from __future__ import annotations

import gzip
import json
import random
import time
from pathlib import Path

import numpy as np
import pytest

from rollout.corpus import archives
from rollout.corpus.archives import decoded
from rollout.corpus.pages import PageReader, host_of
from rollout.corpus.rows import Skipped

READER = PageReader()


def read(file: Path, reader: PageReader = READER, only: np.ndarray | None = None) -> tuple[list[tuple], Skipped]:
    skipped = Skipped()
    return [(page.number, page.url, page.text) for page in reader.pages(file, skipped, only)], skipped


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


Answer = tuple[str, bytes] | tuple[str, bytes, str] | tuple[str, bytes, str, str]


def warc_record(kind: str, url: str, body: bytes) -> bytes:
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nContent-Length: {len(body)}\r\n"
    kinds = {"response": "application/http; msgtype=response", "conversion": "text/plain"}
    return f"{head}Content-Type: {kinds.get(kind, 'application/warc-fields')}\r\n\r\n".encode() + body + b"\r\n\r\n"


def warc_records(answers: list[Answer]) -> list[bytes]:
    """A record about the file, then URL, body, content type, status of each."""
    records = [warc_record("warcinfo", "about:test", b"software: a test\r\n")]
    for url, body, *more in answers:
        content_type, status = [*more, *("text/html; charset=utf-8", "200 OK")[len(more) :]]
        head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n\r\n"
        records.append(warc_record("response", url, head.encode() + body))
    return records


def write_warc(path: Path, answers: list[Answer]) -> Path:
    path.write_bytes(b"".join(warc_records(answers)))
    return path


def test_rows_that_hold_no_page_are_counted_by_reason(tmp_path: Path) -> None:
    good = {"url": "https://a.example/1", "raw_content": "one"}
    rows = [
        good,
        {"url": "https://a.example/2", "text": None},
        {"url": "https://a.example/3", "text": float("nan")},
        {"url": "https://a.example/4", "text": {"text": "nested"}},
        {"url": "https://a.example/5", "text": " \n ... "},
        {"url": "https://a.example/6", "text": "a\0b"},
        {"text": "no URL"},
        {"url": "about", "text": "no domain"},
        {"url": "http://[bad/", "text": "no address"},
        {"url": "https://a.example/" + "x" * 5000, "text": "a URL without end"},
        {"url": "https://a.example/7", "text": "half \ud800 pair"},
    ]
    pages, skipped = read(write_rows(tmp_path / "a.jsonl", rows))
    assert pages == [(0, "https://a.example/1", "one"), (10, "https://a.example/7", "half ? pair")]
    assert skipped.counts == {
        "page without text": 4,
        "binary": 1,
        "page without a URL": 1,
        "URL without a domain": 3,
    }
    assert skipped.first["page without text"] == "a.jsonl, record 2"


def test_columns_are_found_by_usual_names_or_named(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", [{"link": "http://a.example", "content": "usual", "mine": "named"}])
    assert read(file)[0] == [(0, "http://a.example", "usual")]
    assert read(file, PageReader(text_column="mine"))[0] == [(0, "http://a.example", "named")]
    assert read(file, PageReader(url_column="mine"))[1].counts == {"URL without a domain": 1}
    assert read(file, PageReader(url_column="absent", needs_url=False))[0] == [(0, "", "usual")]


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("HTTPS://User:pw@Math.Example.ORG:8080/a?b#c", "math.example.org"),
        ("http://[::1]/a", "::1"),
        (" https://bücher.example ", "bücher.example"),
        ("//cdn.example/a", "cdn.example"),
        ("math.example/a", ""),
        ("http://a b/c", ""),
        ("mailto:a@b.example", ""),
        ("", ""),
    ],
)
def test_the_host_of_a_url(url: str, host: str) -> None:
    assert host_of(url) == host


def test_an_archive_gives_the_main_text_in_the_encoding_that_it_has(tmp_path: Path) -> None:
    page = "<html><head><title>t</title></head><body><nav>Home</nav><main><p>{}</p></main></body></html>"
    french, russian = "Où est l'élève déjà ?", "Докажите что функция непрерывна"
    answers: list[Answer] = [
        ("http://a.example/header", page.format(french).encode("latin-1"), "text/html; charset=ISO-8859-1"),
        ("http://a.example/rare", page.format("été").encode("cp437"), "text/html; charset=cp437"),  # detected as others
        ("http://a.example/wrong", page.format(french).encode("cp1252"), "text/html; charset=utf-8"),
        ("http://a.example/own", f"<meta charset=koi8-r>{page.format(russian)}".encode("koi8-r"), "text/html"),
        ("http://a.example/unknown", page.format(french).encode(), "text/html; charset=nonsense"),
        ("http://a.example/codec", page.format("plain").encode(), 'text/html; charset="rot13"'),
    ]
    pages, skipped = read(write_warc(tmp_path / "a.warc", answers))
    assert [text for _, _, text in pages] == [french, "été", french, russian, french, "plain"]
    assert [number for number, _, _ in pages] == [1, 2, 3, 4, 5, 6] and not skipped.counts  # 0 is the warcinfo


def test_records_that_hold_no_page_are_counted_by_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "LONGEST", 20_000)
    deep = b"<div>" * 2000 + b"deep"
    answers: list[Answer] = [
        ("http://a.example/1", b"<p>good</p>"),
        ("http://a.example/2", b"<p>" + b"long " * 5000),
        ("http://a.example/3", b"\0\1\2" * 99),
        ("http://a.example/4", b"%PDF", "application/pdf"),
        ("http://a.example/5", b"<p>gone</p>", "text/html", "404 Not Found"),
        ("http://a.example/6", deep),
        ("http://a.example/7", b"<html></html>"),
        ("http://no host", b"<p>text</p>"),
        ("ftp://a.example/8", b"<p>text</p>"),
        ("http://a.example/9", b"<p>text</p>", "text/html\r\nContent-Encoding: zstd"),
    ]
    file = write_warc(tmp_path / "a.warc", answers)
    broken = [b"", b"\r\n\r\n", b"HTTP/1.1\r\n\r\n", b"\xff\xfe", b"GET"]
    nameless = warc_record("response", "", b"HTTP/1.1 200 OK\r\n\r\n").replace(b"WARC-Target-URI: \r\n", b"")
    bodies = [warc_record("response", "http://a.example/10", body) for body in broken]
    file.write_bytes(
        file.read_bytes() + b"".join([nameless, *bodies]) + warc_records([("http://b.example", b"end")])[1]
    )
    pages, skipped = read(file)
    assert [text for _, _, text in pages] == ["good", "end"]
    assert skipped.counts == {
        "HTML nested deeper than 512": 1,
        "HTTP status other than 200": 5,  # the one, and headers without any
        "URL without a domain": 1,
        "binary": 1,
        "no HTML": 1,
        "not from HTTP": 3,  # without an address, of FTP, without a header
        "page without text": 1,
        "record longer than 0 MiB": 1,
        "unknown content encoding": 1,
    }


def test_extracted_texts_of_a_wet_are_read(tmp_path: Path) -> None:
    text = "Sei die Folge beschränkt".encode()
    (tmp_path / "a.wet.gz").write_bytes(gzip.compress(warc_record("conversion", "http://a.example/1", text)))
    assert read(tmp_path / "a.wet.gz")[0] == [(0, "http://a.example/1", "Sei die Folge beschränkt")]


@pytest.mark.parametrize("packed", [False, True])
def test_a_cut_archive_gives_the_pages_before_the_cut_and_counts_the_one_that_is_cut(
    tmp_path: Path, packed: bool
) -> None:
    """At every byte. Nothing is lost by a cut between two records, or in the two empty lines and the checksum behind one."""
    records = warc_records([(f"http://a.example/{n}", f"<p>{n} pages</p>".encode()) for n in range(3)])
    file = tmp_path / ("a.warc.gz" if packed else "a.warc")
    before = b"".join(map(gzip.compress, records[:-1]) if packed else records[:-1])
    last = gzip.compress(records[-1]) if packed else records[-1]
    needed = len(last) if packed else len(last) - len(b"\r\n\r\n")
    for size in [*range(len(last) - 16 * packed), len(last)]:
        file.write_bytes(before + last[:size])
        pages, skipped = read(file)
        assert [text for _, _, text in pages] == ["0 pages", "1 pages", "2 pages"][: 2 + (size >= needed)], size
        assert sum(skipped.counts.values()) == (0 < size < needed), (size, skipped.counts)


@pytest.mark.parametrize("content", [b"", b"\n\n\n", random.Random(0).randbytes(5000), b"WARC/1.0\r\nWARC-Type: "])
def test_a_file_that_is_no_archive_has_no_page(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.warc").write_bytes(content)
    pages, skipped = read(tmp_path / "a.warc")
    assert not pages and sum(skipped.counts.values()) == bool(content)


def test_only_the_wanted_records_are_read(tmp_path: Path) -> None:
    urls = [f"http://a.example/{n}" for n in range(5)]
    rows = write_rows(tmp_path / "a.jsonl", [{"url": url, "text": "a" if n != 1 else ""} for n, url in enumerate(urls)])
    archive = write_warc(tmp_path / "a.warc", [(url, b"<p>a</p>" if n else b"") for n, url in enumerate(urls)])
    only = np.array([False, True, True, False, True])
    assert [number for number, _, _ in read(rows, only=only)[0]] == [2, 4]
    assert [url for _, url, _ in read(archive, only=only)[0]] == [urls[1], urls[3]]  # record 0 is the warcinfo


def test_a_page_cannot_choose_a_codec_that_takes_quadratic_time() -> None:
    """1 MB in punycode would take an hour."""
    data = b"a" * (1 << 20)
    started = time.monotonic()
    assert decoded(data, "punycode") == data.decode()
    assert decoded(b"\\u0041", "unicode_escape") == "\\u0041"
    assert time.monotonic() - started < 10
