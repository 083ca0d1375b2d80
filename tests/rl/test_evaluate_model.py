"""`plumbline evaluate`: its formulas, and that it measures a checkpoint as its run did."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from rewards.errors import UserError
from rewards.math_answer import MathVerifier
from rewards.math_policy import MathPolicy
from rewards.score import Outcome, Score
from rl.cli import app
from rl.command.evaluate_model import (
    Estimate,
    evaluate_model,
    greedy_estimates,
    make_collector,
    pass_at_k,
    problems_of,
    run_of,
    sample_estimates,
)
from rl.processes.runtime import Runtime
from rl.run.loop import train
from rl.settings.config import RunConfig
from rl.settings.options import EvaluateOptions
from rl.view.metrics import read_metrics
from rl.view.progress import Progress
from rollout.contamination import contaminated, ngrams
from rollout.problems import load_problems, split_held_out
from rollout.records import Completion, FinishReason, Problem, Rollout, RolloutGroup
from rollout.sampler import SamplingParams
from tests.rl.test_loop import odd_lengths, options


@pytest.mark.parametrize(("n", "c", "k"), [(5, 0, 2), (5, 2, 1), (5, 2, 3), (6, 3, 4), (4, 4, 2), (7, 1, 7)])
def test_pass_at_k_is_the_share_of_all_choices_of_k_with_a_right_one(n: int, c: int, k: int) -> None:
    samples = [True] * c + [False] * (n - c)
    choices = [any(chosen) for chosen in combinations(samples, k)]
    assert pass_at_k(n, c, k) == pytest.approx(sum(choices) / len(choices))


def test_the_interval_of_a_mean() -> None:
    """Of 0 and 1 in equal parts over 400 problems it is 1.96 times sqrt(0.25 / 400) to each side.

    All of 5 are right with probability 0.025 where the share is 0.478, 0.478^5 = 0.025; equal values that are no shares have none.
    """
    found = Estimate.of([0.0, 1.0] * 200)
    assert found is not None and found.mean == 0.5 and found.problems == 400
    assert found.low == pytest.approx(0.451, abs=0.004) and found.high == pytest.approx(0.549, abs=0.004)
    right, wrong, halves = (Estimate.of([x] * 5) for x in (1.0, 0.0, 0.5))
    assert right is not None and (right.low, right.high) == (pytest.approx(0.478, abs=0.001), 1.0)
    assert wrong is not None and (wrong.low, wrong.high) == (0.0, pytest.approx(0.522, abs=0.001))
    assert halves is not None and (halves.low, halves.high) == (0.5, 0.5)
    assert Estimate.of([]) is None


def test_a_file_that_could_not_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    for out, message in ((tmp_path / "absent" / "x.json", "there is no folder"), (tmp_path, "it is a folder")):
        with pytest.raises(UserError, match=rf"out is '.*': {message}.*name a file in an existing folder"):
            EvaluateOptions(model="tiny", out=out)
    assert EvaluateOptions(model="tiny", out=tmp_path / "x.json").out is not None


def completion(text: str, seed: int = 0) -> Completion:
    return Completion(
        token_ids=(1,),
        sampler_logprobs=(0.0,),
        finish_reason=FinishReason.STOP,
        policy_version=0,
        seed=seed,
        text=text,
    )


def group(outcomes: str) -> RolloutGroup:
    """r: right, w: wrong, -: could not be graded."""
    problem = Problem(id="p", prompt="?", reference="1", verifier="math")
    kinds = {"r": (1.0, Outcome.CORRECT), "w": (0.0, Outcome.WRONG), "-": (None, Outcome.CRASHED)}
    rollouts = tuple(
        Rollout(
            problem=problem,
            completion=completion("\\boxed{1}" if kind == "r" else "\\boxed{2}", seed=i),
            score=Score(*kinds[kind]),
        )
        for i, kind in enumerate(outcomes)
    )
    return RolloutGroup(problem=problem, prompt_ids=(1,), rollouts=rollouts)


def test_samples_that_could_not_be_graded_count_neither_for_nor_against() -> None:
    """rw--: 1 of 2 at k = 1; too few for k = 4, where rrrw alone is left."""
    found = sample_estimates([group("rw--"), group("rrrw")], 4)
    assert list(found) == ["pass@1", "pass@2", "pass@4", "maj@4"]
    assert found["pass@1"] is not None and found["pass@1"].mean == pytest.approx((1 / 2 + 3 / 4) / 2)
    assert found["pass@4"] is not None and (found["pass@4"].mean, found["pass@4"].problems) == (1.0, 1)
    voted = sample_estimates([group("----"), group("rrrw")], 4)["maj@4"]
    assert voted is not None and (voted.mean, voted.problems) == (1.0, 1)


def test_greedy_answers_that_could_not_be_graded_are_in_no_share_and_cut_ones_in_their_own() -> None:
    """r, w, w cut by the limit, and one that crashed: 1 of 3 is right, 1 of 4 is cut."""
    problem = Problem(id="p", prompt="?", reference="1", verifier="program")
    groups = []
    for kind, reason in zip("rww-", (*[FinishReason.STOP] * 2, FinishReason.LENGTH, FinishReason.STOP), strict=True):
        (one,) = group(kind).rollouts
        one = replace(one, problem=problem, completion=replace(one.completion, finish_reason=reason))
        groups.append(RolloutGroup(problem=problem, prompt_ids=(1,), rollouts=(one,)))
    found = greedy_estimates(groups, MathPolicy(), num_workers=1)
    accuracy, cut = found["greedy accuracy"], found["cut by max_tokens"]
    assert accuracy is not None and (accuracy.mean, accuracy.problems) == (pytest.approx(1 / 3), 3)
    assert cut is not None and (cut.mean, cut.problems) == (0.25, 4)


def test_a_checkpoint_is_measured_as_its_run_measured_it(
    model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the problems that it held out, with its own prompts and limits; adapters on their base. Strict reading needs a box."""
    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)
    run = train(options(model, digits, tmp_path / "run", lora_rank=4))
    saved = run / "checkpoints" / "step-000003"
    out = tmp_path / "found.json"
    app.cli(prog="plumbline", args=["evaluate", str(saved), "--samples", "2", "--out", str(out), "--device", "cpu"])
    found = json.loads(out.read_text())
    assert found["greedy accuracy"]["mean"] == pytest.approx(read_metrics(run)[-1]["eval/accuracy"])
    assert found["greedy accuracy"]["problems"] == 10
    assert "the 10 problems of" in " ".join(capsys.readouterr().out.split())


