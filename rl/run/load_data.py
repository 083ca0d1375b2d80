"""The problems of a run: loaded as its options say, and their prompts held against what the model can take."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rewards.errors import UserError
from rollout.problems import load_problems, split_held_out, without_overlap
from rollout.prompts import PromptRenderer
from rollout.records import Problem

if TYPE_CHECKING:
    from rl.settings.config import RunConfig

Report = Callable[[str], None]
log = logging.getLogger(__name__)


def load_data(config: RunConfig, report: Report = log.warning) -> tuple[list[Problem], list[Problem]]:
    """(training, held out), without overlap."""
    problems = _load(config, config.dataset, config.dataset_config, config.dataset_split, report)
    if not config.has_eval_data:
        return split_held_out(problems, config.eval_size or 1)
    held_out = load_held_out(config, report)
    training = without_overlap(problems, held_out)
    if not training:
        raise UserError(
            f"dataset is {config.dataset!r}: every problem of it is among the {len(held_out)} held-out ones"
        )
    return training, held_out


def load_held_out(config: RunConfig, report: Report = log.warning) -> list[Problem]:
    """The problems that a run evaluates on: of eval_dataset or of another split, else those held out of the training data."""
    if not config.has_eval_data:
        return load_data(config, report)[1]
    dataset = config.eval_dataset or config.dataset
    of_same = config.dataset_config if dataset == config.dataset else None
    problems = _load(config, dataset, config.eval_config or of_same, config.eval_split or "test", report)
    return problems[: config.eval_size or 1]


def _load(config: RunConfig, dataset: str, configuration: str | None, split: str, report: Report) -> list[Problem]:
    return load_problems(
        dataset,
        config=configuration,
        split=split,
        prompt_column=config.prompt_column,
        answer_column=config.answer_column,
        report=report,
    )


def within_limit(
    renderer: PromptRenderer, problems: Sequence[Problem], which: str, limit: int | None, report: Report
) -> list[Problem]:
    """The problems whose prompt has at most `limit` tokens; the others are reported and left out."""
    if limit is None:
        return list(problems)
    lengths = [len(renderer.render(problem)) for problem in problems]
    kept = [problem for problem, length in zip(problems, lengths, strict=True) if length <= limit]
    if not kept:
        raise UserError(
            f"max_prompt_tokens is {limit}: the shortest prompt of the {which} problems has {min(lengths)} tokens; raise it"
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
    """Every prompt with a full completion fits the model's context and one forward of the update, and the model has an embedding for
    each of its tokens. -> the tokens of the longest."""
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
        raise UserError(f"token_budget is {token_budget}: {what}, more than fits one forward; raise token_budget")
    return total


def require_closing_token(renderer: PromptRenderer, vocabulary: int) -> None:
    """The model has an embedding for the token that worked solutions end with."""
    if renderer.closing_id >= vocabulary:
        raise UserError(
            f"model: worked solutions end with token {renderer.closing_id}, and the model has embeddings for {vocabulary} tokens; resize "
            "its embeddings to the tokenizer, or set another eos_token in its tokenizer_config.json"
        )
