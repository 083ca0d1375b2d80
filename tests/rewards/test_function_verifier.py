"""Reward functions of the user: what they are given, what they may return, and every way in which they can fail."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from plumbline.names_of_functions import reference_to
from rewards.errors import UserError
from rewards.function_verifier import FunctionVerifier
from rewards.functions.declaration import reward
from rewards.functions.source import Source
from rewards.reward_spec import BUILT_IN, parse_rewards
from rewards.score import Outcome, Score
from rewards.verifiers import VERIFIERS
from rewards.weighted import WeightedVerifier

FUNCTIONS = """
import asyncio, functools, os, sys, time
from decimal import Decimal
from rewards.functions.declaration import reward
from rewards.score import Outcome, Score

def keyword(answer, reference): return reference.lower() in answer.lower()
def half(completion): return 0.5
def full(completion): return 2
def nothing(answer): return None
def whole_score(answer): return Score(0.25, Outcome.NO_ANSWER, {"tone": 0.5}, "too blunt")
def seen(**everything): return Score(0.0, Outcome.WRONG, {}, repr(sorted(everything)))
def boxed_answer(answer): return Score(0.0, Outcome.WRONG, {}, answer)
def whole_text(completion): return Score(0.0, Outcome.WRONG, {}, completion)
def of_row(problem, colour, prompt): return Score(0.0, Outcome.WRONG, {}, f"{problem['id']} {colour} {prompt}")
def by_default(answer, colour="none"): return Score(0.0, Outcome.WRONG, {}, colour)
def longest(answers, reference): return [len(a) == max(map(len, answers)) for a in answers]
def one_too_few(answers): return [1.0] * (len(answers) - 1)
def both(answer, answers): return 1
def numpy_number(answer):
    import numpy
    return numpy.float32(0.25)
def torch_like(answer):
    class Tensor:
        size = (1,)
        def item(self): return 0.125
    return Tensor()

def raises(answer): return {}["reward"]
def exits(answer): sys.exit(3)
def dies(answer): os._exit(3)
def hangs(answer):
    if "hang" in answer:
        time.sleep(60)
    return True
def forks(answer):
    os.fork()
    return len(answer)
def leaves_child(answer):
    child = os.fork()
    if child == 0:
        time.sleep(600)
        os._exit(0)
    open("child", "w").write(str(child))
    time.sleep(60)
def prints(answer):
    print("x" * 3_000_000, "the end")
    os.write(1, b"y" * 3_000_000)
    return True
def edits(problem, reference):
    is_fresh = "colour" in problem
    problem.clear()
    return is_fresh
def needs_memory(answer): return len("x" * (20 << 30))
def nan(answer): return float("nan")
def text(answer): return "good"
def huge(answer): return 10 ** 400
def relative_file(answer): return open("words.txt").read() == answer
def decimal(answer): return Decimal("0.5")
def numpy_score(answer):
    import numpy
    return Score(numpy.bool_(True), Outcome.CORRECT, {"tone": numpy.ones(1)})
def interrupts(answer): raise KeyboardInterrupt("now")
def base(answer): raise BaseException("an outcome of a test library")
def noted(answer):
    error = ValueError("\\nthe message")
    error.add_note("a note")
    raise error
def unknown_outcome(answer): return Score(1.0, "correct")
def unfit_value(answer): return Score(None, Outcome.CORRECT)
def many_parts(answer): return Score(1.0, Outcome.CORRECT, {f"part {n}": 1.0 for n in range(200_000)})
def unprintable_name(answer): return Score(1.0, Outcome.CORRECT, {"\\ud800": 1.0})
def long_name(answer): return Score(1.0, Outcome.CORRECT, {"x" * 5_000_000: 1.0})
def as_in_trl(prompts, completions, colour, **kwargs):
    given = [prompts, colour, kwargs["prompt"], kwargs["reference"], kwargs["problem"], kwargs["answers"]]
    assert all(type(one) is list and len(one) == len(completions) for one in given), given
    return [float(c == f"{p} {of} {q['id']}") for p, c, of, q in zip(prompts, completions, colour, kwargs["problem"])]
