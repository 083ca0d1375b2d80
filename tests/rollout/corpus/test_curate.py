"""`plumbline curate`: each stage on rows worked by hand, the law of the draw against exact probabilities, and what is wrong with its input."""

from __future__ import annotations

import gzip
import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from rewards.errors import UserError
from rl.cli import app
from rl.settings.curate_options import CurateOptions
from rollout.corpus import curate as module
from rollout.corpus.curate import curate
from rollout.corpus.curation_report import CurationReport
from rollout.corpus.curation_stages import Curation
from rollout.corpus.diversity import RANKS, Remaining, draw, rank
from rollout.corpus.quality import FAULTS, fault
from rollout.problems import load_problems


def row(number: int, **others: Any) -> dict[str, Any]:
    """Its question has three words, and its worked solution number + 2."""
    return {"question": f"Question number {number}?", "answer": f"{'so ' * number}it is", **others}


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def asked(*rows: Path, out: Path, **others: Any) -> Curation:
    return Curation(**vars(CurateOptions(rows=rows, out=out, **others)))


def chosen(report: CurationReport, out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == report.left["diversity"] == report.chosen.total()
    return rows


# Quality.

FINE = "Find $x$.\n(a) if $x+1=2$\n(b) if $x=-y$"
SOLVED = "1. Take one.\n```python\nprint(1)\n```\n\\boxed{\\frac{1}{2}}"
TABLE = "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n| 5 | 6 |"
ART = "How tall is it?\n  /\\\n /  \\\n/____\\"
GRID = "How many squares?\n+---+---+\n| a |   |\n+---+---+"


@pytest.mark.parametrize(
    ("question", "solution", "reason"),
    [
        (FINE, SOLVED, None),
        (" \n", SOLVED, "no question"),
        (FINE, "\t", "no worked solution"),
        ("What is 3\ufffd4?", SOLVED, "text that was decoded wrongly"),
        (FINE, "It is \x0crac{1}{2}", "text that was decoded wrongly"),
        (FINE, "half \ud83d of a pair", "text that was decoded wrongly"),
        (FINE, "tabs\tand\r\nends of lines, ½ 😀 数学", None),
        (FINE, "```python\nprint(1)\n", "a block of code that is not closed"),
        (FINE, "````\n```\n````", None),  # a longer fence holds a shorter one
        (FINE, "```python\nx\n```output\n1\n```", "a block of code that is not closed"),
        (FINE, "use ```x``` here", None),
        (FINE, "so \\boxed{\\frac{1}{2}", "a box that is not closed"),
        (FINE, "so \\boxed{1} and not \\{2", None),
        (FINE, "so \\boxed 5 or \\fbox{7}", None),
        ("Look: ![](a.png)", SOLVED, "an image"),
        (FINE, "\\includegraphics[width=3cm]{a}", "an image"),
        (FINE, "the array[image_count] is 3", None),
        ("In the diagram, find x.", SOLVED, "a figure that is not there"),
        ("The figure below is a square.", SOLVED, "a figure that is not there"),
        ("In the diagram, find x. [asy] draw((0,0)--(1,1)); [/asy]", SOLVED, None),
        ("Figure out in the image of f what is 2.", SOLVED, "a figure that is not there"),  # known to be wrong
        (FINE, "as shown in the figure that I draw", None),  # a solution may speak of its own
        (ART, SOLVED, "a drawing in text"),
        (GRID, SOLVED, "a drawing in text"),
        (TABLE, SOLVED, None),
        (FINE, "10+20=30\n-x+y=-z\na-b=c\n|x|=3\n\\[\nx^2\n\\]\n---", None),
        (FINE, "\\begin{aligned}\n&= a \\\\\n&= b \\\\\n&= c \\\\\n\\end{aligned}", None),
        ("1. One\n2. Two\n1. One again", SOLVED, None),
        ("12. A number of its source.", SOLVED, None),
        ("1. One\n3. Three", SOLVED, "parts out of order"),
        ("(a) One\n(a) Two\n(c) Three", SOLVED, "parts out of order"),
    ],
)
def test_faults_of_form(question: str, solution: str, reason: str | None) -> None:
    assert fault(question, solution) == reason


def test_every_fault_has_a_row_that_has_it() -> None:
    """So that a rule that never holds is seen here: the reasons of the cases above are all reasons."""
    (mark,) = test_faults_of_form.pytestmark  # pyright: ignore[reportFunctionMemberAccess]
    assert {case[2] for case in mark.args[1]} - {None} == set(FAULTS)


def test_long_lines_of_marks_take_linear_time() -> None:
    """Of this process it takes 1 s; quadratic time is 30 s and more."""
    started = time.process_time()
    for piece in ("```", "\\boxed{", "| ", "1. ", "![", "in the ", "-=" * 5 + "\n", "~"):
        fault(piece * 50_000 + "`", piece * 50_000 + "`")
    assert time.process_time() - started < 10


# Each stage.


def test_each_stage_removes_its_rows_and_says_why(tmp_path: Path) -> None:
    """Ten rows: 0 has no question, 1 is short, 2 is solved by one model and 3 by the other, 4 shares 4 words with a test question,
    5 repeats the question of 6, whose solution is longer. 7, 8, 9 have nothing wrong."""
    rows = [
        row(0, question=""),
        row(1, answer="one"),
        *(row(n) for n in range(2, 10)),
    ]
    rows[4]["question"] = "Tell me how many BIRDS are there."
    rows[5]["question"] = "question  NUMBER 6?"
    first = [{"prompt": "Question number 2?", "pass_rate": 0.125}, {"prompt": "Question number 7?", "pass_rate": 0}]
    second = [{"prompt": "question number 3?", "pass_rate": 1}, {"prompt": "Question number 2?", "pass_rate": None}]
    report = curate(
        asked(
            written(tmp_path / "a.jsonl", *rows),
            out=tmp_path / "out.jsonl",
            min_words=2,
            ngram=4,
            test_sets=(str(written(tmp_path / "test.jsonl", {"question": "So how many birds are there now?"})),),
            solved_by=(written(tmp_path / "m.jsonl", *first), written(tmp_path / "n.jsonl", *second)),
        )
    )
    assert chosen(report, tmp_path / "out.jsonl") == [rows[6], rows[7], rows[8], rows[9]]
    assert report.left == {
        "rows read": 10,
        "quality": 8,
        "difficulty": 6,
        "contamination": 5,
        "duplicates": 4,
        "diversity": 4,
    }
    assert report.removed["quality"].counts == {"no question": 1, "worked solution of fewer than 2 words": 1}
    assert report.removed["difficulty"].counts == {"solved in m.jsonl": 1, "solved in n.jsonl": 1}
    assert report.contaminated == [
        {"row": "a.jsonl:5", "question": rows[4]["question"], "shared words": "how many birds are"}
    ]
    assert report.duplicate == "a.jsonl:6 has the question of a.jsonl:7"
    assert report.without_rate == 5  # rows 4, 5, 6, 8, 9
    assert sorted(report.words_before) == [4, 5, 6, 7, 8, 9, 10, 11] and sorted(report.words_after) == [8, 9, 10, 11]
    saved = json.loads((tmp_path / "out.report.json").read_text())
    assert saved["left after"] == report.left and saved["options"]["min_words"] == 2
    assert saved["words"]["after"] == {"least": 8, "10 %": 8, "median": 9, "90 %": 11, "most": 11}
    text = report.text(1000)
    assert "a.jsonl:5 shares 'how many birds are'" in text and "4 rows are chosen and not 1,000" in text


def test_a_census_without_questions_is_joined_by_id_and_the_pass_rate_that_counts_can_be_raised(tmp_path: Path) -> None:
    """Row 5 has no id: the number that a data set gives it is not looked for."""
    rows = written(tmp_path / "a.jsonl", *(row(n, id="abcd"[n]) for n in range(4)), row(5))
    rates = [{"id": "a", "pass_rate": 0.5}, {"id": "b", "pass_rate": 0.75}, {"id": "c", "pass_rate": ""}]
    rates += [{"id": n, "pass_rate": 1} for n in range(6)]
    bad = [{"id": "d", "pass_rate": "1"}, {"id": "d", "pass_rate": 2}, {"id": "d", "pass_rate": math.nan}, {"x": 1}]
    census = written(tmp_path / "m.jsonl", *rates, *bad)
    report = curate(asked(rows, out=tmp_path / "out.jsonl", solved_by=(census,), solved_above=0.5))
    assert [one.get("id") for one in chosen(report, tmp_path / "out.jsonl")] == ["a", "c", "d", None]
    assert report.unread.counts == {"neither a question nor an id with a pass rate in [0, 1]": 4}
    report = curate(asked(rows, out=tmp_path / "out.jsonl", solved_by=(census,)))
    assert [one.get("id") for one in chosen(report, tmp_path / "out.jsonl")] == ["c", "d", None]


def test_of_equal_questions_the_longest_solution_stays_whatever_the_order(tmp_path: Path) -> None:
    rows = [row(n, question="The same?") for n in (1, 3, 2)]
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        report = curate(
            asked(written(tmp_path / "a.jsonl", *(rows[i] for i in order)), out=tmp_path / "out.jsonl", size=5)
        )
        assert chosen(report, tmp_path / "out.jsonl") == [rows[1]] and report.duplicates == 2


# The draw.


def exact(domains: list[list[int]], size: int) -> dict[tuple[int, ...], float]:
    """The probability of each sequence of rows, from the words of the paper: all draws are enumerated and their probabilities multiplied."""
    found: dict[tuple[int, ...], float] = {}

    def go_on(drawn: tuple[int, ...], probability: float) -> None:
        left = [[r for r in domain if r not in drawn] for domain in domains]
        left = [rows for rows in left if rows]
        if len(drawn) == size or not left:
            found[drawn] = found.get(drawn, 0.0) + probability
            return
        for rows in left:
            weights = [2.0**-i for i in range(1, len(rows) + 1)]
            for r, weight in zip(rows, weights):
                go_on((*drawn, r), probability / len(left) * weight / sum(weights))

    go_on((), 1.0)
    return found


@pytest.mark.parametrize(
    ("domains", "size"), [([[0, 1, 2, 3]], 2), ([[0, 1, 2], [3]], 2), ([[0], [1, 2], [3, 4]], 3), ([[0, 1], [2]], 9)]
)
def test_the_draw_has_the_probabilities_of_the_paper(domains: list[list[int]], size: int) -> None:
    """20,000 seeds. The sum of (seen - expected)^2 / expected has mean k and standard deviation sqrt(2 k) for k + 1 sequences; five of
    them are exceeded by chance less than once in a thousand."""
    count = 20_000
    seen, expected = Counter(tuple(draw(domains, size, seed)) for seed in range(count)), exact(domains, size)
    assert set(seen) <= set(expected) and math.isclose(sum(expected.values()), 1.0)
    chi2 = sum((seen[key] - count * p) ** 2 / (count * p) for key, p in expected.items())
    free = len(expected) - 1
    assert chi2 < free + 5 * math.sqrt(2 * free)


def test_ranks_of_few_rows_have_exact_probabilities() -> None:
    """Of 3 rows 4/7, 2/7, 1/7; five standard deviations of a share of 70,000 are at most 5 x 0.5 / sqrt(70,000) = 0.0095."""
    rng = random.Random(0)
    seen = Counter(rank(rng, 3) for _ in range(70_000))
    assert all(abs(seen[i] / 70_000 - p) < 0.0095 for i, p in ((1, 4 / 7), (2, 2 / 7), (3, 1 / 7)))
    assert {rank(rng, 1) for _ in range(50)} == {1}


def test_a_domain_holds_as_many_rows_as_can_be_drawn() -> None:
    """The longest size + 64: with fewer, or with all, the same are drawn."""
    many = list(range(5_000))
    for seed in range(20):
        assert draw([many], 300, seed) == draw([many[: 300 + RANKS]], 300, seed)


def test_domains_are_ranked_by_length_and_named_in_order() -> None:
    remaining = Remaining()
    for number, (words, domain) in enumerate([(5, "b"), (9, "b"), (7, "a"), (2, "b"), (1, "c"), (8, "a")]):
        remaining.add(10 + number, number, words, domain)
    assert remaining.by_domain(2) == [[5, 2], [1, 0], [4]]


def test_few_rows_of_each_domain_are_drawn_from_an_uneven_pool(tmp_path: Path) -> None:
    """Of 900 and 100 rows about 40 each: a binomial of 80 with 1/2 has a standard deviation of 4.5. By chance they would be 72 and 8."""
    rows = [row(n, subject="large" if n % 10 else "small") for n in range(1_000)]
    report = curate(asked(written(tmp_path / "a.jsonl", *rows), out=tmp_path / "out.jsonl", size=80))
    assert report.domains == {"large": 900, "small": 100}
    assert 40 - 5 * 4.5 < report.chosen["small"] < 40 + 5 * 4.5
    # 40 draws of ranks with mean 2 without replacement reach rank 100 of 900 with a probability below 40 x 2^-60.
    assert min(report.words_after) > 1_000 * 0.1


def test_the_same_seed_gives_the_same_rows_in_whatever_order_they_come(tmp_path: Path) -> None:
    rows = [row(n, domain=str(n % 7), id=str(n)) for n in range(300)]

    def ids(seed: int, *parts: list[dict[str, Any]]) -> list[str]:
        files = [written(tmp_path / f"{n}.jsonl", *part) for n, part in enumerate(parts)]
        report = curate(asked(*files, out=tmp_path / "out.jsonl", size=40, seed=seed))
        return [one["id"] for one in chosen(report, tmp_path / "out.jsonl")]

    in_order = ids(0, rows)
    assert ids(0, rows) == in_order and set(ids(1, rows)) != set(in_order)
    shuffled = random.Random(0).sample(rows, len(rows))
    assert set(ids(0, shuffled[:100], shuffled[100:])) == set(in_order)


# What is written.


def test_the_chosen_rows_are_a_data_set_that_keeps_all_columns(tmp_path: Path) -> None:
    """A trace in a column of its own becomes the worked solution; ids that two files share are made different."""
    first = [
        {"problem": f"Add {n} and 1", "solution": str(n + 1), "thinking": f"1 + {n} is {n + 1}", "id": n}
        for n in range(3)
    ]
    second = [one | {"problem": one["problem"] + "0", "source": {"a": [1.5, None]}} for one in first]
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, second)).encode()))
    files = written(tmp_path / "a.jsonl", *first), tmp_path / "b.jsonl.gz"
    report = curate(asked(*files, out=tmp_path / "out.jsonl", trace_column="thinking"))
    kept = chosen(report, tmp_path / "out.jsonl")
    assert [{**one, "id": 0} for one in kept] == [
        {**one, "id": 0, "worked": one["thinking"]} for one in (*first, *second)
    ]
    assert [one["id"] for one in kept] == [0, 1, 2, "0 of row 3", "1 of row 4", "2 of row 5"] and report.renamed == 3
    problems = load_problems(str(tmp_path / "out.jsonl"))
    assert [p.metadata["worked"] for p in problems] == [one["thinking"] for one in (*first, *second)]
    assert [p.reference for p in problems] == ["1", "2", "3"] * 2


