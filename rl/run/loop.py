"""A run from its options to its report: evaluates, trains and saves until the last step or an interruption."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from rewards.errors import UserError
from rewards.math_policy import MathPolicy
from rewards.score import Outcome
from rewards.verifiers import VerifierOptions, Verifiers
from rl.processes.runtime import Runtime
from rl.run.build import with_environments
from rl.run.checkpoint import save_checkpoint, writing
from rl.run.evaluate import evaluate
from rl.run.publish import require_uploadable, upload
from rl.run.run_folder import FolderLock, claim_folder
from rl.run.setup import Run, set_up
from rl.settings.config import RunConfig
from rl.settings.defaults import resolved_dtype
from rl.settings.resolve import resolve
from rl.update.step import StepResult, train_step
from rl.update.step_metrics import Metrics
from rl.view.metrics import read_metrics
from rl.view.model_card import model_card
from rl.view.progress import Progress, final_table, visible
from rl.view.report import REPORT, write_report
from rollout.problem_stream import ProblemStream
from rollout.records import RolloutGroup


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """Functions of the user that the main process calls as the run goes on. An exception of theirs ends the run.

    on_step: gets the metrics of each step and its sampled groups. on_evaluation: gets the metrics of each evaluated step.
    """

    on_step: Callable[[Metrics, Sequence[RolloutGroup]], None] | None = None
    on_evaluation: Callable[[Metrics], None] | None = None

    def call(self, metrics: Metrics, result: StepResult | None) -> None:
        if self.on_step is not None and result is not None:
            self.on_step(dict(metrics), [c.group for c in result.sampled])
        if self.on_evaluation is not None and "eval/accuracy" in metrics:
            self.on_evaluation(dict(metrics))


class Interrupted(KeyboardInterrupt):
    """The run was interrupted and has saved a checkpoint."""


def train(config: RunConfig, callbacks: Callbacks = Callbacks()) -> Path:
    """Trains, and writes metrics, completions, checkpoints and a report into the run's folder. -> the folder."""
    dtype = resolved_dtype(config.dtype, config.model, config.device)
    runtime = Runtime.start(dtype=dtype, trackers=config.trackers, device=config.device)
    num_steps = resolve(config, runtime.device.type).num_steps
    config, environments = with_environments(config)
    if (hub_name := config.push_to_hub) is not None:
        runtime.broadcast_from_main(lambda: require_uploadable(hub_name))
    lock = FolderLock()
    run_dir = runtime.broadcast_from_main(lambda: claim_folder(config, lock))
    verifiers = Verifiers(verifier_options(config))
    try:
        with Progress(num_steps, quiet=not runtime.is_main) as progress:
            run = set_up(replace(config, run_dir=run_dir), runtime, verifiers, progress, environments)
            try:
                runtime.start_trackers("plumbline", run.settings.as_json(), run_dir)
                progress.message(f"run folder: {run_dir}")
                with interruption(progress) as stop_request:
                    run_steps(run, progress, stop_request, callbacks)
                if runtime.is_main:
                    with writing(run_dir):
                        write_report(run_dir)
            finally:
                run.close(at_once=isinstance(sys.exception(), KeyboardInterrupt))
    finally:
        verifiers.close()
        runtime.close()
        lock.release()
    final_table(read_metrics(run_dir), progress.console)
    progress.message(f"report: {run_dir / REPORT}\nmodel:  {checkpoint_of(run)}")
    if run.step < num_steps and not run.is_exhausted:
        raise Interrupted(f"stopped and saved after step {run.step}; continue with --run-dir {run_dir} --resume")
    if hub_name is not None and runtime.is_main:
        upload(checkpoint_of(run), hub_name, progress.message)
    return run_dir


def verifier_options(config: RunConfig) -> VerifierOptions:
    """The options of the verifiers."""
    return VerifierOptions(
        num_workers=config.verifier_workers,
        deadline=config.verifier_deadline,
        answer_form=config.answer_form,
        grading=MathPolicy.parse(config.grading),
        allow_unsafe_code=config.allow_unsafe_code,
        formats=config.format,
        format_weight=config.format_weight,
        gate_format=config.gate_format,
        rewards=config.rewards,
        has_environment=bool(config.environment),
    )