def bytes_of_group(answers): return bytes(len(answers))
def hides_async(answer): return waits(answer)
def writes_into_pipes(answer):
    for descriptor in range(3, 12):
        try: os.write(descriptor, b"junk\\n" * 2)
        except OSError: pass
    return True
class Waits:
    async def __call__(self, answer): return 0.5
async_object = Waits()
partly = functools.partial(by_default, colour="blue")
async def cancels(answer): raise asyncio.CancelledError
@reward
def without_brackets(answer): return 0.5
def process(answer): return os.getpid()
marked_later = reward(in_process=True)(process)

async def waits(answer):
    await asyncio.sleep(0.3)
    return float(answer)
@reward(deadline=0.2)
async def waits_too_long(answer):
    await asyncio.sleep(5 if "slow" in answer else 0)
    return 1.0
running = 0
@reward(concurrency=2)
async def at_once(answer):
    global running
    running += 1
    await asyncio.sleep(0.05)
    found, running = running, running - 1
    return float(found)
@reward(deadline=0.3)
def has_own_deadline(answer):
    time.sleep(1)
    return 1.0
@reward(in_process=True)
def here(answer, problem):
    problem.clear()
    return os.getpid()
"""
ROW = {"id": "7", "colour": "red"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "given.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def verifiers() -> Iterator[list[FunctionVerifier]]:
    made: list[FunctionVerifier] = []
    yield made
    for verifier in made:
        verifier.close()


@pytest.fixture
def graded(folder: Path, verifiers: list[FunctionVerifier]):
    def grade(name: str, *answers: str, reference: str = "Apple", **options: float) -> list[Score]:
        verifier = FunctionVerifier(f"given.py:{name}", Source.parse(f"given.py:{name}"), num_workers=1, **options)
        verifiers.append(verifier)
        count = len(answers)
        return verifier.verify_batch(answers, [reference] * count, ["Which?"] * count, [ROW] * count)

    return grade


def test_a_verdict_in_one_line_scores_each_answer_against_its_reference(graded) -> None:
    right, wrong = graded("keyword", "an apple", "a pear")
    assert (right.value, right.outcome) == (1.0, Outcome.CORRECT)
    assert (wrong.value, wrong.outcome) == (0.0, Outcome.WRONG)


@pytest.mark.parametrize(
    ("name", "value", "outcome"),
    [
        ("half", 0.5, Outcome.WRONG),
        ("full", 2.0, Outcome.CORRECT),
        ("nothing", None, Outcome.NOT_GRADED),
        ("numpy_number", 0.25, Outcome.WRONG),
        ("torch_like", 0.125, Outcome.WRONG),
        ("whole_score", 0.25, Outcome.NO_ANSWER),
        ("decimal", 0.5, Outcome.WRONG),
        ("numpy_score", 1.0, Outcome.CORRECT),
        ("async_object", 0.5, Outcome.WRONG),
        ("without_brackets", 0.5, Outcome.WRONG),
    ],
)
def test_what_a_function_returns_becomes_the_score(graded, name: str, value: float | None, outcome: Outcome) -> None:
    (score,) = graded(name, "a pear")
    assert (score.value, score.outcome) == (value, outcome)


def test_a_score_keeps_its_parts_and_its_detail(graded) -> None:
    (score,) = graded("whole_score", "a pear")
    assert (score.parts, score.detail) == ({"tone": 0.5}, "too blunt")


def test_arguments_are_the_names_that_the_function_asks_for(graded) -> None:
    (everything,) = graded("seen", "a pear")
    assert everything.detail == "['answer', 'colour', 'completion', 'id', 'problem', 'prompt', 'reference']"
    assert graded("of_row", "a pear")[0].detail == "7 red Which?"
    assert graded("by_default", "a pear")[0].detail == "red"
    text = "so \\boxed{a pear} it is<|im_end|>"
    assert graded("boxed_answer", text)[0].detail == "a pear"
    assert graded("whole_text", text)[0].detail == "so \\boxed{a pear} it is"
    assert graded("boxed_answer", "a pear<|im_end|>")[0].detail == "a pear"


def test_a_function_of_the_group_sees_the_answers_of_one_problem_together(folder: Path, verifiers) -> None:
    verifier = FunctionVerifier("longest", Source.parse("given.py:longest"), num_workers=1)
    verifiers.append(verifier)
    assert verifier.compares_group
    answers, groups = ["a", "bbb", "cc", "d"], [0, 1, 0, 1]
    scores = verifier.verify_batch(answers, [""] * 4, ["q"] * 4, [ROW] * 4, groups)
    assert [s.value for s in scores] == [0.0, 1.0, 1.0, 0.0]


def test_without_answers_every_argument_of_a_group_is_a_list_as_in_trl(folder: Path, verifiers) -> None:
    verifier = FunctionVerifier("as_in_trl", Source.parse("given.py:as_in_trl"), num_workers=1)
    verifiers.append(verifier)
    rows = [{"id": "7", "colour": "red"}, {"id": "8", "colour": "blue"}]
    assert [s.outcome for s in verifier.check_references(["", ""], ["q", "r"], rows)] == [Outcome.CORRECT] * 2
    texts = ["q red 7", "r blue 8", "q", "r red 7"]
    scores = verifier.verify_batch(texts, [""] * 4, ["q", "r"] * 2, rows * 2, [0, 1, 0, 1])
    assert [s.value for s in scores] == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "detail"),
    [
        ("raises", "KeyError: 'reward' (given.py, line 29)"),
        ("exits", "SystemExit: 3 (given.py, line 30)"),
        ("dies", "the worker died twice, last with status 3"),
        ("needs_memory", "MemoryError (given.py, line 54)"),
        ("nan", "returned nan, which is not a reward"),
        ("text", "returned 'good', which is not a reward"),
        ("huge", "which is not a reward"),
        ("interrupts", "KeyboardInterrupt: now"),
        ("base", "BaseException: an outcome of a test library (given.py, line"),
        ("cancels", "CancelledError (given.py, line"),
        ("noted", "ValueError: the message (given.py, line"),
        ("unknown_outcome", "its outcome is 'correct', which is not a plumbline.Outcome"),
        ("unfit_value", "its value is None: with Outcome.CORRECT it must be a finite number"),
        ("many_parts", "its parts must be a dict with at most 100 names"),
        ("long_name", "a name has at most 80 printable characters"),
        ("unprintable_name", "a name has at most 80 printable characters"),
        ("bytes_of_group", "not a list with one reward for each of 2 completions"),
        ("hides_async", "which is not a reward: write the function itself with async def"),
        ("writes_into_pipes", "the worker died twice"),
        ("one_too_few", "returned [1.0], not a list with one reward for each of 2 completions"),
    ],
)
def test_a_failure_of_the_function_is_never_a_wrong_answer(graded, name: str, detail: str) -> None:
    for score in graded(name, "a pear", "a plum"):
        assert (score.value, score.outcome) == (None, Outcome.CRASHED)
        assert detail in score.detail


def test_an_answer_that_takes_too_long_does_not_touch_the_others(graded) -> None:
    scores = graded("hangs", "fine", "hang", "fine too", deadline=0.5)
    assert [s.outcome for s in scores] == [Outcome.CORRECT, Outcome.TIMEOUT, Outcome.CORRECT]


def test_a_function_may_have_a_deadline_of_its_own(graded) -> None:
    started = time.monotonic()
    (score,) = graded("has_own_deadline", "a pear", deadline=30.0)
    assert (score.outcome, score.detail) == (Outcome.TIMEOUT, "no verdict within 0.3 s")
    assert time.monotonic() - started < 20  # the deadline of the run would be 30


def test_a_child_that_returns_from_the_function_replies_nothing(graded) -> None:
    assert [s.value for s in graded("forks", "a", "bb", "ccc", "dddd")] == [1.0, 2.0, 3.0, 4.0]


def test_processes_that_a_killed_function_started_end_with_it(graded, folder: Path) -> None:
    (score,) = graded("leaves_child", "hang", deadline=0.5)
    assert score.outcome is Outcome.TIMEOUT
    status, deadline = Path("/proc", (folder / "child").read_text(), "status"), time.monotonic() + 10
    while is_running(status) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(status)


def is_running(status: Path) -> bool:
    try:
        return "zombie" not in status.read_text()
    except OSError:
        return False


def test_what_a_function_prints_is_kept_in_short_and_disturbs_nothing(graded) -> None:
    (score,) = graded("prints", "a pear", deadline=10.0)
    assert score.value == 1.0
    assert score.detail.endswith("the end'")
    assert len(score.detail) < 200


def test_a_function_that_edits_its_arguments_edits_copies(graded) -> None:
    assert [s.value for s in graded("edits", "a", "b", "c")] == [1.0, 1.0, 1.0]


def test_files_are_found_from_the_folder_of_the_run(graded, folder: Path) -> None:
    (folder / "words.txt").write_text("a pear")
    assert graded("relative_file", "a pear")[0].value == 1.0


def test_async_calls_wait_together(graded) -> None:
    started = time.monotonic()
    scores = graded("waits", *map(str, range(12)))
    assert [s.value for s in scores] == [float(i) for i in range(12)]
    assert time.monotonic() - started < 12 * 0.3  # one after the other would take that long


def test_no_more_async_calls_wait_at_once_than_the_function_allows(graded) -> None:
    assert max(s.value or 0 for s in graded("at_once", *"abcdefgh")) <= 2


def test_an_async_call_that_waits_too_long_is_no_wrong_answer(graded) -> None:
    slow, quick = graded("waits_too_long", "slow", "quick")
    assert (slow.value, slow.outcome) == (None, Outcome.CRASHED)
    assert quick.value == 1.0


def test_a_function_that_needs_this_process_runs_in_it_on_copies(graded) -> None:
    first, second = graded("here", "a", "b")
    assert first.value == second.value == os.getpid()
    assert ROW == {"id": "7", "colour": "red"}


def test_a_function_may_be_marked_in_any_way(graded) -> None:
    assert graded("marked_later", "a pear")[0].value == os.getpid()


def test_ctrl_c_ends_a_function_in_this_process(folder: Path, verifiers) -> None:
    (folder / "stopped.py").write_text(
        "import plumbline\n@plumbline.reward(in_process=True)\ndef reward(answer): raise KeyboardInterrupt\n"
    )
    verifiers.append(FunctionVerifier("stopped.py:reward", Source.parse("stopped.py:reward")))
    with pytest.raises(KeyboardInterrupt):
        verifiers[0].verify_batch(["a"], [""])


def test_a_file_that_forks_as_it_is_imported_replies_once(folder: Path, verifiers) -> None:
    (folder / "forking.py").write_text("import os\nos.fork()\ndef reward(answer): return 0.5\n")
    verifiers.append(FunctionVerifier("forking.py:reward", Source.parse("forking.py:reward"), num_workers=1))
    assert [s.value for s in verifiers[0].verify_batch(["a", "b"], ["", ""])] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan", "returned nan, which is not a reward: return True, False, a finite number"),
        ("text", "returned 'good', which is not a reward"),
        ("raises", "it fails on each of the first 2 problems: KeyError: 'reward' (given.py, line 29)"),
        ("needs_size", "it asks for 'size', which no problem offers; it can ask for answer, colour, completion"),
    ],
)
def test_what_can_never_work_is_refused_before_training(folder: Path, verifiers, name: str, message: str) -> None:
    (folder / "given.py").write_text(FUNCTIONS + "\ndef needs_size(answer, size): return True\n")
    verifier = FunctionVerifier(f"given.py:{name}", Source.parse(f"given.py:{name}"), num_workers=1)
    verifiers.append(verifier)
    with pytest.raises(UserError) as error:
        verifier.check_references(["Apple", "Pear"], ["q", "q"], [ROW, ROW])
    assert message in str(error.value)


def test_a_column_named_like_an_argument_is_listed_once(folder: Path, verifiers) -> None:
    verifiers.append(FunctionVerifier("of_row", Source.parse("given.py:of_row"), num_workers=1))
    with pytest.raises(UserError, match=r"it can ask for answer, completion, problem, prompt, reference$"):
        verifiers[0].check_references([""], ["q"], [{"id": "7", "answer": "3"}])


def test_a_row_without_a_column_that_others_have_is_left_out(folder: Path, verifiers) -> None:
    verifier = FunctionVerifier("of_row", Source.parse("given.py:of_row"), num_workers=1)
    verifiers.append(verifier)
    good, bad = verifier.check_references(["", ""], ["q", "q"], [ROW, {"id": "8"}])
    assert good.outcome is Outcome.CORRECT
    assert (bad.outcome, bad.value) == (Outcome.BAD_REFERENCE, None)
    assert "no column 'colour'" in bad.detail


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("missing", "", "it has no function 'missing'; its functions are here"),
        (
            "here",
            "import no_such_package\n",
            "ModuleNotFoundError: No module named 'no_such_package' (broken.py, line 1)",
        ),
        ("here", "def here(answer:\n", "SyntaxError: '(' was never closed (broken.py, line 1)"),
        ("here", "raise KeyboardInterrupt\n", "KeyboardInterrupt (broken.py, line 1)"),
        (
            "here",
            "from plumbline import reward\nx = {}['x']\n@reward(in_process=True)\ndef here(answer): return 1\n",
            "KeyError: 'x' (broken.py, line 2)",
        ),
        ("here", "raise SystemExit(4)\n", "SystemExit: 4"),
        ("here", "def here(answer, /): return 1\n", "its parameter 'answer' cannot be passed by name"),
        ("here", "def here(answer, answers): return 1\n", "it asks for 'answer', of one completion, and for 'answers'"),
    ],
)
def test_a_function_that_cannot_be_loaded_is_one_message(folder: Path, name: str, source: str, message: str) -> None:
    (folder / "broken.py").write_text(source or "def here(answer): return 1\n")
    with pytest.raises(UserError) as error:
        FunctionVerifier("broken.py:here", Source.parse(f"broken.py:{name}"), num_workers=1)
    assert message in str(error.value)
    assert str(error.value).startswith("reward is 'broken.py:here': it cannot be loaded: ")


def test_a_column_that_a_worker_cannot_be_sent_is_named(folder: Path, verifiers) -> None:
    verifier = FunctionVerifier("of_row", Source.parse("given.py:of_row"), num_workers=1)
    verifiers.append(verifier)
    with pytest.raises(UserError, match=r"column 'colour' holds a bytes"):
        verifier.verify_batch(["a"], [""], ["q"], [{"id": "7", "colour": b"red"}])


def test_a_function_of_a_notebook_reaches_the_workers_by_value(verifiers) -> None:
    limit = 3

    def at_most(answer: str) -> bool:
        return len(answer) <= limit

    named = reference_to(at_most)
    assert named == "__main__:at_most"
    verifier = FunctionVerifier(named, Source.parse(named), num_workers=1)
    verifiers.append(verifier)
    assert [s.value for s in verifier.verify_batch(["abc", "abcd"], ["", ""])] == [1.0, 0.0]


def test_a_function_with_an_object_of_this_process_is_refused_or_runs_here(verifiers) -> None:
    lock = threading.Lock()  # it stands for a loaded model, which cannot be pickled either

    def uses_lock(answer: str) -> bool:
        return lock.locked()

    with pytest.raises(UserError, match=r"cannot be pickled for the worker processes .*in_process=True"):
        reference_to(uses_lock)
    named = reference_to(reward(in_process=True)(uses_lock))
    verifier = FunctionVerifier(named, Source.parse(named))
    verifiers.append(verifier)
    assert verifier.verify_batch(["abc"], [""])[0].value == 0.0
    with lock:
        assert verifier.verify_batch(["abc"], [""])[0].value == 1.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("nowhere.py:f",), "there is no file 'nowhere.py'"),
        (("given.py:half", "given.py:half=2"), "has 'given.py:half' twice"),
        (("given.py:half=0", "math=0"), "all weights are 0"),
        (("given.py:half=much",), "the weight 'much' is not a number"),
        (("maths",), "it must be file.py:function, module:function, a verifier (math, program"),
        (("given.py:1f",), "'1f' is not the name of a function"),
    ],
)
def test_mistakes_in_the_names_of_rewards(folder: Path, given: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_rewards(given)
    assert message in str(error.value)


def test_every_verifier_is_a_reward_by_its_name() -> None:
    """reward_spec cannot import the table of verifiers, which imports it."""
    assert tuple(VERIFIERS) == BUILT_IN


def test_names_and_weights_of_rewards(folder: Path) -> None:
    (folder / "other.py").write_text("def reward(answer): return 1\n")
    (folder / "a=b").mkdir()
    (folder / "a=b" / "mine.py").write_text("def boxed(answer): return 1\n")
    named = ["math", "other.py:reward=0.2", "given.py:half=-1e-1", "words:20=0.5", "os.path:exists"]
    specs = parse_rewards([*named, "a=b/mine.py:boxed", "boxed=2"])
    assert [(s.name, s.weight) for s in specs] == [
        ("math", 1.0), ("other", 0.2), ("half", -0.1), ("words:20", 0.5), ("exists", 1.0),
        ("boxed", 1.0), ("boxed-2", 2.0),
    ]  # fmt: skip


def test_a_sum_keeps_each_reward_and_the_first_decides_the_outcome(folder: Path) -> None:
    from rewards.verifiers import REWARD, VerifierOptions, Verifiers

    rewards = parse_rewards(["math", "given.py:half=0.2", "boxed=0.5"])
    verifiers = Verifiers(VerifierOptions(num_workers=1, rewards=rewards))
    try:
        verifier = verifiers[REWARD]
        assert isinstance(verifier, WeightedVerifier)
        right, unboxed = verifier.verify_batch(["\\boxed{4}", "<answer>4</answer>"], ["4", "4"])
        assert right.parts == {"math": 1.0, "half": 0.5, "boxed": 1.0}
        assert (right.value, right.outcome) == (pytest.approx(1 + 0.2 * 0.5 + 0.5), Outcome.CORRECT)
        assert unboxed.value == pytest.approx(1 + 0.2 * 0.5)
        (empty,) = verifier.check_references([""])
        assert empty.outcome is Outcome.BAD_REFERENCE
    finally:
        verifiers.close()


def test_parts_of_several_rewards_that_have_one_name_stay_apart(folder: Path) -> None:
    from rewards.verifiers import REWARD, VerifierOptions, Verifiers

    rewards = parse_rewards(["given.py:whole_score", "given.py:numpy_score"])
    verifiers = Verifiers(VerifierOptions(num_workers=1, rewards=rewards))
    try:
        (score,) = verifiers[REWARD].verify_batch(["a pear"], [""])
        assert score.parts == {
            "whole_score": 0.25, "whole_score.tone": 0.5, "numpy_score": 1.0, "numpy_score.tone": 1.0
        }  # fmt: skip
    finally:
        verifiers.close()


def test_an_answer_that_one_reward_cannot_grade_has_no_sum(folder: Path) -> None:
    from rewards.verifiers import REWARD, VerifierOptions, Verifiers

    verifiers = Verifiers(VerifierOptions(num_workers=1, rewards=parse_rewards(["math", "given.py:raises"])))
    try:
        (score,) = verifiers[REWARD].verify_batch(["\\boxed{4}"], ["4"])
        assert (score.value, score.outcome) == (None, Outcome.CRASHED)
        assert score.detail.startswith("raises: KeyError")
    finally:
        verifiers.close()
