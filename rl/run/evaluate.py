"""Held-out evaluation: greedy accuracy, and pass@k and maj@k of k samples."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from rewards.extract import AnswerForm, answer_by_form
from rewards.score import Outcome
from rl.update.step_metrics import Metrics, mean
from rollout.collect import Collector
from rollout.records import FinishReason, Problem, Rollout, RolloutGroup

VOTED_ON = ("math", "puzzle", "reasoning-gym")  # verifiers of answers that can be extracted


def evaluate(
    collector: Collector,
    problems: Sequence[Problem],
    num_samples: int = 0,
    answer_form: AnswerForm | None = None,
) -> Metrics:
    """Samples one greedy completion per problem; accuracy is the share of correct ones among those that were graded.

    num_samples: k > 0 also samples k completions per problem, at the collector's temperature and with the same seeds at every
    evaluation, for pass@k (at least one is correct) and maj@k (the majority answer is correct, arXiv 2203.11171), over problems
    with a graded completion. Programs and proofs have no majority answer. answer_form: of math problems, in which they are voted on.
    """
    started = time.perf_counter()
    evaluator = replace(collector, scores_steps=False, rewarded=list)
    greedy = replace(evaluator, params=replace(collector.params, temperature=0.0), group_size=1)
    rollouts = [group.rollouts[0] for group in greedy.collect(problems, step=0).groups]
    metrics: Metrics = {
        "eval/accuracy": mean(is_right(r) for r in rollouts if r.is_graded),
        "eval/reward": mean(r.score.value for r in rollouts if r.is_graded),
        "eval/length": mean(r.completion.num_chosen for r in rollouts),
        "eval/truncated": mean(r.completion.finish_reason is FinishReason.LENGTH for r in rollouts),
    }
    if num_samples > 0:
        groups = replace(evaluator, group_size=num_samples).collect(problems, step=0).groups
        graded = [group for group in groups if any(r.is_graded for r in group.rollouts)]
        metrics["eval/pass_at_k"] = mean(any(map(is_right, group.rollouts)) for group in graded)
        voted = [group for group in graded if group.problem.verifier in VOTED_ON]
        metrics["eval/maj_at_k"] = mean(right_by_vote(group, answer_form) for group in voted)
    metrics["time/evaluate"] = time.perf_counter() - started
    return metrics


def is_right(rollout: Rollout) -> bool:
    return rollout.score.outcome is Outcome.CORRECT


def right_by_vote(group: RolloutGroup, answer_form: AnswerForm | None = None) -> float:
    """The share of the vote (see `vote`) that the correct answer wins. answer_form: where the answers to a math problem stand."""
    form = answer_form if group.problem.verifier == "math" else None
    return vote([(is_right(r), answer_by_form(r.completion.text, form)) for r in group.rollouts])


def vote(answers: Sequence[tuple[bool, str | None]]) -> float:
    """1 if the most frequent answer is correct, else 0; 1 / m if it is one of m tied answers. All correct answers count as one answer,
    however they are written; completions without an answer do not vote. answers: whether each is correct, and its text."""
    right = object()
    votes = Counter(right if is_correct else text for is_correct, text in answers if is_correct or text is not None)
    most = [answer for answer, count in votes.items() if count == max(votes.values())]
    return (right in most) / max(1, len(most))
