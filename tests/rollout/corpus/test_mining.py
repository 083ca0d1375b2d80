"""Mining of a made web, and its parts beside what is worked by hand."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards.errors import UserError
from rollout.corpus.mining.collection import Collection
from rollout.corpus.mining.domains import Decisions, Domain, domains_of
from rollout.corpus.mining.mine import mine
from rollout.corpus.mining.one_round import best
from rollout.corpus.mining.settings import Mining
from tests.rollout.corpus.made_web import MadePage, write_web

SMALL = 400  # pages, for what does not depend on how good the classifier is


def asked(web: Path, out: Path, **other: Any) -> Mining:
    usual: dict[str, Any] = {
        "pages": (web / "pages",),
        "seed_pages": (web / "seed.jsonl",),
        "out": out,
        "test_sets": (web / "tests.jsonl",),
        "keep": 0.04,
        "accept_above": 0.1,
        "reviewed": None,
        "rounds": 4,
        "stop_at": 0.98,
        "train_pages": 600,
        "url_column": None,
        "text_column": None,
        "workers": 1,
        "seed": 0,
    }
    return Mining(**{**usual, **other})


def silent(message: str) -> None:
    pass


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    web = tmp_path_factory.mktemp("small") / "web"
    write_web(web, SMALL, 60, files=3)
    return web


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, MadePage], Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("mined")
    truth = write_web(folder / "web", 3000, 600)
    return truth, folder / "out", mine(asked(folder / "web", folder / "out"), silent)


def test_domains_lead_to_mathematics_in_styles_that_the_seed_has_not(mined: tuple) -> None:
    """The web has 7 in 100 pages of mathematics, half of them in the styles of the seed. Round 1 cannot find the other half."""
    truth, out, _ = mined
    first = {row["url"]: row["round"] for row in rows(out / "pages.jsonl")}
    wanted = {url for url, page in truth.items() if page.is_math and not page.copy_of and not page.planted}
    unlike = {url for url in wanted if truth[url].style in ("words", "german")}
    after = {number: {url for url, round_ in first.items() if round_ <= number} for number in (1, 4)}
    assert len(after[1] & unlike) / len(unlike) < 0.1 and len(after[4] & unlike) / len(unlike) > 0.25
    assert len(after[4] & wanted) / len(wanted) > len(after[1] & wanted) / len(wanted) + 0.1
    assert sum(truth[url].is_math for url in first) / len(first) > 0.75


def test_texts_of_test_sets_and_copies_are_left_out(mined: tuple) -> None:
    truth, out, report = mined
    left_out = rows(out / "contaminated.jsonl")
    assert len(left_out) >= 3 and report["contaminated"]["pages"] == len(left_out)
    for row in left_out:
        planted = " ".join(words_in(truth[row["url"]].planted))
        assert row["ngram"] in planted and len(row["ngram"].split()) in (6, 10)
    assert not [row for row in rows(out / "pages.jsonl") if truth[row["url"]].planted]
    made = sum(bool(page.copy_of) for page in truth.values())
    assert 0.95 * made < report["pages"]["near_duplicates"] <= made  # of a copy with one other word 1 in 1000 is missed
    assert report["pages"]["duplicate_urls"] == 3000 - len(truth)


def words_in(text: str) -> list[str]:
    return "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()


def test_the_report_adds_up(mined: tuple) -> None:
    _, out, report = mined
    pages, counts, rounds = rows(out / "pages.jsonl"), report["pages"], report["rounds"]
    assert counts["used"] == counts["read"] - counts["duplicate_urls"] - counts["near_duplicates"]
    assert rounds[-1]["collected"] == len(pages) + report["contaminated"]["pages"]
    for before, one in pairwise(rounds):
        assert one["collected"] == before["collected"] + one["recalled"] - one["known"]
        assert one["seed"] == before["seed"] + one["joined"]
        assert one["known_share"] == one["known"] / one["recalled"]
    assert rounds[0]["seed"] == 600 and rounds[0]["known"] == 0
    kept = 0.04 * counts["words"]
    assert all(kept <= one["recalled_words"] < kept + 400 for one in rounds)  # no page has as many words
    assert json.loads((out / "report.json").read_text()) == report
    found = {row["domain"]: row for row in rows(out / "domains.jsonl")}
    assert sum(row["recalled"] for row in found.values()) == rounds[-1]["collected"]
    assert all(row["accepted"] == (row["recalled"] / row["pages"] > 0.1) for row in found.values())


def test_workers_change_nothing(small: Path, tmp_path: Path) -> None:
    mine(asked(small, tmp_path / "one", rounds=2), silent)
    mine(asked(small, tmp_path / "two", rounds=2, workers=2), silent)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


class Killed(BaseException):
    pass


def killed_at(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the next write of a file but `number` be the last, before the file has its name."""
    left = iter(range(number))

    def replace_or_die(source: Path, target: Path) -> None:
        if next(left, None) is None:
            raise Killed
        os.rename(source, target)

    monkeypatch.setattr(os, "replace", replace_or_die)


