"""The last line that a program prints is graded as an answer; hostile programs score 0, and a failure of the sandbox has no value."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import program_attacks
import pytest
from processes import no_process_left

from rewards.program import SandboxUnavailable
from rewards.program_answer import ProgramAnswerVerifier
from rewards.score import Outcome, Score
from rewards.verdict import crashed
from rewards.verifiers import VerifierOptions, Verifiers
from rollout.number_programs import number_programs
from rollout.problems import load_problems
from rollout.prompts import SYSTEM_PROMPTS
from rollout.records import STYLE_OF

# The attacks on tests read their input, and print words where they were held.
ESCAPE = program_attacks.ESCAPE.replace("input()", "'1 2'").replace('print("held", error)', "print(0)")
FORK_BOMB = "import os\nwhile True:\n    os.fork()"
GRADED: dict[str, tuple[str, str, Outcome]] = {
    "the number": ("print(12 * 34)", "408", Outcome.CORRECT),
    "another number": ("print(12 + 34)", "408", Outcome.WRONG),
    "in a fence, among words": ("So:\n```python\nprint(12 * 34)\n```\nDone.", "408", Outcome.CORRECT),
    "after thoughts that print another": (
        "<think>print(1)</think>\n```python\nprint(408)\n```",
        "408",
        Outcome.CORRECT,
    ),
    "the last of two blocks": ("```python\nprint(1)\n```\n```python\nprint(408)\n```", "408", Outcome.CORRECT),
    "the last line": ("print(408); print(7)", "408", Outcome.WRONG),
    "before empty lines": ("print('working'); print(408); print(' \\n')", "408", Outcome.CORRECT),
    "equal by value": ("from fractions import Fraction; print(Fraction(1, 2))", "0.5", Outcome.CORRECT),
    "latex": ("print('\\\\frac{1}{2}')", "1/2", Outcome.CORRECT),
    "an expression that is not worked out": ("print('12*34')", "408", Outcome.WRONG),
    "no output": ("x = 408", "408", Outcome.NO_ANSWER),
    "no program": ("  ", "408", Outcome.NO_ANSWER),
    "no Python": ("The answer is 408", "408", Outcome.WRONG),
    "an exception behind the answer": ("print(408); 1 / 0", "408", Outcome.WRONG),
    "an exit status behind the answer": ("print(408); raise SystemExit(3)", "408", Outcome.WRONG),
    "the answer on the other stream": ("import sys; print(408, file=sys.stderr)", "408", Outcome.NO_ANSWER),
    "no end": ("print(408, flush=True)\nwhile True: pass", "408", Outcome.TIMEOUT),
    "a flood": ("while True: print(408)", "408", Outcome.WRONG),
    "a long line": ("print('4' * 3000)", "408", Outcome.WRONG),
    "bytes": ("import sys; sys.stdout.buffer.write(bytes([255]))", "408", Outcome.WRONG),
    "much memory": ("x = bytearray(1 << 34); print(408)", "408", Outcome.TIMEOUT),
    "its own end": ("import os; print(408, flush=True); os.kill(os.getpid(), 9)", "408", Outcome.WRONG),
    "a fork bomb": (FORK_BOMB, "408", Outcome.WRONG),
    "a forged verdict": ('import os; os.write(1, b\'["correct", "408"]\')', "408", Outcome.WRONG),
    **{
        f"escape: {name}": (ESCAPE.replace("{attempt}", at), "3", Outcome.WRONG)
        for name, at in program_attacks.ESCAPES.items()
    },
}


@pytest.fixture(scope="module")
def verifier() -> Iterator[ProgramAnswerVerifier]:
    try:
        made = ProgramAnswerVerifier()
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    with no_process_left():
        yield made
        made.close()


@pytest.fixture(scope="module")
def graded(verifier: ProgramAnswerVerifier) -> dict[str, tuple[Score, Score]]:
    """The score of each program, and of an honest one that is graded after it."""
    items = [x for program, reference, _ in GRADED.values() for x in ((program, reference), ("print(408)", "408"))]
    scores = verifier.verify_batch(*zip(*items, strict=True))
    return dict(zip(GRADED, zip(scores[::2], scores[1::2], strict=True), strict=True))


@pytest.mark.parametrize("name", GRADED)
def test_what_is_printed_is_graded(graded: dict[str, tuple[Score, Score]], name: str) -> None:
    score, honest = graded[name]
    expected = GRADED[name][2]
    assert score.outcome is expected and score.value == float(expected is Outcome.CORRECT), score
    assert honest.value == 1.0 and score.parts == {"program-answer": score.value}


def test_the_questions_expression_is_no_answer(verifier: ProgramAnswerVerifier) -> None:
    """As where it is written without a program: the reference has another form, so that it was only copied."""
    (copied,) = verifier.verify_batch(["print('sqrt(8)')"], ["2*sqrt(2)"], ["Simplify sqrt(8)"])
    (worked,) = verifier.verify_batch(["print('2*sqrt(2)')"], ["2*sqrt(2)"], ["Simplify sqrt(8)"])
    assert (copied.value, worked.value) == (0.0, 1.0)


def test_references_are_checked_as_those_of_the_math_verifier(verifier: ProgramAnswerVerifier) -> None:
    found = [score.outcome for score in verifier.check_references(["408", "", {"type": "stdin"}])]
    assert found == [Outcome.CORRECT, Outcome.BAD_REFERENCE, Outcome.BAD_REFERENCE]


def test_a_failure_of_the_sandbox_has_no_value(
    verifier: ProgramAnswerVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = SimpleNamespace(run=lambda items: [crashed("the sandbox failed twice")] * len(items))
    monkeypatch.setattr(verifier, "_programs", fails)
    (score,) = verifier.verify_batch(["print(408)"], ["408"])
    assert score == Score(None, Outcome.CRASHED, {}, "the sandbox failed twice")


def test_a_reference_that_cannot_be_read_has_no_value(verifier: ProgramAnswerVerifier) -> None:
    (score,) = verifier.verify_batch(["print(408)"], [""])
    assert (score.value, score.outcome) == (None, Outcome.BAD_REFERENCE)


def test_rows_name_it_and_are_prompted_for_a_program_that_prints(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "12 * 34?", "verifier": "program-answer", "reference": "so #### 408"}\n')
    (problem,) = load_problems(str(path))
    assert (problem.verifier, problem.reference) == ("program-answer", "408")
    assert "prints it" in (SYSTEM_PROMPTS[STYLE_OF[problem.verifier]] or "")
    verifiers = Verifiers(VerifierOptions(num_workers=1, allow_unsafe_code=True))
    try:
        assert isinstance(verifiers["program-answer"], ProgramAnswerVerifier) and verifiers.isolation is not None
    finally:
        verifiers.close()


def test_the_solutions_of_the_built_in_task_print_its_references(verifier: ProgramAnswerVerifier) -> None:
    problems = number_programs(300, seed=0)
    scores = verifier.verify_batch([str(p.metadata["worked"]) for p in problems], [p.reference for p in problems])
    assert {score.value for score in scores} == {1.0}
    assert number_programs(100, seed=0) == problems[:100] and number_programs(100, seed=1) != problems[:100]
    # A power of a power, and a product of a difference, are where brackets are needed.
    worked = {p.id: p.metadata["worked"] for p in number_programs(10_000, seed=0)}
    assert any(")**2)**3" in source or ")**3)**2" in source for source in worked.values())
