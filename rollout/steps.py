"""The worked steps of a completion: what each is worth, and at which token it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from rewards.equation_steps import score_steps
from rollout.records import Completion, Problem

_MAX_PENDING = 8  # tokens; a character has at most four bytes, so what is no character after these never will be
_NO_CHARACTER = "\ufffd"


class Steps(NamedTuple):
    """ends: the index of each step's last token."""

    rewards: tuple[float, ...] = ()
    ends: tuple[int, ...] = ()


def steps_of(tokenizer: PreTrainedTokenizerBase, problem: Problem, completion: Completion, opened: str = "") -> Steps:
    """In time linear in the completion. Nothing is worth anything that the prompt has stated already. opened: what of the
    completion's text stands in the prompt."""
    steps = score_steps(completion.text, given="\n".join(message["content"] for message in problem.messages))
    if not steps:
        return Steps()
    token_ends = [len(opened) + end for end in _token_ends(tokenizer, completion.token_ids)]
    last, token, ends = len(token_ends) - 1, 0, []
    for step in steps:
        while token < last and token_ends[token] < step.end:
            token += 1
        ends.append(token)
    return Steps(tuple(step.value for step in steps), tuple(ends))


def _token_ends(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[int]:
    """How many characters of the text stand once each token is written.

    What a token adds depends on the one before it (a space) and on those that hold a part of the same character, so only
    these are decoded with it: all of them again for each token would take time quadratic in their number.
    """
    ends: list[int] = []
    settled = before = 0  # characters; those of them that are in the window
    first = pending = 0  # the tokens at which the window begins, and what is not settled
    for t in range(1, len(token_ids) + 1):
        window = _text(tokenizer, token_ids[first:t])
        ends.append(settled + len(window) - before)
        if not window.endswith(_NO_CHARACTER) or t - pending > _MAX_PENDING:
            settled, first, pending = ends[-1], pending, t
            before = len(_text(tokenizer, token_ids[first:t]))
    return ends


def _text(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    return tokenizer.batch_decode([list(token_ids)], clean_up_tokenization_spaces=False)[0]
