"""Samples G completions of each problem, grades each as soon as it ends, and returns groups."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from typing import NamedTuple

from rewards.errors import UserError
from rewards.score import Score, Verifier
from rollout.environment import Environment, Environments
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
    verify_seconds: the time that grading adds to the step: the wait for scores after sampling has ended, and a reward model's.
    """

    groups: list[RolloutGroup]
    sampled: list[RolloutGroup]
    num_refills: int
    num_sampled_tokens: int
    sample_seconds: float
    verify_seconds: float


class Draw(NamedTuple):
    """A problem of a step, and which of its completions are sampled: their seeds depend on these indices."""

    problem: Problem
    step: int
    indices: range


@dataclass(frozen=True, kw_only=True)
class Collector:
    """Turns problems into scored groups.

    scores_steps: also give the worked steps of each completion rewards of their own. rewarded: returns graded rollouts with what a reward
    model of this process makes of their rewards. max_refills: rounds of further problems that
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
    rewarded: Callable[[Sequence[Rollout]], list[Rollout]] = list
    max_refills: int = 4
    processes: Processes = field(default_factory=SingleProcess)

    def __post_init__(self) -> None:
        if self.scores_steps and self.rollout is not one_shot:
            raise UserError(
                "scores_steps is True: steps are scored in completions of one turn only; use rollout=one_shot"
            )

    @property
    def environments(self) -> Environments | None:
        """In which the rollouts play."""
        return self.rollout.environments if isinstance(self.rollout, ToolRollout) else None

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
        draws = []
        for problem in problems:
            first = drawn[problem.id] * self.group_size
            draws.append(Draw(problem, step, range(first, first + self.group_size)))
            drawn[problem.id] += 1
        rank, count = self.processes.rank, self.processes.count
        parts = self.processes.gather([self._rewarded(self._collect(draws[rank::count]))])
        groups = [parts[i % count].groups[i // count] for i in range(len(problems))]
        return Collected(
            groups=groups,
            sampled=groups,
            num_refills=0,
            num_sampled_tokens=sum(part.num_sampled_tokens for part in parts),
            sample_seconds=max(part.sample_seconds for part in parts),
            verify_seconds=max(part.verify_seconds for part in parts),
        )

    @contextmanager
    def _episodes(self, draws: Sequence[Draw]) -> Iterator[list[list[Episode]]]:
        """The episodes of each draw. Their environments begin, as many at once as there are threads, and end with the block."""
        groups = [self._group(draw) for draw in draws]
        if self.environments is None:
            yield groups
            return
        with ExitStack() as ended:
            with ThreadPoolExecutor(max(1, self.call_threads), thread_name_prefix="reset") as threads:
                begun = list(threads.map(self.environments.begin, [e.problem for group in groups for e in group]))
            for environment, _ in begun:
                ended.callback(environment.close)
            left = iter(begun)
            yield [[self._within(episode, *next(left)) for episode in group] for group in groups]

    def _group(self, draw: Draw) -> list[Episode]:
        prompt = self.renderer.prompt(draw.problem)
        return [
            Episode(
                problem=draw.problem,
                prompt_ids=prompt.token_ids,
                answer_prefix=prompt.answer_prefix,
                max_tokens=self.params.max_tokens,
                seed_of=partial(completion_seed, self.run_seed, draw.step, draw.problem.id, i),
            )
            for i in draw.indices
        ]

    def _within(self, episode: Episode, environment: Environment, begun: Problem) -> Episode:
        """The episode in its environment. What that says at the beginning counts to the tokens of the completion, so that it cannot
        exceed the context."""
        episode, prompt = replace(episode, environment=environment), self.renderer.prompt(begun)
        added = len(prompt.token_ids) - len(episode.prompt_ids)
        if added >= episode.max_tokens:
            environment.failure = f"what reset returned has {added} tokens, and max_tokens is {episode.max_tokens}"
            return episode
        return replace(
            episode,
            prompt_ids=prompt.token_ids,
            answer_prefix=prompt.answer_prefix,
            max_tokens=episode.max_tokens - max(0, added),
        )

    def _collect(self, draws: Sequence[Draw]) -> Collected:
        """Samples this process's part. After an engine failure (memory, a driver) it is sampled again: equal seeds give equal
        completions."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self._episodes(draws) as episodes:
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
        groups = []
        for i, (problem, group) in enumerate(zip(problems, episodes, strict=True)):
            shared = shared_beginning(problem, [episode.prompt_ids for episode in group])
            rollouts = [
                _rollout(
                    problem,
                    _behind(group[j].prompt_ids[len(shared) :], completions[i, j]),
                    scores[i, j],
                    verifier.steps.get((i, j), Steps()),
                )
                for j in range(self.group_size)
            ]
            groups.append(RolloutGroup(problem=problem, prompt_ids=shared, rollouts=tuple(rollouts)))
        return Collected(
            groups=groups,
            sampled=groups,
            num_refills=0,
            num_sampled_tokens=sum(c.num_chosen for c in completions.values()),
            sample_seconds=sampled - started,
            verify_seconds=verified - sampled,
        )

    def _rewarded(self, collected: Collected) -> Collected:
        started = time.perf_counter()
        rewarded = iter(self.rewarded([rollout for group in collected.groups for rollout in group.rollouts]))
        groups = [replace(g, rollouts=tuple(next(rewarded) for _ in g.rollouts)) for g in collected.groups]
        seconds = collected.verify_seconds + time.perf_counter() - started
        return replace(collected, groups=groups, sampled=groups, verify_seconds=seconds)

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


def shared_beginning(problem: Problem, prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The tokens with which all prompts of a group begin: all of them, unless environments have begun in different ways."""
    if len(set(prompts)) == 1:
        return prompts[0]
    columns = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*prompts, strict=False))
    shared = tuple(tokens[0] for tokens in columns)
    if not shared:
        raise UserError(
            f"environment: what reset returns for problem {problem.id!r} differs within its group, and nothing stands before it; give the "
            "row a prompt, or use a model with a chat template"
        )
    return shared


def _behind(opening: tuple[int, ...], completion: Completion) -> Completion:
    """The completion behind the tokens of its prompt that its group does not share, which the policy did not choose. Its environment's
    final state has served to grade it."""
    if completion.final_state is not None:
        completion = replace(completion, final_state=None)
    if not opening:
        return completion
    loss_mask = (False,) * len(opening) + completion.loss_mask
    return replace(completion, token_ids=opening + completion.token_ids, loss_mask=loss_mask)


def has_signal(group: RolloutGroup) -> bool:
    """Whether the group's graded values differ; otherwise all its group-relative advantages are 0."""
    values = {r.score.value for r in group.rollouts if r.is_graded}
    return len(values) > 1
