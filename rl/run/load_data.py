"""The problems of a run: loads them, drops those that cannot be used, and refuses prompts that the model has no room for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

from rewards.errors import UserError
from rewards.reward_spec import need_references
from rewards.sandbox.isolation import MIN_LEVEL
from rewards.score import Outcome, Score, check_references
from rewards.verifier_contract import checked_scores
from rewards.verifiers import REWARD, Verifiers
from rl.settings.resolve import RunSettings
from rl.view.progress import Progress
from rollout.dataset_names import HubName
from rollout.demonstrations import demonstration
from rollout.problem_stream import Source
from rollout.problems import load_problems, repeated_word, split_held_out, without_overlap
from rollout.prompts import PromptRenderer
from rollout.records import SOLUTION, Problem
from rollout.verify import grade, row_of
from rollout.worked import worked_text

Report = Callable[[str], None]
Data = tuple[list[Source], list[Problem]]  # training, held-out
log = logging.getLogger(__name__)


def load_data(settings: RunSettings, report: Report = log.warning) -> Data:
    """The training problems of each data set and the held-out problems of all, without overlap.

    Of several data sets each gives its share of the held-out problems, and a problem's id begins with its data set's name.
    """
    names = [dataset.name for dataset in settings.datasets]
    is_taught = settings.chosen_algorithm().samples_from == "dataset"
    loaded = [
        load_problems(
            name,
            config=settings.dataset_config,
            split=settings.dataset_split,
            needs_reference=need_references(settings.reward),
            has_environment=bool(settings.environment),
            keeps_solutions=is_taught,
            **settings.columns,
            report=report,
        )
        for name in names
    ]
    loaded = [rewarded(own, settings.reward) for own in loaded]
    if len(names) > 1:
        loaded = [[replace(p, id=f"{name}:{p.id}") for p in own] for name, own in zip(names, loaded, strict=True)]
    if settings.has_eval_data:
        held_out = load_eval_dataset(settings, report)
    else:
        loaded, held_out = hold_out(names, loaded, settings.eval_size)
    if settings.has_eval_data or len(names) > 1 or is_taught:
        loaded = [without_overlap(own, held_out) for own in loaded]
    for name, own in zip(names, loaded, strict=True):
        if not own:
            raise UserError(
                f"dataset is {name!r}: every problem of it is among the {len(held_out)} held-out ones; name another eval_dataset, or leave it "
                "out to hold out eval_size problems of dataset"
            )
    return weighted(settings, loaded), held_out[: settings.eval_size]


def hold_out(
    names: Sequence[str], loaded: Sequence[Sequence[Problem]], count: int
) -> tuple[list[list[Problem]], list[Problem]]:
    """(training problems of each data set, `count` held-out problems, of each data set in proportion to its problems)."""
    if len(loaded) == 1:
        training, held_out = split_held_out(loaded[0], count)
        return [training], held_out
    ends = [count * total // sum(map(len, loaded)) for total in accumulate(map(len, loaded))]
    counts = [end - start for start, end in pairwise([0, *ends])]
    for name, own, part in zip(names, loaded, counts, strict=True):
        if part >= len(own):
            raise UserError(
                f"eval_size is {count}: {part} of them would be held out of the {len(own)} problems of {name!r}, which leaves none to "
                "train on; lower eval_size, or name an eval_dataset"
            )
    parts = [split_held_out(own, part) for own, part in zip(loaded, counts, strict=True)]
    return [training for training, _ in parts], [problem for _, held_out in parts for problem in held_out]


def weighted(settings: RunSettings, problems: Sequence[Sequence[Problem]]) -> list[Source]:
    """The data sets with these problems of theirs, and weights that sum to 1: those that are given, else the share of the problems, so
    that mixing is concatenation."""
    weights = [len(own) if d.weight is None else d.weight for d, own in zip(settings.datasets, problems, strict=True)]
    return [
        Source(name=dataset.name, problems=own, weight=weight / sum(weights))
        for dataset, own, weight in zip(settings.datasets, problems, weights, strict=True)
    ]


def joined(sources: Sequence[Source]) -> list[Problem]:
    """The problems of all sources, one source after the other."""
    return [problem for source in sources for problem in source.problems]


def load_held_out(settings: RunSettings, report: Report = log.warning) -> list[Problem]:
    """The problems that a run evaluates on: from eval_dataset or another split, else those held out of the training data."""
    if not settings.has_eval_data:
        return load_data(settings, report)[1]
    return load_eval_dataset(settings, report)[: settings.eval_size]


def load_eval_dataset(settings: RunSettings, report: Report = log.warning) -> list[Problem]:
    """All problems of eval_dataset or of the other split: none of them is trained on, of which the first eval_size are evaluated."""
    first = settings.datasets[0].name  # of several none has another split that is named: there is an eval_dataset
    dataset = settings.eval_dataset or HubName.read(first).without_split
    of_same = settings.dataset_config if dataset == first else None
    problems = load_problems(
        dataset,
        config=settings.eval_config or of_same,
        split=settings.eval_split or "test",
        needs_reference=need_references(settings.reward),
        has_environment=bool(settings.environment),
        **settings.columns,
        report=report,
    )
    return rewarded(problems, settings.reward)


def rewarded(problems: Sequence[Problem], reward: Sequence[str]) -> list[Problem]:
    """The problems, graded by these rewards if there are any."""
    return [replace(p, verifier=REWARD) for p in problems] if reward else list(problems)


def gradable_data(data: Data, verifiers: Verifiers, progress: Progress) -> Data:
    """The problems whose reference can be graded. Reports how generated programs are sandboxed, if there are any."""
    training = [
        replace(source, problems=gradable(source.problems, which, verifiers, progress))
        for source, which in zip(data[0], described(data[0]), strict=True)
    ]
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
    data: Data,
    vocabulary: int,
    progress: Progress,
) -> Data:
    """The problems whose prompt is short enough; for supervised training those with a usable worked solution."""
    limit, report = settings.max_prompt_tokens, progress.message
    training = [
        within_limit(renderer, source.problems, which, limit, report)
        for source, which in zip(data[0], described(data[0]), strict=True)
    ]
    held_out = within_limit(renderer, data[1], "held-out", limit, report)
    if settings.chosen_algorithm().samples_from == "dataset":
        require_closing_token(renderer, vocabulary)
        training = [demonstrable(own, verifiers, renderer, settings.max_tokens, progress) for own in training]
    return weighted(settings, training), held_out


def described(sources: Sequence[Source]) -> list[str]:
    """What messages call the problems of each source."""
    return ["training"] if len(sources) == 1 else [f"{source.name!r} training" for source in sources]


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
        judged = grade(verifiers[name], [worked_text(p) for p in asking], asking)
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
