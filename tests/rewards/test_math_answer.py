"""Grading of final answers: verdict, reason, bounded time, and independence of what was graded before."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import fields
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from math_cases import CASES

from rewards.errors import UserError
from rewards.math_answer import MathVerifier
from rewards.math_policy import MathPolicy
from rewards.mathematics import grader as math_grader
from rewards.mathematics.comparison import Comparison
from rewards.mathematics.grader import MathGrader
from rewards.mathematics.scalar_stage import compare_scalars
from rewards.score import Outcome
from rewards.verdict import Verdict

GRADER = MathGrader(strict=True, policy=MathPolicy())


def _boxed(answers: list[str]) -> list[str]:
    return [f"\\boxed{{{answer}}}" for answer in answers]


@pytest.mark.parametrize("rule", CASES)
def test_each_case_gets_the_verdict_of_its_rule(rule: str, verifier: MathVerifier) -> None:
    for reference, right, wrong in CASES[rule]:
        answers = right + wrong
        if any("{" in answer and answer.count("{") != answer.count("}") for answer in answers):
            completions = [f"#### {answer}" for answer in answers]  # a brace missing on purpose
        else:
            completions = _boxed(answers)
        scores = verifier.verify_batch(completions, [reference] * len(answers))
        failed = [
            (reference, answer, score.detail)
            for answer, score, expected in zip(answers, scores, [1.0] * len(right) + [0.0] * len(wrong))
            if score.value != expected
        ]
        assert not failed


def _table(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_development_table_has_no_false_positive_and_at_most_one_percent_false_negatives(
    shared_file: Callable[[str], Path], verifier: MathVerifier
) -> None:
    rows = _table(shared_file("cases/math_cases_dev.jsonl"))
    scores = verifier.verify_batch([row["answer"] for row in rows], [row["gold"] for row in rows])
    misses = [(row["id"], score) for row, score in zip(rows, scores) if (score.value == 1.0) != row["expect"]]
    print(f"{len(rows) - len(misses)} of {len(rows)} rows right")
    assert [miss for miss in misses if miss[1].value == 1.0] == []
    assert len(misses) <= 0.01 * len(rows)
    assert [score for score in scores if score.outcome is Outcome.CRASHED] == []
    assert list(Path("/tmp").glob("pwned_*")) == []


def test_the_defaults_follow_the_majority_of_the_ambiguous_table(
    shared_file: Callable[[str], Path], verifier: MathVerifier
) -> None:
    rows = [row for row in _table(shared_file("cases/math_cases_ambiguous.jsonl")) if row["lean"] is not None]
    scores = verifier.verify_batch([row["answer"] for row in rows], [row["gold"] for row in rows])
    assert [row["id"] for row, score in zip(rows, scores) if (score.value == 1.0) != row["lean"]] == []


@pytest.mark.parametrize(
    ("option", "other", "reference", "answer"),
    [
        ("relative_tolerance", 1e-3, "100", "100.05"),  # 5e-4 away
        ("relative_tolerance", 1e-3, r"\pi", "3.14"),  # 5.1e-4 away
        ("rounding_digits", 6, r"\frac13", "0.333333"),
        ("rounding_digits", 6, r"\sqrt2", "1.41421"),
        ("percent_sign_optional", False, "25", r"25\%"),
        ("convert_units", False, r"5\text{ m}", r"500\text{ cm}"),
        ("unevaluated_arithmetic", True, "420", r"12\times 35"),
        ("brackets_optional", True, "(1,2)", "1,2"),
        ("count_repeats", False, "1,1,2", "1,2"),
        ("ignore_letter_case", True, "B", "b"),
        ("decimal_comma", True, "3.14", "3,14"),
    ],
)
def test_each_option_changes_its_verdict(option: str, other: float, reference: str, answer: str) -> None:
    default = getattr(MathPolicy(), option)
    verdicts = [
        MathGrader(strict=True, policy=MathPolicy(**{option: value}))
        .grade(f"\\boxed{{{answer}}}", reference)
        .is_correct  # type: ignore[arg-type]
        for value in (default, other)
    ]
    assert verdicts == [option in ("percent_sign_optional", "convert_units"), not verdicts[0]]


@pytest.mark.parametrize(
    ("answer", "equal"), [("51", True), ("149", True), ("49", False), ("151", False), ("199", False)]
)
def test_the_tolerance_is_relative_to_the_reference(answer: str, equal: bool) -> None:
    """A half of 100 to either side; of 199 itself a half would be 99.5, and reach back to 100."""
    grader = MathGrader(strict=True, policy=MathPolicy(relative_tolerance=0.5))
    assert grader.grade(f"\\boxed{{{answer}}}", "100").is_correct is equal


def test_the_page_on_grading_names_every_option_with_its_default() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "grading.md").read_text(encoding="utf-8")
    page, heading, _ = page.partition("\n## Format\n")  # what follows has a table of its own
    assert heading
    rows = [
        tuple(cell.strip() for cell in line.split("|")[1:3]) for line in page.splitlines() if line.startswith("| `")
    ]
    assert rows[-len(fields(MathPolicy)) :] == [
        (f"`{field.name}`", f"`{field.default}`") for field in fields(MathPolicy)
    ]
    assert [name for name, _ in rows[: len(Outcome)]] == [f"`{outcome.value}`" for outcome in Outcome]


def test_options_out_of_range_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="relative_tolerance=2"):
        MathPolicy(relative_tolerance=2)
    with pytest.raises(ValueError, match="rounding_digits=1"):
        MathPolicy(rounding_digits=1)


def test_a_policy_is_read_from_its_texts() -> None:
    texts = ["relative-tolerance=1e-4", "rounding_digits=4", "decimal_comma=True", "convert_units=false"]
    policy = MathPolicy(relative_tolerance=1e-4, rounding_digits=4, decimal_comma=True, convert_units=False)
    assert MathPolicy.parse(texts) == policy
    assert MathPolicy.parse([]) == MathPolicy()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("comma=true", "grading is 'comma=true': it must be option=value with an option among relative_tolerance, "),
        ("decimal_comma", "grading is 'decimal_comma': the value must be true or false"),
        ("decimal_comma=1", "the value must be true or false"),
        ("rounding_digits=3.5", "the value must be a whole number"),
        ("relative_tolerance=x", "the value must be a number"),
        ("relative_tolerance=2", r"relative_tolerance=2.0 must be in \[0, 1\)"),
    ],
)
def test_a_text_that_is_no_policy_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        MathPolicy.parse([text])


def test_the_policy_reaches_the_workers() -> None:
    with MathVerifier(strict=True, policy=MathPolicy(ignore_letter_case=True), num_workers=1) as verifier:
        scores = verifier.verify_batch([r"\boxed{b}", "#### B"], ["B", "B"])
    assert [score.outcome for score in scores] == [Outcome.CORRECT, Outcome.NO_ANSWER]


def test_an_outcome_says_why_there_is_no_reward(verifier: MathVerifier) -> None:
    answers = [r"\boxed{5}", r"\boxed{6}", "5", r"\boxed{\foo 5}", r"\boxed{5}"]
    scores = verifier.verify_batch(answers, ["5", "5", "5", "5", " "])
    expected = [Outcome.CORRECT, Outcome.WRONG, Outcome.NO_ANSWER, Outcome.UNPARSED, Outcome.BAD_REFERENCE]
    assert [score.outcome for score in scores] == expected
    assert [score.value for score in scores] == [1.0, 0.0, 0.0, 0.0, None]
    assert [dict(score.parts) for score in scores] == [{"math": 1.0}, {"math": 0.0}, {"math": 0.0}, {"math": 0.0}, {}]


@pytest.mark.parametrize(
    "answer", [r"\int_0^1 x\,dx", r"\sum_{k=1}^3k", r"\begin{vmatrix}1\end{vmatrix}", "5?", r"4\approx5", "101_2"]
)
def test_a_question_a_hedge_or_a_base_is_a_wrong_answer_not_an_unreadable_one(answer: str) -> None:
    assert GRADER.grade(f"\\boxed{{{answer}}}", "5").outcome is Outcome.WRONG


def test_identical_pairs_are_graded_once(verifier: MathVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    graded = []
    run = verifier._pool.run
    monkeypatch.setattr(verifier._pool, "run", lambda items: graded.extend(items) or run(items))
    scores = verifier.verify_batch([r"\boxed{1}", r"\boxed{2}"] * 3 + [r"\boxed{2}"], ["1"] * 6 + ["2"])
    assert graded == [(r"\boxed{1}", "1"), (r"\boxed{2}", "1"), (r"\boxed{2}", "2")]
    assert [score.value for score in scores] == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]


def test_unequal_lengths_are_refused(verifier: MathVerifier) -> None:
    with pytest.raises(ValueError, match="2 answers for 1 references"):
        verifier.verify_batch(["a", "b"], ["a"])


def test_a_reference_is_bad_if_only_the_same_text_would_match_it(verifier: MathVerifier) -> None:
    good = ["5", r"\text{SAS similarity}", r"\frac{3\pm i\sqrt7}{2}", "1+1=2\n#### 2", r"(-\infty, 3]", "10200_3", "B"]
    bad = ["", "  ", ".", "$$", r"\text{ }", "####", r"10^{10^{10}}", r"\frac{1}{", r"\foo", "x^", "9" * 3000]
    bad += [r"5\approx\foo"]  # half of it can be read
    scores = verifier.check_references(good + bad)
    assert [score.outcome for score in scores] == [Outcome.CORRECT] * len(good) + [Outcome.BAD_REFERENCE] * len(bad)
    assert all(score.value is None for score in scores[len(good) :])
    scores = verifier.verify_batch(_boxed(bad[:6]), bad[:6])
    assert [score.outcome for score in scores] == [Outcome.BAD_REFERENCE] * 6  # the empty never match the empty


BOMBS = [
    r"10^{10^{10}}", r"2^{2^{2^{2^{2^{2}}}}}", r"(10^{8})!", r"\binom{10^9}{5\cdot 10^8}", r"(x+1)^{10000}",
    r"\sin(10^{10^{8}})", r"\sin(10^{9999})", r"10^{-10^{10}}", r"9^{9^{9^{9}}}", "9**9**9**9", r"e^{e^{e^{e^{e}}}}", "100000!!!!",
    "(" * 3000 + "5" + ")" * 3000, r"\sqrt{" * 300 + "5" + "}" * 300, "-" * 1901 + "5", "5" + "^2" * 900, "1" * 20_000,
    r"\{" + ",".join(map(str, range(450))) + r"\}", "1 " * 900, "1+" * 900 + "1", "x" * 1900, r"\pm" * 600, "5," * 900,
    r"\text{" * 300 + "}" * 300, r"\begin{pmatrix}" * 100 + r"\end{pmatrix}" * 100, "|" * 1900, "5!" + "!" * 1900,
    r"\frac" * 600, "1e" * 900, "1_" * 900, "1:" * 900, "5 cm " * 350, r"\,5" * 600, "½" * 1900, "$" * 1900, "=" * 1900,
    "5 " + "a" * 60 + "!", "5" + r"\text{a} " * 40 + "!", "5 " + "a " * 500 + "!", "5^" + "-" * 1800 + "5", "፩" * 1900,
    "5" + r"\text{ cm}^2" * 150 + "!", r"\sin" * 600 + "x", "5" + "%" * 1900, "6=" * 900 + "5", "<" * 1900, r"\cup" * 600,
    # For mpmath: it multiplies once for every bit of an exponent.
    r"e^{e^{e^{9}}}", r"e^{10^{9000}x}", r"(\frac{2}{3})^{10^{9000}+x}", r"(10^{9000}x)!", r"i^{\binom{10^{9000}x}{3}}",
    r"(1+10^{-30})^{10^{9000}x}", r"\sqrt[10^{-9000}]{2x}", r"\sin(e^{9^9}x)", r"x^{x^{x^{9999}}}", r"(10^{20}x)!!",
    # For sympy, which is asked only where our own parser cannot read the reference.
    r"A\cap B((9^{999})^{999})^{999}", r"\gcd(a,b)^{99}!!", r"\binom{999!}{500}A\cap B", r"A\cap B" + "(" * 90 + ")" * 90,
    r"\gcd(a,b)" + "(a+b)" * 30, r"A\cap" * 30 + "B", r"\underbrace{" * 100 + "5" + "}" * 100, r"\Gamma(9999999)",
]  # fmt: skip
REFERENCES = [
    "5",
    "x^5+x+1=0",
    r"\{1,2\}",
    r"\frac{1}{7}\triangle ABC",
    r"5\text{ cm}",
    "[1,2]",
    "2x",
    r"\gcd(a,b)",
    r"A\cap B",
]


def _bombs_are_turned_away(verifier: MathVerifier) -> None:
    """They are rejected before they cost anything: none reaches the deadline of 2 s, the memory limit or the stack
    limit."""
    pairs = list(itertools.product(BOMBS, REFERENCES))
    scores = verifier.verify_batch(_boxed([bomb for bomb, _ in pairs]), [reference for _, reference in pairs])
    assert {score.outcome for score in scores} <= {Outcome.WRONG, Outcome.UNPARSED}
    assert verifier.verify_batch([r"\boxed{5}"], ["5"])[0].value == 1.0


def test_bombs_end_in_time_and_the_next_answer_is_right(verifier: MathVerifier) -> None:
    _bombs_are_turned_away(verifier)


def test_bombs_end_in_time_where_integers_are_computed_in_c() -> None:
    # sympy and mpmath use gmpy2 where it is installed; inside it no signal handler runs, and memory that it cannot have
    # ends the process.
    pytest.importorskip("gmpy2", reason="gmpy2 is not installed: sympy and mpmath compute with Python's integers here")
    import mpmath

    assert mpmath.libmp.BACKEND == "gmpy"
    with MathVerifier(num_workers=1) as verifier:
        _bombs_are_turned_away(verifier)
        scores = verifier.verify_batch([r"\boxed{3\ln2}", r"\boxed{0.333333333333333}"], [r"\ln8", r"\frac13"])
        assert [score.value for score in scores] == [1.0, 1.0]


# Each of these, repeated, makes the regular expressions of some grader backtrack.
PIECES = [
    " ", "a", "a ", "1", "1 ", "1,", "1,234", "1.", "1:", "{", "}", "(", "()", "[", "|", "|x", "\\", r"\\\\", r"\text{", r"\text{a} ", r"\text{a}^2",
    r"\,", r"\quad ", "{,}", "_{a", "x_1 ", "^{2}", "e1", r"1\times10^", r"0.\dot1", r"1\overline{", r"\frac{1}{2}", r"\frac{\text{", "<", "x=", "(x, ",
    "am ", r"\begin{a}", r"\angle A ", "AB", r"\vec{", "sin", r"\color{", r"\phantom{", "½", "√(", "the answer is ", "a is ", "%", "million ",
    "或", "5а ", "5(а", "(apples)", "5 (", "1 hour 3 minutes ", "f(1)", "$a$ ", "5 dozen ", "A. B ", "答案", r"_{\max", r"^{\prime ", "<=", "F_{16}", r"\approx",
    "]U[", r"\mathbb ", "(A) ", "A. ", "and ", "or ", "$ ", "~",
]  # fmt: skip


@pytest.mark.parametrize("start", ["", "1", "x ", r"\text{", "(", "[", r"\frac{", "1 "])
def test_grading_repetitions_takes_bounded_time(start: str) -> None:
    for piece in PIECES:
        answer = (start + piece * 2000)[:1990] + "!"
        begin = time.monotonic()
        for reference in ("5", r"5\text{ cm}", "(-\\infty,3]", "B", "x^2+y^2=1"):
            assert not GRADER.grade(f"#### {answer}", reference).is_correct
        assert time.monotonic() - begin < 1  # measured: 0.1 s at most


def test_a_repeated_answer_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []

    def counted(answer: str, reference: str, comparison: Comparison) -> Verdict | None:
        compared.append((answer, reference))
        return compare_scalars(answer, reference, comparison)

    monkeypatch.setattr(math_grader, "_STAGES", (*math_grader._STAGES[:-1], counted))
    grader = MathGrader(strict=True, policy=MathPolicy())
    for completion in (r"\boxed{2x+1}", r"So $\boxed{ 2x+1. }$", r"\boxed{2x+1}", r"\boxed{\mathbf{2x+1}}"):
        assert grader.grade(completion, "1+2x").is_correct
    assert compared == [("2x+1", "1+2x")]
    assert not grader.grade(r"\boxed{2x+1}", "2+2x").is_correct  # another reference, another verdict


def test_the_cache_belongs_to_one_policy() -> None:
    graders = [
        MathGrader(strict=strict, policy=MathPolicy(ignore_letter_case=ignore))
        for strict, ignore in ((True, False), (False, False), (True, True))
    ]
    for _ in range(2):  # the second time from the cache
        assert [grader.grade(r"\boxed{b}", "B").is_correct for grader in graders] == [False, False, True]
        assert [grader.grade("#### B", "B").outcome for grader in graders] == [
            *(Outcome.NO_ANSWER, Outcome.CORRECT, Outcome.NO_ANSWER)
        ]


def test_the_size_of_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_grader, "MAX_CACHED", 10)
    grader = MathGrader(strict=True, policy=MathPolicy())
    for number in range(100):
        grader.grade(f"\\boxed{{x+{number}}}", "x")
    assert grader._compare.cache_info().currsize == 10


def test_a_bomb_is_right_if_it_is_the_reference(verifier: MathVerifier) -> None:
    scores = verifier.verify_batch([r"\boxed{10^{10^{10}}}", r"\boxed{2^{10^6}+1}"], [r"10^{10^{10}}", "2^{10^6}"])
    assert [score.value for score in scores] == [1.0, 0.0]


def test_a_thousand_short_answers_take_a_fraction_of_a_second(verifier: MathVerifier) -> None:
    verifier.verify_batch(["warm"], ["5"])
    answers = [f"So it is \\boxed{{\\frac{{{i}}}{{7}}}}." for i in range(1000)]
    start = time.monotonic()
    scores = verifier.verify_batch(answers, [f"{2 * i}/14" for i in range(1000)])
    assert time.monotonic() - start < 0.6  # measured: 0.07 s on two cores
    assert all(score.value == 1.0 for score in scores)


def _equal(answer: str, reference: str) -> bool:
    return GRADER.grade(f"\\boxed{{{answer}}}", reference).is_correct


_INTEGERS = st.integers(-(10**12), 10**12)


@given(a=_INTEGERS, b=_INTEGERS)
@settings(max_examples=200, deadline=None)
def test_integers_are_equal_iff_equal(a: int, b: int) -> None:
    assert _equal(str(a), f"{a:,}")
    assert _equal(f"{a:,}", str(a))
    assert _equal(str(b), str(a)) == (a == b)
    assert _equal(str(-a), str(a)) == (a == 0)
    assert not _equal(str(a + 1), str(a))


@given(a=st.fractions(-20, 20, max_denominator=40), b=st.fractions(-20, 20, max_denominator=40), k=st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_fractions_are_equal_iff_equal(a: Fraction, b: Fraction, k: int) -> None:
    whole, part = divmod(abs(a.numerator), a.denominator)
    sign = "-" if a < 0 else ""
    spellings = [
        f"\\frac{{{a.numerator * k}}}{{{a.denominator * k}}}",
        f"{a.numerator}/{a.denominator}",
        f"{sign}{whole}\\frac{{{part}}}{{{a.denominator}}}",
    ]
    for spelling in spellings:
        assert _equal(spelling, str(a))
        assert _equal(spelling, str(b)) == (a == b)
    decimal = f"{float(a):.4f}"
    assert _equal(decimal, str(a)) == (Fraction(decimal) == a)


@given(
    coefficients=st.lists(st.integers(-9, 9), min_size=1, max_size=4),
    others=st.lists(st.integers(-9, 9), min_size=1, max_size=4),
)
@settings(max_examples=100, deadline=None)
def test_polynomials_are_equal_iff_their_coefficients_are(coefficients: list[int], others: list[int]) -> None:
    def horner(cs: list[int]) -> str:
        text = "0"
        for c in cs:
            text = f"({text})x+({c})"
        return text

    def terms(cs: list[int]) -> str:
        return "+".join(f"({c})x^{{{len(cs) - 1 - power}}}" for power, c in enumerate(cs))

    def trimmed(cs: list[int]) -> list[int]:
        return list(itertools.dropwhile(lambda c: c == 0, cs))

    assert _equal(horner(coefficients), terms(others)) == (trimmed(coefficients) == trimmed(others))


@given(
    st.text(alphabet="0123456789xyie+-*/^_=<>(){}[],.;:|!%$& \\\"'αß²½∞\x00\ud800", max_size=40),
    st.sampled_from(REFERENCES),
)
@settings(max_examples=200, deadline=None)
def test_no_answer_crashes_the_grader(answer: str, reference: str) -> None:
    assert GRADER.grade(f"#### {answer}", reference).outcome is not Outcome.CRASHED
    MathGrader(strict=False, policy=MathPolicy()).grade(f"#### {answer}", reference)  # raises nothing
