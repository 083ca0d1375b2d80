"""Grades programs against the tests of a task. The only module that knows the expected results; it runs no program
itself.

Runs in a worker process of the pool. Programs run in a sandbox (rewards.sandbox), and their results come back as plain
data. Tests written in Python run in a second sandbox, where the function under test is a proxy connected to the first.
"""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from rewards.programs.compare import same_output, same_value
from rewards.programs.source import extract_program, full_source
from rewards.programs.task import AssertsTask, FunctionTask, StdinTask, parse_task
from rewards.sandbox import kernel
from rewards.sandbox.child import Limits
from rewards.sandbox.client import ChildResult, KilledForMemoryError, Sandbox, SandboxError, SandboxLostError
from rewards.sandbox.layers import SECCOMP
from rewards.sandbox.values import decode, encode
from rewards.score import Outcome
from rewards.verdict import (
    BadReference,
    Verdict,
    bad_reference,
    crashed,
    grade_or_check,
    right,
    timeout,
    unparsed,
    wrong,
)

MAX_LENGTH = 200_000
MAX_ANSWER = 2_000  # characters of a printed answer, as the math verifier reads them
_TESTS_GRACE = 2.0  # seconds added for the tests to the time limit of the program that they wait for
_STARVED = 0.1  # share of the processor time limit; a program that uses less waits for something that never comes
_SHOWN = 40  # characters of a value in a detail


