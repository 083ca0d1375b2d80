"""Does this program do what the task asks? The only place that knows what is expected; it runs nothing itself.

Runs in a worker process of the pool. Programs run in a sandbox (rewards.sandbox) and their results come back by value. Tests
that are Python themselves run in a second sandbox, where the function under test stands for a connection to the first.
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
_TESTS_GRACE = 2.0  # seconds that the tests are given beyond the program they wait for
_STARVED = 0.1  # of its processor time: less is used only by a program that waits for something that will not come
_SHOWN = 40  # characters of a value in a detail


class ProgramGrader:
    """completions: the programs stand in completions. layers, packages, readable: of the sandbox."""

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
        self._deadline = 0.0  # of the program that is being judged
        with suppress(SandboxError):  # only so that it is warm: a machine that cannot do it was found out before
            self._sandbox("programs")

    def grade(self, answer: str, reference: Any) -> Verdict:
        """The verdict on a program."""
        try:
            task = parse_task(reference)
        except BadReference as error:
            return bad_reference(str(error))
        program = (extract_program(answer) if self._completions else answer).removeprefix(
            "\ufeff"
        )  # as Python reads a file
        if not program.strip():
            return Verdict(Outcome.NO_ANSWER, "no program")
        if len(program) > MAX_LENGTH:
            return unparsed(f"a program of more than {MAX_LENGTH} characters")
        source = full_source(program, task)
        return self._with_retry(lambda: self._run(source, task))

    def _with_retry(self, attempt: Callable[[], Verdict]) -> Verdict:
        """What the sandbox fails at is tried once more in a new one."""
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
        """No value, unless the program can have brought it about: a program must not get out of its group at will."""
        if isinstance(error, KilledForMemoryError):
            return timeout("killed twice while it held much memory")
        if isinstance(error, SandboxLostError) and SECCOMP not in self._layers:
            return wrong(f"its sandbox was lost twice: {error}")
        return crashed(f"the sandbox failed twice: {error}")

    def check_reference(self, reference: Any) -> Verdict:
        """CORRECT if programs can be judged against the task; a solution that comes with it must pass."""
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
        self._deadline = time.monotonic() + 2 * self._limits["wall_seconds"]
        if isinstance(task, StdinTask):
            return self._run_script(source, task)
        if isinstance(task, FunctionTask):
            return self._run_function(source, task)
        return self._run_asserts(source, task)

    def _run_script(self, source: str, task: StdinTask) -> Verdict:
        job = {"mode": "stdin", "source": source}
        for number, (stdin, expected) in enumerate(task.tests, 1):
            ended = self._run_child(job, stdin.encode(), expects=len(expected.encode()))
            failure = _failure(ended, self._limits)
            if failure:
                return Verdict(failure.outcome, f"test {number}: {failure.reason}")
            try:
                output = ended.stdout.decode()
            except UnicodeDecodeError:
                return wrong(f"test {number}: its output is not UTF-8")
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
                return wrong(f"test {number}: the result is no value")
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
        tested, ended = self._run_tests(source, task)
        if _starved(ended, self._limits) or _starved(tested, self._limits) or _left_early(tested, ended):
            tested, ended = self._run_tests(source, task)
        try:
            verdict = json.loads(tested.result)
        except ValueError:
            outcome, reason = _failure(tested, self._limits) or wrong("they ended")
            if outcome is Outcome.TIMEOUT:
                return timeout(f"the tests: {reason}")
            return self._test_defect(task) or wrong(f"the tests were made to end: {reason}")
        if "bad" in verdict:
            return self._test_defect(task) or wrong(f"the tests were made to fail: {verdict['bad']}")
        if "gone" in verdict:
            return _failure(ended, self._limits) or wrong(f"test {verdict['failed']}: the program ended")
        if "failed" in verdict:
            return _raised(f"test {verdict['failed']}: ", verdict["reason"])
        if not verdict["num_calls"]:
            return _never_called(task)
        return right(f"{len(task.asserts)} tests passed")

    def _run_tests(self, source: str, task: AssertsTask) -> tuple[ChildResult, ChildResult]:
        """How the tests ended, and how the program did."""
        programs, tests = self._sandbox("programs"), self._sandbox("tests")
        limits = self._limits_now()
        test_limits: Limits = {**limits, "wall_seconds": limits["wall_seconds"] + _TESTS_GRACE}
        ours, theirs = socket.socketpair()
        with ours, theirs:
            programs.start({"mode": "serve", "source": source}, limits, link=theirs)
            tests.start({"mode": "tests", **asdict(task)}, test_limits, link=ours)
        return tests.finish(peer=programs), programs.finish(terminate=True)

    def _test_defect(self, task: AssertsTask) -> Verdict | None:
        """What is wrong with the tests themselves: they are run without any program, so that none can have caused it."""
        ended = self._sandbox("tests").run({"mode": "dry_run", **asdict(task)}, self._limits)
        try:
            verdict = json.loads(ended.result)
        except ValueError:
            outcome, reason = _failure(ended, self._limits) or crashed("they ended")
            return None if outcome is Outcome.TIMEOUT else crashed(f"the tests, without any program: {reason}")
        if "bad" in verdict:
            return bad_reference(f"the tests cannot be run: {verdict['bad']}")
        return None if verdict["num_calls"] or "failed" in verdict else _never_called(task)

    def _run_child(self, job: dict[str, Any], stdin: bytes = b"", *, expects: int) -> ChildResult:
        """expects: bytes of the result."""
        ended = self._sandbox("programs").run(job, self._limits_now(expects), stdin=stdin)
        if _starved(ended, self._limits):
            ended = self._sandbox("programs").run(job, self._limits_now(expects), stdin=stdin)
        return ended

    def _limits_now(self, expects: int = 0) -> Limits:
        """The limits as far as there is time, with room for what is expected."""
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
    """A wall clock that ran out may be a busy machine's fault: then the program is run once more."""
    return ended.ended_by == "wall" and ended.cpu > _STARVED * limits["cpu_seconds"]


def _left_early(tested: ChildResult, ended: ChildResult) -> bool:
    """The tests lost the program before it had ended: it hung up on them, or somebody else was just killing it. Nobody is
    killed twice by chance, so it is run once more."""
    return ended.ended_by == "grader" and b'"gone": true' in tested.result


def _failure(ended: ChildResult, limits: Limits) -> Verdict | None:
    """Why the program counts as failed whatever it wrote."""
    if ended.overflowed:
        return wrong("wrote too much")
    if ended.ended_by == "wall":
        return timeout("not done in time")
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
        return timeout(f"{where}needs more memory than it is given")
    return wrong(where + reason)


def _one_line(text: str) -> str:
    """Without line ends, control characters and what is no character: parts of it were written by a model."""
    return "".join(c if c.isprintable() else " " for c in text[:300])


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = "a large number"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def load(**options: Any) -> Callable[..., Verdict]:
    """What a worker calls once."""
    kernel.hide_memory()  # here is what is expected
    grader = ProgramGrader(**options)
    verdict_on = grade_or_check(grader.grade, grader.check_reference)

    def on_one_line(*item: Any) -> Verdict:
        outcome, reason = verdict_on(*item)
        return Verdict(outcome, _one_line(reason))

    return on_one_line
