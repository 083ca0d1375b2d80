"""The `plumbline` command and the start of recipes: parses options, and ends with one clear message for a user's mistake."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

from rewards.errors import UserError
from rewards.score import Score
from rl.settings.curate_options import CurateOptions
from rl.settings.mining import MineOptions
from rl.settings.options import AnyDType, CensusOptions, EvaluateOptions, HeadDType, PlanOptions, TryRewardOptions


def run_safely(action: Callable[[], object]) -> None:
    """Runs the action. A user's mistake exits with its message and status 2, an interruption with 130; bugs keep their traceback."""
    try:
        action()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        end_launcher()
        sys.exit(2)
    except SystemExit as ended:  # from tyro: an unknown option or an impossible value
        if ended.code == 2:
            end_launcher()
        raise
    except KeyboardInterrupt as stop:
        print(str(stop) or "interrupted, without a checkpoint of this step", file=sys.stderr)
        if not str(stop):  # without cleanup: Python would wait for a thread that samples
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(130)
        sys.exit(130)


def end_launcher() -> None:
    """Ends an `accelerate launch` of one process, which would print a traceback of its own under the message.

    With several processes the launcher would only print another traceback. Scripts that need the exit status use `plumbline launch`.
    """
    command = launcher_command()
    if Path(command[1] if len(command) > 1 else "").name == "accelerate" and "WORLD_SIZE" not in os.environ:
        os.kill(os.getppid(), signal.SIGTERM)


def launcher_command() -> list[str]:
    """The command line of the `accelerate launch` or `plumbline launch` that started this process; [] without one."""
    try:
        command = Path(f"/proc/{os.getppid()}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []
    names = [Path(part).name for part in command[:3]]  # the interpreter, the command, launch
    return command if "launch" in names and {"accelerate", "plumbline"} & set(names) else []


def require_all_processes() -> None:
    """Raises UserError if accelerate has started one process instead of several, which it does silently without a GPU."""
    requested = re.search(r"--num_processes[ =](\d+)", " ".join(launcher_command()))
    if requested and int(requested[1]) > 1 and os.environ.get("WORLD_SIZE", "1") == "1":
        raise UserError(
            f"num_processes is {requested[1]}: accelerate has started 1, as it finds no GPUs; add --multi_gpu, which starts them on "
            "a CPU too (without --cpu)"
        )


def limit_spinning() -> None:
    """Makes OpenMP's waiting threads spin for some microseconds and then sleep, if torch is not loaded yet.

    Without spinning a step of short operations takes a fifth longer; with endless spinning it is ten times slower beside another busy
    process.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def run_recipe(description: str, **defaults: Any) -> None:
    """Parses RunConfig from the command line and trains. defaults: the recipe's own defaults of options."""
    limit_spinning()

    def action() -> None:
        from rl.settings.command_line import run_options

        require_all_processes()
        config = run_options(sys.argv[1:], description, defaults)
        from rl.run.loop import train  # takes seconds; mistakes in options are reported before

        train(config)

    run_safely(action)


def run_pipeline(description: str, load: Callable[[], tuple[Mapping[str, Any], type, Callable[..., object]]]) -> None:
    """Parses the options of a pipeline's runs and its own, and runs it. load: imports the defaults of its runs, the class of its own
    options, and the function that takes both; that takes seconds."""
    limit_spinning()

    def action() -> None:
        from rl.settings.command_line import options_beside

        require_all_processes()
        defaults, options, run = load()
        run(*options_beside(sys.argv[1:], description, defaults, options))

    run_safely(action)


app = tyro.extras.SubcommandApp()


@app.command
def report(run_dir: tyro.conf.Positional[Path]) -> None:
    """Write report.html of a run folder again."""
    from rl.view.report import write_report

    print(write_report(run_dir))


@app.command
def merge(checkpoint: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path]) -> None:
    """Write a checkpoint of a LoRA run as a plain model, the adapters merged into the base's weights.

    Args:
        checkpoint: A folder such as runs/mine/checkpoints/step-000050.
        out: The new folder of the model and its tokenizer.
    """
    from rl.policy.merge import merge_adapters

    print(merge_adapters(checkpoint, out))


