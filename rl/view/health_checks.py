"""Signs that a run goes wrong without failing: what changed, by how much, and what is usually behind it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from statistics import fmean

from rl.view.metrics import Row

WINDOW = 10  # steps over which a number is averaged, at the run's beginning and now
HELD_OUT = "eval/accuracy"


class Course:
    """A metric over a run: its mean over the first steps and over the last ones, nan until there are as many as both."""

    def __init__(self) -> None:
        self.count, self.most = 0, float("-inf")
        self.firsts: list[float] = []
        self.lasts: deque[float] = deque(maxlen=WINDOW)

    def add(self, value: float) -> None:
        self.count, self.most = self.count + 1, max(self.most, value)
        if len(self.firsts) < WINDOW:
            self.firsts.append(value)
        self.lasts.append(value)

    @property
    def first(self) -> float:
        return fmean(self.firsts) if self.count >= 2 * WINDOW else float("nan")

    @property
    def last(self) -> float:
        return fmean(self.lasts) if self.count >= 2 * WINDOW else float("nan")

    def __str__(self) -> str:
        return f"from {self.first:.3g} to {self.last:.3g}"


class Courses:
    """Of every metric; of one that was never measured all is nan, and compares to nothing. Step 0, the base, only evaluates."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.of: dict[str, Course] = {}
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        for key, value in row.items():
            if value is not None and (row["step"] or key == HELD_OUT):
                self.of.setdefault(key, Course()).add(value)

    def __getitem__(self, key: str) -> Course:
        return self.of.get(key) or Course()

    def signs(self) -> dict[str, str]:
        """By metric, what looks wrong now. The thresholds are far outside of what the runs in docs/results.md do."""
        found = {key: sign(self) for key, sign in SIGNS.items()}
        return {key: text for key, text in found.items() if text is not None}


class Watch:
    """Tells each sign once, and again when it had gone."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.courses = Courses(rows)
        self.told = set(self.courses.signs())

    def add(self, row: Row) -> list[str]:
        """-> what looks wrong since this step."""
        self.courses.add(row)
        found = self.courses.signs()
        new = [text for key, text in found.items() if key not in self.told]
        self.told = set(found)
        return new


def entropy(courses: Courses) -> str | None:
    of = courses["entropy"]
    if of.last < of.first / 10:
        return (
            f"entropy fell {of} nats: completions of a problem become alike, and what is not sampled cannot be learnt. Likely "
            "the learning rate is too high; also try a higher clip_high, an entropy_weight, or a KL to the reference"
        )
    if of.last > 3 * of.first and of.last > 1:
        return f"entropy rose {of} nats: the policy dissolves into noise. Likely the learning rate is too high"
    return None


def kl(courses: Courses) -> str | None:
    of = courses["kl/reference"]
    if of.last > 10 * of.first and of.last > 0.5:
        return (
            f"kl/reference rose {of} nats a token: the policy leaves the reference behind. Look at completions; lower the "
            "learning rate or raise kl_weight"
        )
    return None


def engines(courses: Courses) -> str | None:
    of = courses["kl/sampler"]
    if of.last > 0.05:
        return (
            f"kl/sampler is {of.last:.3g} nats a token (it was {of.first:.3g}): the engine samples from another policy than the "
            "one that is trained. Look at the engine's precision, or sample in float32"
        )
    return None


def length(courses: Courses) -> str | None:
    of, cut = courses["length/mean"], courses["length/truncated"]
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


def signal(courses: Courses) -> str | None:
    of, right = courses["groups/no_signal"], courses["accuracy/sampled"]
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


def form(courses: Courses) -> str | None:
    of = courses["outcome/unparsed"]
    if of.last > 0.2 and of.last > 3 * of.first:
        return f"answers without a readable final answer rose {of}: the policy forgets the form. Look at completions"
    return None


def hacking(courses: Courses) -> str | None:
    reward, held_out = courses["reward/mean"], courses[HELD_OUT]
    if held_out.count and held_out.lasts[-1] < held_out.most - 0.1 and reward.last > reward.first:
        return (
            f"held-out accuracy fell from {held_out.most:.1%} to {held_out.lasts[-1]:.1%} while the reward rose {reward}: what is "
            "learnt is the reward and not the task, or the training problems by heart"
        )
    return None


SIGNS: dict[str, Callable[[Courses], str | None]] = {
    "entropy": entropy,
    "kl/reference": kl,
    "kl/sampler": engines,
    "length/mean": length,
    "groups/no_signal": signal,
    "outcome/unparsed": form,
    HELD_OUT: hacking,
}