def test_conversations_are_read_as_training_reads_them(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Add 1 and 1"}]
    rows = [{"messages": [*turns, {"role": "assistant", "content": "It is 2"}]}, {"messages": turns}]
    report = curate(asked(written(tmp_path / "a.jsonl", *rows), out=tmp_path / "out.jsonl"))
    assert chosen(report, tmp_path / "out.jsonl") == rows[:1]
    assert report.removed["quality"].counts == {"no worked solution": 1} and list(report.words_after) == [3]


def test_rows_are_read_one_by_one_and_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most as many as the head, by which columns are found, are alive at once."""
    alive, most = 0, 0

    class Counted(dict[str, Any]):
        def __init__(self, *given: Any) -> None:
            nonlocal alive, most
            super().__init__(*given)
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    read = module.read_rows

    def counted(*given: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        for where, one in read(*given):
            yield where, Counted(one)

    monkeypatch.setattr(module, "read_rows", counted)
    monkeypatch.setattr(module, "HEAD", 10)
    curate(asked(written(tmp_path / "a.jsonl", *map(row, range(500))), out=tmp_path / "out.jsonl", size=5))
    assert 10 <= most <= 13 and alive == 0


# Bad input.


def test_what_cannot_be_read_is_counted_and_the_rest_is_chosen(tmp_path: Path) -> None:
    bad = [
        {"question": ["no message"], "answer": "1"},
        {"question": {"role": "user"}, "answer": "1"},
        {"question": True, "answer": "1"},
        {"question": math.nan, "answer": math.nan},
        {"question": "half \ud800", "answer": "1"},
        {"question": "Whose?", "answer": None},
        {"other": 1},
        row(1, verifier="none of ours"),
        row(2, worked=[{"role": "user", "content": "no answer"}]),
    ]
    lines = [*map(json.dumps, [*bad, row(3, domain=["x", "y"]), row(4, domain={}), row(5, domain=math.nan)]), "{", "[]"]
    (tmp_path / "a.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff\n")
    report = curate(asked(tmp_path / "a.jsonl", out=tmp_path / "out.jsonl"))
    assert [one["question"] for one in chosen(report, tmp_path / "out.jsonl")] == [
        f"Question number {n}?" for n in (3, 4, 5)
    ]
    assert report.removed["quality"].counts == {"not a problem": 6, "no question": 2, "no worked solution": 1}
    assert report.unread.counts == {"not JSON": 1, "not an object with columns": 1, "not UTF-8": 1}
    assert report.domains == {"none": 11, "x": 1} and report.chosen == {"none": 2, "x": 1}


@pytest.mark.parametrize(
    ("rows", "changed", "message"),
    [
        ([], {}, "rows: no line of 1 files is a JSON object"),
        ([{"x": 1}], {}, "prompt_column: dataset .* has no column 'question'"),
        ([row(1, question="")], {}, r"none of 1 is left after the stage quality \(1 no question, first a.jsonl:1"),
        ([row(1)], {"min_words": 4}, "after the stage quality .1 worked solution of fewer than 4 words"),
        ([row(1)], {"solved_by": [{"prompt": "Question number 1?", "pass_rate": 1}]}, "after the stage difficulty"),
        ([row(1)], {"solved_by": [{"prompt": "Another?", "pass_rate": 1}]}, "none of the rows is among the 1 that it"),
        ([row(1)], {"solved_by": [row(1)]}, "no row of it has a pass_rate; write it with plumbline census"),
        ([row(1)], {"test_sets": [{"question": "Question number 1?"}]}, "after the stage contamination"),
        ([row(1)], {"test_sets": "absent.jsonl"}, "test_sets is 'absent.jsonl': .* give an existing file"),
        ([row(1)], {"domain_column": "field"}, "domain_column is 'field': the first 1 rows do not have it"),
        ([row(1)], {"trace_column": "trace"}, r"trace_column is 'trace': .*; they have \['answer', 'question'\]"),
        ([row(1)], {"out": "a.jsonl"}, "it is one of the files of rows"),
    ],
)
def test_what_leaves_nothing_or_is_not_there_is_said_and_nothing_is_written(
    tmp_path: Path, rows: list[dict[str, Any]], changed: dict[str, Any], message: str
) -> None:
    changed = {"out": tmp_path / "out.jsonl", **changed}
    if isinstance(changed.get("solved_by"), list):
        changed["solved_by"] = (written(tmp_path / "m.jsonl", *changed["solved_by"]),)
    if "test_sets" in changed:
        given = changed["test_sets"]
        changed["test_sets"] = (given if isinstance(given, str) else str(written(tmp_path / "t.jsonl", *given)),)
    if changed["out"] == "a.jsonl":
        changed["out"] = tmp_path / "a.jsonl"
    before = {written(tmp_path / "a.jsonl", *rows)}
    with pytest.raises(UserError, match=message):
        curate(asked(tmp_path / "a.jsonl", **changed))
    assert {p for p in tmp_path.iterdir() if p.name not in ("m.jsonl", "t.jsonl")} == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": ()}, "rows is missing"),
        ({"size": 0}, "size is 0: it must be at least 1"),
        ({"out": Path("out.json")}, "out is 'out.json': it must end in .jsonl"),
        ({"out": Path("/no/folder/x.jsonl")}, "there is no folder '/no/folder'"),
        ({"solved_above": 1.5}, r"solved_above is 1.5: it must be in \[0, 1\]"),
        ({"min_words": 5, "max_words": 4}, "max_words is 4: it must be at least min_words, 5"),
    ],
)
def test_options_that_cannot_be_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(CurateOptions(rows=(Path("a.jsonl"),), out=Path("out.jsonl")), **changed)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = written(tmp_path / "a.jsonl", *(row(n, subject=str(s)) for n, s in product(range(30), range(1))))
    given = [str(rows), "--out", str(tmp_path / "out.jsonl"), "--size", "7", "--domain-column", "subject"]
    app.cli(prog="plumbline", args=["curate", *given])
    shown = capsys.readouterr().out
    assert [line.split() for line in shown.splitlines() if line.startswith(("rows", "diversity"))] == [
        ["rows", "read", "30"],
        ["diversity", "-23", "7"],
    ]
    assert len(load_problems(str(tmp_path / "out.jsonl"))) == 7
