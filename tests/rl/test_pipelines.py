"""Pipelines of several models: distillation by samples, a prover with its filter, and iterative GRPO with its first reward model."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import rl.pipeline.pipeline
import rl.run.loop
import rl.view.plots
from rewards.errors import UserError
from rewards.math_answer import MathVerifier
from rewards.proof import available_provers
from rewards.score import Outcome, Score
from rl.cli import run_pipeline
from rl.pipeline.distill import DistillOptions, run_distillation
from rl.pipeline.iterative import IterativeOptions, run_iterative
from rl.pipeline.prover import PROOFS, STATEMENTS, Prover, ProverOptions, asked, run_prover
from rl.pipeline.stages import checkpoint_of, state_of
from rl.run.load_data import joined, load_data
from rl.run.loop import train
from rl.run.tiny import END, PAD, tiny_model
from rl.settings.config import RunConfig
from rl.settings.resolve import resolve
from rollout.problems import load_problems
from rollout.records import INFORMAL, Problem
from rollout.theorems import theorems
from rollout.worked import worked_text
from tests.rl.test_loop import final_weights, measured


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """A model of another tokenizer: one token for each digit, and no others."""
    folder = tmp_path / "student"
    vocabulary = {token: i for i, token in enumerate([PAD, END, "<unk>", *"0123456789+=\n"])}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        unk_token="<unk>",
        chat_template="{% for message in messages %}{{ message['content'] }}\n{% endfor %}",
    )
    model = tiny_model(made, seed=1, device=torch.device("cpu"))
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


class TestDistillation:
    def test_a_student_of_another_tokenizer_learns_the_teachers_correct_samples(
        self, config: RunConfig, student: Path, model: Path
    ) -> None:
        own = DistillOptions(samples_from=str(model), samples=4, per_problem=1, sft_steps=2, sft_learning_rate=1e-3)
        folder = run_distillation(replace(config, model=str(student)), own).parent
        kept = load_problems(str(folder / "samples" / "rows.jsonl"))
        assert kept and all(len(worked_text(p)) % 2 for p in kept)  # odd lengths are correct here
        assert max(Counter(p.question for p in kept).values()) == 1
        held_out = {p.question for p in load_problems(str(folder / "data" / "held_out.jsonl"))}
        assert len(held_out) == 10 and not held_out & {p.question for p in kept}
        written = json.loads((folder / "sft" / "config.json").read_text())
        assert written["model"] == str(student) and written["dataset"] == [str(folder / "samples" / "rows.jsonl")]
        assert not (folder / "rl").exists()
        run_distillation(replace(config, model=str(student)), replace(own, stages=("rl",)))
        assert json.loads((folder / "rl" / "config.json").read_text())["model"] == str(checkpoint_of(folder / "sft"))

    def test_a_teacher_that_is_no_checkpoint_is_sampled_with_the_options_of_the_run(
        self, config: RunConfig, student: Path, model: Path
    ) -> None:
        run_distillation(
            replace(config, model=str(student), max_tokens=3), DistillOptions(samples_from=str(model), sft_steps=1)
        )
        kept = load_problems(str(config.run_dir) + "/samples/rows.jsonl")
        assert {len(worked_text(p)) for p in kept} <= {1, 2, 3}

    def test_a_student_is_asked_as_the_run_of_its_teacher_was(
        self, config: RunConfig, student: Path, tmp_path: Path
    ) -> None:
        of_teacher = replace(config, run_dir=tmp_path / "run", num_steps=1, max_tokens=6, answer_form="last-number")
        checkpoint = str(checkpoint_of(train(replace(of_teacher, system_prompt="Add."))))
        config = replace(config, model=str(student), max_tokens=None, prompt_style=None, learning_rate=1e-3)
        own = DistillOptions(samples_from=checkpoint, sft_steps=1)
        written = json.loads((run_distillation(config, own).parent / "sft" / "config.json").read_text())
        asked = ("max_tokens", "answer_form", "prompt_style", "system_prompt")
        assert tuple(written[name] for name in asked) == (6, "last-number", "plain", "Add.")

    def test_a_teacher_that_is_not_there_is_said(self, config: RunConfig) -> None:
        with pytest.raises(UserError, match="samples_from is None: it names the teacher"):
            run_distillation(config, DistillOptions())
        with pytest.raises(UserError, match=r"samples_from is '\./none': there is no such folder"):
            run_distillation(config, DistillOptions(samples_from="./none"))
        with pytest.raises(UserError, match="stages leaves out samples: a later stage begins with it"):
            run_distillation(config, DistillOptions(samples_from=config.model, stages=("sft",)))


@pytest.fixture
def statements(tmp_path: Path, config: RunConfig) -> RunConfig:
    """Sums, of which two in three have words, and worked solutions of an odd length."""
    path = tmp_path / "statements.jsonl"
    rows = [{"question": f"{i}+{i}=", "answer": f"{2 * i}", "worked": f"##{2 * i + 100}"} for i in range(60)]
    rows = [row | ({INFORMAL: f"twice {i}"} if i % 3 else {}) for i, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return replace(config, dataset=(str(path),))


SHORT = ProverOptions(sft_steps=2, sft_learning_rate=1e-3, samples=4)


class TestProver:
    def test_statements_of_a_middle_pass_rate_are_kept_in_both_prompts(self, statements: RunConfig) -> None:
        folder = run_prover(statements, replace(SHORT, pass_rates="0.3:0.7")).parent
        found, kept = (rows_of(folder / "filter" / name) for name in (STATEMENTS, "rows.jsonl"))
        assert kept == [row for row in found if 0.3 <= row["pass_rate"] <= 0.7] and 0 < len(kept) < len(found)
        plain = {row["id"]: row for row in found if "#" not in row["id"]}
        worded = {row["id"].partition("#")[0]: row for row in found if "#" in row["id"]}
        assert len(plain) == 50 and set(worded) == {i for i in plain if INFORMAL in plain[i]} != set(plain)
        assert all(worded[i]["prompt"] == f"{plain[i][INFORMAL]}\n{plain[i]['prompt']}" for i in worded)
        counts = state_of(folder / "filter")["found"]
        assert counts["asked"] == len(found) == counts["kept"] + counts.get("too hard", 0) + counts.get("too easy", 0)
        config = json.loads((folder / "rl" / "config.json").read_text())
        assert config["dataset"] == [str(folder / "filter" / "rows.jsonl")]
        assert config["model"] == str(checkpoint_of(folder / "sft"))
        held_out = load_problems(str(folder / "data" / "held_out.jsonl"))
        assert len(held_out) > 10 and not {p.question for p in held_out} & {row["prompt"] for row in found}

    def test_it_goes_on_to_the_bit_wherever_it_was_stopped(
        self, statements: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = run_prover(statements, SHORT).parent
        parts = replace(statements, run_dir=tmp_path / "parts")
        write_rows, train_step = rl.pipeline.prover.write_rows, rl.run.loop.train_step

        def killed(*args: Any, **kwargs: Any) -> Any:
            raise MemoryError

        for module, name in ((rl.pipeline.prover, "write_rows"), (rl.run.loop, "train_step")):
            with monkeypatch.context() as patched:
                patched.setattr(module, name, killed)
                with pytest.raises(MemoryError):
                    run_prover(parts, replace(SHORT, stages=("sft", "filter")) if name == "write_rows" else SHORT)
            if name == "write_rows":
                run_prover(parts, replace(SHORT, stages=("sft", "filter")))
        assert (rl.pipeline.prover.write_rows, rl.run.loop.train_step) == (write_rows, train_step)
        run_prover(parts, SHORT)
        rows = (folder / "filter" / "rows.jsonl" for folder in (whole, tmp_path / "parts"))
        assert len({path.read_bytes() for path in rows}) == 1
        weights, others = (final_weights(folder / "rl", 3) for folder in (whole, tmp_path / "parts"))
        assert all(torch.equal(weights[key], others[key]) for key in weights)
        assert measured(whole / "rl") == measured(tmp_path / "parts" / "rl")

    def test_a_prompt_begins_with_the_words_behind_a_system_message(self) -> None:
        problem = Problem(
            id="7",
            prompt=({"role": "system", "content": "Prove."}, {"role": "user", "content": "P; P"}),
            reference="",
            metadata={INFORMAL: "trivial"},
        )
        (worded,) = asked([problem, replace(problem, metadata={})], "with")
        assert [m["content"] for m in worded.messages] == ["Prove.", "trivial\nP; P"] and worded.id == "7#informal"
        assert [p.id for p in asked([problem], "both")] == ["7", "7#informal"]
        assert list(asked([problem], "without")) == [problem]

    def test_without_sft_the_base_is_filtered_with_the_options_of_the_run(self, statements: RunConfig) -> None:
        of_base = replace(SHORT, stages=("filter",), pass_rates="0:1")
        folder = run_prover(replace(statements, max_tokens=5), of_base).parent
        state = state_of(folder / "filter")
        assert (state["options"]["model"], state["options"]["max_tokens"]) == (statements.model, 5)
        assert state["found"]["kept"] == state["found"]["asked"] == len(rows_of(folder / "filter" / "rows.jsonl"))

    @pytest.mark.parametrize("outcome", [Outcome.CRASHED, Outcome.WRONG])
    def test_nothing_within_the_rates_is_said_with_its_reasons(
        self, statements: RunConfig, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        value = None if outcome is Outcome.CRASHED else 0.0
        monkeypatch.setattr(MathVerifier, "verify_batch", lambda self, a, r: [Score(value, outcome) for _ in a])
        why = "too hard" if value == 0 else "not graded"
        with pytest.raises(UserError, match=rf"no statement of \d+ is within them \(\d+ {why}\); widen them"):
            run_prover(statements, replace(SHORT, stages=("filter",)))

    def test_what_the_data_lacks_is_named(self, config: RunConfig, tmp_path: Path) -> None:
        unproved = tmp_path / "unproved.jsonl"
        rows = [{"prompt": p.question, "verifier": "proof", "reference": p.reference} for p in theorems(20, seed=0)]
        unproved.write_text("".join(json.dumps(row) + "\n" for row in rows))
        of_proofs = replace(config, dataset=(str(unproved),))
        with pytest.raises(
            UserError, match=r"it has no proofs in a column 'worked' for the stage sft; .* leave sft out"
        ):
            run_prover(of_proofs, SHORT)
        with pytest.raises(
            UserError, match=r"informal is 'with': no training row .* has a text in the column 'informal'"
        ):
            run_prover(of_proofs, replace(SHORT, informal="with", stages=("filter",)))
        with pytest.raises(UserError, match="stages leaves out filter: a later stage begins with it"):
            run_prover(of_proofs, replace(SHORT, stages=("rl",)))
        with pytest.raises(UserError, match=r"pass_rates is '0\.9': it must be two pass rates"):
            replace(SHORT, pass_rates="0.9")

    def test_proofs_in_coq_are_checked_before_they_are_learnt(self, config: RunConfig, tmp_path: Path) -> None:
        version = available_provers()["coq"]
        if "version" not in version:
            pytest.skip(version)
        given = {"system": "coq", "statement": "forall n : nat, n + 0 = n"}
        proofs = ["intro n. induction n; simpl; auto.", "intro n. reflexivity.", "auto."]
        rows = [
            {"prompt": f"{i}: n + 0 = n", "verifier": "proof", "reference": given, "worked": proof, INFORMAL: "zero"}
            for i, proof in enumerate(proofs * 6)
        ]
        path = tmp_path / "coq.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        asking = replace(config, dataset=(str(path),), eval_size=2, max_tokens=48, allow_unsafe_code=True)
        folder = run_prover(asking, replace(SHORT, stages=("sft",))).parent
        learnt = {p.metadata["worked"] for p in load_problems(str(folder / "data" / PROOFS))}
        assert learnt == set(proofs)
        log = [row for row in rows_of(folder / "sft" / "completions.jsonl") if row["step"]]
        assert log and {row["completion"].strip() for row in log} <= {proofs[0], proofs[2]}


class TestIterative:
    OWN = IterativeOptions(every=1, samples=4, problems=30, epochs=3, reward_model_rate=1e-2)

    def test_the_first_reward_model_is_made_of_the_policy_and_trained_on_its_labelled_completions(
        self, config: RunConfig, tmp_path: Path
    ) -> None:
        iterative = replace(config, algorithm="grpo-iterative")
        folder = run_iterative(iterative, self.OWN).parent
        found = state_of(folder / "reward-model")["found"]
        assert found["completions"] == 4 * 24 and 0 < found["correct"] < 96
        assert found["reward_model/auc"] > 0.7  # whether a length is odd can be learnt
        written = json.loads((folder / "rl" / "config.json").read_text())
        assert written["reward_model"] == str(folder / "reward-model" / "model")
        assert written["reward_model_every"] == written["refresh_reference_every"] == 1
        again = run_iterative(replace(iterative, run_dir=tmp_path / "again"), self.OWN).parent
        weights, others = (final_weights(of / "rl", 3) for of in (folder, again))
        assert all(torch.equal(weights[key], others[key]) for key in weights)

    def test_labels_of_one_kind_only_are_refused(self, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(MathVerifier, "verify_batch", lambda self, a, r: [Score(0.0, Outcome.WRONG) for _ in a])
        with pytest.raises(UserError, match="of their 96 completions 0 are correct, and a reward model learns from"):
            run_iterative(replace(config, algorithm="grpo-iterative"), self.OWN)

    def test_rl_without_a_reward_model_is_refused(self, config: RunConfig) -> None:
        with pytest.raises(UserError, match="stages leaves out reward-model: a later stage begins with it"):
            run_iterative(replace(config, algorithm="grpo-iterative"), replace(self.OWN, stages=("rl",)))


@pytest.mark.plots
def test_the_report_shows_all_stages_in_one_picture(statements: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, ...]] = []

    def noted(stages: dict[str, Path], path: Path) -> None:
        drawn.append(tuple(stages))
        rl.view.plots.stages_figure(stages, path)

    monkeypatch.setattr(rl.pipeline.pipeline, "stages_figure", noted)
    report = run_prover(statements, SHORT)
    assert "](stages.png)" in report.read_text() and (report.parent / "stages.png").stat().st_size > 10_000
    assert drawn == [("sft", "rl")]


def test_a_pipeline_of_several_processes_is_refused(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = Prover(config=config, options=SHORT, out=config.run_dir or Path())
    with monkeypatch.context() as patched:
        patched.setenv("WORLD_SIZE", "2")
        with pytest.raises(
            UserError, match="num_processes is more than 1: the stages of a pipeline run in one process"
        ):
            pipeline.run(("sft",), ("sft",), "")
    monkeypatch.setattr(rl.cli, "launcher_command", lambda: ["accelerate", "launch", "--num_processes", "2"])
    monkeypatch.setattr(rl.cli, "end_launcher", lambda: None)
    with pytest.raises(SystemExit):
        run_pipeline("", lambda: pytest.fail("it was started"))
    assert "num_processes is 2: accelerate has started 1" in capsys.readouterr().err


class TestWhatStagesHandOn:
    def test_all_rows_that_rejection_keeps_of_a_problem_are_learnt(self, config: RunConfig) -> None:
        own = DistillOptions(samples_from=config.model, samples=6, per_problem=3, sft_steps=1, sft_learning_rate=1e-3)
        folder = run_distillation(config, own).parent
        rows = rows_of(folder / "samples" / "rows.jsonl")
        assert max(Counter(row["prompt"] for row in rows).values()) > 1
        of_sft = RunConfig(
            **(
                vars(config)
                | {"algorithm": "sft", "group_size": None, "dataset": (str(folder / "samples" / "rows.jsonl"),)}
            )
        )
        sources, _ = load_data(resolve(replace(of_sft, eval_dataset=str(folder / "data" / "held_out.jsonl")), "cpu"))
        assert [worked_text(p) for p in joined(sources)] == [row["worked"] for row in rows]

    def test_rows_with_equal_prompts_are_not_divided_between_training_and_evaluation(self, tmp_path: Path) -> None:
        path = tmp_path / "two.jsonl"
        rows = [{"question": f"{i}+1=", "answer": f"{i + 1}", "worked": f"{n}"} for i in range(20) for n in "ab"]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = RunConfig(model="m", algorithm="sft", dataset=(str(path),), eval_size=10)
        sources, held_out = load_data(resolve(config, "cpu"))
        assert joined(sources) and not {p.question for p in joined(sources)} & {p.question for p in held_out}

    def test_samples_are_graded_by_the_pipelines_own_rewards(
        self, config: RunConfig, student: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "own.py").write_text("def never(completion, **row):\n    return 0.0\n")
        checkpoint = str(checkpoint_of(train(replace(config, run_dir=tmp_path / "run", num_steps=1))))
        own = DistillOptions(samples_from=checkpoint, sft_steps=1)
        with pytest.raises(UserError, match=r"no completion of 50 problems is correct and readable \(\d+ wrong"):
            run_distillation(replace(config, reward=(f"{tmp_path}/own.py:never",)), own)

    def test_a_stage_that_is_not_done_is_nothing_to_begin_with(
        self, statements: RunConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps = iter(range(9))
        train_step = rl.run.loop.train_step

        def killed(*args: Any, **kwargs: Any) -> Any:
            if next(steps) == 1:
                raise MemoryError
            return train_step(*args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(rl.run.loop, "train_step", killed)
            with pytest.raises(MemoryError):
                run_prover(statements, SHORT)
        with pytest.raises(
            UserError, match=r"stages leaves out sft: a later stage begins with it, and in .* it is not done"
        ):
            run_prover(statements, replace(SHORT, stages=("filter",)))

    @pytest.mark.parametrize(
        ("changed", "own", "message"),
        [
            ({"eval_size": 4}, {}, "eval_size is 4: held_out.jsonl in .* began with 10"),
            ({}, {"informal": "without"}, "informal is .without.: .*.jsonl in .* began with .both."),
            ({}, {"proofs": 3}, "proofs is 3: proofs.jsonl in .* began with null"),
        ],
    )
    def test_data_made_of_other_options_are_refused(
        self, statements: RunConfig, changed: dict[str, Any], own: dict[str, Any], message: str
    ) -> None:
        run_prover(statements, replace(SHORT, stages=("sft",)))
        with pytest.raises(UserError, match=message):
            run_prover(replace(statements, **changed), replace(SHORT, stages=("sft",), **own))

    def test_a_stage_that_was_made_anew_makes_the_later_ones_other_stages(self, statements: RunConfig) -> None:
        folder = run_prover(statements, SHORT).parent
        shutil.rmtree(folder / "filter")
        with pytest.raises(UserError, match=r"content of dataset is .* began with .* and what was made of it"):
            run_prover(statements, replace(SHORT, stages=("filter", "rl"), pass_rates="0.2:0.6"))

    def test_columns_that_are_named_and_an_evaluation_split_stay_what_they_are(
        self, config: RunConfig, tmp_path: Path
    ) -> None:
        """With prompts of their own no held-out statement is sampled either."""
        paths = [tmp_path / "train.jsonl", tmp_path / "test.jsonl"]
        for path, numbers in zip(paths, (range(40), range(30, 50)), strict=True):
            rows = [
                {"task": f"{i}+1=", "result": f"{i + 1}", "worked": f"#{i + 100}!", INFORMAL: f"sum {i}"}
                for i in numbers
            ]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        asking = replace(
            config, dataset=(str(paths[0]),), eval_dataset=str(paths[1]), prompt_column="task", answer_column="result"
        )
        folder = run_prover(replace(asking, eval_size=8), replace(SHORT, informal="with", pass_rates="0:1")).parent
        found = rows_of(folder / "filter" / "rows.jsonl")
        assert [row["task"] for row in found] == [f"sum {i}\n{i}+1=" for i in range(30)]
        assert all("prompt" not in row and "answer" not in row for row in found)
        held_out = rows_of(folder / "data" / "held_out.jsonl")
        assert [row["task"] for row in held_out] == [f"sum {i}\n{i}+1=" for i in range(30, 50)]
        assert json.loads((folder / "rl" / "config.json").read_text())["eval_size"] == 8

    def test_a_data_set_without_a_weight_is_not_sampled(self, config: RunConfig, tmp_path: Path) -> None:
        other = tmp_path / "other.jsonl"
        rows = [{"question": f"{i}-1=", "answer": f"{i - 1}"} for i in range(40)]
        other.write_text("".join(json.dumps(row) + "\n" for row in rows))
        both = replace(config, dataset=(f"{config.dataset[0]}=1", f"{other}=0"))
        problems = Prover(config=both, options=SHORT, out=tmp_path).training_problems()
        assert problems and all("+" in p.question for p in problems)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"reward_model": "mine"}, "reward_model is 'mine': the stage reward-model makes it; leave it out"),
        ({"refresh_reference_every": 7}, "refresh_reference_every is 7: every has the steps of an iteration"),
        ({"environment": ("games.py:Wordle",)}, "environment is .*: the stages of a pipeline have one turn"),
    ],
)
def test_options_that_a_pipeline_cannot_take_are_refused_at_once(
    config: RunConfig, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run_iterative(replace(config, algorithm="grpo-iterative", **changed), IterativeOptions())


def test_a_folder_that_cannot_be_written_is_named(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run_dir is '.*file': it cannot be written in"):
        run_iterative(replace(config, algorithm="grpo-iterative", run_dir=tmp_path / "file"), IterativeOptions())