@app.command
def evaluate(options: Annotated[EvaluateOptions, tyro.conf.arg(name="")]) -> None:
    """Evaluate a model on a data set: greedy accuracy, pass@k and maj@k with 95 % confidence intervals. Or on published test sets: --suite."""
    from rl.command.evaluate_model import as_json, describe, evaluate_model
    from rl.view.progress import Progress

    if options.suite is not None:
        evaluate_sets(options)
        return

    with Progress(0) as progress:
        found = evaluate_model(options, progress)
    print(describe(found))
    if options.out is not None:
        options.out.write_text(as_json(found) + "\n", encoding="utf-8")


def evaluate_sets(options: EvaluateOptions) -> None:
    from rl.command.suite import evaluate_suite
    from rl.command.suite_results import table
    from rl.view.progress import Progress

    with Progress(0) as progress:
        results, absent = evaluate_suite(options, progress)
    print(table(results, absent))


@app.command
def try_reward(options: Annotated[TryRewardOptions, tyro.conf.arg(name="")]) -> None:
    """Try rewards on references, on answers that deserve nothing, and on samples of a model."""
    from rl.command.try_reward import try_rewards
    from rl.view.progress import Progress

    with Progress(0) as progress:
        found = try_rewards(options, progress)
    print(found)


@app.command
def census(options: Annotated[CensusOptions, tyro.conf.arg(name="")]) -> None:
    """Measure how often a model solves each problem of a data set, and write the data set with these pass rates."""
    from rl.command.census import describe, take_census
    from rl.view.progress import Progress

    with Progress(0) as progress:
        found = take_census(options, progress)
    print(describe(found, options.samples))


@app.command
def mine(options: Annotated[MineOptions, tyro.conf.arg(name="")]) -> None:
    """Mine a web collection for pages like those of a seed, in rounds of a classifier and of domains (docs/mining.md)."""
    from rl.view.progress import Progress
    from rollout.corpus.mining.describe import describe
    from rollout.corpus.mining.mine import mine as mine_pages
    from rollout.corpus.mining.settings import Mining

    with Progress(0) as progress:
        found = mine_pages(Mining(**vars(options)), progress.start)
    print(describe(found))


@app.command
def curate(options: Annotated[CurateOptions, tyro.conf.arg(name="")]) -> None:
    """Choose a small training set out of many rows, as s1K was chosen: by quality, difficulty, contamination and diversity."""
    from rl.view.progress import Progress
    from rollout.corpus.curate import curate as choose
    from rollout.corpus.curation_stages import Curation

    with Progress(0) as progress:
        report = choose(Curation(**vars(options)), progress.start)
    print(report.text(options.size))


@app.command
def doctor(model: str | None = None, dtype: AnyDType = "auto") -> None:
    """Report hardware, engines and sandbox level, with the reason for anything missing.

    Args:
        model: A folder in Hugging Face format or a hub name: also report how this machine trains and samples it, and why it
            does not use a faster implementation.
        dtype: Data type of the computation; auto is what a run of this model would have.
    """
    from rl.command.doctor import examine

    print(examine(model, dtype))


@app.command
def plan(options: Annotated[PlanOptions, tyro.conf.arg(name="")]) -> None:
    """Print the memory and operations of a training step before a run, and whether it fits a card."""
    from rl.command.plan import describe, make_plan

    made = make_plan(options)
    print(describe(made, made.dry() if options.dry_run and options.sharding != "offload" else None))


