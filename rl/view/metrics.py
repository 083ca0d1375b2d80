"""Metrics of a run: the definition of every key of `metrics.jsonl`, and how the file is written and read.

A number without a definition cannot be checked, so the writer refuses keys that are not defined here.
docs/metrics.md is printed from this registry: `python -m rl.view.metrics > docs/metrics.md`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rewards.errors import UserError
from rewards.sandbox.isolation import MIN_LEVEL
from rollout.whole_file import whole

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
        Metric("step", "number", "Completed steps. Step 0 is the base model and has only `eval/` keys and `time/evaluate`.",
               "Grows by one per line."),
        Metric("eval/accuracy", "share",
               "Held-out problems whose greedy completion is correct, divided by the held-out problems that could be graded.",
               "The number to trust: it should rise above step 0. Its standard error is `sqrt(p (1 - p) / n)`: about "
               "0.02 for 500 problems, so smaller steps are noise. Flat while `reward/mean` rises: reward hacking, or "
               "training problems learnt by heart."),
        Metric("eval/reward", "reward", "Mean reward of the graded greedy held-out completions.",
               "Rises. The number to watch where a reward function returns other numbers than 0 and 1."),
        Metric("eval/pass_at_k", "share",
               "Held-out problems of which at least one of k = `eval_samples` sampled completions is right. Absent unless "
               "`eval_samples` is set.",
               "Above `eval/accuracy`. RL often raises accuracy and not pass@k: it makes likely what the model could already do."),
        Metric("eval/maj_at_k", "share",
               "Held-out problems for which the most frequent answer of the same k completions is right (of m tied answers each "
               "counts 1/m). Null for problems without a final answer to vote on, such as programs.",
               "Near `eval/accuracy`, or above."),
        Metric("eval/length", "tokens", "Mean number of tokens of the greedy held-out completions.",
               "Near `length/mean`."),
        Metric("eval/truncated", "share", "Held-out completions that the token limit truncated.",
               "Near 0. Otherwise accuracy measures the limit instead of the model: raise max_tokens."),
    ),
    "Reward": (
        Metric("reward/mean", "reward",
               "Mean reward of the step's graded completions (those with a value): the score's value, minus the penalty of `dapo` "
               "for overlong completions.",
               "Rises, with noise: every step has other problems."),
        Metric("reward/std", "reward",
               "Standard deviation of the same rewards over the whole step, not within groups.",
               "`sqrt(p (1 - p))` for rewards of 0 and 1, at most 0.5. At 0 there is nothing to learn from."),
        Metric("accuracy/sampled", "share",
               "Correct completions divided by graded completions, sampled at the training temperature.",
               "Equals `reward/mean` if the reward is correctness alone. If only `reward/mean` rises, the policy improves its "
               "format and not its answers."),
    ),
    "Tools": (
        Metric("tools/turns", "number", "Mean number of turns of the model in a rollout. This key and the others of this section are absent "
               "without `tools`.",
               "1 where no tool is called. At `max_turns` for all rollouts: calls in a loop."),
        Metric("tools/calls", "number", "Mean number of calls in a rollout, malformed ones included, the call in a last turn not.",
               "Rises where tools help."),
        Metric("tools/used", "share", "Rollouts that made at least one call.", "Rises where tools help; falls to 0 where they do not."),
        Metric("tools/failed", "share",
               "Calls that were answered by an error: malformed, of an unknown tool, too slow, or an exception of the tool. Null without calls.",
               "Falls. If it stays high, look at the answers that begin with `Error:`."),
        Metric("tools/malformed", "share", "Calls that could not be read. Null without calls.",
               "Falls to 0. At 1: the model writes another format; see `tool_format`."),
        Metric("tools/end_answer", "share", "Rollouts that ended with a turn without a call.", "Near 1."),
        Metric("tools/end_turns", "share", "Rollouts that ended at `max_turns`, with a call that was not made.", "Near 0."),
        Metric("tools/end_tokens", "share", "Rollouts that ended at `max_tokens`, in a turn of the model.",
               "Near 0. Otherwise raise max_tokens."),
        Metric("tools/end_context", "share", "Rollouts that ended at `max_tokens`, in what a tool answered.",
               "Near 0. Otherwise raise max_tokens, or let tools answer shorter."),
        Metric("tools/end_failure", "share",
               "Rollouts whose environment could not go on: it hung, or its reset failed. They are not graded.",
               "0. Otherwise the detail of such a completion in completions.jsonl says why."),
    ),
    "Policy": (
        Metric("kl/teacher", "nats per token",
               "Divergence of the policy from the teacher: the mean over the update's tokens of `old_logprob - teacher_logprob`. Absent "
               "without a teacher.",
               "Falls. Near 0 there is nothing left to learn from the teacher."),
        Metric("kl/reference", "nats per token",
               "Divergence of the policy from the reference, the k3 estimate: the mean over the update's tokens of "
               "`exp(r) - 1 - r`, `r = reference_logprob - policy_logprob`. Absent without a reference, and "
               "where the samples are not the current policy's (`rft`, `dpo`, `sft`), which cannot estimate it.",
               "Starts at 0 and grows slowly. If it grows tenfold within a few steps, lower the learning rate or raise "
               "kl_weight."),
        Metric("kl/from_start", "nats per token",
               "With `dpo`, whose samples are the start policy's: the divergence of that from the policy, as the k3 estimate of "
               "KL(start, policy): the mean over the update's tokens of `exp(r) - 1 - r`, `r = policy_logprob - start_logprob`.",
               "Starts at 0 and grows. If it grows tenfold within a few steps, lower the learning rate or raise dpo_beta."),
        Metric("preference/loss", "loss",
               "With `dpo` and `online-dpo`: the mean over groups with a pair, of the mean over their pairs, of "
               "`-log sigmoid(dpo_beta (m - n))`, `m` and `n` the mean log-ratios to the reference of the better and the worse completion. "
               "Null without a pair.",
               "ln 2 = 0.693 before the first update; falls. Above it the policy has learnt to prefer worse completions."),
        Metric("preference/accuracy", "share",
               "Pairs of completions of which the better one has the higher mean log-ratio to the reference.",
               "0 in a run's first update, where all margins are 0; then rises above 0.5."),
        Metric("preference/margin", "nats per token",
               "Mean over the pairs of the difference of their log-ratios, `m - n`.",
               "Rises from 0. Far above 1 / dpo_beta the loss has nothing left to learn from these pairs."),
        Metric("kl/sampler", "nats per token",
               "Mismatch between the engine that sampled and the trainer, as the k3 estimate of KL(sampler, trainer): the "
               "mean over the update's tokens of `exp(b - s) - 1 - (b - s)`, `s` the sampler's log-prob of the token and "
               "`b` the trainer's (the old log-prob). Both have the same weights, unless the samples are older "
               "(see `staleness`). Absent with `sft`, `rft` and `dpo`, whose samples are not the current policy's.",
               "Below 1e-6 with the embedded sampler in float32, below about 1e-2 with another engine or bfloat16. "
               "Growth over the run means that weights do not arrive or that the engines disagree (data type, temperature)."),
        Metric("mismatch/mean", "nats", "Mean over the update's tokens of `|b - s|`, the same two log-probs.",
               "Below 1e-5 with float32 on both sides, about 0.01 with bfloat16. See `kl/sampler`."),
        Metric("mismatch/max", "nats", "The largest `|b - s|` of the update's tokens.",
               "A few hundred times the mean. Tokens of several nats point to another temperature or a truncated distribution."),
        Metric("entropy", "nats per token",
               "Mean over the update's tokens of `-sum_v p(v) log p(v)`, the entropy at the sampling temperature of the "
               "policy's distribution that the token is drawn from.",
               "Falls slowly. Near 0 (collapse) all completions of a group agree and learning stops: raise clip_high or the "
               "temperature. A steep rise means that the policy turns to noise."),
    ),
    "Length": (
        Metric("length/mean", "tokens", "Mean number of tokens of the step's completions, including the end-of-sequence token.",
               "Changes slowly. Growth without more reward is the length bias of the loss reduction, see docs/algorithms.md."),
        Metric("length/max", "tokens", "Length of the longest completion of the step.",
               "Equal to the token limit exactly if a completion was truncated."),
        Metric("length/truncated", "share", "Completions that the token limit truncated.",
               "Below 0.1. Above that right answers are graded as missing: raise max_tokens."),
    ),
    "Thinking": (
        Metric("thinking/tokens", "tokens",
               "Mean number of tokens before the end of thinking, or of the turn; those that were forced included. These three "
               "are absent without `thinking_budget`.",
               "At most the budget."),
        Metric("thinking/cut", "share", "Completions whose thinking the budget has ended.",
               "Falls, where the model learns to think within the budget. Near 1 the budget decides the reward."),
        Metric("thinking/waits", "number", "Mean number of times that a completion was made to think on.",
               "`thinking_waits`, less where the budget had no room for them."),
    ),
    "Parts": (
        Metric("part/<name>", "reward",
               "Mean of one named part of the scores of the graded completions: the verifier's own (`part/math`, "
               "`part/program`, ...), one for each reward of `reward`, before its weight, and one for each rule of `format`.",
               "All rise together. If a format rule rises without correctness, the policy earns its reward by form alone."),
        Metric("reward_model/auc", "share",
               "Probability that the reward model gives a correct completion of the step a higher score than a wrong one, by the rules' "
               "verdict; of a model that scores steps the score of the worst step counts. Null without completions of both kinds, absent "
               "without `reward_model`. The mean of its scores is `part/reward_model`.",
               "Near 1. At 0.5 it knows nothing. If it falls, the policy has learnt what the model overrates: train it with "
               "`reward_model_every`."),
        Metric("reward_model/loss", "nats per completion",
               "Mean binary cross-entropy of the reward model over the batches of its training, each before its optimizer step. Absent in "
               "steps that do not train it.",
               "Below 0.69, which is a guess."),
        Metric("reward_model/examples", "number", "Completions of the steps since the last training that it was trained on.",
               "Near `reward_model_every` times the completions of a step. Less: the rules could not grade the others."),
        Metric("sandbox/level", "level",
               "Isolation of generated programs: 3 is all layers, 2 is seccomp with landlock or namespaces, less is possible only "
               "with `allow_unsafe_code`. Absent if no program runs.",
               "2 or 3, the same in every step."),
    ),
    "Groups": (
        Metric("groups/no_signal", "share",
               "Groups whose graded completions all have the same score. Their advantages, where these are relative to the group, "
               "are 0 and give no gradient. Absent with one completion per problem.",
               "High at the beginning (all wrong) and the end (all right). Above 0.5 most of the sampling is wasted: choose "
               "problems of a more suitable difficulty, larger groups, or dynamic sampling."),
        Metric("groups/no_signal_expected", "share",
               "The share of such groups if every problem had the step's mean pass rate p: `p^G + (1 - p)^G` with group size G.",
               "A lower bound of `groups/no_signal`: the formula is convex in p, so the difference shows how much problems "
               "differ in difficulty."),
        Metric("groups/trained", "number", "Groups in the update. If the surrogate is the only term of the loss, groups whose advantages are all 0 are "
               "dropped before the update.",
               "0 means that the step changed nothing."),
        Metric("groups/refilled", "number", "Extra rounds of problems that dynamic sampling drew to fill the step, at most `max_refills`.",
               "0 without dynamic sampling. At its limit: the problems are too easy or too hard."),
    ),
    "Problems": (
        Metric("problems/drawn", "number",
               "Training problems that were drawn at least once in the run; with `one_step_ahead` those of the next step included, as in "
               "the other two. Their pass rates are in the checkpoints' `pass_rates.jsonl`.",
               "Rises by `problems_per_step` in each step of the first epoch."),
        Metric("problems/left", "number", "Training problems that may still be drawn under `drop_mastered` and `difficulty`.",
               "Constant without these options. At 0 the run ends."),
        Metric("problems/mastered", "number",
               "Training problems that are not drawn again, because at least the share `drop_mastered` of their completions was correct "
               "when they were last drawn. Absent without that option.",
               "Rises. Near the number of problems: the data set is learnt."),
    ),
    "Outcomes": (
        Metric("outcome/correct", "share", "Completions that the verifier graded as correct.", "Rises."),
        Metric("outcome/wrong", "share", "Completions with an answer that was read and is wrong.", "Falls."),
        Metric("outcome/no_answer", "share", "Completions in which no final answer was found.",
               "Falls within the first steps. If not, the prompt does not ask for the format, or answers are truncated."),
        Metric("outcome/unparsed", "share", "Completions whose answer was found but could not be read.",
               "Below 0.05. Above that read examples in the report: the extraction may be wrong."),
        Metric("outcome/timeout", "share", "Completions whose grading exceeded its time or memory limit.",
               "Below 0.02. Above that the deadline is too short, the machine is busy, or the policy has learnt to stall."),
        Metric("outcome/crashed", "share",
               "Completions that could not be graded because the verifier failed. They have no value and leave their group.",
               "0. Anything else is a failure of the verifier, not of the model."),
        Metric("outcome/truncated", "share",
               "Completions without a correct answer that the token limit truncated. They count under no other outcome.",
               "Below 0.1. Above that the limit decides the reward: raise max_tokens."),
        Metric("outcome/bad_reference", "share",
               "Completions that could not be graded because the problem's reference is unusable. They leave their group too.",
               "0: such problems are dropped before training."),
        Metric("outcome/not_graded", "share",
               "Completions for which a reward function returned None. They have no value and leave their group.",
               "0, unless the reward is made to leave out answers."),
    ),
    "Critic": (
        Metric("value/mean", "reward", "Mean over the step's tokens of the critic's value V before the update.",
               "Follows `value/return`."),
        Metric("value/return", "reward", "Mean over the step's tokens of the returns R that the critic is trained on.",
               "Near `reward/mean`."),
        Metric("value/explained", "share",
               "`1 - Var(R - V) / Var(R)` over the step's tokens: the share of the returns' variance that the critic predicts.",
               "Rises from 0. Below 0 the critic is worse than a constant: raise `value_learning_rate` or `critic_warmup_steps`."),
        Metric("value/grad_norm", "norm", "Norm of the gradient of the critic or value head before clipping, in the step's last update.", "As `grad_norm`."),
    ),
    "Update": (
        Metric("loss", "loss",
               "The minimised loss: surrogate plus weighted KL minus weighted entropy, plus the value loss with a critic, under the "
               "algorithm's reduction; summed over mini-batches, averaged over epochs. With `dpo` and `online-dpo` the surrogate is "
               "`-c l`, which has the gradient of the minimised loss and not its value: that is `preference/loss`.",
               "Not a measure of progress: with group-normalised advantages it starts near 0 at any reward. Only jumps matter."),
        Metric("grad_norm", "norm", "Euclidean norm of the policy's gradient before clipping, in the step's last update.",
               "Steady within a small factor. Spikes accompany bad steps; 0 means no signal; null means not finite."),
        Metric("updates/skipped", "updates", "Updates of the step that were skipped because their loss or gradient was not finite.",
               "0. More than `max_skipped` in a row stop the run."),
        Metric("learning_rate", "step size", "Learning rate of the policy in this step, warm-up and decay included.",
               "Follows the schedule."),
        Metric("ratio/clipped", "share",
               "Tokens whose ratio `exp(policy_logprob - old_logprob)`, with `gspo` their sequence's, lies outside of "
               "`[1 - clip_low, 1 + clip_high]`. Of these a token gives no gradient if its advantage would drive the ratio "
               "further out (with `cispo` it always gives one).",
               "0 in the first update on fresh samples, below 0.2 later. Above that use fewer updates per step or a lower rate."),
        Metric("ratio/max", "ratio", "Largest ratio of policy to old probability over the update's tokens.",
               "1 in the first update on fresh samples. At ten or more the update is too large."),
        Metric("staleness", "steps",
               "Mean over completions of the number of steps between the weights that sampled them and this step's weights. Each "
               "completion's version is in completions.jsonl as `policy_version`.",
               "0; 1 with `one_step_ahead`; with `rft` and `dpo` it grows; with `sft` it has no meaning."),
        Metric("tis/weight", "weight",
               "Mean over the update's tokens of the weight of truncated importance sampling, `min(exp(b - s), C)`, C = `importance_cap` "
               "(2): it corrects for the sampler's mismatch (see `kl/sampler`). Absent where an algorithm has no such weight (docs/algorithms.md).",
               "Within 0.01 of 1. Below that the engines disagree, or many weights are truncated."),
        Metric("tis/truncated", "share", "Tokens whose importance weight was truncated at C.", "Below 0.01."),
    ),
    "Delivery": (
        Metric("delivery/error", "nats",
               "Mean absolute difference between the sampler's and the trainer's log-probs of short samples of the base model, "
               "after the new weights were delivered; of several servers the largest.",
               "Rounding only: below 1e-5 in float32; in bfloat16 up to three times the change that rounding makes to the model's "
               "own log-probs, about 0.07 for a real model. With more the run stops."),
    ),
    "Cost": (
        Metric("tokens/sampled", "tokens", "Completion tokens sampled for training in this step.",
               "The number of completions times `length/mean`."),
        Metric("tokens/trained", "tokens",
               "Tokens in the forward passes of the update, summed over epochs; a prompt counts once per group.",
               "Below `tokens/sampled` if many groups carry no signal."),
        Metric("tokens/per_second", "tokens per second", "`tokens/sampled / time/sample`.",
               "Steady. Falls as completions grow longer."),
        Metric("flops/update", "operations",
               "Floating-point operations of the update, computed from shapes (rl/capacity/cost.py): the reference, and forward and "
               "backward of policy and critic in every epoch.",
               "Falls with the groups that carry no signal."),
        Metric("time/step", "seconds", "Wall-clock time of the whole step, including an evaluation.", "Steady."),
        Metric("time/sample", "seconds", "Sampling the completions. With `one_step_ahead` it overlaps with the update of the step before.",
               "Usually the largest phase."),
        Metric("time/verify", "seconds", "Grading that remained when the last completion had been sampled, and a reward model's scores.",
               "Small: most grading happens during sampling. If large, answers stall or there are too few workers."),
        Metric("time/tools", "seconds", "Running tools, summed over all calls, which overlap with each other and with sampling.",
               "Well below `time/sample` times `tool_workers`. Otherwise rollouts wait for their tools."),
        Metric("time/reward_model", "seconds", "Training of the reward model. Absent without `reward_model_every`.",
               "0 in steps that do not train it."),
        Metric("time/train", "seconds", "Forward, backward and optimizer step, including the reference.",
               "Falls with the groups that carry no signal."),
        Metric("time/optimizer", "seconds", "The part of `time/train` for gradient clipping and the optimizer step.", "Steady."),
        Metric("time/deliver", "seconds", "Sending the weights to the sampler and checking that they arrived; with `one_step_ahead` also waiting until the "
               "sampler has finished.", "Small."),
        Metric("time/evaluate", "seconds", "The held-out evaluation, on the steps that evaluate.",
               "If it is the largest phase, evaluate less often."),
        Metric("memory/peak", "bytes",
               "Peak resident memory of the trainer process; on a GPU the peak of the allocator.",
               "Constant after the first steps. Steady growth is a memory leak."),
    ),
}  # fmt: skip
METRICS: dict[str, Metric] = {metric.key: metric for metrics in SECTIONS.values() for metric in metrics}
PHASES = ("sample", "verify", "train", "deliver", "evaluate")
OUTCOMES = tuple(key.removeprefix("outcome/") for key in METRICS if key.startswith("outcome/"))


def _finite(value: float | None) -> float | None:
    """JSON has no NaN and no infinity: they become null, which readers treat as "not measured"."""
    return None if value is None or not math.isfinite(value) else value


def write_whole(path: Path, text: str) -> None:
    """Writes the text as the whole file: a kill leaves the old file or the new one."""
    with whole(path) as aside:
        aside.write_text(text, encoding="utf-8")


class MetricsWriter:
    """Appends one line per step to metrics.jsonl.

    `keep_through` is the step that a resumed run continues from: later lines are removed, since those steps run again.
    A line that a kill cut short is removed as well, or the next line would continue it.
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
    """Rewrites a file of any size with its complete lines that is_kept holds for, line by line, and replaces it in one rename."""
    with whole(path) as aside, aside.open("w", encoding="utf-8") as file:
        file.writelines(line for line in complete_lines(path) if is_kept(line))


