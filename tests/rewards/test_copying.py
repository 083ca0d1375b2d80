"""An expression of the question is not an answer to it, unless the reference is that expression."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rewards.combine import CombinedVerifier
from rewards.math_answer import MathVerifier
from rewards.math_policy import MathPolicy
from rewards.mathematics.copying import _SPAN
from rewards.mathematics.grader import MathGrader
from rewards.score import Outcome, Reference, Score, verify
from rollout.records import Completion, FinishReason, Problem
from rollout.verify import BackgroundVerifier

GRADER = MathGrader(strict=True, policy=MathPolicy())

COPIED = [  # question, reference, answers that only repeat it, answers that count
    (
        r"Simplify $\sqrt{242}$.", r"11\sqrt2",
        [r"\sqrt{242}", r"\sqrt {242}", r"\left(\sqrt{242}\right)", r"x=\sqrt{242}", r"1\cdot\sqrt{242}", r"\sqrt{242}+0", r"\sqrt{242}.",
         r"\sqrt{242}=\sqrt{242}", r"\{\sqrt{242}\}", "242^{1/2}", "242^{0.5}", r"\sqrt{242}\cdot\frac{3}{3}", r"\sqrt{242}+2-2", r"-(-\sqrt{242})",
         r"x\in\{\sqrt{242}\}", r"\text{The answer is }\sqrt{242}"],
        [r"11\sqrt{2}", r"\sqrt2\cdot11", r"\sqrt{242}=11\sqrt2", r"\sqrt{121\cdot 2}"],
    ),
    (r"Write $\sqrt[n]{x}\cdot x$ as one power.", "x^{1+1/n}", ["x^{1/n}x", r"x\sqrt[n]{x}"], [r"x^{\frac{n+1}{n}}"]),
    (r"Compute $2\sqrt{18}$.", r"6\sqrt2", [r"1\cdot2\sqrt{18}", r"2\sqrt{18\cdot1}", r"2\sqrt{18}\cdot\frac{3}{3}", r"2\sqrt{18+0}"], [r"6\sqrt{2}"]),
    ("Simplify sqrt(75) as far as you can.", r"5\sqrt3", ["sqrt(75)", r"\sqrt{75}"], [r"5\sqrt{3}"]),
    (r"Expand \[(a+7)(a-2)\]", "a^2+5a-14", ["(a+7)(a-2)", "(a-2)(a+7)", r"(a-2)\cdot(a+7)"], ["-14+5a+a^2"]),
    (r"Factor $a^2+5a-14$.", "(a-2)(a+7)", ["a^2+5a-14", "5a+a^2-14"], ["(a+7)(a-2)", "-(2-a)(a+7)"]),
    (r"Write \(\frac{13}{20}\) as a decimal.", "0.65", [r"\frac{13}{20}", "13/20", r"\dfrac{13}{20}"], ["0.65", ".650"]),
    (r"Write $\frac{47}{6}$ as a mixed number.", r"7\frac56", [r"\frac{47}{6}"], [r"7\frac{5}{6}", "7 5/6"]),
    (r"Reduce 18/42 to lowest terms.", r"\frac37", ["18/42", r"\frac{18}{42}"], ["3/7", r"\frac{6}{14}"]),
    (r"Find $r$, given that $\frac{r}{3}=2+\sqrt{48}$ and $q=\tan 240^\circ$.", r"\sqrt3", [r"\tan 240^\circ"], [r"\sqrt{3}"]),
    (r"What is the solution set of $4-3x<-8$?", "x>4", ["4-3x<-8", "-8>4-3x"], ["x>4", "4<x"]),
    (r"A price falls by $30\%$ and rises by as much. By how many percent has it changed in 1000?", "30", [r"30\%"], ["30"]),
    (r"Write $3\times10^{0}$ in standard notation.", "3", [r"3\times10^{0}"], ["3", "3.0"]),
    ("How many metres are 700 cm?", r"7\text{ m}", [r"700\text{ cm}", "700 cm"], ["7", r"7\text{ m}", "7 m"]),
    (r"Solve $2x-y=6$ for $y$.", "y=2x-6", ["2x-y=6"], ["y=2x-6", "2x-6"]),
]  # fmt: skip
# The question contains the reference: then that is the answer, in any notation.
STANDS_THERE = [
    (r"Which is larger, $\frac{3}{4}$ or $\frac57$?", r"\frac34", [r"\frac{3}{4}", "3/4", r"\dfrac34", "0.75"]),
    ("Which of 3 and 5 is prime and odd, but not 3?", "5", ["5", "5.0", "x=5"]),
    ("It takes 15 hours to fill the pool. How many does it take to empty it?", "15 hours", ["15", r"15\text{ hours}", "15 hrs"]),
    (r"Let $f(x)=x^2$ on $[0, 4)$. What is its domain?", "[0,4)", ["[0,4)", r"0\le x<4", r"\left[0, 4\right)"]),
    (r"At $x=-3$, what is $x^2+x-9$?", "-3", ["-3", "x=-3", "- 3"]),
    (r"Is $\text{(A)}$ or $\text{(B)}$ true?", "B", ["B", r"\text{(B)}", r"\textbf{(B)}"]),
    ("Is it odd or even?", r"\text{even}", ["even", r"\text{Even}"]),
    (r"Write the roots $4, 2$ in any order.", "2, 4", ["4, 2", "2,4", r"\{4,2\}"]),
    (r"The cost is \$1{,}250.50 or \$3. Which is more?", r"\$1250.50", [r"\$1{,}250.50", "1250.5", r"1{,}250.50"]),
    (r"What are $3+x^2$ and $-1/2$?", "x^2+3", ["3+x^2"]),
]  # fmt: skip


@pytest.mark.parametrize(("question", "reference", "copied", "worked_out"), COPIED, ids=lambda value: str(value)[:20])
def test_a_copied_expression_of_the_question_is_wrong(
    question: str, reference: str, copied: list[str], worked_out: list[str]
) -> None:
    for answer in copied:
        assert GRADER.grade(f"\\boxed{{{answer}}}", reference).is_correct, (
            "it would be right, and the policy would learn it"
        )
        assert GRADER.grade(f"\\boxed{{{answer}}}", reference, question).outcome is Outcome.WRONG, answer
    for answer in worked_out:
        assert GRADER.grade(f"\\boxed{{{answer}}}", reference, question).is_correct, answer


@pytest.mark.parametrize(("question", "reference", "answers"), STANDS_THERE, ids=lambda value: str(value)[:20])
def test_an_answer_that_the_question_states_counts(question: str, reference: str, answers: list[str]) -> None:
    for answer in answers:
        assert GRADER.grade(f"\\boxed{{{answer}}}", reference, question).is_correct, answer


def test_the_policy_can_accept_copied_expressions() -> None:
    grader = MathGrader(strict=True, policy=MathPolicy(copied_expressions=True))
    assert grader.grade(r"\boxed{\sqrt{242}}", r"11\sqrt2", r"Simplify $\sqrt{242}$.").is_correct


HOSTILE = [
    "(",
    "((1,2),",
    "$",
    "$a$",
    "a ",
    "\\[",
    "\\(",
    "1=",
    "$1=",
    "\\text{",
    "{",
    "\\frac{1}{2}",
    "x+",
    "\\pm",
    "1<",
    "-",
    "$\\{1,",
    "f(",
    "2^{",
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_reading_any_question_takes_bounded_time(piece: str) -> None:
    """20,000 characters, nested or not, in a quarter of the deadline; the slowest needs a tenth of a second."""
    closing = {"(": ")", "((1,2),": ")", "$\\{1,": "\\}$", "f(": "1)", "2^{": "}"}
    nested = "$" + piece.strip("$") * 150 + "1" + closing.get(piece, "").strip("$") * 150 + "$"
    for question in (piece * (20_000 // len(piece)), nested):
        start = time.process_time()
        assert GRADER.grade(r"\boxed{\sqrt{4}}", "2", question).is_correct
        assert time.process_time() - start < 0.5


def test_copying_an_expression_of_a_real_question_scores_nothing(shared_file: Callable[[str], Path]) -> None:
    """Every math span in MATH that equals its reference has its form or scores 0; the reference itself always scores
    1."""
    paid, kept = 0, 0
    for row in json.loads(shared_file("data/math_train.json").read_text())[::3]:
        question, reference = row["problem"], row["answer"] or ""
        if not reference:
            continue
        assert GRADER.grade(f"\\boxed{{{reference}}}", reference, question).is_correct
        for match in _SPAN.finditer(question):
            span = f"\\boxed{{{next(filter(None, match.groups()))}}}"
            if len(span) < 200 and GRADER.grade(span, reference).is_correct:
                paid += 1
                kept += GRADER.grade(span, reference, question).is_correct
    assert paid > 80  # of the 2,500 problems
    assert kept < paid / 4  # measured: 15 %, all of them spellings of the reference


class Recorder:
    """A verifier without the parameter prompts."""

    def verify_batch(self, answers: Sequence[str], references: Sequence[Reference]) -> list[Score]:
        return [Score(1.0, Outcome.CORRECT)] * len(answers)

    def check_references(self, references: Sequence[Reference]) -> list[Score]:
        return self.verify_batch([""] * len(references), references)

    def close(self) -> None: ...


def _completion(text: str) -> Completion:
    fields: dict[str, Any] = {"token_ids": (1,), "sampler_logprobs": (0.0,), "policy_version": 0, "seed": 0}
    return Completion(text=text, finish_reason=FinishReason.STOP, **fields)


def test_a_run_passes_the_question_to_the_verifier(verifier: MathVerifier) -> None:
    question = (
        {"role": "system", "content": "Answer in a box."},
        {"role": "user", "content": r"Simplify $\sqrt{75}$."},
    )
    problems = [
        Problem(id="0", prompt=question, reference=r"5\sqrt3"),
        Problem(id="1", prompt=r"Simplify $\sqrt{75}$.", reference=r"5\sqrt3", verifier="other"),
    ]
    for math in (verifier, CombinedVerifier(verifier, ["boxed"])):
        with BackgroundVerifier(problems, {"math": math, "other": Recorder()}, group_size=1) as grading:
            for index in (0, 1):
                grading.put(index, 0, _completion(r"\boxed{\sqrt{75}}"))
            grading.put(0, 1, _completion(r"\boxed{5\sqrt{3}}"))
            scores = grading.scores()
        assert {key: score.value for key, score in scores.items()} == {(0, 0): 0.0, (0, 1): 1.0, (1, 0): 1.0}


def test_prompts_are_optional_and_need_one_entry_per_answer(verifier: MathVerifier) -> None:
    assert verifier.verify_batch([r"\boxed{\sqrt{75}}"], [r"5\sqrt3"])[0].value == 1.0
    assert verify(CombinedVerifier(Recorder(), ["boxed"]), [r"\boxed{5}"], ["5"], ["?"])[0].value == 1.0
    with pytest.raises(ValueError, match="1 answers for 2 prompts"):
        verifier.verify_batch([r"\boxed{5}"], ["5"], ["?", "?"])
