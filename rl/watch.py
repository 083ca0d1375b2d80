"""Signs that a run goes wrong without failing: what changed, by how much, and what is usually behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from rl.metrics import Row, series

WINDOW = 10  # steps over which a number is averaged, at the run's beginning and now


class Course:
    """A metric's mean over the first steps and over the last ones; of what was never measured both are nan, and compare to nothing."""

    def __init__(self, rows: Sequence[Row], key: str) -> None:
        values = series([row for row in rows if row["step"]], key)[1]
        whole = len(values) >= 2 * WINDOW
        self.first = fmean(values[:WINDOW]) if whole else float("nan")
        self.last = fmean(values[-WINDOW:]) if whole else float("nan")

    def __str__(self) -> str:
        return f"from {self.first:.3g} to {self.last:.3g}"


def signs(rows: Sequence[Row]) -> dict[str, str]:
    """By metric, what looks wrong now. The thresholds are far outside of what the runs in docs/results.md do."""
    found = {key: sign(rows) for key, sign in SIGNS.items()}
    return {key: text for key, text in found.items() if text is not None}


class Watch:
    """Tells each sign once, and again when it had gone."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows, self.told = rows, set(signs(rows))

    def add(self, row: Row) -> list[str]:
        """-> what looks wrong since this step."""
        self.rows.append(row)
        found = signs(self.rows)
        new = [text for key, text in found.items() if key not in self.told]
        self.told = set(found)
        return new


def entropy(rows: Sequence[Row]) -> str | None:
    of = Course(rows, "entropy")
    if of.last < of.first / 10:
        return (
            f"entropy fell {of} nats: completions of a problem become alike, and what is not sampled cannot be learnt. Likely "
            "the learning rate is too high; also try a higher clip_high, an entropy_weight, or a KL to the reference"
        )
    if of.last > 3 * of.first and of.last > 1:
        return f"entropy rose {of} nats: the policy dissolves into noise. Likely the learning rate is too high"
    return None


def kl(rows: Sequence[Row]) -> str | None:
    of = Course(rows, "kl/reference")
    if of.last > 10 * of.first and of.last > 0.5:
        return (
            f"kl/reference rose {of} nats a token: the policy leaves the reference behind. Look at completions; lower the "
            "learning rate or raise kl_weight"
        )
    return None


def engines(rows: Sequence[Row]) -> str | None:
    of = Course(rows, "kl/sampler")
    if of.last > 0.05:
        return (
            f"kl/sampler is {of.last:.3g} nats a token (it was {of.first:.3g}): the engine samples from another policy than the "
            "one that is trained. Look at the engine's precision, or sample in float32"
        )
    return None


def length(rows: Sequence[Row]) -> str | None:
    of, cut = Course(rows, "length/mean"), Course(rows, "length/truncated")
    if cut.last > 0.5:
        return (
            f"{cut.last:.0%} of completions are cut by max_tokens (mean length {of}): most answers never end, and count as "
            "wrong or not at all. Raise max_tokens, or punish length"
        )
    if of.last < of.first / 3:
        return (
            f"completions shrank, {of} tokens: the reward can be had without what was written before. Look at completions: a "
            "reward that is too easy to get, or a penalty that is too strong"
        )
    return None


def signal(rows: Sequence[Row]) -> str | None:
    of, right = Course(rows, "groups/no_signal"), Course(rows, "accuracy/sampled")
    if not of.last > 0.9:
        return None
    if right.last < 0.1:
        why = "almost nothing is right: too hard a dataset, or a verifier that is (plumbline verify audit reads its verdicts)"
    elif right.last > 0.9:
        why = "almost everything is right: this dataset is used up"
    else:
        why = (
            "a problem is right always or never: other problems, a larger group_size or a higher temperature would help"
        )
    return f"{of.last:.0%} of the groups have equal rewards and teach nothing: {why}"


def form(rows: Sequence[Row]) -> str | None:
    of = Course(rows, "outcome/unparsed")
    if of.last > 0.2 and of.last > 3 * of.first:
        return f"answers without a readable final answer rose {of}: the policy forgets the form. Look at completions"
    return None


def hacking(rows: Sequence[Row]) -> str | None:
    reward, held_out = Course(rows, "reward/mean"), series(list(rows), "eval/accuracy")[1]
    if held_out and held_out[-1] < max(held_out) - 0.1 and reward.last > reward.first:
        return (
            f"held-out accuracy fell from {max(held_out):.1%} to {held_out[-1]:.1%} while the reward rose {reward}: what is "
            "learnt is the reward and not the task, or the training problems by heart"
        )
    return None


SIGNS: dict[str, Callable[[Sequence[Row]], str | None]] = {
    "entropy": entropy,
    "kl/reference": kl,
    "kl/sampler": engines,
    "length/mean": length,
    "groups/no_signal": signal,
    "outcome/unparsed": form,
    "eval/accuracy": hacking,
}
