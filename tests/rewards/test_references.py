"""A reference never causes silent zeros: an accepted one scores 1 for its plain core, an unreadable one is rejected
first."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from rewards.math_answer import MathVerifier
from rewards.math_policy import MathPolicy
from rewards.mathematics.grader import MathGrader
from rewards.score import Outcome

GRADER = MathGrader(strict=False, policy=MathPolicy())
NUMBERS = {
    "9": 9,
    "3.5": "7/2",
    "1,250": 1250,
    r"\frac{3}{4}": "3/4",
    "3/4": "3/4",
    "-7": -7,
    r"2\frac12": "5/2",
    "0": 0,
}
WORDS = [
    "apples",
    "sq. inches",
    "cm",
    "cm^2",
    "km/h",
    "miles per hour",
    "dollars",
    "red marbles",
    "boxes of pens",
    "min",
    "people in all",
]
# As data sets write a number with its unit: ASDiv, MAWPS, college texts, MATH, GSM8K, NuminaMath.
FORMS = [
    "{n} ({u})", "{n}({u})", "{n} {u}", r"{n}\text{{ {u}}}", r"{n}~\mathrm{{{u}}}", "${n}$ {u}", "${n}$ ({u})", r"${n} \mathrm{{~{u}}}$", r"{n} \text{{{u}}}.",
    r"\boxed{{{n}\text{{ {u}}}}}", "It is {n}.\n#### {n} {u}", r"x = {n}\text{{ {u}}}", r"\({n}\) {u}", "{n} ({u}).",
]  # fmt: skip
UNITS_IN_DOLLARS = [r"{n} ${u}$", r"{n} $\mathrm{{{u}}}$"]


def _not_graded(reference: str, core: str, other: str) -> str | None:
    """Why the reference is rejected or grades one of the answers wrongly; None if neither is the case."""
    if not GRADER.check_reference(reference).is_correct:
        return f"{reference!r} is refused"
    if not GRADER.grade(f"\\boxed{{{core}}}", reference).is_correct:
        return f"{reference!r} gives 0 for {core!r}"
    return f"{reference!r} gives 1 for {other!r}" if GRADER.grade(f"\\boxed{{{other}}}", reference).is_correct else None


def test_a_number_with_a_unit_accepts_the_number() -> None:
    failed = []
    for (number, value), words, form in itertools.product(NUMBERS.items(), WORDS, FORMS):
        failed.append(_not_graded(form.format(n=number, u=words), number, str(Fraction(value) + 1)))
    for number, words, form in itertools.product(["9", "3.5"], ["cm", "cm^{2}", "m^2", "km"], UNITS_IN_DOLLARS):
        failed.append(_not_graded(form.format(n=number, u=words), number, "8"))
    assert not [each for each in failed if each]


LISTS = ["${a}$;${b}$", "${a}$; ${b}$", "${a}$, ${b}$", "{a};{b}", "{a}; ${b}$", "${a}$ and ${b}$", r"\({a}\), \({b}\)", r"$\{{{a}, {b}\}}$", "$x={a}$ or $x={b}$", "{a} or {b}", "$x = {a}, {b}$"]  # fmt: skip
VALUES = ["5", "-12", r"\frac{8}{9}", r"\sqrt{3}", "2x+1", r"-1+2\sqrt{5}"]


def test_a_list_accepts_its_values_in_any_order_and_no_part_of_them() -> None:
    failed = []
    for (a, b), form in itertools.product(itertools.permutations(VALUES, 2), LISTS):
        failed.append(_not_graded(form.format(a=a, b=b), f"{b}, {a}", a))
    for form in ("$({a},0)$;${b}$", "$({a},0)$; $({b},0)$"):
        first = ", ".join(form.replace("$", "").format(a=5, b=7).split(";"))
        failed.append(_not_graded(form.format(a=5, b=7), first, "(5,0)"))
    assert not [each for each in failed if each]


@pytest.mark.parametrize(
    ("reference", "core"),
    [
        (r"$x \geq 3$", r"x\ge3"),
        (r"$[3, \infty)$", r"[3,\infty)"),
        (r"$45^{\circ}$", "45"),
        (r"45$^{\circ}$", "45"),
        ("12 cm$^2$", "12"),
        ("12 (cm$^{2}$)", "12"),
        ("5 m$^{3}$", "5"),
        (r"30$\%$", "30"),
        (r"3$\sqrt{2}$", r"3\sqrt2"),
        (r"4$\pi$; 6$\pi$", r"6\pi, 4\pi"),
        (r"$\$ 1,250$", "1250"),
        (r"$3 \%$", "3"),
        (r"$12 m^{2} n$", "12nm^2"),
        ("4 (red marbles); 5 (blue marbles)", "5, 4"),
        ("2 (h)", "2"),
        ("10:30 (am)", "10:30"),
        ("5 (o'clock)", "5"),
        ("9 (a.m.)", "9"),
        ("10 ($)", "10"),
        ("4 (° C)", "4"),
        ("7 (1-dollar bills)", "7"),
        ("6 (groups of 5)", "6"),
        ("5 (N)", "5"),
        ("4 (apples and oranges)", "4"),
        ("3 (dozen)", "3"),
        ("5 (thousand)", "5000"),
        (r"$\frac{5}{4}$", "1.25"),
        (r"$y=-\frac{1}{2} x+\frac{3}{2}$", r"-\frac{x}{2}+\frac32"),
        ("AC", "A, C"),
        ("A, B, D", "ABD"),
        ("$-4$ and $4$", r"\pm4"),
        (r"$\left(-\frac{1}{2}, 3\right)$", "(-0.5, 3)"),
        ("All real numbers", r"(-\infty,\infty)"),
        ("False", "false"),
    ],
)
def test_references_as_written_in_data_sets_accept_their_answers(reference: str, core: str) -> None:
    assert _not_graded(reference, core, "87") is None


@pytest.mark.parametrize(
    "reference",
    ["", " ", "None", "null", "NaN", "N/A", "n/a.", "not found", "notfound", "proof", "Proof.", "**Solution**", "#### Answer:", None, [], ["5"], {}, True],
)  # fmt: skip
def test_placeholders_are_rejected_before_training_and_never_graded(reference: object) -> None:
    assert GRADER.check_reference(reference).outcome is Outcome.BAD_REFERENCE
    assert GRADER.grade(f"\\boxed{{{reference}}}", reference).outcome is Outcome.BAD_REFERENCE


@pytest.mark.parametrize(
    "reference",
    [
        "5 (or 6 of them)",
        "5 (approximately)",
        "3 (remainder 2)",
        "5 plus taxes",
        "5 almost all of them",
        "8 (about half)",
    ],
)
def test_unknown_words_are_not_products_of_their_letters(reference: str) -> None:
    assert GRADER.check_reference(reference).outcome is Outcome.BAD_REFERENCE
    assert not GRADER.grade(r"\boxed{5}", reference).is_correct


def test_words_that_are_answers_are_graded() -> None:
    for word in ("undefined", "no solution", r"\text{none of the above}", "no", "nonagon", "A proof by contradiction"):
        assert GRADER.check_reference(word).is_correct
        assert GRADER.grade(f"\\boxed{{{word}}}", word).is_correct


def test_a_number_is_a_reference(verifier: MathVerifier) -> None:
    references: list[Any] = [7, 0.25, -3, 1e22]
    assert [s.value for s in verifier.check_references(references)] == [1.0] * 4
    answers = [r"\boxed{7}", r"\boxed{\frac14}", r"\boxed{3}", r"\boxed{10^{22}}"]
    assert [s.value for s in verifier.verify_batch(answers, references)] == [1.0, 1.0, 0.0, 1.0]


def test_the_references_of_real_data_sets_accept_their_cores(
    shared_file: Callable[[str], Path], verifier: MathVerifier
) -> None:
    """Without currency, units and signs: 270/7 of 270/7 degrees."""
    golds = [row["answer"] or "" for row in json.loads(shared_file("data/math_train.json").read_text())]
    golds += [json.loads(line)["answer"] for line in shared_file("data/gsm8k_train.jsonl").read_text().splitlines()]
    golds = [gold for gold in dict.fromkeys(golds) if gold]
    checked = verifier.check_references(golds)
    accepted = [gold for gold, score in zip(golds, checked, strict=True) if score.outcome is Outcome.CORRECT]
    cores = [_core(gold) for gold in accepted]
    assert len(accepted) == len(golds)
    assert sum(core != gold for gold, core in zip(accepted, cores, strict=True)) > 7_000
    scores = verifier.verify_batch([f"\\boxed{{{core}}}" for core in cores], accepted)
    zero = [(gold, core) for gold, core, score in zip(accepted, cores, scores, strict=True) if score.value != 1.0]
    assert not zero


def _core(gold: str) -> str:
    gold = gold.rpartition("####")[2].strip().replace(r"\!", "")
    bare = re.sub(
        r"\s*(?:\\text\s*\{[^{}]*\}(?:\^\{?\d\}?)?|\^\s*\{?\\circ\}?|\\?%|\\ )*$", "", gold.removeprefix(r"\$")
    )
    bare = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", bare)
    return bare if re.fullmatch(r"-?\d[\d.]*|\\frac\d*\{?\d+\}?\{?\d+\}?", bare) else gold
