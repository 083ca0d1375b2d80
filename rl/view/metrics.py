"""What a run measures: every key of `metrics.jsonl` with its definition, and how the file is written and read.

A number that is not defined cannot be checked, so the writer refuses a key that is not registered here.
docs/metrics.md is printed from this registry: `python -m rl.view.metrics > docs/metrics.md`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rewards.errors import UserError
from rewards.sandbox.isolation import MIN_LEVEL

Row = dict[str, float | None]


@dataclass(frozen=True)
class Metric:
    """One key of metrics.jsonl: its exact definition, and what a reader should expect or worry about."""

    key: str
    unit: str
    meaning: str
    healthy: str


SECTIONS: dict[str, tuple[Metric, ...]] = {
    "Progress": (
        Metric("step", "number", "Steps of the run that are done. Step 0 is the base model and carries only `eval/` keys and `time/evaluate`.",
               "Grows by one a line."),
        Metric("eval/accuracy", "share",
               "Held-out problems whose greedy completion is CORRECT, over all held-out problems that were graded.",
               "The number to trust: it should rise above step 0. Its standard error is `sqrt(p (1 - p) / n)`: about "
               "0.02 for 500 problems, so smaller steps are noise. Flat while `reward/mean` rises: reward hacking or "
               "memorised training problems."),
        Metric("eval/pass_at_k", "share",
               "Held-out problems of which at least one of k = `eval_samples` sampled completions is right. Absent unless "
               "`eval_samples` is set.",
               "Above `eval/accuracy`. RL often raises that and leaves this: it sharpens what the model could do already."),
        Metric("eval/maj_at_k", "share",
               "Held-out problems of which the answer that most of the same k completions give is right (a tie counts by "
               "its share). Null where answers are not written out, as with programs.",
               "Near `eval/accuracy`, or above."),
        Metric("eval/length", "tokens", "Mean number of tokens of the greedy held-out completions.",
               "Near `length/mean`."),
        Metric("eval/truncated", "share", "Held-out completions that were cut by the token limit.",
               "Near 0; otherwise accuracy measures the limit, not the model: raise the limit."),
    ),
    "Reward": (
        Metric("reward/mean", "reward",
               "Mean reward of the step's graded completions (those with a value), before any advantage: the score's value, less "
               "what `dapo` takes for overlong completions.",
               "Rises, noisily: every step has other problems."),
        Metric("reward/std", "reward",
               "Standard deviation of the same rewards, over the whole step and not within groups.",
               "`sqrt(p (1 - p))` for rewards of 0 and 1, at most 0.5. At 0 there is nothing to learn from."),
        Metric("accuracy/sampled", "share",
               "CORRECT completions over graded completions, sampled at the training temperature.",
               "Equals `reward/mean` when the reward is correctness alone. `reward/mean` rising without it: the policy "
               "collects the format reward only."),
    ),
    "Policy": (
        Metric("kl/reference", "nats per token",
               "Divergence of the policy from the reference, the k3 estimate: the mean over the update's tokens of "
               "`exp(r) - 1 - r`, `r = reference_logprob - policy_logprob`. Absent when the reference is not run (its "
               "weight is zero).",
               "Starts at 0 and grows slowly. A jump by a factor of ten within a few steps: lower the learning rate "
               "or raise the weight of the penalty."),
        Metric("kl/sampler", "nats per token",
               "Mismatch between the engine that sampled and the trainer, as the k3 estimate of KL(sampler, trainer): the "
               "mean over the update's tokens of `exp(b - s) - 1 - (b - s)`, `s` the sampler's log-prob of the token and "
               "`b` the trainer's (the old log-prob). Both are of the same weights, unless the samples are older "
               "(see `staleness`).",
               "Below 1e-6 with the embedded sampler in float32, below about 1e-2 with another engine or bfloat16. "
               "Growth over the run: the weights do not arrive, or the engines disagree (precision, temperature)."),
        Metric("mismatch/mean", "nats", "Mean over the update's tokens of `|b - s|`, the same two log-probs.",
               "Below 1e-5 with float32 on both sides, about 0.01 with bfloat16. See `kl/sampler`."),
        Metric("mismatch/max", "nats", "The largest `|b - s|` of the update's tokens.",
               "A few hundred times the mean. A single token of several nats: another temperature, or a cut distribution."),
        Metric("entropy", "nats per token",
               "Mean over the update's tokens of `-sum_v p(v) log p(v)`, the entropy at the sampling temperature of the "
               "policy's distribution that the token is drawn from.",
               "Falls slowly. Near 0 (collapse): all completions of a group agree and learning stops; raise the upper "
               "clip or the temperature. A steep rise: the policy is turning to noise."),
    ),
    "Length": (
        Metric("length/mean", "tokens", "Mean number of tokens of the step's completions, end-of-sequence included.",
               "Moves slowly. Growth without reward: the length bias of the reduction, see docs/algorithms.md."),
        Metric("length/max", "tokens", "Length of the longest completion of the step.",
               "At the token limit exactly when some completion was cut."),
        Metric("length/truncated", "share", "Completions that were cut by the token limit.",
               "Below 0.1. Above: right answers are graded as missing; raise the limit."),
    ),
    "Parts": (
        Metric("part/<name>", "reward",
               "Mean of one named part of the scores of the graded completions: the verifier's own (`part/math`, "
               "`part/program`, ...), and one for each rule of `format`.",
               "All rise together. A form that rises while correctness does not: the policy farms it."),
        Metric("sandbox/level", "level",
               "How well programs are shut in: 3 all layers, 2 landlock or namespaces beside seccomp, below that only "
               "with `allow_unsafe_code`. Absent where no program is run.",
               "2 or 3, the same in every step."),
    ),
    "Groups": (
        Metric("groups/no_signal", "share",
               "Groups whose graded completions all have scores of the same value. Where advantages are relative to the group "
               "all of them are 0 then, and it gives no gradient. Absent with one completion a problem.",
               "High at both ends of training (all wrong, all right). Above 0.5 most of the sampling is wasted: choose "
               "problems nearer to the policy's ability, larger groups, or dynamic sampling."),
        Metric("groups/no_signal_expected", "share",
               "The share to expect if every problem had the step's mean pass rate p: `p^G + (1 - p)^G`, G the size of "
               "a group.",
               "A lower line for `groups/no_signal`: the formula is convex in p, so observed above expected means that "
               "problems differ in difficulty."),
        Metric("groups/trained", "number", "Groups in the update. Where the loss has no term but the surrogate, those whose advantages are all 0 are "
               "dropped before.",
               "0 means that this step changed nothing."),
        Metric("groups/refilled", "number", "Extra rounds of problems that dynamic sampling drew to fill the step.",
               "0 without dynamic sampling. At its limit: the problems are too easy or too hard."),
    ),
    "Outcomes": (
        Metric("outcome/correct", "share", "Completions that the verifier judged right.", "Rises."),
        Metric("outcome/wrong", "share", "Completions with an answer that was read and is wrong.", "Falls."),
        Metric("outcome/no_answer", "share", "Completions in which no final answer was found.",
               "Falls within the first steps. Steady: the prompt does not ask for the format, or answers are cut."),
        Metric("outcome/unparsed", "share", "Completions whose answer was found but could not be read.",
               "Below 0.05. Above: read examples in the report, the extraction may be wrong."),
        Metric("outcome/timeout", "share", "Completions whose grading used up its time or memory.",
               "Below 0.02. Above: the deadline is short, the machine is busy, or the policy learned to stall."),
        Metric("outcome/crashed", "share",
               "Completions that could not be graded because the verifier failed. They have no value and are left out.",
               "0. Anything else is a fault of the verifier and not of the model."),
        Metric("outcome/truncated", "share",
               "Completions that the token limit cut before a right answer. They are counted here and under no other "
               "outcome.",
               "Below 0.1. Above: the limit judges, not the verifier; raise it."),
        Metric("outcome/bad_reference", "share",
               "Completions that could not be graded because the problem's reference is unusable. Left out as well.",
               "0: such problems are dropped before training."),
    ),
    "Critic": (
        Metric("value/mean", "reward", "Mean over the step's tokens of V as it was when they were sampled.",
               "Follows `value/return`."),
        Metric("value/return", "reward", "Mean over the step's tokens of what V is trained towards.",
               "Near `reward/mean`."),
        Metric("value/explained", "share",
               "`1 - Var(R - V) / Var(R)` over the step's tokens: how much of the returns' spread the critic foresees.",
               "Rises from 0. Below 0: the critic is worse than a constant; raise `value_learning_rate` or warm it up."),
        Metric("value/grad_norm", "norm", "Length of the gradient of the critic, or of the value head, before clipping, in the step's last update.", "As `grad_norm`."),
    ),
    "Update": (
        Metric("loss", "loss",
               "The sum that the optimiser minimised: surrogate, plus weighted KL, less weighted entropy, plus the value loss where "
               "there is one, under the algorithm's reduction. The sum over mini-batches, the mean over epochs.",
               "No measure of progress: with group-normalised advantages it starts near 0 at any reward. Only a jump "
               "means something."),
        Metric("grad_norm", "norm", "Euclidean norm of the policy's gradient before clipping, in the step's last update.",
               "Steady within a factor of a few. Spikes go with bad steps; 0 means no signal; null means not finite."),
        Metric("updates/skipped", "updates", "Updates of the step that were left out because their loss or gradient was not finite.",
               "0. More than `max_skipped` in a row stop the run."),
        Metric("learning_rate", "step size", "Learning rate of the policy in this step, warm-up and decay included.",
               "Follows the schedule."),
        Metric("ratio/clipped", "share",
               "Tokens whose ratio `exp(policy_logprob - old_logprob)`, with `gspo` their sequence's, lies outside of "
               "`[1 - clip_low, 1 + clip_high]`. Of these a token gives no gradient if its advantage would drive the ratio "
               "further out (with `cispo` it always gives one).",
               "0 in the first update on fresh samples; below 0.2 later. Above: fewer updates a step or a lower rate."),
        Metric("ratio/max", "ratio", "Largest ratio of policy to old probability over the update's tokens.",
               "1 in the first update on fresh samples; tens or more: the update is too large."),
        Metric("staleness", "steps",
               "Mean over completions of the steps made between the weights they were sampled with and this step's. Each "
               "completion's own is in completions.jsonl, as `policy_version`.",
               "0; 1 with `one_step_ahead`; with `rft` it grows, with `sft` it says nothing."),
        Metric("tis/weight", "weight",
               "Mean over the update's tokens of the weight of truncated importance sampling, `min(exp(b - s), C)`, C = 2: "
               "corrects for the sampler's mismatch (see `kl/sampler`). Absent with `sft`, `rft` and `online-rft`.",
               "Within 0.01 of 1. Below: the engines disagree or the truncation bites."),
        Metric("tis/truncated", "share", "Tokens whose importance weight was cut at C.", "Below 0.01."),
    ),
    "Delivery": (
        Metric("delivery/error", "nats",
               "Mean absolute difference between the sampler's and the trainer's log-probs of short samples of the base model, "
               "after the new weights were delivered; of several servers the largest.",
               "Rounding only: below 1e-5 in float32; in bfloat16 up to three times what it moves the model's own "
               "log-probs by, 0.07 or so for a real model. More: the run stops."),
    ),
    "Cost": (
        Metric("tokens/sampled", "tokens", "Completion tokens sampled for training in this step.",
               "Number of completions times `length/mean`."),
        Metric("tokens/trained", "tokens",
               "Tokens through the forward of the update in this step, in every epoch; a prompt counts once a group.",
               "Below `tokens/sampled` when many groups carry no signal."),
        Metric("tokens/per_second", "tokens per second", "`tokens/sampled / time/sample`.",
               "Steady. Falls as completions grow longer."),
        Metric("flops/update", "operations",
               "Floating-point operations of the update, counted from shapes (rl/capacity/cost.py): reference, forward and backward of "
               "policy and critic, every epoch.",
               "Falls with the groups that carry no signal."),
        Metric("time/step", "seconds", "The whole step by the wall clock, evaluation included.", "Steady."),
        Metric("time/sample", "seconds", "Sampling the completions. With `one_step_ahead` it goes on while the step before is trained on.",
               "Usually the largest part."),
        Metric("time/verify", "seconds", "Grading that was still to do when the last completion was sampled.",
               "Small: most is done while others are sampled. Large: stalling answers, few workers."),
        Metric("time/train", "seconds", "Forward, backward and optimiser, the reference included.",
               "Falls with the groups that carry no signal."),
        Metric("time/optimizer", "seconds", "Of `time/train`, clipping and the optimiser's own step.", "Steady."),
        Metric("time/deliver", "seconds", "Handing the weights to the sampler, and the proof that they arrived; with `one_step_ahead` also the wait until "
               "the sampler is done.", "Small."),
        Metric("time/evaluate", "seconds", "The held-out evaluation, on the steps that evaluate.",
               "If it dominates, evaluate less often."),
        Metric("memory/peak", "bytes",
               "Peak resident memory of the trainer process; on a GPU the peak of the allocator.",
               "Flat after the first steps. Steady growth is a leak."),
    ),
}  # fmt: skip
METRICS: dict[str, Metric] = {metric.key: metric for metrics in SECTIONS.values() for metric in metrics}
PHASES = ("sample", "verify", "train", "deliver", "evaluate")
OUTCOMES = tuple(key.removeprefix("outcome/") for key in METRICS if key.startswith("outcome/"))


def _finite(value: float | None) -> float | None:
    """JSON has no NaN and no infinity: they become null, which every reader already takes as "not measured"."""
    return None if value is None or not math.isfinite(value) else value


def write_whole(path: Path, text: str) -> None:
    """Written aside and renamed: a kill leaves the old file or the new one, and who reads meanwhile sees no half."""
    aside = path.with_name(f"{path.name}.tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


class MetricsWriter:
    """Appends one line a step to metrics.jsonl.

    `keep_through` is the step that a resumed run continues from: later lines are cut, since those steps run again.
    A line that a kill cut short is dropped as well, or the next line would be glued to it.
    """

    def __init__(self, run_dir: Path, keep_through: int | None = None) -> None:
        self.path = run_dir / "metrics.jsonl"
        kept = _read(self.path)
        if keep_through is not None:
            kept = [(line, row) for line, row in kept if (row["step"] or 0) <= keep_through]
        write_whole(self.path, "".join(line for line, _ in kept))

    def write(self, metrics: Mapping[str, float | None]) -> None:
        """Write one step. The file is opened for each line, so that nothing waits in a buffer when the run is killed."""
        unknown = sorted(key for key in metrics if key not in METRICS and not key.startswith("part/"))
        assert not unknown, f"metrics that rl/view/metrics.py does not define: {unknown}"
        assert "step" in metrics, "a line of metrics needs its step"
        row = {key: _finite(value) for key, value in metrics.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")


def keep_lines(path: Path, is_kept: Callable[[str], bool]) -> None:
    """Of a file of any size the complete lines that are kept, line by line, in one move."""
    aside = path.with_name(f"{path.name}.tmp")
    with aside.open("w", encoding="utf-8") as file:
        file.writelines(line for line in complete_lines(path) if is_kept(line))
    os.replace(aside, path)


def complete_lines(path: Path) -> Iterator[str]:
    """Of a file that a run appends to, if it is there: all but a last line that a kill cut short."""
    if path.exists():
        with path.open(encoding="utf-8") as file:
            try:
                yield from (line for line in file if line.endswith("\n"))
            except UnicodeDecodeError as error:
                raise UserError(f"{path} is not text ({error}): restore it from a copy, or start a new run") from None


def _read(path: Path) -> list[tuple[str, Row]]:
    """Text and value of every line; a broken one is an error."""
    lines = []
    for number, line in enumerate(complete_lines(path), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number} is not JSON ({error}): delete that line and try again") from None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int | float):
            raise UserError(f"{path}, line {number} is {line[:60]!r}: it has no step; delete that line and try again")
        lines.append((line, row))
    return lines


def existing_run_dir(run_dir: Path) -> Path:
    """The folder, if it is there."""
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise UserError(
            f"run folder {run_dir} does not exist: give the --run-dir of a run (the folder of metrics.jsonl)"
        )
    return run_dir


def read_metrics(run_dir: Path) -> list[Row]:
    """The run's steps in order. No file or an empty one gives no rows; a last line cut by a kill is left out."""
    return [row for _, row in _read(run_dir / "metrics.jsonl")]


