"""Whatever happens to a worker, all other items get their verdicts, and no verifier failure becomes a 0."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import rewards.pool
from rewards.math_answer import MathVerifier
from rewards.pool import WorkerPool
from rewards.score import Outcome

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DEADLINE = 0.5


@pytest.fixture
def make_pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., WorkerPool]]:
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    pools = []

    def make(task: str = "pool_tasks:load", num_workers: int = 2, **arguments: str) -> WorkerPool:
        pools.append(WorkerPool(task, arguments, num_workers=num_workers, deadline=DEADLINE, memory_limit=1 << 30))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def _outcomes(pool: WorkerPool, *texts: str) -> list[Outcome]:
    return [outcome for outcome, _ in pool.run([[text] for text in texts])]


def _is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_an_answer_given_in_time_counts_however_late_the_trainer_reads_it(make_pool: Callable[..., WorkerPool]) -> None:
    """The parent may be delayed itself, for example by an update on the same cores."""
    pool = make_pool(num_workers=1)
    pool.run([["warm"]])
    exchange = pool._exchange

    def held_up(batch: object) -> None:
        exchange(batch)  # pyright: ignore[reportArgumentType]
        if any(worker.chunk and not worker.outbox for worker in pool._workers):
            time.sleep(1.5 * DEADLINE)

    pool._exchange = held_up
    assert _outcomes(pool, "a") == [Outcome.CORRECT]


def test_only_the_item_that_exceeds_its_deadline_times_out(make_pool: Callable[..., WorkerPool]) -> None:
    pool = make_pool(num_workers=1)
    pool.run([["warm"]])
    start = time.monotonic()
    texts = ["a", "sleep", *"bcdefgh"]
    verdicts = pool.run([[text] for text in texts])
    assert time.monotonic() - start < DEADLINE + 1.0
    assert [outcome for outcome, _ in verdicts] == [Outcome.CORRECT, Outcome.TIMEOUT, *[Outcome.CORRECT] * 7]
    assert [detail.split()[-1] for _, detail in verdicts[2:]] == list("bcdefgh")  # in the order of the items


def test_a_worker_killed_in_mid_batch_loses_nothing(make_pool: Callable[..., WorkerPool], tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    pool = make_pool(counter=str(log))
    pids = {int(detail.split()[0]) for _, detail in pool.run([[f"x{i}"] for i in range(50)])}

    def kill_when_busy() -> None:
        while log.read_text().count("\n") < 500:
            time.sleep(0.001)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_when_busy)
    killer.start()
    texts = [f"y{i}" for i in range(5000)]
    verdicts = pool.run([[text] for text in texts])
    killer.join()
    assert all(outcome is Outcome.CORRECT for outcome, _ in verdicts)
    assert [detail.split()[1] for _, detail in verdicts] == texts
    assert pids - {int(detail.split()[0]) for _, detail in verdicts[-100:]} == pids  # others finished the work


def test_an_item_that_kills_its_worker_twice_is_not_gradable(
    make_pool: Callable[..., WorkerPool], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    verdicts = make_pool(counter=str(log)).run([["a"], ["die"], ["b"]])
    assert log.read_text().split("\n").count("die") == 2
    assert [outcome for outcome, _ in verdicts] == [Outcome.CORRECT, Outcome.CRASHED, Outcome.CORRECT]
    assert "status 3" in verdicts[1][1]


def test_an_item_whose_worker_died_once_is_retried(make_pool: Callable[..., WorkerPool], tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    assert _outcomes(make_pool(counter=str(log)), "a", "die once") == [Outcome.CORRECT, Outcome.CORRECT]
    assert log.read_text().split("\n").count("die once") == 2


def test_memory_and_depth_time_out_and_a_bug_is_a_crash(make_pool: Callable[..., WorkerPool]) -> None:
    verdicts = make_pool().run([["memory"], ["deep"], ["bug"], ["a"]])
    outcomes = [outcome for outcome, _ in verdicts]
    # 8 GiB do not fit into the limit of 1 GiB
    assert outcomes == [Outcome.TIMEOUT, Outcome.TIMEOUT, Outcome.CRASHED, Outcome.CORRECT]
    assert "memory" in verdicts[0][1]
    assert "ZeroDivisionError" in verdicts[2][1]


def test_a_library_that_prints_or_reads_does_not_disturb_the_replies(make_pool: Callable[..., WorkerPool]) -> None:
    pool = make_pool(num_workers=1)
    assert _outcomes(pool, "noise", "a", "noise") == [Outcome.CORRECT] * 3


def test_items_larger_than_a_pipe_do_not_deadlock(make_pool: Callable[..., WorkerPool]) -> None:
    # A pipe holds 64 KiB; 64 items of 200,000 characters are written while replies come back.
    pool = make_pool()
    texts = [f"{i} " + "x" * 200_000 for i in range(64)]
    verdicts = pool.run([[text] for text in texts])
    assert [detail.split()[1] for _, detail in verdicts] == [str(i) for i in range(64)]


def test_a_worker_that_does_not_read_cannot_block_the_trainer(make_pool: Callable[..., WorkerPool]) -> None:
    pool = make_pool(num_workers=1)
    pid = int(pool.run([["warm"]])[0][1].split()[0])
    os.kill(pid, signal.SIGSTOP)
    start = time.monotonic()
    outcomes = _outcomes(pool, "x" * 1_000_000, "a")
    assert time.monotonic() - start < DEADLINE + 1.0
    assert outcomes[1] is Outcome.CORRECT


def test_a_worker_that_fails_to_start_raises_with_its_message(make_pool: Callable[..., WorkerPool]) -> None:
    with pytest.raises(RuntimeError, match="ImportError: the library is not installed"):
        make_pool(task="pool_tasks:load_nothing").run([["a"]])


def test_workers_that_die_during_start_crash_the_batch_and_not_the_pool(make_pool: Callable[..., WorkerPool]) -> None:
    verdicts = make_pool(task="pool_tasks:load_and_die").run([["a"], ["b"]])
    assert [outcome for outcome, _ in verdicts] == [Outcome.CRASHED] * 2
    assert "the last with status 7" in verdicts[0][1]


def test_nothing_is_graded_while_no_process_can_be_started(
    make_pool: Callable[..., WorkerPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool()
    pool.run([["warm"]])
    tries = []

    def refused(options: str) -> None:
        tries.append(len(pool._workers))
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patched:
        patched.setattr("rewards.pool.WorkerProcess", refused)
        patched.setattr("rewards.pool._FORK_PAUSE", 0.01)
        for worker in list(pool._workers):
            worker.process.kill()
            worker.process.wait()
        verdicts = pool.run([["a"], ["b"]])
    assert [outcome for outcome, _ in verdicts] == [Outcome.CRASHED] * 2
    assert "temporarily unavailable" in verdicts[0][1]
    assert tries.count(0) == 4  # with none left asked for twice, and after the batch twice again
    assert _outcomes(pool, "a", "b") == [Outcome.CORRECT] * 2


def test_workers_killed_at_random_lose_at_most_their_current_items(make_pool: Callable[..., WorkerPool]) -> None:
    pool = make_pool()
    pool.run([["warm"]])
    chance, done = random.Random(0), threading.Event()

    def kill() -> None:
        while not done.wait(0.15):
            with contextlib.suppress(IndexError):
                chance.choice(list(pool._workers)).process.send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        verdicts = pool.run([[f"slow {i}"] for i in range(150)])
    finally:
        done.set()
        killer.join()
    assert len(verdicts) == 150
    outcomes = [outcome for outcome, _ in verdicts]
    assert set(outcomes) <= {Outcome.CORRECT, Outcome.CRASHED}
    assert outcomes.count(Outcome.CORRECT) > 120
    assert all(
        detail.endswith(f"slow {i}") for i, (outcome, detail) in enumerate(verdicts) if outcome is Outcome.CORRECT
    )
    assert _outcomes(pool, "after") == [Outcome.CORRECT]


def test_a_worker_is_replaced_after_a_number_of_items(
    make_pool: Callable[..., WorkerPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is replaced after the batch in which it exceeds 10 items, so it has graded at most 22; one that stays would
    have 30."""
    monkeypatch.setattr(rewards.pool, "_RECYCLE_AFTER", 10)
    pool = make_pool(num_workers=1)
    graded = Counter(detail.split()[0] for _ in range(5) for _, detail in pool.run([["a"]] * 12))
    assert max(graded.values()) <= 22


