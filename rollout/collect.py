"""Samples G completions of each problem, grades each as soon as it ends, and returns groups."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from rewards.errors import UserError
from rewards.score import Score, Verifier
from rollout.problem_stream import ProblemStream
from rollout.processes import Processes, SingleProcess
from rollout.prompts import PromptRenderer
from rollout.records import Completion, Problem, Rollout, RolloutGroup
from rollout.rollouts import Episode, RolloutFunction, one_shot, run_rollouts
from rollout.sampler import Sampler, SamplingParams, completion_seed
from rollout.steps import Steps, steps_of
from rollout.tool_rollout import ToolRollout
from rollout.verify import BackgroundVerifier

ATTEMPTS = 3  # to sample a step
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Collected:
    """A step's groups, and the sampling effort.

    groups: the groups for the update. sampled: all sampled groups; more than `groups` where dynamic sampling left some out.
    num_refills: the rounds that dynamic sampling drew beyond the first.
    verify_seconds: the time that grading adds to the step: the wait for scores after sampling has ended.
    """

    groups: list[RolloutGroup]
    sampled: list[RolloutGroup]
    num_refills: int
    num_sampled_tokens: int
    sample_seconds: float
    verify_seconds: float


@dataclass(frozen=True, kw_only=True)
class Collector:
    """Turns problems into scored groups.

    scores_steps: also give the worked steps of each completion rewards of their own. max_refills: rounds of further problems that
    collect_with_signal may draw. processes: each samples every count-th
    problem; seeds do not depend on which one does. call_threads: see run_rollouts.
    """

    sampler: Sampler
    verifiers: Mapping[str, Verifier]
    renderer: PromptRenderer
    params: SamplingParams
    group_size: int
    run_seed: int
    rollout: RolloutFunction = one_shot
    call_threads: int = 0
    scores_steps: bool = False
    max_refills: int = 4
    processes: Processes = field(default_factory=SingleProcess)

    def __post_init__(self) -> None:
        if self.scores_steps and self.rollout is not one_shot:
            raise UserError(
                "scores_steps is True: steps are scored in completions of one turn only; use rollout=one_shot"
            )

    def close(self) -> None:
        """Ends the engine and the tools. Safe to call twice."""
        self.sampler.close()
        if isinstance(self.rollout, ToolRollout):
            self.rollout.close()

    def collect(self, problems: Sequence[Problem], *, step: int, drawn: Counter[str] | None = None) -> Collected:
        """The groups of these problems, in their order.

        drawn: how often each problem was drawn in this step already; it counts these draws too. A problem that is drawn again gets
            other seeds.
        """
        drawn = Counter() if drawn is None else drawn
        episodes = []
        for problem in problems:
            first = drawn[problem.id] * self.group_size
            episodes.append(self._episodes(problem, step, range(first, first + self.group_size)))
            drawn[problem.id] += 1
        rank, count = self.processes.rank, self.processes.count
        parts = self.processes.gather([self._collect(episodes[rank::count])])
        groups = [parts[i % count].groups[i // count] for i in range(len(problems))]
        return Collected(
            groups=groups,
            sampled=groups,
            num_refills=0,
            num_sampled_tokens=sum(part.num_sampled_tokens for part in parts),
            sample_seconds=max(part.sample_seconds for part in parts),
            verify_seconds=max(part.verify_seconds for part in parts),
        )

    def _episodes(self, problem: Problem, step: int, indices: range) -> list[Episode]:
        prompt = self.renderer.prompt(problem)
        return [
            Episode(
                problem=problem,
                prompt_ids=prompt.token_ids,
                answer_prefix=prompt.answer_prefix,
                max_tokens=self.params.max_tokens,
                seed_of=partial(completion_seed, self.run_seed, step, problem.id, i),
            )
            for i in indices
        ]

    def _collect(self, episodes: Sequence[Sequence[Episode]]) -> Collected:
        """Samples this process's part. After an engine failure (memory, a driver) it is sampled again: equal seeds give equal
        completions."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._collect_once(episodes)
            except RuntimeError as error:
                if attempt == ATTEMPTS:
                    raise
                log.warning("sampling failed (%s); attempt %d of %d", error, attempt + 1, ATTEMPTS)
        raise AssertionError

    def _collect_once(self, episodes: Sequence[Sequence[Episode]]) -> Collected:
        started = time.perf_counter()
        completions: dict[tuple[int, int], Completion] = {}
        problems = [group[0].problem for group in episodes]
        rollouts = [[self.rollout(episode) for episode in group] for group in episodes]
        grading = BackgroundVerifier(
            problems, self.verifiers, group_size=self.group_size, steps_of=self._step_scorer(episodes)
        )
        with grading as verifier:
            for i, j, completion in run_rollouts(rollouts, self.sampler, self.params, call_threads=self.call_threads):
                completions[i, j] = replace(completion, text=episodes[i][j].answer_prefix + completion.text)
                verifier.put(i, j, completions[i, j])
            sampled = time.perf_counter()
            scores = verifier.scores()
            verified = time.perf_counter()
        groups = [
            RolloutGroup(
                problem=problem,
                prompt_ids=episodes[i][0].prompt_ids,
                rollouts=tuple(
                    _rollout(problem, completions[i, j], scores[i, j], verifier.steps.get((i, j), Steps()))
                    for j in range(self.group_size)
                ),
            )
            for i, problem in enumerate(problems)
        ]
        return Collected(
            groups=groups,
            sampled=groups,
            num_refills=0,
            num_sampled_tokens=sum(c.num_chosen for c in completions.values()),
            sample_seconds=sampled - started,
            verify_seconds=verified - sampled,
        )

    def collect_from(
        self, stream: ProblemStream, count: int, *, step: int, drawn: Counter[str] | None = None
    ) -> Collected:
        """The groups of the next `count` problems of the stream, which remembers their pass rates. The next draw depends on them."""
        collected = self.collect(stream.take(count), step=step, drawn=drawn)
        stream.remember(collected.sampled)
        return collected

    def collect_with_signal(self, stream: ProblemStream, count: int, *, step: int) -> Collected:
        """Dynamic sampling: draws further problems until `count` groups have differing rewards, in at most max_refills further rounds,
        and while there are problems left to draw.

        DAPO, arXiv 2503.14476, section 3.2. Groups beyond `count` are dropped, the latest first.
        """
        parts: list[Collected] = []
        groups: list[RolloutGroup] = []
        drawn: Counter[str] = Counter()
        while len(groups) < count and len(parts) <= self.max_refills and stream.num_left > 0:
            parts.append(self.collect_from(stream, count, step=step, drawn=drawn))
            groups += [group for group in parts[-1].groups if has_signal(group)]
        return Collected(
            groups=groups[:count],
            sampled=[group for part in parts for group in part.groups],
            num_refills=len(parts) - 1,
            num_sampled_tokens=sum(p.num_sampled_tokens for p in parts),
            sample_seconds=sum(p.sample_seconds for p in parts),
            verify_seconds=sum(p.verify_seconds for p in parts),
        )

    def _step_scorer(self, episodes: Sequence[Sequence[Episode]]) -> Callable[[int, Completion], Steps] | None:
        if not self.scores_steps:
            return None
        firsts, tokenizer = [group[0] for group in episodes], self.renderer.tokenizer
        return lambda i, completion: steps_of(tokenizer, firsts[i].problem, completion, firsts[i].answer_prefix)


def _rollout(problem: Problem, completion: Completion, score: Score, steps: Steps) -> Rollout:
    return Rollout(
        problem=problem, completion=completion, score=score, step_rewards=steps.rewards, step_ends=steps.ends
    )


def has_signal(group: RolloutGroup) -> bool:
    """Whether the group's graded values differ; otherwise all its group-relative advantages are 0."""
    values = {r.score.value for r in group.rollouts if r.is_graded}
    return len(values) > 1