def test_strict_reading_needs_a_box() -> None:
    """Of three right answers in three forms one is boxed. A fifth was not graded, and is in neither share."""
    groups = []
    with MathVerifier(num_workers=1) as verifier:
        for i, text in enumerate(["\\boxed{2}", "#### 4", "<answer>6</answer>", "no"], 1):
            problem = Problem(id=str(i), prompt="?", reference=str(2 * i), verifier="math")
            (score,) = verifier.verify_batch([text], [problem.reference])
            rollout = Rollout(problem=problem, completion=completion(text), score=score)
            groups.append(RolloutGroup(problem=problem, prompt_ids=(1,), rollouts=(rollout,)))
    (boxed,) = groups[0].rollouts
    groups.append(replace(groups[0], rollouts=(replace(boxed, score=Score(None, Outcome.CRASHED)),)))
    found = greedy_estimates(groups, MathPolicy(), num_workers=1)
    lenient, strict = found["greedy accuracy"], found["greedy accuracy, only \\boxed{}"]
    assert lenient is not None and lenient.mean == 0.75
    assert strict is not None and strict.mean == 0.25


def test_flexible_reading_finds_answers_that_nothing_marks() -> None:
    """Of four right answers one is boxed, two stand in words; the last states none. Programs are not read so."""
    groups = []
    texts = ["\\boxed{2}", "5 - 1 = 4", "3 or so. The answer is 6 apples.", "It is eight."]
    for i, text in enumerate(texts, 1):
        problem = Problem(id=str(i), prompt="?", reference=str(2 * i), verifier="math")
        rollout = Rollout(problem=problem, completion=completion(text), score=Score(0.0, Outcome.NO_ANSWER))
        groups.append(RolloutGroup(problem=problem, prompt_ids=(1,), rollouts=(rollout,)))
    found = greedy_estimates(groups, MathPolicy(), num_workers=1)
    means = {name: estimate and estimate.mean for name, estimate in found.items() if name.startswith("greedy")}
    assert means == {
        "greedy accuracy": 0.0,
        "greedy accuracy, only \\boxed{}": 0.25,
        "greedy accuracy, flexible extract": 0.75,
    }


def test_problems_that_stand_in_another_data_set_are_found() -> None:
    def problem(number: int, text: str) -> Problem:
        return Problem(id=str(number), prompt=text, reference="1", verifier="math")

    words = [" ".join(f"w{i}x{j}" for j in range(30)) for i in range(20)]
    ours = [
        problem(i, f"Please solve the following problem and put the final answer in a box now: {w}")
        for i, w in enumerate(words)
    ]
    theirs = [problem(0, "W3X5, w3x6 -- " + " ".join(f"w3x{j}" for j in range(7, 18))), problem(1, "something else")]
    found = contaminated(ours, theirs)
    assert list(found) == ["3"] and found["3"].startswith("w3x5 w3x6")
    short = contaminated([problem(0, "What is 2 + 2?"), problem(1, "What is 2 + 3?")], [problem(0, "what is 2+2")])
    assert list(short) == ["0"]  # shorter than n words: the whole of it
    template = contaminated(ours, [problem(i, ours[0].prompt[:90]) for i in range(20)])  # pyright: ignore[reportArgumentType]
    assert template == {}


