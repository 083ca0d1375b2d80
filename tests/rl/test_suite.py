"""`plumbline evaluate --suite`: its measures, what it writes, and that it goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import rl.command.suite as suite
from rewards.errors import UserError
from rewards.math_answer import MathVerifier
from rewards.score import Outcome, Score
from rl.cli import app
from rl.command.evaluate_model import evaluate_model
from rl.command.suite import evaluate_suite, num_samples, revision
from rl.command.suite_results import measures, table
from rl.run.evaluate import vote
from rl.run.loop import train
from rl.settings.options import EvaluateOptions
from rl.view.progress import Progress
from rollout.collect import Collector
from tests.rl.test_loop import odd_lengths, options

QUIET = Progress(0, quiet=True)


def sample(kind: str, answer: str = "") -> dict[str, Any]:
    """r: right, w: wrong, n: without an answer, -: could not be graded, c: wrong and cut by the limit."""
    outcome = {"r": "correct", "w": "wrong", "n": "no_answer", "-": "crashed", "c": "wrong"}[kind]
    text = f"\\boxed{{{answer}}}" if answer else "?"
    return {"text": text, "outcome": outcome, "tokens": 4, "finish": "length" if kind == "c" else "stop"}


def test_measures_worked_by_hand() -> None:
    """A: 2 of 4 right, and the wrong ones agree: a tie of two. B: 1 of 2 graded ones right, too few for pass@4, again a tie. C: no sample
    was graded, so that it counts nowhere. D: 4 wrong ones. E: 1 of 4 is right, but two agree on a wrong answer."""
    sampled = [
        [sample("r", "1"), sample("r", "1.0"), sample("w", "2"), sample("w", "2")],
        [sample("r", "1"), sample("-", "2"), sample("-", "2"), sample("w", "3")],
        [sample("-")] * 4,
        [sample("w", "2"), sample("w", "3"), sample("n"), sample("c", "4")],
        [sample("r", "1"), sample("w", "5"), sample("w", "5"), sample("n")],
    ]
    found = measures(sampled, 4, True, None)
    means = {name: (x.mean, x.problems) for name, x in found.items() if x is not None}
    assert means == {
        "avg@k": (pytest.approx((1 / 2 + 1 / 2 + 0 + 1 / 4) / 4), 4),
        "pass@k": (pytest.approx((1 + 0 + 1) / 3), 3),
        "maj@k": (pytest.approx((1 / 2 + 1 / 2 + 0 + 0) / 4), 4),
        "cut by max_tokens": (1 / 20, 20),
        "tokens": (4.0, 20),
    }
    assert "maj@k" not in measures(sampled, 4, False, None)
    assert measures([], 4, True, None)["avg@k"] is None


def test_a_vote() -> None:
    """All correct answers are one, however they are written; who has no answer does not vote."""
    assert vote([(True, "1"), (True, "1.0"), (False, "2"), (False, "2"), (False, "3")]) == 1 / 2
    assert vote([(True, "1"), (False, None), (False, None)]) == 1
    assert vote([(False, None)]) == vote([]) == 0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sets in their published shape, with invented contents."""
    folder = tmp_path_factory.mktemp("sets")
    sums = [{"question": f"{n}+{n}=", "answer": f"#### {2 * n}"} for n in range(7)]
    competition = [{"id": n, "problem": f"{n}*{n}=", "answer": str(n * n)} for n in range(3)]
    kinds = ("punctuation:no_comma", "language:response_language")
    forms = [
        {"key": n, "prompt": "Hello", "instruction_id_list": [kind], "kwargs": [{}]} for n, kind in enumerate(kinds)
    ]
    for name, rows in (("gsm8k", sums), ("aime24", competition), ("ifeval", forms)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def vary(patch: pytest.MonkeyPatch) -> None:
    """Some answers of an untaught model are right, and eight completions are sampled together."""
    patch.setattr(MathVerifier, "verify_batch", odd_lengths)
    patch.setattr(suite, "AT_ONCE", {"cpu": 8})


@pytest.fixture(autouse=True)
def _varied(monkeypatch: pytest.MonkeyPatch) -> None:
    vary(monkeypatch)


@pytest.fixture(scope="module")
def whole(model: Path, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of `given`, without an interruption."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        vary(patch)
        evaluate_suite(given(model, files, folder), QUIET)
    return folder


def given(model: Path, files: Path, out: Path, **changed: Any) -> EvaluateOptions:
    usual: dict[str, Any] = {"suite": ("gsm8k", "aime24"), "samples": 3, "max_tokens": 6, "device": "cpu"}
    return EvaluateOptions(model=str(model), suite_files=files, out=out, **usual | changed)


def contents(folder: Path) -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_written(model: Path, files: Path, tmp_path: Path) -> None:
    """A line for each problem with all its samples, the settings and the prompt in front; the table names what is not there."""
    results, absent = evaluate_suite(given(model, files, tmp_path / "a", suite=("gsm8k", "aime25", "ifeval")), QUIET)
    first, *lines = map(json.loads, (tmp_path / "a" / "gsm8k.jsonl").read_text().splitlines())
    assert [line["id"] for line in lines] == [f"gsm8k/{n}" for n in range(7)]
    assert all(
        len(line["samples"]) == 3 and {s["tokens"] for s in line["samples"]} <= set(range(1, 7)) for line in lines
    )
    asked = "Reason step by step, and put your final answer within \\boxed{}.\n0+0=\n"
    shown = {
        "first_prompt": asked,
        "samples": 3,
        "temperature": 1.0,
        "seed": 0,
        "max_tokens": 6,
        "dtype": "float32",
        "sampler": "torch",
    }
    assert shown.items() <= first.items() and first["source"] == str(files / "gsm8k.jsonl")
    assert first["torch version"] and len(first["revision"]) == 64
    in_json = json.loads((tmp_path / "a" / "results.json").read_text())
    right = [[s["outcome"] == "correct" for s in line["samples"]] for line in lines]
    (sums, forms) = in_json["sets"]
    assert sums["measures"]["avg@k"]["mean"] == pytest.approx(sum(map(sum, right)) / 21)
    assert sums["measures"]["pass@k"]["mean"] == pytest.approx(sum(map(any, right)) / 7)
    assert sums["settings"] == first and sums["published"][0]["percent"] == 88.2
    assert list(absent) == list(in_json["not there"]) == ["aime25"] and "MathArena/aime_2025" in absent["aime25"]
    assert (forms["problems"], forms["left_out"]) == (1, 1)
    shown_table = (tmp_path / "a" / "results.md").read_text()
    assert shown_table == table(results, absent) + "\n"
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in shown_table.splitlines()
        if line[:1] == "|"
    }
    assert rows["gsm8k"][:2] == ["7", "3"] and rows["aime25"] == ["not there", *["-"] * 7]
    assert rows["ifeval"][0] == "1 of 2" and rows["ifeval"][4] == "-"  # instructions have no majority answer
    assert "88.2 DeepSeekMath-RL 7B, chain of thought [1]" in rows["gsm8k"][7]
    assert "[1] DeepSeekMath, arXiv 2402.03300, table 5" in shown_table


@pytest.mark.parametrize("calls", [1, 5])
def test_an_interrupted_suite_goes_on_and_ends_with_the_same_bits(
    calls: int, model: Path, files: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight at once are two problems of three samples: four calls for gsm8k, two for aime24. A kill has also cut a line
    short; a whole line whose neighbour in its call is missing is sampled again with it."""
    made, collect = [0], Collector.collect

    def interrupted(*arguments: Any, **options: Any) -> Any:
        made[0] += 1
        if made[0] > calls:
            raise KeyboardInterrupt
        return collect(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Collector, "collect", interrupted)
        with pytest.raises(
            KeyboardInterrupt, match=r"interrupted; what is done is in .*, and the same command goes on from there"
        ):
            evaluate_suite(given(model, files, tmp_path / "part"), QUIET)
    done = [
        len(path.read_text().splitlines()) - 1 for path in sorted((tmp_path / "part").glob("*.jsonl"), reverse=True)
    ]
    assert done == {1: [2], 5: [7, 2]}[calls]
    with max((tmp_path / "part").glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns).open("a") as file:
        file.write('{"id": "gsm8k/2", "samples": []}\n' * (calls == 1) + '{"id": "gsm')
    made[0] = 0
    with monkeypatch.context() as patch:
        patch.setattr(Collector, "collect", lambda *a, **o: made.__setitem__(0, made[0] + 1) or collect(*a, **o))
        evaluate_suite(given(model, files, tmp_path / "part"), QUIET)
    assert made[0] == 6 - calls
    assert contents(tmp_path / "part") == contents(whole)


def test_a_finished_set_is_read_and_a_further_one_is_sampled_beside_it(
    model: Path, files: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gsm8k.jsonl").write_bytes((whole / "gsm8k.jsonl").read_bytes())
    asked: list[str] = []
    collect = Collector.collect

    def noted(self: Collector, problems: Sequence[Any], **options: Any) -> Any:
        asked.extend(problem.id for problem in problems)
        return collect(self, problems, **options)

    monkeypatch.setattr(Collector, "collect", noted)
    evaluate_suite(given(model, files, tmp_path), QUIET)
    assert asked == ["aime24/0", "aime24/1", "aime24/2"] and contents(tmp_path) == contents(whole)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1, "samples": 2}, r"seed was 0 and is 1; samples was 3 and is 2\)"),
        ({"size": 6}, "problems was 7 and is 6; problems_sha256 was"),
        ({"system_prompt": "Add."}, "system_prompt was None and is 'Add.'; first_prompt was 'Reason"),
    ],
)
def test_other_settings_are_refused_by_name(
    changed: dict[str, Any], message: str, model: Path, files: Path, whole: Path
) -> None:
    before = contents(whole)
    with pytest.raises(UserError, match=rf"gsm8k.jsonl was written with other settings \(.*{message}"):
        evaluate_suite(given(model, files, whole, suite=("gsm8k",), **changed), QUIET)
    assert contents(whole) == before


def test_other_weights_are_another_revision(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"a")
    before = revision(str(tmp_path))
    (tmp_path / "tokenizer.json").write_bytes(b"b")
    assert revision(str(tmp_path)) == before
    (tmp_path / "model.safetensors").write_bytes(b"b")
    assert revision(str(tmp_path)) != before


def test_verifier_failures_are_said_and_are_no_wrong_answers(
    model: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three samples of each problem one crashes and two are right."""
    grades = [Score(None, Outcome.CRASHED), Score(1.0, Outcome.CORRECT), Score(1.0, Outcome.CORRECT)]
    count = iter(range(1000))
    monkeypatch.setattr(
        MathVerifier, "verify_batch", lambda self, answers, *_: [grades[next(count) % 3] for _ in answers]
    )
    (found,), _ = evaluate_suite(given(model, files, tmp_path, suite=("gsm8k",)), QUIET)
    assert found.measures["avg@k"] is not None and found.measures["avg@k"].mean == 1.0
    assert found.not_graded == 7 and "| 7 of 21 " in (tmp_path / "results.md").read_text()


def test_a_checkpoint_of_adapters_is_measured_with_the_limits_of_its_run(
    model: Path, digits: Path, files: Path, tmp_path: Path
) -> None:
    run = train(options(model, digits, tmp_path / "run", lora_rank=4, prompt_style="r1", num_steps=1))
    saved = run / "checkpoints" / "step-000001"
    (found,), _ = evaluate_suite(given(saved, files, tmp_path / "out", suite=("gsm8k",), max_tokens=None), QUIET)
    limit = json.loads((run / "config.json").read_text())["max_tokens"]
    assert found.settings["max_tokens"] == limit and found.settings["first_prompt"].startswith("Reason step by step")
    assert found.problems == 7 and found.settings["revision"] != revision(str(model))


def test_the_command_prints_the_table(
    model: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At temperature 0 each set has one sample."""
    names = ["--suite", "gsm8k", "aime24", "--suite-files", str(files), "--out", str(tmp_path / "out")]
    app.cli(
        prog="plumbline",
        args=["evaluate", str(model), *names, "--temperature", "0", "--max-tokens", "4", "--device", "cpu"],
    )
    printed = capsys.readouterr().out
    assert (tmp_path / "out" / "results.md").read_text() in printed
    assert "| aime24 | 3        | 1 " in printed


def test_each_set_has_its_own_number_of_samples() -> None:
    chosen = EvaluateOptions(model="m", suite=("all",), out=Path("results"))
    assert {name: num_samples(name, chosen) for name in ("gsm8k", "aime26", "amc23", "gpqa-diamond")} == {"gsm8k": 1, "aime26": 32, "amc23": 32, "gpqa-diamond": 4}  # fmt: skip


def test_where_no_set_is_there_nothing_is_measured(model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"suite is 'aime25 minerva': none of these sets is there; .* folder as aime25.jsonl"
    ):
        evaluate_suite(given(model, tmp_path, tmp_path / "out", suite=("aime25", "minerva")), QUIET)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"suite": ("gsm9k",)}, "suite is 'gsm9k': it must name sets"),
        (
            {"dataset": "gsm8k"},
            "dataset is 'gsm8k': a suite has its own problems, prompts and verifiers; leave out dataset or suite",
        ),
        ({"thinking_budgets": "0,8"}, "thinking_budgets is '0,8'"),
        ({"thinking_budget": "8"}, "thinking_budget is '8'"),
        ({"reward": ("math",)}, r"reward is \('math',\)"),
        ({"tools": ("python",)}, r"tools is \('python',\)"),
        ({"split": "train"}, "split is 'train'"),
        ({"temperature": 0.0}, "samples is 3: at temperature 0 all of them are the same"),
        ({"suite_files": Path("absent")}, "suite_files is 'absent': there is no such folder"),
        ({"model": "tiny"}, "model is 'tiny'"),
        ({"out": None}, "out is 'None': a suite writes its results to a folder"),
        ({"suite": None}, "suite_files is '.*': there is no suite"),
        ({"suite": None, "suite_files": None, "temperature": 0.0}, "temperature is 0.0: it must be more than 0"),
    ],
)
def test_what_does_not_go_together_is_refused(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    usual: dict[str, Any] = {
        "model": "m",
        "suite": ("gsm8k",),
        "suite_files": tmp_path,
        "samples": 3,
        "out": tmp_path / "out",
    }
    with pytest.raises(UserError, match=message):
        evaluate_suite(EvaluateOptions(**usual | changed), QUIET)


def test_a_file_is_no_folder_for_results(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(UserError, match=r"x.json': a suite writes its results to a folder"):
        EvaluateOptions(model="m", suite=("gsm8k",), out=tmp_path / "x.json")
    with pytest.raises(UserError, match=r"suite is 'gsm8k': the command `plumbline evaluate` measures it"):
        evaluate_model(EvaluateOptions(model="m", suite=("gsm8k",), out=tmp_path / "new"), QUIET)