@app.command
def serve_vllm(
    model: str,
    port: int = 8000,
    dtype: AnyDType = "auto",
    head_dtype: HeadDType = "auto",
    max_length: int | None = None,
    max_rows: int | None = None,
) -> None:
    """Serve a model with vLLM for runs with --sampler vllm-server, until it is stopped.

    Args:
        model: The model that the run starts from: tiny, a folder in Hugging Face format or a hub name.
        port: Port at http://127.0.0.1; runs use 8000 by default.
        dtype: Data type of the weights, the same as the run's; auto is what a run of this model would have.
        head_dtype: Data type of the products of the output layer, the same as the run's; auto is dtype.
        max_length: Most tokens of a prompt and its completion together. Default: the model's context.
        max_rows: Completions that are decoded at once. Default: vLLM's own choice.
    """
    from rl.command.serve import serve

    serve(model, port=port, dtype=dtype, head_dtype=head_dtype, max_length=max_length, max_rows=max_rows)


@app.command
def launch(arguments: tyro.conf.Positional[tuple[str, ...]]) -> None:
    """Start a recipe with `accelerate launch`, and exit with its status: 2 for a user's mistake, 130 for an interruption.

    Args:
        arguments: As for `accelerate launch`: its options, the recipe, the recipe's options.
    """
    from rl.command.launch import launch as launch_by_accelerate

    launch_by_accelerate(arguments)


verify = tyro.extras.SubcommandApp()
app.command(verify, name="verify", help="Grade one answer or program, or compare a run's verdicts with math-verify's.")


@verify.command
def math(gold: str, answer: str, question: str = "", grading: tuple[str, ...] = ()) -> None:
    """Grade a math answer. A text without a box, tags or #### counts as the final answer itself.

    Args:
        gold: The reference answer.
        answer: A completion, or a bare answer.
        question: The problem. An answer that only repeats one of its expressions is wrong.
        grading: How answers are compared, as option=value, such as decimal_comma=true; docs/grading.md lists the options.
    """
    from rewards.extract import final_answer
    from rewards.math_answer import MathVerifier
    from rewards.math_policy import MathPolicy

    bare = final_answer(answer, strict=False) is None
    with MathVerifier(policy=MathPolicy.parse(grading), num_workers=1) as verifier:
        completion = f"\\boxed{{{answer}}}" if bare else answer
        _print(verifier.verify_batch([completion], [gold], [question])[0])


@verify.command
def program(task: Path, program: Path, allow_unsafe_code: bool = False) -> None:
    """Grade a program.

    Args:
        task: A JSON file with one task, as rewards/program.py describes.
        program: A Python source file.
        allow_unsafe_code: Run it even where this machine cannot sandbox it.
    """
    from rewards.program import ProgramVerifier

    source = _text(program, "program")
    try:
        parsed = json.loads(_text(task, "task"))
    except json.JSONDecodeError as error:
        raise UserError(f"task is {str(task)!r}: it is not JSON ({error}); fix it") from None
    with ProgramVerifier(num_workers=1, allow_unsafe_code=allow_unsafe_code) as verifier:
        _print(verifier.verify_batch([source], [parsed])[0])


@verify.command
def audit(run_dir: tyro.conf.Positional[Path], limit: int = 50) -> None:
    """Print the answers of a run that our own engine and math-verify grade differently.

    Args:
        run_dir: The run's folder.
        limit: Most answers to print.
    """
    from rl.view.audit import describe_audit

    print(describe_audit(run_dir, limit))


def _print(score: Score) -> None:
    print(f"score    {'none: not gradable' if score.value is None else f'{score.value:g}'}")
    print(f"outcome  {score.outcome.value}\nreason   {score.detail}")


def _text(path: Path, option: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option} is {str(path)!r}: it cannot be read as text ({error}); give a text file") from None


def main() -> None:
    is_launch = sys.argv[1:2] == ["launch"] and sys.argv[2:] not in (["-h"], ["--help"])
    if is_launch:  # accelerate parses its options
        run_safely(lambda: launch(tuple(sys.argv[2:])))
    else:
        description = "Reinforcement learning on rewards that can be checked."
        run_safely(lambda: app.cli(prog="plumbline", description=description))
