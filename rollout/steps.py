"""The reasoning steps of a completion: each one's reward and the token at which it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from rewards.equation_steps import Step, score_steps
from rollout.records import Completion, Problem

_MAX_PENDING = 8  # tokens; a character has at most four bytes, so bytes that are no character after so many tokens never become one
_NO_CHARACTER = "\ufffd"


class Steps(NamedTuple):
    """ends: the index of each step's last token."""

    rewards: tuple[float, ...] = ()
    ends: tuple[int, ...] = ()


def steps_of(
    tokenizer: PreTrainedTokenizerBase, problem: Problem, completion: Completion, answer_prefix: str = ""
) -> Steps:
    """The steps of a completion, in time linear in its length. A result that the prompt states already is no step.

    answer_prefix: the part of the completion's text that stands in the prompt.
    """
    steps = written_steps(problem, completion)
    if not steps:
        return Steps()
    token_ends = [len(answer_prefix) + end for end in _token_ends(tokenizer, completion.token_ids)]
    last, token, ends = len(token_ends) - 1, 0, []
    for step in steps:
        while token < last and token_ends[token] < step.end:
            token += 1
        ends.append(token)
    return Steps(tuple(step.value for step in steps), tuple(ends))


def written_steps(problem: Problem, completion: Completion) -> list[Step]:
    """The steps of a completion, by their places in its text."""
    return score_steps(completion.text, given="\n".join(message["content"] for message in problem.messages))


def _token_ends(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[int]:
    """For each token the number of characters of the text up to its end.

    The characters that a token adds depend on the token before it (a space) and on those that hold a part of the same character.
    Only these are decoded with it: to decode the whole text for each token would take quadratic time.
    """
    ends: list[int] = []
    settled = before = 0  # the number of final characters, and how many of them the window contains
    first = pending = 0  # the token at which the window begins, and the first one whose characters are not final
    for t in range(1, len(token_ids) + 1):
        window = _text(tokenizer, token_ids[first:t])
        ends.append(settled + len(window) - before)
        if not window.endswith(_NO_CHARACTER) or t - pending > _MAX_PENDING:
            settled, first, pending = ends[-1], pending, t
            before = len(_text(tokenizer, token_ids[first:t]))
    return ends


def _text(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    return tokenizer.batch_decode([list(token_ids)], clean_up_tokenization_spaces=False)[0]
