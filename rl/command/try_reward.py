"""`plumbline try-reward`: what rewards give to references, to answers that deserve nothing, and to samples of a model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rewards.math_policy import MathPolicy
from rewards.reward_spec import need_references, parse_rewards
from rewards.score import Score
from rewards.verifiers import REWARD, VerifierOptions, Verifiers
from rl.command.evaluate_model import make_collector, run_of, with_values_of
from rl.processes.runtime import Runtime, cpu_cores
from rl.run.build import with_environments
from rl.run.load_data import gradable, rewarded
from rl.settings.defaults import resolved_dtype
from rl.settings.options import EvaluateOptions, TryRewardOptions
from rl.view.progress import Progress, visible
from rollout.problems import load_problems
from rollout.records import Problem
from rollout.verify import grade

JUNK = "I like turtles. 42 42 42"
SAMPLES = 10
REFERENCE, EMPTY, PROMPT, NONSENSE, SAMPLED = (
    "the reference",
    "nothing",
    "the prompt itself",
    "nonsense",
    "samples of the model",
)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The scores of one kind of answer. text: an answer of this kind, as an example."""

    kind: str
    scores: tuple[Score, ...]
    text: str

    @property
    def graded(self) -> list[float]:
        return [score.value for score in self.scores if score.value is not None]

    @property
    def mean(self) -> float | None:
        return sum(self.graded) / len(self.graded) if self.graded else None


def try_rewards(options: TryRewardOptions, progress: Progress) -> str:
    """A table with a row for each kind of answer, and warnings about rewards that a policy would exploit."""
    rewards = parse_rewards(options.reward)
    verifiers = Verifiers(
        VerifierOptions(
            num_workers=cpu_cores(),
            deadline=options.deadline,
            grading=MathPolicy.parse(options.grading),
            allow_unsafe_code=options.allow_unsafe_code,
            rewards=rewards,
        )
    )
    try:
        problems = load_problems(
            options.dataset,
            config=options.dataset_config,
            split=options.split,
            prompt_column=options.prompt_column,
            answer_column=options.answer_column,
            needs_reference=need_references(options.reward),
            report=progress.message,
        )
        problems = gradable(rewarded(problems[: options.size], options.reward), "tried", verifiers, progress)
        trials, seconds = trials_of(problems, verifiers)
        milliseconds = 1000 * seconds / sum(len(trial.scores) for trial in trials)
        if options.model is not None:
            trials.append(sampled(options, problems, verifiers, progress))
        return describe(
            trials, milliseconds, f"{' '.join(options.reward)} on {len(problems)} problems of {options.dataset}"
        )
    finally:
        verifiers.close()


def trials_of(problems: Sequence[Problem], verifiers: Verifiers) -> tuple[list[Trial], float]:
    """The trials of answers that need no model, and the seconds of their grading."""
    answered = all(p.reference for p in problems)
    kinds = {
        **({REFERENCE: [_reference(p) for p in problems]} if answered else {}),
        EMPTY: [""] * len(problems),
        PROMPT: [p.question for p in problems],
        NONSENSE: [JUNK] * len(problems),
    }
    texts = [text for by_kind in zip(*kinds.values()) for text in by_kind]
    started = time.perf_counter()
    count = len(kinds)
    scores = grade(
        verifiers[REWARD], texts, [p for p in problems for _ in kinds], [i for i in range(len(problems)) for _ in kinds]
    )
    seconds = time.perf_counter() - started
    return [
        Trial(kind=kind, scores=tuple(scores[k::count]), text=kinds[kind][0]) for k, kind in enumerate(kinds)
    ], seconds


def _reference(problem: Problem) -> str:
    """The reference as a completion that every verifier reads."""
    return f"\\boxed{{{problem.reference}}}" if isinstance(problem.reference, str) else str(problem.reference)


def sampled(options: TryRewardOptions, problems: Sequence[Problem], verifiers: Verifiers, progress: Progress) -> Trial:
    """The trial of SAMPLES completions of the model, each of another problem where there are so many."""
    assert options.model is not None
    runtime = Runtime.start(dtype=resolved_dtype("auto", options.model), device="auto")
    try:
        evaluation = EvaluateOptions(
            model=options.model, dataset=options.dataset, max_tokens=options.max_tokens, reward=options.reward
        )
        evaluation = with_values_of(run_of(evaluation), evaluation)  # prompts are those of a run
        _, environments = with_environments(evaluation)
        chosen = [problems[i % len(problems)] for i in range(SAMPLES)]
        collector, chosen = make_collector(evaluation, chosen, verifiers, runtime, progress, environments=environments)
        groups = collector.collect(chosen, step=0).groups
        collector.close()
    finally:
        runtime.close()
    rollouts = [group.rollouts[0] for group in groups]
    return Trial(kind=SAMPLED, scores=tuple(r.score for r in rollouts), text=rollouts[0].completion.text)


def describe(trials: Sequence[Trial], milliseconds: float, what: str) -> str:
    lines = [
        f"{what}, {milliseconds:.1f} ms an answer",
        "",
        f"{'answer':<22}{'graded':>8}{'mean':>9}{'lowest':>9}{'highest':>9}",
    ]
    for trial in trials:
        numbers = (trial.mean, min(trial.graded, default=None), max(trial.graded, default=None))
        shown = "".join(f"{'none' if x is None else format(x, '.3g'):>9}" for x in numbers)
        lines.append(f"{trial.kind:<22}{len(trial.graded):>5}/{len(trial.scores):<2}{shown}")
    for trial in trials:
        score, *_ = trial.scores
        value = "none" if score.value is None else f"{score.value:.3g}"
        lines.append(
            f"\n{trial.kind}: {visible(trial.text[:120])!r}\n  {value} ({score.outcome.value}) {visible(score.detail)}"
        )
    return "\n".join([*lines, *(f"\nwarning: {warning}" for warning in warnings(trials))])


def warnings(trials: Sequence[Trial]) -> list[str]:
    """What a policy would exploit, or could not learn from."""
    references = [trial for trial in trials if trial.kind == REFERENCE]
    best = max((trial.mean for trial in references if trial.mean is not None), default=None)
    if references and best is None:
        return ["it could grade no reference"]
    found = []
    for trial in trials:
        paid = sum(value > 0 if best is None else value >= best for value in trial.graded)
        if trial.kind in (EMPTY, PROMPT, NONSENSE) and paid:
            what = "it pays" if best is None else f"it pays as much as for the references ({best:.3g})"
            found.append(
                f"{what} for {trial.kind} on {paid} of {len(trial.scores)} problems: a policy may learn to answer like that"
            )
    values = {value for trial in trials for value in trial.graded}
    if len(values) == 1:
        found.append(f"it pays {values.pop():.3g} for everything that was tried: there may be nothing to learn from")
    return found