def complete_lines(path: Path) -> Iterator[str]:
    """The lines of a file that a run appends to, without a last line that a kill cut short; none if there is no file."""
    if path.exists():
        with path.open(encoding="utf-8") as file:
            try:
                yield from (line for line in file if line.endswith("\n"))
            except UnicodeDecodeError as error:
                raise UserError(f"{path} is not text ({error}): restore it from a copy, or start a new run") from None


def _read(path: Path) -> list[tuple[str, Row]]:
    """Text and parsed row of every line. Raises UserError for a broken line."""
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
    """The folder. Raises UserError if it does not exist."""
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise UserError(
            f"run folder {run_dir} does not exist: give the --run-dir of a run (the folder of metrics.jsonl)"
        )
    return run_dir


def read_metrics(run_dir: Path) -> list[Row]:
    """The rows of metrics.jsonl in order; none if it is missing or empty. A last line that a kill cut short is left out."""
    return [row for _, row in _read(run_dir / "metrics.jsonl")]


def series(rows: list[Row], key: str) -> tuple[list[float], list[float]]:
    """(steps, values) of one metric, where it was measured."""
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    return [float(step or 0) for step, _ in points], [float(value or 0) for _, value in points]


def start_and_end(rows: list[Row], key: str) -> tuple[float, float] | None:
    """(first, last) value of a metric; None if it was never measured.

    Evaluations are single values. Other metrics are measured on each step's own problems and are noisy, so their first and last
    values are means over the first and the last tenth of the measured steps.
    """
    values = series(rows, key)[1]
    if not values:
        return None
    window = 1 if key.startswith("eval/") else max(1, len(values) // 10)
    return sum(values[:window]) / window, sum(values[-window:]) / window


def unsafe_programs(rows: list[Row]) -> str | None:
    """The warning that every summary shows for a run whose programs were not sandboxed; None for other runs."""
    levels = series(rows, "sandbox/level")[1]
    if not levels or min(levels) >= MIN_LEVEL:
        return None
    return f"UNSAFE: programs ran at isolation level {min(levels):g}, below {MIN_LEVEL}, as allow_unsafe_code permits"


def time_by_phase(rows: list[Row]) -> dict[str, float]:
    """Seconds of the whole run in each phase, and outside of all of them ("other")."""
    seconds = {phase: sum(series(rows, f"time/{phase}")[1]) for phase in PHASES}
    seconds["other"] = max(0.0, sum(series(rows, "time/step")[1]) - sum(seconds.values()))
    return seconds


def markdown() -> str:
    """The text of docs/metrics.md."""
    lines = ["# Metrics", "", "Every key of `metrics.jsonl`, which has one JSON object per step and line. A metric that was not",
             "measured or is not finite is null or absent. Log-probs are natural logarithms.", "",
             "*The update's tokens* are the completion tokens in the update's forward passes, counted once per epoch.",
             "Completions whose advantage is 0 are included only if the loss has another term than the surrogate: a KL, an",
             "entropy bonus or a value loss.", "",
             "This page is printed from `rl/view/metrics.py`: `python -m rl.view.metrics > docs/metrics.md`."]  # fmt: skip
    for title, metrics in SECTIONS.items():
        lines += ["", f"## {title}"]
        for metric in metrics:
            lines += ["", f"**`{metric.key}`** ({metric.unit}). {metric.meaning}  ", f"*Expect:* {metric.healthy}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