def test_an_interrupted_batch_leaves_no_reply_behind(make_pool: Callable[..., WorkerPool]) -> None:
    pool = make_pool(num_workers=1)
    pool.run([["warm"]])

    class Interrupt(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(Interrupt):
            pool.run([["old"], ["sleep"], ["old"]])
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert [detail.split()[1] for _, detail in pool.run([["new1"], ["new2"]])] == ["new1", "new2"]


def test_close_ends_the_workers_and_can_be_repeated(make_pool: Callable[..., WorkerPool]) -> None:
    pool = make_pool()
    pids = {int(detail.split()[0]) for _, detail in pool.run([[str(i)] for i in range(20)])}
    pool.close()
    pool.close()
    assert not any(_is_running(pid) for pid in pids)
    with pytest.raises(ValueError, match="closed"):
        pool.run([["a"]])


_TRAINER = """
import os, threading, time
from rewards.pool import WorkerPool
pool = WorkerPool("pool_tasks:load", {}, num_workers=1, deadline=1.0, memory_limit=1 << 30)
pool.run([["a"]])
print(*[worker.process.pid for worker in pool._workers], flush=True)
threading.Thread(target=pool.run, args=([["sleep"]],), daemon=True).start()
time.sleep(0.3)
os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to see processes")
def test_workers_end_when_the_trainer_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    done = subprocess.run([sys.executable, "-c", _TRAINER], cwd=ROOT, capture_output=True, text=True, check=False)
    idle_and_stuck = list(map(int, done.stdout.split()))
    assert len(idle_and_stuck) == 2
    limit = time.monotonic() + 2 * 1.0 + 1.0  # the alarm of the stuck one is at twice the deadline
    while any(map(_is_running, idle_and_stuck)) and time.monotonic() < limit:
        time.sleep(0.02)
    assert not any(map(_is_running, idle_and_stuck))


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("rewards.score, rewards.math_answer, rewards.pool, rewards.equation_steps", "torch sympy mpmath math_verify"),
        ("rewards.worker, rewards.mathematics.grader, rewards.mathematics.symbolic", "torch transformers"),
    ],
    ids=["trainer", "worker"],
)
def test_heavy_modules_stay_out_of_the_trainer_and_of_the_workers(modules: str, absent: str) -> None:
    code = f"import sys, {modules}; print(*sorted(set({absent.split()!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("option", "value"), [("num_workers", 0), ("deadline", 0.0), ("deadline", float("nan")), ("memory_limit", 1000)]
)
def test_impossible_limits_are_refused_by_name(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=option):
        MathVerifier(**{option: value})  # type: ignore[arg-type]
