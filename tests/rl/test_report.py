from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from rl.view.conversations import FOLDED_ABOVE, MAX_PARTS, TEXT_LIMIT
from rl.view.plots import accuracy_figure
from rl.view.report import write_report

pytestmark = pytest.mark.plots
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)></pre>&lt; \x1b[31m\x00\u202e\ud800"


class Page(HTMLParser):
    """What a browser would make of the page: elements with attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] and self.tags[-1][0] != "style":
            self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def _steps(num: int, **more: float | None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"step": 0, "eval/accuracy": 0.125, "time/evaluate": 2.0}]
    for step in range(1, num + 1):
        rows.append({
            "step": step, "reward/mean": 0.5, "reward/std": 0.5, "accuracy/sampled": 0.5, "kl/reference": 0.01,
            "kl/sampler": 1e-6, "entropy": 0.7, "length/mean": 50.0, "length/max": 90.0, "length/truncated": 0.05,
            "groups/no_signal": 0.25, "groups/no_signal_expected": 0.01, "outcome/correct": 0.5, "outcome/wrong": 0.5,
            "outcome/crashed": 0.0,
            "tokens/sampled": 1000, "time/step": 3.0, "time/sample": 2.0, "time/train": 1.0, **more,
        })  # fmt: skip
    return rows


def _completion(step: int, value: float | None, text: str = "fine", problem: str = "p1") -> dict[str, Any]:
    outcome = {None: "crashed", 0.0: "wrong"}.get(value, "correct")
    return {"step": step, "problem_id": problem, "prompt": "2+2", "reference": "4", "completion": text, "value": value,
            "outcome": outcome, "detail": "", "length": 3, "finish_reason": "stop", "advantage": 0.5}  # fmt: skip


def _run(
    folder: Path, rows: list[dict[str, Any]], completions: list[dict[str, Any]] | None = None, **config: Any
) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps({"model": "tiny", "num_steps": 9, "versions": {"torch": "2"}, **config})
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if completions is not None:
        (folder / "completions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in completions))
    return write_report(folder).read_text(encoding="utf-8")


def test_the_page_asks_nothing_of_anybody(tmp_path: Path) -> None:
    page = Page(html := _run(tmp_path / "run", _steps(3), [_completion(1, 1.0)]))
    assert page.count("svg") == 8 and page.count("script") == page.count("link") == page.count("img") == 0
    addresses = [
        value for _, attrs in page.tags for name, value in attrs.items() if name in {"src", "href", "xlink:href"}
    ]
    assert addresses and all(
        value and value.startswith("#") for value in addresses
    )  # glyphs and markers of the same page
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    assert any("default-src 'none'" in (attrs.get("content") or "") for _, attrs in page.tags)


def test_all_data_sets_of_a_run_are_named(tmp_path: Path) -> None:
    """An earlier run had one, as text."""
    for dataset in (["a.jsonl=0.7", "gsm8k=0.3"], "gsm8k"):
        (tmp_path / "config.json").write_text(json.dumps({"model": "m", "dataset": dataset}))
        shown = dataset if isinstance(dataset, str) else " ".join(dataset)
        assert f"<p class=lede>m · {shown}</p>" in write_report(tmp_path).read_text("utf-8")


def test_model_text_is_read_and_not_obeyed(tmp_path: Path) -> None:
    clean = Page(_run(tmp_path / "run", _steps(2), [_completion(1, 1.0), _completion(1, 0.0)]))
    lines = [_completion(1, 1.0, HOSTILE), {**_completion(1, 0.0), "prompt": HOSTILE, "reference": HOSTILE,
             "detail": HOSTILE, "outcome": HOSTILE, "problem_id": "p1", "finish_reason": HOSTILE}]  # fmt: skip
    dirty = Page(_run(tmp_path / "run", _steps(2), lines, model=HOSTILE, **{HOSTILE: HOSTILE}))
    assert dirty.count("script") == dirty.count("img") == 0
    assert dirty.count("pre") == clean.count("pre")
    assert not re.search(r"[\x00-\x08\x0e-\x1f\u202e]", dirty.text)
    assert "<script>alert(1)</script><img src=x onerror=alert(1)></pre>&lt; \\x1b[31m\\x00\\u202e\\ud800" in dirty.text


def test_headline_compares_the_base_with_the_end(tmp_path: Path) -> None:
    rows = _steps(4)
    rows[-1]["eval/accuracy"] = 0.5
    text = Page(_run(tmp_path / "run", rows)).text
    assert "12.5% → 50.0%" in text and "(+37.5 points)" in text
    assert "14s" in text and "3.5 s a step" in text  # 4 steps of 3 s, 2 s for the base model
    assert "4,000" in text and "4 of 9" in text


def test_a_run_killed_at_once_shows_what_there_is(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    _run(folder, _steps(2, **{"kl/reference": None}))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rew')
    (folder / "config.json").write_text('{"mod')
    (folder / "completions.jsonl").write_text(json.dumps(_completion(1, 1.0)) + '\n{"step": 2, "pro')
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert (
        page.count("svg") == 8
        and "There is no reference: kl_weight is 0" in page.text
        and "policy from its reference" not in page.text
    )
    assert "held-out accuracy, evaluated once" in page.text and "config.json is missing or cannot be read" in page.text
    assert "Step 1" in page.text and "Step 2" not in page.text


def test_nothing_measured_is_said(tmp_path: Path) -> None:
    page = Page(_run(tmp_path / "run", []))
    assert "No step was measured yet" in page.text and "no completions.jsonl" in page.text
    assert page.count("svg") == 0


def test_the_base_model_alone_has_an_accuracy_and_the_rest_is_said_to_be_missing(tmp_path: Path) -> None:
    page = Page(_run(tmp_path / "run", _steps(0), []))
    assert page.count("svg") == 1 and "holds no completion yet" in page.text
    missing = page.text.partition("Not measured in this run yet: ")[2].partition(".")[0].split(", ")
    assert len(missing) == 7 and "Held-out accuracy" not in missing and "Where the time went" in missing


def test_a_single_step_has_an_area(tmp_path: Path) -> None:
    """One point has no width: the shares of a single step are drawn one step wide."""
    html = _run(tmp_path / "run", _steps(1)[1:])
    drawing = html.partition("<h3>What became")[2].partition("</svg>")[0]
    (green,) = re.findall(r'd="([^"]*)"[^>]*style="fill: #2fa37a', drawing)[:1]  # the share of correct completions
    corners = {float(x) for x in re.findall(r"[ML] (\S+) ", green)}
    assert max(corners) - min(corners) > 100


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere.* does not exist: give the --run-dir"):
        write_report(tmp_path / "nowhere")


def test_completions_come_from_the_first_middle_and_last_step(tmp_path: Path) -> None:
    lines = []
    for step in range(1, 8):
        lines += [_completion(step, value, f"same {step}", "equal") for value in (1.0, 1.0, None)]
        lines += [_completion(step, value, f"value {value} of {step}", "mixed") for value in (0.5, None, 1.0, 0.0)]
    html = _run(tmp_path / "run", _steps(7), lines)
    assert re.findall(r"Step (\d) .*?>(mixed|equal), (\d)", html) == [
        (step, *group) for step in "147" for group in (("mixed", "4"), ("equal", "3"))]  # fmt: skip
    cards = re.findall(r"<b>(\w+)</b>.*?>(score \S+|not graded).*?<pre>(.*?)</pre>", html)
    of_step_4 = cards[4:8]
    assert of_step_4[:2] == [("best", "score 1", "value 1.0 of 4"), ("worst", "score 0", "value 0.0 of 4")]
    assert of_step_4[2] in [("random", "score 0.5", "value 0.5 of 4"), ("random", "not graded", "value None of 4")]
    assert of_step_4[3] in [
        ("random", "score 1", "same 4"),
        ("random", "not graded", "same 4"),
    ]  # nothing to choose from: all got the same
    assert len(cards) == 12


def test_long_runs_stay_small(tmp_path: Path) -> None:
    long = "x" * 100_000
    html = _run(
        tmp_path / "run", _steps(3000), [_completion(s, float(i), long) for s in range(1, 30) for i in range(3)]
    )
    assert "x" * TEXT_LIMIT in html and "x" * (TEXT_LIMIT + 1) not in html
    assert "[96,000 more characters]" in html
    assert len(html) < 1_000_000


def test_concerns_are_raised_only_where_there_are_any(tmp_path: Path) -> None:
    assert "Look here first" not in _run(tmp_path / "run", _steps(5))
    text = Page(_run(tmp_path / "run", _steps(5, **{"outcome/crashed": 0.25}))).text
    assert "25.0% of the completions could not be graded because the verifier failed" in text


@pytest.mark.parametrize(("level", "said"), [(1.0, True), (2.0, False), (3.0, False)])
def test_a_run_of_programs_that_were_not_shut_in_says_so(tmp_path: Path, level: float, said: bool) -> None:
    page = _run(tmp_path / "run", _steps(5, **{"sandbox/level": level}))
    assert ("UNSAFE" in Page(page).text) == said


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    lines = [_completion(1, float(i % 2), f"text {i}") for i in range(8)]
    assert _run(tmp_path / "run", _steps(50), lines) == _run(tmp_path / "run", _steps(50), lines)


def test_figure_of_several_runs(tmp_path: Path) -> None:
    for name in ("plain", "a $\\frac$ run"):  # a name is no formula
        _run(tmp_path / name, _steps(4))
    accuracy_figure([tmp_path / "plain"], tmp_path / "one.png")
    accuracy_figure([tmp_path / "plain", tmp_path / "a $\\frac$ run"], tmp_path / "two.png")
    one, two = (tmp_path / "one.png").read_bytes(), (tmp_path / "two.png").read_bytes()
    assert one[16:24] == (1200).to_bytes(4) + (500).to_bytes(4)  # width and height in the PNG header
    assert one != two
    with pytest.raises(ValueError, match="nowhere"):
        accuracy_figure([tmp_path / "nowhere"], tmp_path / "three.png")


def _conversation(*parts: tuple[str, bool], **more: Any) -> dict[str, Any]:
    """A line of completions.jsonl with these parts, the masked ones marked."""
    text, masked = "", list[list[int]]()
    for part, is_masked in parts:
        masked += [[len(text), len(text) + len(part)]] if is_masked else []
        text += part
    used = {"turns": 2, "calls": 1, "failed": 0, "malformed": 0, "seconds": 0.25, "end": "answer"}
    return {**_completion(1, 1.0, "graded"), "conversation": text, "masked": masked, "tool_use": used, **more}


def _parts(html: str) -> list[tuple[bool, bool, str, str]]:
    """(is masked, is open, role, text) of each part of the conversations on a page."""
    found = re.findall(r"<details class='part( masked)?'( open)?><summary>(.*?)</summary><pre>(.*?)</pre>", html, re.S)
    return [(bool(masked), bool(is_open), role, text) for masked, is_open, role, text in found]


def test_a_conversation_is_shown_turn_by_turn_with_the_tools_greyed(tmp_path: Path) -> None:
    turns = (("call(2)", False), ("[4]", True), ("It is 4.", False))
    html = _run(tmp_path / "run", _steps(1), [_conversation(*turns)])
    assert _parts(html) == [
        (False, True, "model, calls a tool", "call(2)"),
        (True, True, "answer of the tool", "[4]"),
        (False, True, "model", "It is 4."),
    ]
    assert "2 turns · 1 calls · 0 of them failed · 0.25 s in tools · ended by answer" in Page(html).text
    thinking = {"num_tokens": 9, "num_waits": 1, "is_cut": True}
    turns = (("hm", False), ("Wait", True), (" so", False), ("</think>", True))
    html = _run(tmp_path / "run", _steps(1), [_conversation(*turns, tool_use=None, thinking=thinking)])
    assert [(masked, role, text) for masked, _, role, text in _parts(html)] == [
        (False, "model", "hm"),
        (True, "forced", "Wait"),
        (False, "model", " so"),
        (True, "forced", "&lt;/think&gt;"),
    ]
    assert "9 thinking tokens · 1 waits · cut by the budget" in Page(html).text


def test_a_conversation_of_an_earlier_version_is_one_part(tmp_path: Path) -> None:
    earlier = _conversation(("call(2)[4]It is 4.", False))
    del earlier["masked"]
    assert _parts(_run(tmp_path / "run", _steps(1), [earlier])) == [
        (False, True, "model and tools", "call(2)[4]It is 4.")
    ]


def test_what_tools_answer_is_read_and_not_obeyed(tmp_path: Path) -> None:
    parts = [(HOSTILE, False), (HOSTILE, True), (HOSTILE, False)]
    clean = Page(_run(tmp_path / "run", _steps(1), [_conversation(*((text[:9], masked) for text, masked in parts))]))
    dirty = Page(_run(tmp_path / "run", _steps(1), [_conversation(*parts)]))
    assert dirty.tags == clean.tags and dirty.text.count("<script>alert(1)</script>") == 3


def test_long_conversations_are_folded_and_cut(tmp_path: Path) -> None:
    long = [("x" * 100_000, n % 2 == 1) for n in range(1000)]
    html = _run(tmp_path / "run", _steps(1), [_conversation(("y" * (FOLDED_ABOVE + 1), True), *long)])
    assert len(shown := _parts(html)) == MAX_PARTS and "981 more parts" in html
    assert all(not is_open and len(text) < TEXT_LIMIT + 40 for _, is_open, _, text in shown)
    assert shown[0][2] == f"answer of the tool · {FOLDED_ABOVE + 1} characters"
