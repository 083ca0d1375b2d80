"""Warnings about a run that continues but goes wrong: what changed, by how much, and the usual cause."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from statistics import fmean

from rl.view.metrics import Row

WINDOW = 10  # steps that a mean is taken over, at the beginning of the run and now
HELD_OUT = "eval/accuracy"


class MetricWindow:
    """A metric's mean over the first WINDOW steps and over the last ones; nan before there are enough steps for both."""

    def __init__(self) -> None:
        self.count, self.highest = 0, float("-inf")
        self.first_values: list[float] = []
        self.last_values: deque[float] = deque(maxlen=WINDOW)

    def add(self, value: float) -> None:
        self.count, self.highest = self.count + 1, max(self.highest, value)
        if len(self.first_values) < WINDOW:
            self.first_values.append(value)
        self.last_values.append(value)

    @property
    def first(self) -> float:
        return fmean(self.first_values) if self.count >= 2 * WINDOW else float("nan")

    @property
    def last(self) -> float:
        return fmean(self.last_values) if self.count >= 2 * WINDOW else float("nan")

    def __str__(self) -> str:
        return f"from {self.first:.3g} to {self.last:.3g}"


class MetricWindows:
    """The windows of every metric. A metric that was never measured has nan, which no comparison holds for.

    Of step 0, the base model, only the evaluation counts.
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.by_key: dict[str, MetricWindow] = {}
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        for key, value in row.items():
            if value is not None and (row["step"] or key == HELD_OUT):
                self.by_key.setdefault(key, MetricWindow()).add(value)

    def __getitem__(self, key: str) -> MetricWindow:
        return self.by_key.get(key) or MetricWindow()

    def warnings(self) -> dict[str, str]:
        """The warnings that hold now, by metric. Their thresholds are far from what the runs in docs/results.md reach."""
        found = {key: check(self) for key, check in HEALTH_CHECKS.items()}
        return {key: text for key, text in found.items() if text is not None}


class HealthChecks:
    """Reports each warning once, and again if it comes back. rows: of the run's earlier steps, whose warnings were reported."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.windows = MetricWindows(rows)
        self.reported = set(self.windows.warnings())

    def add(self, row: Row) -> list[str]:
        """-> the warnings that are new with this step."""
        self.windows.add(row)
        found = self.windows.warnings()
        new = [text for key, text in found.items() if key not in self.reported]
        self.reported = set(found)
        return new


def entropy(windows: MetricWindows) -> str | None:
    window = windows["entropy"]
    if window.last < window.first / 10:
        return (
            f"entropy fell {window} nats: the completions of a problem become alike, and what is not sampled cannot be learnt. The "
            "learning rate is probably too high; also try a higher clip_high, an entropy_weight, or a kl_weight"
        )
    if window.last > 3 * window.first and window.last > 1:
        return f"entropy rose {window} nats: the policy dissolves into noise. The learning rate is probably too high"
    return None


def kl(windows: MetricWindows) -> str | None:
    window = windows["kl/reference"]
    if window.last > 10 * window.first and window.last > 0.5:
        return (
            f"kl/reference rose {window} nats a token: the policy leaves the reference behind. Read some completions; lower the "
            "learning rate or raise kl_weight"
        )
    return None


def sampler_mismatch(windows: MetricWindows) -> str | None:
    window = windows["kl/sampler"]
    if window.last > 0.05:
        return (
            f"kl/sampler is {window.last:.3g} nats a token (it was {window.first:.3g}): the engine samples from another policy than the "
            "one that is trained. Check the data type of the engine, or sample in float32"
        )
    return None


def length(windows: MetricWindows) -> str | None:
    window, cut = windows["length/mean"], windows["length/truncated"]
    if cut.last > 0.5:
        return (
            f"{cut.last:.0%} of completions are cut by max_tokens (mean length {window}): most answers never end, and count as "
            "wrong or not at all. Raise max_tokens, or penalise length"
        )
    if window.last < window.first / 3:
        return (
            f"completions shrank, {window} tokens: the policy earns the reward without the text that it wrote before. Read some "
            "completions: the reward may be too easy to earn, or a penalty too strong"
        )
    return None


def signal(windows: MetricWindows) -> str | None:
    window, right = windows["groups/no_signal"], windows["accuracy/sampled"]
    if not window.last > 0.9:
        return None
    if right.last < 0.1:
        why = "almost nothing is right: the dataset is too hard, or the verifier too strict (check its verdicts with plumbline verify audit)"
    elif right.last > 0.9:
        why = "almost everything is right: there is nothing left to learn from this dataset"
    else:
        why = "each problem is solved always or never: use other problems, a larger group_size or a higher temperature"
    return f"{window.last:.0%} of the groups have equal rewards and teach nothing: {why}"


def answer_format(windows: MetricWindows) -> str | None:
    window = windows["outcome/unparsed"]
    if window.last > 0.2 and window.last > 3 * window.first:
        return f"answers without a readable final answer rose {window}: the policy forgets the answer format. Read some completions"
    return None


def reward_hacking(windows: MetricWindows) -> str | None:
    reward, held_out = windows["reward/mean"], windows[HELD_OUT]
    if held_out.count and held_out.last_values[-1] < held_out.highest - 0.1 and reward.last > reward.first:
        return (
            f"held-out accuracy fell from {held_out.highest:.1%} to {held_out.last_values[-1]:.1%} while the reward rose {reward}: the "
            "policy learns to earn the reward instead of the task, or learns the training problems by heart"
        )
    return None


HEALTH_CHECKS: dict[str, Callable[[MetricWindows], str | None]] = {
    "entropy": entropy,
    "kl/reference": kl,
    "kl/sampler": sampler_mismatch,
    "length/mean": length,
    "groups/no_signal": signal,
    "outcome/unparsed": answer_format,
    HELD_OUT: reward_hacking,
}
