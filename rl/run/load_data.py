"""The problems of a run: loads them, drops those that cannot be used, and refuses prompts that the model has no room for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from rewards.errors import UserError
from rewards.sandbox.isolation import MIN_LEVEL
from rewards.score import Outcome, Score, check_references
from rewards.verifier_contract import checked_scores
from rewards.verifiers import REWARD, Verifiers
from rl.settings.config import RunConfig
from rl.settings.resolve import RunSettings
from rl.view.progress import Progress
from rollout.demonstrations import demonstration
from rollout.problems import load_problems, repeated_word, split_held_out, without_overlap
from rollout.prompts import PromptRenderer
from rollout.records import SOLUTION, Problem
from rollout.verify import grade, row_of

Report = Callable[[str], None]
log = logging.getLogger(__name__)


def load_data(settings: RunSettings, report: Report = log.warning) -> tuple[list[Problem], list[Problem]]:
    """(training, held-out) problems, without overlap."""
    problems = load_problems(
        settings.dataset,
        config=settings.dataset_config,
        split=settings.dataset_split,
        **settings.columns,
        report=report,
    )
    problems = rewarded(problems, settings)
    if not settings.has_eval_data:
        return split_held_out(problems, settings.eval_size)
    held_out = load_held_out(settings, report)
    training = without_overlap(problems, held_out)
    if not training:
        raise UserError(
            f"dataset is {settings.dataset!r}: every problem of it is among the {len(held_out)} held-out ones; name another "
            "eval_dataset"
        )
    return training, held_out


def load_held_out(settings: RunSettings, report: Report = log.warning) -> list[Problem]:
    """The problems that a run evaluates on: from eval_dataset or another split, else those held out of the training data."""
    if not settings.has_eval_data:
        return load_data(settings, report)[1]
    dataset = settings.eval_dataset or settings.dataset
    of_same = settings.dataset_config if dataset == settings.dataset else None
    problems = load_problems(
        dataset,
        config=settings.eval_config or of_same,
        split=settings.eval_split or "test",
        **settings.columns,
        report=report,
    )
    return rewarded(problems[: settings.eval_size], settings)


def rewarded(problems: Sequence[Problem], settings: RunConfig) -> list[Problem]:
    """The problems, graded by the rewards of the run if it names any."""
    return [replace(p, verifier=REWARD) for p in problems] if settings.reward else list(problems)


def gradable_data(
    data: tuple[list[Problem], list[Problem]], verifiers: Verifiers, progress: Progress
) -> tuple[list[Problem], list[Problem]]:
    """(training, held-out) problems whose reference can be graded. Reports how generated programs are sandboxed, if there are any."""
    training = gradable(data[0], "training", verifiers, progress)
    held_out = gradable(data[1], "held-out", verifiers, progress)
    if verifiers.isolation:
        unsafe = "UNSAFE, as allow_unsafe_code permits: " if verifiers.isolation.rank < MIN_LEVEL else ""
        progress.message(f"{unsafe}programs run at isolation {verifiers.isolation.describe()}")
    return training, held_out


def gradable(problems: Sequence[Problem], which: str, verifiers: Verifiers, progress: Progress) -> list[Problem]:
    """Drops the problems whose reference cannot be graded, and reports how many. which: "training" or "held-out"."""
    scores: dict[str, Score] = {}
    for name in sorted({p.verifier for p in problems}):
        asking = [p for p in problems if p.verifier == name]
        references, questions = [p.reference for p in asking], [p.question for p in asking]
        checked = check_references(verifiers[name], references, questions, [row_of(p) for p in asking])
        checked = checked_scores(checked, verifier=name, problems=[p.id for p in asking])
        scores |= {p.id: s for p, s in zip(asking, checked, strict=True)}
    bad = [(p, scores[p.id]) for p in problems if scores[p.id].outcome is not Outcome.CORRECT]
    if bad:
        shown = "; ".join(f"problem {p.id!r}, reference {str(p.reference)[:60]!r}: {s.detail}" for p, s in bad[:3])
        if len(bad) == len(problems):
            raise UserError(
                f"dataset: none of its {len(problems)} reference answers can be graded ({shown}); fix answer_column"
            )
        progress.message(
            f"{len(bad)} of {len(problems)} {which} problems are left out, their reference cannot be graded: {shown}"
        )
    good = [p for p in problems if scores[p.id].outcome is Outcome.CORRECT]
    if word := repeated_word(good):
        progress.message(f"{word} ({which} problems): if that is no answer, name another answer_column or fix the data")
    return good


def fitting(
    settings: RunSettings,
    renderer: PromptRenderer,
    verifiers: Verifiers,
    data: tuple[list[Problem], list[Problem]],
    vocabulary: int,
    progress: Progress,
) -> tuple[list[Problem], list[Problem]]:
    """(training, held-out) problems whose prompt is short enough; for supervised training those with a usable worked solution."""
    training = within_limit(renderer, data[0], "training", settings.max_prompt_tokens, progress.message)
    held_out = within_limit(renderer, data[1], "held-out", settings.max_prompt_tokens, progress.message)
    if settings.chosen_algorithm().samples_from == "dataset":
        require_closing_token(renderer, vocabulary)
        training = demonstrable(training, verifiers, renderer, settings.max_tokens, progress)
    return training, held_out


def within_limit(
    renderer: PromptRenderer, problems: Sequence[Problem], which: str, limit: int | None, report: Report
) -> list[Problem]:
    """Drops the problems whose prompt has more than `limit` tokens, and reports how many."""
    if limit is None:
        return list(problems)
    lengths = [len(renderer.render(problem)) for problem in problems]
    kept = [problem for problem, length in zip(problems, lengths, strict=True) if length <= limit]
    if not kept:
        raise UserError(
            f"max_prompt_tokens is {limit}: the shortest prompt of the {which} problems has {min(lengths)} tokens; raise max_prompt_tokens"
        )
    if len(kept) < len(problems):
        longest, length = max(zip(problems, lengths, strict=True), key=lambda pair: pair[1])
        report(
            f"{len(problems) - len(kept)} of {len(problems)} {which} problems are left out, their prompt is longer than max_prompt_tokens "
            f"{limit}: problem {longest.id!r} has {length} tokens"
        )
    return kept


def require_room(
    renderer: PromptRenderer,
    problems: Sequence[Problem],
    max_tokens: int,
    *,
    context: int | None,
    token_budget: int | None = None,
    vocabulary: int | None = None,
) -> int:
    """Raises UserError for a prompt that with a full completion exceeds the model's context or one forward pass of the update, or that
    has a token without an embedding. -> tokens of the longest prompt with a full completion."""
    prompts = [renderer.render(problem) for problem in problems]
    for problem, prompt in zip(problems, prompts, strict=True):
        if vocabulary is not None and max(prompt) >= vocabulary:
            token = renderer.tokenizer.convert_ids_to_tokens(max(prompt))
            raise UserError(
                f"model: the prompt of problem {problem.id!r} has token {max(prompt)}, {token!r}, and the model has embeddings for "
                f"{vocabulary} tokens; resize its embeddings to the tokenizer, or use the tokenizer that the model was trained with"
            )
    longest, length = max(zip(problems, map(len, prompts), strict=True), key=lambda pair: pair[1])
    total = length + max_tokens
    what = f"problem {longest.id!r} has a prompt of {length} tokens and max_tokens is {max_tokens}, together {total}"
    if context is not None and total > context:
        raise UserError(
            f"{what}: the model's context is {context}; lower max_tokens or leave out long prompts with --max-prompt-tokens "
            f"{max(1, context - max_tokens)}"
        )
    if token_budget is not None and total - 1 > token_budget:
        raise UserError(f"token_budget is {token_budget}: {what}, more than fits one forward pass; raise token_budget")
    return total


def require_closing_token(renderer: PromptRenderer, vocabulary: int) -> None:
    """Raises UserError if the model has no embedding for the token that worked solutions end with."""
    if renderer.closing_id >= vocabulary:
        raise UserError(
            f"model: worked solutions end with token {renderer.closing_id}, and the model has embeddings for {vocabulary} tokens; resize "
            "its embeddings to the tokenizer, or set another eos_token in its tokenizer_config.json"
        )


def demonstrable(
    problems: Sequence[Problem], verifiers: Verifiers, renderer: PromptRenderer, max_tokens: int, progress: Progress
) -> list[Problem]:
    """Drops the problems without a worked solution that is correct and at most max_tokens long, and reports how many."""
    worked = [p for p in problems if p.metadata.get(SOLUTION)]
    scores: dict[str, Score] = {}
    for name in sorted({p.verifier for p in worked}):
        asking = [p for p in worked if p.verifier == name]
        judged = grade(verifiers[name], [str(p.metadata[SOLUTION]) for p in asking], asking)
        scores |= {p.id: s for p, s in zip(asking, judged, strict=True)}
    right = [p for p in worked if scores[p.id].outcome is Outcome.CORRECT]
    kept = [p for p in right if len(demonstration(p, renderer).rollouts[0].completion.token_ids) <= max_tokens]
    why = f"{len(problems) - len(worked)} have no worked solution, of {len(worked) - len(right)} it is not graded as correct, of "
    why += f"{len(right) - len(kept)} it is longer than max_tokens {max_tokens}"
    wrong = next((f"; problem {i!r}: {s.detail}" for i, s in scores.items() if s.outcome is not Outcome.CORRECT), "")
    if not kept:
        raise UserError(
            f"dataset: sft has nothing to learn from its {len(problems)} problems: {why}{wrong}. Give worked solutions that state "
            "their final answer, in the answer column or in one named worked"
        )
    if len(kept) < len(problems):
        progress.message(f"{len(problems) - len(kept)} of {len(problems)} problems are left out: {why}{wrong}")
    return kept