def run_steps(run: Run, progress: Progress, stop_request: StopRequest, callbacks: Callbacks) -> None:
    """Runs the steps that are left, with evaluations and checkpoints between, until the last one, a request to stop, or the last problem."""
    settings, num_steps = run.settings, run.settings.num_steps
    if run.step == 0:
        progress.start("evaluating the base model")
        measured = evaluate(run.collector, run.held_out, settings.eval_samples, settings.answer_form)
        log(run, progress, {"step": 0, **measured}, None, callbacks)
    while run.step < num_steps and not run.is_exhausted:
        step, started = run.step + 1, time.perf_counter()
        run.learner.set_learning_rate(settings.learning_rate_at(step))
        result = train_step(
            run.learner,
            run.collector,
            run.stream,
            run.delivery,
            step=step,
            num_problems=settings.problems_per_step,
            trains_policy=step > settings.critic_warmup_steps,
            prefetcher=run.prefetcher,
        )
        require_judged([c.group for c in result.sampled], settings.max_unjudged)
        metrics: Metrics = {"step": step, **result.metrics}
        if run.verifiers.isolation:
            metrics["sandbox/level"] = run.verifiers.isolation.rank
        metrics |= problem_metrics(run.stream)
        is_last = step == num_steps or run.is_exhausted
        if step % settings.eval_every == 0 or is_last:
            metrics |= evaluate(run.collector, run.held_out, settings.eval_samples, settings.answer_form)
        metrics |= {"time/step": time.perf_counter() - started, "memory/peak": run.learner.runtime.peak_memory()}
        log(run, progress, metrics, result, callbacks)
        run.step = step
        stops = run.learner.runtime.any_rank(stop_request.stop)
        if step % settings.save_every == 0 or is_last or stops:
            save(run)
        if stops:
            break
    if run.is_exhausted:
        progress.message(nothing_left(run))


def problem_metrics(stream: ProblemStream) -> Metrics:
    """Counts of the training problems, as of what was sampled: one step ahead, the next step's completions are in them too."""
    if not stream.memory.records:  # of an algorithm that samples nothing
        return {}
    metrics: Metrics = {"problems/drawn": len(stream.memory.records), "problems/left": stream.num_left}
    if stream.selection.drop_mastered is not None:
        metrics["problems/mastered"] = stream.num_mastered
    return metrics


def nothing_left(run: Run) -> str:
    """Why the run ends before its last step."""
    options = {name: getattr(run.settings, name) for name in ("drop_mastered", "difficulty")}
    given = " and ".join(f"{name} is {value!r}" for name, value in options.items() if value is not None)
    return (
        f"{given}: no problem is left to draw after step {run.step} of {run.settings.num_steps}, {run.stream.num_mastered} are mastered, "
        "and the run ends. To go on, resume it with other bounds, or start from this model with other problems"
    )


def log(run: Run, progress: Progress, metrics: Metrics, result: StepResult | None, callbacks: Callbacks) -> None:
    if run.records is None:
        return
    with writing(run.settings.run_dir):
        run.records.write(metrics, result)
    run.learner.runtime.track(metrics, step=int(metrics["step"] or 0))
    progress.step(metrics)
    for warning in run.health_checks.add(metrics):
        progress.message(f"warning: {warning}")
    callbacks.call(metrics, result)


def save(run: Run) -> None:
    save_checkpoint(
        checkpoint_of(run),
        step=run.step,
        learner=run.learner,
        stream=run.stream,
        tokenizer=run.tokenizer,
        waiting=run.prefetcher.wait() if run.prefetcher else None,
        keep=run.settings.save_total_limit,
        card=model_card(run.settings.run_dir, run.step) if run.learner.runtime.is_main else "",
    )
    run.learner.runtime.wait()


def checkpoint_of(run: Run) -> Path:
    return run.settings.run_dir / "checkpoints" / f"step-{run.step:06d}"


def require_judged(groups: Sequence[RolloutGroup], bound: float) -> None:
    """Stops the run if too many answers could not be parsed or graded: a verifier failure must not count as wrong answers."""
    not_judged = (Outcome.UNPARSED, Outcome.TIMEOUT, Outcome.CRASHED)
    rollouts = [r for group in groups for r in group.rollouts]
    if all(r.score.outcome is Outcome.NOT_GRADED for r in rollouts):
        raise UserError(
            f"reward returned None for all {len(rollouts)} answers of this step, so that there is nothing to learn from; return a "
            "number for the answers that it can grade"
        )
    unjudged = [r for r in rollouts if r.score.outcome in not_judged and not r.cut_short]
    if len(unjudged) > bound * len(rollouts):
        examples = "".join(
            f"\n  {r.score.outcome.value}: {r.score.detail}\n    reference {str(r.problem.reference)[:80]!r}, "
            f"answer ends {visible(r.completion.text[-160:])!r}"
            for r in unjudged[:3]
        )
        raise UserError(
            f"max_unjudged is {bound}: {len(unjudged)} of {len(rollouts)} answers of this step were unparsed, timed out or "
            f"crashed the verifier, so their rewards have no meaning. Check the verifier, or raise max_unjudged. Examples:{examples}"
        )


@dataclass
class StopRequest:
    """stop: whether a signal has requested the end of the run."""

    stop: bool = False


@contextmanager
def interruption(progress: Progress) -> Iterator[StopRequest]:
    """Ctrl-C or SIGTERM requests a stop after the current step; a second Ctrl-C stops at once.

    A second SIGTERM does not: a launcher of several processes forwards the first one, and forwards Ctrl-C as another SIGTERM.
    Only the main thread of a program gets signals; in another one nothing requests a stop.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def request_stop(number: int, frame: FrameType | None) -> None:
        if request.stop and number == signal.SIGTERM:
            return
        if request.stop:
            raise KeyboardInterrupt
        request.stop = True
        progress.message("stopping after this step, with a checkpoint (a second Ctrl-C stops at once, without one)")

    before = {number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