def test_only_a_data_set_of_the_hub_has_a_split_to_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.command.evaluate_model.load_problems", lambda *_, **__: [])
    names = ("x.csv", "arithmetic", "x/y", "x/y:main/dev")
    shown = [problems_of(EvaluateOptions(model="m", dataset=name), {})[1] for name in names]
    assert shown == ["x.csv", "arithmetic", "x/y, test", "x/y:main/dev"]


def test_the_last_words_of_a_prompt_are_looked_for_too() -> None:
    """Three words have two sequences of two."""
    problem = Problem(id="0", prompt="one two three", reference="1")
    assert [*ngrams(problem, 2)] == [("one", "two"), ("two", "three")]


@pytest.mark.parametrize(("sharing", "num_found"), [(3, 3), (4, 0)])
def test_what_a_tenth_of_a_data_set_shares_is_a_template(sharing: int, num_found: int) -> None:
    """Of 40 problems a tenth are four."""
    texts = [f"find the value p{i}" if i < sharing else f"p{i} p{i} p{i}" for i in range(40)]
    ours = [Problem(id=str(i), prompt=text, reference="1") for i, text in enumerate(texts)]
    assert len(contaminated(ours, [Problem(id="0", prompt="find the value", reference="1")], size=3)) == num_found


def test_mistakes_are_told(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="samples is -1: it must be at least 0"):
        EvaluateOptions(model="tiny", samples=-1)
    with pytest.raises(UserError, match=r"dataset is None: .* is not a checkpoint of a run"):
        problems_of(EvaluateOptions(model=str(model)), run_of(EvaluateOptions(model=str(model))))
    with pytest.raises(
        UserError, match=r"max_tokens is 5000, together 50\d\d: the model's context is 2048; lower max_tokens"
    ):
        evaluate_model(
            EvaluateOptions(model=str(model), dataset="arithmetic", max_tokens=5000, size=2, device="cpu"), Progress(0)
        )


def test_the_folder_of_a_run_is_told_apart_from_its_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(
        UserError, match="it is the folder of a run, which holds no model itself; it has no checkpoint yet"
    ):
        evaluate_model(EvaluateOptions(model=str(tmp_path)), Progress(0, quiet=True))
    for step in (9, 10):
        (tmp_path / "checkpoints" / f"step-{step:06d}").mkdir()
    with pytest.raises(UserError, match=r"; give one of its checkpoints, such as /.*/checkpoints/step-000010"):
        evaluate_model(EvaluateOptions(model=str(tmp_path)), Progress(0, quiet=True))


def test_options_of_sampling_reach_the_collector(model: Path) -> None:
    given = {"samples": 3, "temperature": 0.7, "seed": 5, "max_tokens": 9, "system_prompt": "Add."}
    problem = Problem(id="p", prompt="1+1", reference="2")
    runtime, options = Runtime.start(dtype="float32", device="cpu"), EvaluateOptions(model=str(model), **given)  # pyright: ignore
    made, _ = make_collector(options, [problem], {}, runtime, Progress(0, quiet=True))  # pyright: ignore
    assert (made.params, made.group_size, made.run_seed) == (SamplingParams(max_tokens=9, temperature=0.7), 3, 5)
    assert made.renderer.tokenizer.decode(made.renderer.render(problem)).startswith("Add.")


def test_what_a_run_holds_out_is_never_what_it_trains_on() -> None:
    problems, _ = problems_of(EvaluateOptions(model="tiny"), run_of(EvaluateOptions(model="tiny")))
    assert len(problems) == 400
    few, _ = problems_of(EvaluateOptions(model="tiny", size=3), run_of(EvaluateOptions(model="tiny")))
    assert few == problems[:3]
    training, held_out = split_held_out(load_problems("arithmetic"), 400)
    assert [p.id for p in problems] == [p.id for p in held_out]
    assert not {p.id for p in problems} & {p.id for p in training}


def test_a_checkpoint_of_a_run_with_other_held_out_data_is_measured_on_the_first_of_them(tmp_path: Path) -> None:
    """With the run's own columns and the run's own number of problems."""
    for name, numbers in (("train", range(5)), ("test", range(10, 15))):
        rows = [{"q": f"{n}?", "a": f"{n}"} for n in numbers]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"dataset": str(tmp_path / "train.jsonl"), "eval_dataset": str(tmp_path / "test.jsonl"), "eval_size": 3}
    config = RunConfig(**data, prompt_column="q", answer_column="a", run_dir=tmp_path / "run")
    problems, where = problems_of(EvaluateOptions(model="m"), config.as_json())
    assert [p.reference for p in problems] == ["10", "11", "12"]
    assert where == f"the 3 problems of {tmp_path / 'test.jsonl'} that runs hold out"


def test_an_interval_of_many_problems_takes_little_memory() -> None:
    """All resamples at once would be 10,000 x 5,000 indices, 400 MB."""
    tracemalloc.start()
    Estimate.of([0.0, 1.0] * 2_500)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6