class ProgramGrader:
    """Grades programs in sandboxes that it keeps open.

    completions: extract each program from a completion. layers, packages, readable: arguments of each Sandbox.
    """

    def __init__(
        self,
        *,
        completions: bool,
        limits: Limits,
        layers: Sequence[str],
        packages: Sequence[str],
        readable: Sequence[str],
    ) -> None:
        self._completions, self._limits = completions, limits
        self._layers, self._packages, self._readable = layers, packages, readable
        self._sandboxes: dict[str, Sandbox] = {}
        self._deadline = 0.0  # of the program being graded, by time.monotonic()
        with suppress(SandboxError):  # only a warm start: ProgramVerifier has checked that a sandbox can run here
            self._sandbox("programs")

    def grade(self, answer: str, reference: Any) -> Verdict:
        """The verdict on a program, or on the program in a completion."""
        try:
            task = parse_task(reference)
        except BadReference as error:
            return bad_reference(str(error))
        program = self._program_in(answer)
        if isinstance(program, Verdict):
            return program
        source = full_source(program, task)
        return self._with_retry(lambda: self._run(source, task))

    def printed_answer(self, answer: str) -> Verdict:
        """CORRECT with the last line that the program prints in place of a reason, or the verdict on a program that
        prints none."""
        program = self._program_in(answer)
        return program if isinstance(program, Verdict) else self._with_retry(lambda: self._last_line(program))

    def _program_in(self, answer: str) -> str | Verdict:
        program = (extract_program(answer) if self._completions else answer).removeprefix(
            "\ufeff"
        )  # as Python reads a file
        if not program.strip():
            return Verdict(Outcome.NO_ANSWER, "no program")
        if len(program) > MAX_LENGTH:
            return unparsed(f"a program of more than {MAX_LENGTH} characters")
        return program

    def _with_retry(self, attempt: Callable[[], Verdict]) -> Verdict:
        """The verdict of `attempt`, repeated once in a new sandbox if the sandbox failed."""
        try:
            return attempt()
        except SandboxError:
            self._close()
        try:
            return attempt()
        except SandboxError as error:
            self._close()
            return self._failed_twice(error)

    def _failed_twice(self, error: SandboxError) -> Verdict:
        """CRASHED, which has no value, unless the program can have caused the failure: otherwise a program could remove
        itself from its group at will."""
        if isinstance(error, KilledForMemoryError):
            return timeout("killed twice while it used much memory")
        if isinstance(error, SandboxLostError) and SECCOMP not in self._layers:
            return wrong(f"its sandbox was lost twice: {error}")
        return crashed(f"the sandbox failed twice: {error}")

    def check_reference(self, reference: Any) -> Verdict:
        """CORRECT if programs can be graded against the task. A solution that is part of it must pass."""
        try:
            task = parse_task(reference)
        except BadReference as error:
            return bad_reference(str(error))
        if task.solution is None and isinstance(task, AssertsTask):
            return self._with_retry(lambda: self._test_defect(task) or right("well-formed"))
        if task.solution is None:
            return right("well-formed")
        outcome, detail = self.grade(task.solution, reference)
        if outcome in (Outcome.CORRECT, Outcome.CRASHED):
            return Verdict(outcome, detail)
        return bad_reference(f"its own solution does not pass: {detail}")

    def _run(self, source: str, task: StdinTask | FunctionTask | AssertsTask) -> Verdict:
        self._set_deadline()
        if isinstance(task, StdinTask):
            return self._run_script(source, task)
        if isinstance(task, FunctionTask):
            return self._run_function(source, task)
        return self._run_asserts(source, task)

    def _set_deadline(self) -> None:
        self._deadline = time.monotonic() + 2 * self._limits["wall_seconds"]

    def _last_line(self, source: str) -> Verdict:
        self._set_deadline()
        output = self._output(source)
        if isinstance(output, Verdict):
            return output
        lines = [line.strip() for line in output.split("\n") if line.strip()]
        if not lines:
            return Verdict(Outcome.NO_ANSWER, "the program prints nothing")
        if len(lines[-1]) > MAX_ANSWER:
            return wrong(f"its last line has more than {MAX_ANSWER} characters")
        return right(lines[-1])

    def _output(self, source: str, stdin: str = "", *, expects: int = 0) -> str | Verdict:
        """What the program prints, or the verdict on one that fails. expects: bytes of expected output."""
        ended = self._run_child({"mode": "stdin", "source": source}, stdin.encode(), expects=expects)
        if failure := _failure(ended, self._limits):
            return failure
        try:
            return ended.stdout.decode()
        except UnicodeDecodeError:
            return wrong("its output is not UTF-8")

    def _run_script(self, source: str, task: StdinTask) -> Verdict:
        for number, (stdin, expected) in enumerate(task.tests, 1):
            output = self._output(source, stdin, expects=len(expected.encode()))
            if isinstance(output, Verdict):
                return Verdict(output.outcome, f"test {number}: {output.reason}")
            if not same_output(output, expected, task.float_tol):
                return wrong(f"test {number}: printed {_shown(output)}, expected {_shown(expected)}")
        return right(f"{len(task.tests)} tests passed")

    def _run_function(self, source: str, task: FunctionTask) -> Verdict:
        calls = [[task.fn_name, args] for args, _ in task.tests]
        expects = len(json.dumps([encode(expected) for _, expected in task.tests]))
        ended = self._run_child({"mode": "calls", "source": source, "calls": calls}, expects=expects)
        lines = ended.result.split(b"\n")[:-1]
        for number, (line, (_, expected)) in enumerate(zip(lines, task.tests), 1):
            try:
                answer = json.loads(line)
                error = answer.get("error")
                result = decode(answer["value"]) if error is None else None
            except (ValueError, AttributeError, LookupError, RecursionError):
                return wrong(f"test {number}: the result is not an encoded value")
            if error is not None:
                return _raised(f"test {number}: ", str(error))
            if not same_value(result, expected, task.float_tol):
                return wrong(f"test {number}: returned {_shown(result)}, expected {_shown(expected)}")
        failure = _failure(ended, self._limits)
        if failure:
            return failure
        if len(lines) < len(task.tests):
            return wrong(f"the program ended after {len(lines)} of {len(task.tests)} tests")
        return right(f"{len(task.tests)} tests passed")

    def _run_asserts(self, source: str, task: AssertsTask) -> Verdict:
        tests, program = self._run_tests(source, task)
        if _starved(program, self._limits) or _starved(tests, self._limits) or _left_early(tests, program):
            tests, program = self._run_tests(source, task)
        try:
            verdict = json.loads(tests.result)
        except ValueError:
            outcome, reason = _failure(tests, self._limits) or wrong("they ended without a report")
            if outcome is Outcome.TIMEOUT:
                return timeout(f"the tests: {reason}")
            return self._test_defect(task) or wrong(f"the tests were made to end: {reason}")
        if "bad" in verdict:
            return self._test_defect(task) or wrong(f"the tests were made to fail: {verdict['bad']}")
        if "gone" in verdict:
            return _failure(program, self._limits) or wrong(f"test {verdict['failed']}: the program ended")
        if "failed" in verdict:
            return _raised(f"test {verdict['failed']}: ", verdict["reason"])
        if not verdict["num_calls"]:
            return _never_called(task)
        return right(f"{len(task.asserts)} tests passed")

    def _run_tests(self, source: str, task: AssertsTask) -> tuple[ChildResult, ChildResult]:
        """The results of the process that runs the tests and of the one that runs the program."""
        programs, tests = self._sandbox("programs"), self._sandbox("tests")
        limits = self._limits_now()
        test_limits: Limits = {**limits, "wall_seconds": limits["wall_seconds"] + _TESTS_GRACE}
        ours, theirs = socket.socketpair()
        with ours, theirs:
            programs.start({"mode": "serve", "source": source}, limits, link=theirs)
            tests.start({"mode": "tests", **asdict(task)}, test_limits, link=ours)
        return tests.finish(peer=programs), programs.finish(terminate=True)

    def _test_defect(self, task: AssertsTask) -> Verdict | None:
        """What is wrong with the tests themselves, found by running them without a program; None if nothing is."""
        ended = self._sandbox("tests").run({"mode": "dry_run", **asdict(task)}, self._limits)
        try:
            verdict = json.loads(ended.result)
        except ValueError:
            outcome, reason = _failure(ended, self._limits) or crashed("they ended without a report")
            return None if outcome is Outcome.TIMEOUT else crashed(f"the tests, without any program: {reason}")
        if "bad" in verdict:
            return bad_reference(f"the tests cannot be run: {verdict['bad']}")
        return None if verdict["num_calls"] or "failed" in verdict else _never_called(task)

    def _run_child(self, job: dict[str, Any], stdin: bytes = b"", *, expects: int) -> ChildResult:
        """The result of a child in the program sandbox, run again if it starved. expects: bytes of expected output."""
        ended = self._sandbox("programs").run(job, self._limits_now(expects), stdin=stdin)
        if _starved(ended, self._limits):
            ended = self._sandbox("programs").run(job, self._limits_now(expects), stdin=stdin)
        return ended

    def _limits_now(self, expects: int = 0) -> Limits:
        """The limits, with the time left until the deadline and room for the expected output."""
        left = max(0.0, self._deadline - time.monotonic())
        output = max(self._limits["output"], 2 * expects)
        return {**self._limits, "wall_seconds": min(self._limits["wall_seconds"], left), "output": output}

    def _sandbox(self, role: str) -> Sandbox:
        if role not in self._sandboxes:
            self._sandboxes[role] = Sandbox(self._layers, packages=self._packages, readable=self._readable)
        return self._sandboxes[role]

    def _close(self) -> None:
        while self._sandboxes:
            self._sandboxes.popitem()[1].close()


