"""Rewrites of the references of two real data sets: those that change no value, and those that change it.

The references are their own answers, so nobody had to label anything.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from rewards.math_answer import MathVerifier
from rewards.score import Outcome

SharedFile = Callable[[str], Path]
NUM_SAMPLED = 300  # the whole of both data sets gives the same in a few minutes


def _sample(items: list[str]) -> list[str]:
    return random.Random(0).sample(items, min(NUM_SAMPLED, len(items)))


def _gsm8k(shared_file: SharedFile) -> tuple[list[str], list[str]]:
    """The solutions, and the distinct numbers with which they end."""
    solutions = [json.loads(line)["answer"] for line in shared_file("data/gsm8k_train.jsonl").read_text().splitlines()]
    return solutions, list(dict.fromkeys(solution.rpartition("####")[2].strip() for solution in solutions))


def _math(shared_file: SharedFile) -> tuple[list[str], list[str]]:
    """All references, and the distinct ones that are not empty."""
    every = [row["answer"] or "" for row in json.loads(shared_file("data/math_train.json").read_text())]
    return every, [gold for gold in dict.fromkeys(every) if gold.strip()]


def _boxed(answer: str) -> str:
    return f"\\boxed{{{answer}}}"


def _not_right(verifier: MathVerifier, answers: list[str], golds: list[str]) -> list[tuple[str, str]]:
    scores = verifier.verify_batch(answers, golds)
    return [(gold, answer) for gold, answer, score in zip(golds, answers, scores) if score.value != 1.0]


def _accepted(verifier: MathVerifier, answers: list[str], golds: list[str]) -> list[tuple[str, str]]:
    scores = verifier.verify_batch(answers, golds)
    assert {score.value for score in scores} <= {0.0, 1.0}
    return [(gold, answer) for gold, answer, score in zip(golds, answers, scores) if score.value == 1.0]


def test_every_reference_is_right_as_it_stands(shared_file: SharedFile, verifier: MathVerifier) -> None:
    solutions, numbers = _gsm8k(shared_file)
    every, golds = _math(shared_file)
    assert _not_right(verifier, solutions, solutions) == []
    assert _not_right(verifier, [_boxed(gold) for gold in numbers + golds], numbers + golds) == []
    assert {score.outcome for score in verifier.check_references(golds)} == {Outcome.CORRECT}
    empty = [gold for gold in every if not gold.strip()]
    assert [score.outcome for score in verifier.check_references(empty)] == [Outcome.BAD_REFERENCE] * 4


def _grouped(separator: str) -> Callable[[str], str]:
    return lambda gold: f"{int(gold.replace(',', '')):,}".replace(",", separator)


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda g: f"#### {g}", lambda g: f"#### ${g}", lambda g: f"#### ${_grouped(',')(g)}.00", lambda g: f"#### **{g}**",
        lambda g: f"#### {g} dollars", lambda g: f"#### {g} apples per day", lambda g: f"####{g}.", lambda g: f"<answer>{g}</answer>",
        lambda g: f"The final answer is: ${_boxed(g)}$. I hope it is correct.", lambda g: f"**Answer:** {_boxed(g)}",
        lambda g: f"<think>{_boxed('1')}</think>\n{_boxed(g)}<|im_end|>", lambda g: _boxed(f"x = {g}"), lambda g: _boxed(f"{g}.0"),
        lambda g: _boxed(f"{g} \\text{{ apples}}"), lambda g: _boxed(f"\\text{{The answer is }} {g}"), lambda g: _boxed(f"\\${g}.00"),
        lambda g: _boxed(f"\\text{{Total}} = \\${g}"), lambda g: _boxed(_grouped("{,}")(g)), lambda g: _boxed(_grouped(r"\,")(g)),
        lambda g: _boxed(_grouped(r",\!")(g)), lambda g: _boxed(_grouped(" ")(g)), lambda g: _boxed(f"\\frac{{{2 * int(g.replace(',', ''))}}}{{2}}"),
    ],
)  # fmt: skip
def test_a_whole_number_is_right_in_every_way_that_models_write_it(
    rewrite: Callable[[str], str], shared_file: SharedFile, verifier: MathVerifier
) -> None:
    golds = _sample(_gsm8k(shared_file)[1])
    assert _not_right(verifier, [rewrite(gold) for gold in golds], golds) == []


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda g: _boxed(f"{g}."), lambda g: f"${_boxed(g)}.$", lambda g: _boxed(f"\n  {g} "), lambda g: _boxed(f"${g}$"),
        lambda g: _boxed(g.replace(r"\frac", r"\dfrac")), lambda g: _boxed(g.replace(r"\frac", r"\tfrac")),
        lambda g: _boxed(re.sub(r"\\(?:left|right)(?![a-z])", "", g)), lambda g: _boxed(f"\\displaystyle {{{g}}}"),
        lambda g: _boxed(re.sub(r"(?<=[\w)}])([+=])(?=[\w(\\])", r" \1 ", g)), lambda g: f"\\[{_boxed(g)}\\]\n\nThis equals 1 + 1.",
    ],
)  # fmt: skip
def test_spelling_does_not_change_the_verdict(
    rewrite: Callable[[str], str], shared_file: SharedFile, verifier: MathVerifier
) -> None:
    golds = _sample(_math(shared_file)[1])
    assert _not_right(verifier, [rewrite(gold) for gold in golds], golds) == []


def _written(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else str(float(value))  # a tenth of a small integer: a short decimal


@pytest.mark.parametrize(
    "change", [lambda v: v + 1, lambda v: v - 1, lambda v: -v, lambda v: v * 10, lambda v: v / 10, lambda v: v / 100]
)
def test_a_different_number_is_wrong(
    change: Callable[[Fraction], Fraction], shared_file: SharedFile, verifier: MathVerifier
) -> None:
    golds = _sample([g for g in _gsm8k(shared_file)[1] + _math(shared_file)[1] if re.fullmatch(r"-?\d{1,9}", g)])
    changed = [(gold, _written(change(Fraction(gold)))) for gold in golds if change(Fraction(gold)) != Fraction(gold)]
    for form in ("\\boxed{{{}}}", "#### {}", "\\boxed{{x = {}}}", "#### ${}"):
        assert _accepted(verifier, [form.format(other) for _, other in changed], [gold for gold, _ in changed]) == []


@pytest.mark.parametrize("change", ["{0}0", "-{0}", "({0}+1)", "{0}/10", "{0}x"])
def test_a_different_number_anywhere_in_an_expression_is_wrong(
    change: str, shared_file: SharedFile, verifier: MathVerifier
) -> None:
    # Of the first positive integer. Decimals are left out (0.5 and 0.50 are equal), and so are the few where the sign of
    # that integer does not matter: an even function or power, or a date, which has none.
    even = re.compile(r"\\sec|\\cos|October|\d\^|\^\{?-")
    golds = _sample(
        [g for g in _math(shared_file)[1] if re.search(r"[1-9]", g) and "." not in g and not even.search(g)]
    )
    changed = [re.sub(r"[1-9]\d*", lambda m: change.format(m[0]), gold, count=1) for gold in golds]
    assert _accepted(verifier, [_boxed(other) for other in changed], golds) == []