def test_a_run_that_is_killed_at_any_file_gives_the_same_in_the_end(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call goes on by seven files, and is then killed."""
    mine(asked(small, tmp_path / "whole", rounds=2), silent)
    kills = 0
    while True:
        with monkeypatch.context() as patch:
            killed_at(7, patch)
            try:
                mine(asked(small, tmp_path / "killed", rounds=2), silent)
            except Killed:
                kills += 1
                continue
        break
    assert kills >= 3
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_folder_goes_on_with_more_rounds(small: Path, tmp_path: Path) -> None:
    at_once = mine(asked(small, tmp_path / "at once", rounds=3, stop_at=1.0), silent)
    assert len(at_once["rounds"]) == 3
    for rounds in (1, 3):
        mine(asked(small, tmp_path / "later", rounds=rounds, stop_at=1.0), silent)
    assert contents(tmp_path / "later") == contents(tmp_path / "at once")


def test_rounds_stop_where_all_was_known(small: Path, tmp_path: Path) -> None:
    """With all words kept the second round has nothing new."""
    found = mine(asked(small, tmp_path, keep=1.0), silent)
    assert [one["known_share"] for one in found["rounds"]] == [0.0, 1.0]
    assert found["rounds"][0]["recalled"] == found["pages"]["used"]


@pytest.mark.parametrize("other", [{"keep": 0.05}, {"seed": 1}, {"train_pages": 5}, {"text_column": "text"}])
def test_a_folder_of_other_settings_is_refused(small: Path, tmp_path: Path, other: dict[str, Any]) -> None:
    asked(small, tmp_path).claim()
    asked(small, tmp_path, workers=3, rounds=9, test_sets=()).claim()
    (name,) = other
    with pytest.raises(UserError, match=f"begun with other settings: {name} is .* name a new folder"):
        asked(small, tmp_path, **other).claim()


def test_a_folder_of_other_pages_or_of_something_else_is_refused(small: Path, tmp_path: Path) -> None:
    asked(small, tmp_path / "out").claim()
    with pytest.raises(UserError, match="pages is other files"):
        replace(asked(small, tmp_path / "out"), pages=(small / "pages" / "00.jsonl",)).claim()
    with pytest.raises(UserError, match="holds something else"):
        asked(small, small).claim()


def write(path: Path, found: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


def test_a_seed_without_pages_and_a_web_of_seeds_only_are_refused(small: Path, tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.jsonl", [{"words": "in another column"}])
    with pytest.raises(UserError, match="seed_pages has no page: 1 skipped: page without text"):
        mine(asked(small, tmp_path / "a", seed_pages=(empty,)), silent)
    with pytest.raises(UserError, match="pages has no page: 1 skipped: page without text"):
        mine(asked(small, tmp_path / "b", pages=(empty,)), silent)
    with pytest.raises(UserError, match="nothing to tell them from"):
        mine(asked(small, tmp_path / "c", seed_pages=(small / "pages",)), silent)
    with pytest.raises(UserError, match=r"test_sets has .*empty.jsonl.*no row has a text in the columns question"):
        mine(asked(small, tmp_path / "d", test_sets=(empty,)), silent)


def test_one_page_a_thousand_times_is_one_page(small: Path, tmp_path: Path) -> None:
    page = {"url": "http://a.example/1", "text": "one page of words that are there a thousand times"}
    copies = [page, *({**page, "url": f"http://a.example/{n}"} for n in range(1, 1000)), page]
    found = mine(asked(small, tmp_path / "out", pages=(write(tmp_path / "pages.jsonl", copies),)), silent)
    assert (found["pages"]["duplicate_urls"], found["pages"]["near_duplicates"], found["mined"]) == (2, 998, 1)


def test_the_best_pages_up_to_a_share_of_the_words() -> None:
    """Of 100 words: the best page has 30, then two equal ones of 20 and 10, of which the first comes first."""
    scores, words = np.array([0.5, 2.0, 0.5, -1.0], np.float32), np.array([20, 30, 10, 40])
    kept = {keep: best(scores, words, keep).nonzero()[0].tolist() for keep in (0.001, 0.3, 0.31, 0.5, 0.51, 1.0)}
    assert kept == {0.001: [1], 0.3: [1], 0.31: [0, 1], 0.5: [0, 1], 0.51: [0, 1, 2], 1.0: [0, 1, 2, 3]}


def collection(hosts: list[int], names: list[str]) -> Collection:
    size = len(hosts)
    zeros = np.zeros(size, np.uint64)
    return Collection(
        starts=np.array([0, size]), numbers=zeros, urls=zeros, hosts=np.array(hosts), words=zeros, names=names
    )


def test_a_domain_is_accepted_above_a_share_unless_a_person_decided() -> None:
    """Of a's 10 pages 1 is recalled, of b's 9 too, of c's 2 both, of d's none; all pages of e were duplicates."""
    pages = collection([0] * 10 + [1] * 9 + [2] * 2 + [3], ["a", "b", "c", "d", "e"])
    collected = np.zeros(22, bool)
    collected[[0, 10, 19, 20]] = True
    by_share = domains_of(pages, collected, 0.1, Decisions(by_domain={}, digest=""))
    assert [(one.domain, one.pages, one.recalled, one.accepted) for one in by_share] == [
        ("c", 2, 2, True),
        ("a", 10, 1, False),
        ("b", 9, 1, True),
    ]
    decided = Decisions(
        by_domain={"c": (False, ()), "d": (True, ("/x/",)), "e": (True, ()), "other": (True, ())}, digest="1"
    )
    found = domains_of(pages, collected, 0.1, decided)
    assert {one.domain for one in found if one.accepted} == {"b", "d"}
    assert found[-1] == Domain(domain="d", pages=1, recalled=0, share=0.0, accepted=True, paths=("/x/",))


def test_paths_decide_on_urls() -> None:
    domain = Domain(domain="a.example", pages=1, recalled=1, share=1.0, accepted=True, paths=("/q/", "/math"))
    urls = ["http://a.example/q/1", "http://a.example/mathematics", "http://a.example/q", "http://a.example?/q/"]
    assert [domain.takes(url) for url in urls] == [True, True, False, False]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"domain": "a.example"}', "accepted, true or false"),
        ('{"domain": "a.example", "accepted": "yes"}', "accepted, true or false"),
        ('{"domain": "a.example", "accepted": true, "paths": "/q/"}', "a list of beginnings"),
        ('{"domain": "a.example", "accepted": true, "paths": ["q"]}', "a list of beginnings"),
        ("{", "1 skipped: not JSON"),
    ],
)
def test_decisions_that_cannot_be_read_are_refused(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "reviewed.jsonl").write_text(line)
    with pytest.raises(UserError, match=f"reviewed is .*{message}"):
        Decisions.read(tmp_path / "reviewed.jsonl")


def reviewed(path: Path, accepted: dict[str, list[str]], others: Iterator[str]) -> Path:
    found = [{"domain": name, "accepted": name in accepted, "paths": accepted.get(name, [])} for name in others]
    return write(path, found)


def test_a_person_decides_between_rounds(small: Path, tmp_path: Path) -> None:
    """Only pages of the accepted path join the seed; decisions that come after the last round are refused."""
    mine(asked(small, tmp_path / "out", rounds=1), silent)
    hosts = {row["url"].split("/")[2] for path in (small / "pages").iterdir() for row in rows(path)}
    file = reviewed(tmp_path / "r.jsonl", {"encyclopedia0.example": ["/general/"]}, iter(sorted(hosts)))
    mine(asked(small, tmp_path / "out", rounds=2, reviewed=file, stop_at=1.0), silent)
    joined = [text for _, text in rows(tmp_path / "out" / "round-2" / "joined.jsonl")]
    pages = [row for path in sorted((small / "pages").iterdir()) for row in rows(path)]
    expected = [row["text"] for row in pages if row["url"].startswith("https://encyclopedia0.example/general/")]
    assert joined and set(joined) <= set(expected)
    mine(asked(small, tmp_path / "out", rounds=2, reviewed=file, stop_at=1.0), silent)
    other = reviewed(tmp_path / "other.jsonl", {}, iter(sorted(hosts)))
    with pytest.raises(UserError, match=r"the 2 rounds of .* are done without these decisions; raise rounds"):
        mine(asked(small, tmp_path / "out", rounds=2, reviewed=other, stop_at=1.0), silent)