def _starved(ended: ChildResult, limits: Limits) -> bool:
    """Whether a child ran out of wall-clock time although it kept computing. A busy machine may be the cause, so that
    the program is run once more."""
    return ended.ended_by == "wall" and ended.cpu > _STARVED * limits["cpu_seconds"]


def _left_early(tests: ChildResult, program: ChildResult) -> bool:
    """Whether the tests lost the connection before the program had ended: it closed the connection, or was just being
    killed from outside. The latter hardly happens twice, so the program is run once more."""
    return program.ended_by == "grader" and b'"gone": true' in tests.result


def _failure(ended: ChildResult, limits: Limits) -> Verdict | None:
    """The verdict on a child that failed whatever its output is, None otherwise."""
    if ended.overflowed:
        return wrong("it wrote too much")
    if ended.ended_by == "wall":
        return timeout("not finished in time")
    if ended.status == -signal.SIGXCPU or (ended.status == -signal.SIGKILL and ended.cpu >= limits["cpu_seconds"]):
        return timeout(f"more than {limits['cpu_seconds']} s of processor time")
    if ended.status < 0 and ended.ended_by == "exit":
        return wrong(f"ended by signal {-ended.status} ({signal.strsignal(-ended.status)})")
    if ended.status > 0:
        last = ended.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        return _raised("", last or f"exit status {ended.status}")
    return None


def _never_called(task: AssertsTask) -> Verdict:
    return bad_reference(f"the tests never call {task.entry_point}")


def _raised(where: str, reason: str) -> Verdict:
    if reason.startswith("MemoryError"):
        return timeout(f"{where}needs more memory than its limit")
    return wrong(where + reason)


def _one_line(text: str) -> str:
    """The text with line ends and unprintable characters as spaces: a model may have written parts of it."""
    return "".join(c if c.isprintable() else " " for c in text[:300])


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = "a large number"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def load(**options: Any) -> Callable[..., Verdict]:
    """Builds the grading function. A worker calls this once."""
    kernel.hide_memory()  # this process knows the expected results
    grader = ProgramGrader(**options)
    verdict_on = grade_or_check(grader.grade, grader.check_reference)

    def on_one_line(*item: Any) -> Verdict:
        outcome, reason = verdict_on(*item)
        return Verdict(outcome, _one_line(reason))

    return on_one_line


def load_printed(**options: Any) -> Callable[..., Verdict]:
    """Builds the function that runs programs for what they print. A worker calls this once."""
    grader = ProgramGrader(**options)

    def printed(answer: str) -> Verdict:
        outcome, reason = grader.printed_answer(answer)
        return Verdict(outcome, reason if outcome is Outcome.CORRECT else _one_line(reason))

    return printed