def series(rows: list[Row], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of one metric, on the steps where it was measured."""
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    return [float(step or 0) for step, _ in points], [float(value or 0) for _, value in points]


def start_and_end(rows: list[Row], key: str) -> tuple[float, float] | None:
    """Where a metric began and where it stands. None if it was never measured.

    Held-out evaluations are compared as they are; what is measured on each step's own problems is too noisy for that,
    so there the first tenth of the measured steps is averaged, and the last tenth.
    """
    values = series(rows, key)[1]
    if not values:
        return None
    window = 1 if key.startswith("eval/") else max(1, len(values) // 10)
    return sum(values[:window]) / window, sum(values[-window:]) / window


def unsafe_programs(rows: list[Row]) -> str | None:
    """What every summary must say of a run whose programs were not shut in."""
    levels = series(rows, "sandbox/level")[1]
    if not levels or min(levels) >= MIN_LEVEL:
        return None
    return (
        f"UNSAFE: programs were run at isolation level {min(levels):g}, below {MIN_LEVEL}, as allow_unsafe_code permits"
    )


def time_by_phase(rows: list[Row]) -> dict[str, float]:
    """Seconds of the whole run in each phase, and in none of them ("other")."""
    seconds = {phase: sum(series(rows, f"time/{phase}")[1]) for phase in PHASES}
    seconds["other"] = max(0.0, sum(series(rows, "time/step")[1]) - sum(seconds.values()))
    return seconds


def markdown() -> str:
    """The registry as docs/metrics.md."""
    lines = ["# Metrics", "", "Every key of `metrics.jsonl`, one JSON object a line, one line a step. A key that was not",
             "measured is null or absent; so is a value that is not finite. Log-probs are natural logarithms.", "",
             "*The update's tokens* are the completion tokens that went through the update's forward, once in every epoch.",
             "Completions whose advantage is 0 are among them only where the loss has a term beside the surrogate: a KL, an",
             "entropy bonus or a critic.", "",
             "This page is printed from `rl/view/metrics.py`: `python -m rl.view.metrics > docs/metrics.md`."]  # fmt: skip
    for title, metrics in SECTIONS.items():
        lines += ["", f"## {title}"]
        for metric in metrics:
            lines += ["", f"**`{metric.key}`** ({metric.unit}). {metric.meaning}  ", f"*Expect:* {metric.healthy}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
