"""A question and an answer as the tokens of a model that reads both, such as a reward model with a tokenizer of its own."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from rewards.errors import UserError, first_line
from rollout.chat_template import GUARD, TEMPLATE_ERRORS, guarded


class AnswerText(NamedTuple):
    """step_tokens: the index of the token with which each step of the answer ends."""

    token_ids: tuple[int, ...]
    step_tokens: tuple[int, ...] = ()


def encode_answer(
    tokenizer: PreTrainedTokenizerBase, question: str, answer: str, step_ends: Sequence[int] = ()
) -> AnswerText:
    """The user's question and the assistant's answer by the tokenizer's chat template; without one as two lines, with the tokens that
    the tokenizer adds to every text.

    Neither can end its turn: an answer that writes a special token such as <|im_end|> has written these letters. step_ends: for each step
    the number of characters of the answer up to its end.
    """
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    text = _text(tokenizer, guarded(question, special), guarded(answer, special))
    before, behind = ((), ()) if tokenizer.chat_template is not None else _around_every_text(tokenizer)
    token_ids, ends = list(before), [0] * len(before)
    read = 0  # characters
    for piece in text.split(GUARD):
        encoded = tokenizer(piece, add_special_tokens=False, return_offsets_mapping=bool(step_ends))
        token_ids += encoded.input_ids
        if step_ends:
            ends += [read + end for _, end in encoded.offset_mapping]
        read += len(piece)
    places = _places(text.replace(GUARD, ""), answer, step_ends)
    return AnswerText((*token_ids, *behind), tuple(_last_token(ends, place) for place in places))


def _text(tokenizer: PreTrainedTokenizerBase, question: str, answer: str) -> str:
    if tokenizer.chat_template is None:
        return f"{question}\n{answer}"
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except TEMPLATE_ERRORS as error:
        raise UserError(
            f"reward_model: its chat template cannot render a question and an answer ({first_line(error)}); fix the template in its folder"
        ) from None


def _around_every_text(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens that the tokenizer writes before and behind every text, such as [CLS] and [SEP]."""
    whole, own = (tokenizer("a", add_special_tokens=adds).input_ids for adds in (True, False))
    at = next(i for i in range(len(whole)) if whole[i : i + len(own)] == own)
    return tuple(whole[:at]), tuple(whole[at + len(own) :])


def _places(text: str, answer: str, step_ends: Sequence[int]) -> list[int]:
    """The number of characters of the text up to each step's end. The template may have stripped the answer."""
    if not step_ends:
        return []
    kept = answer if answer in text else answer.strip()
    at, cut = text.rfind(kept), answer.find(kept)
    if at < 0:
        raise UserError(
            "reward_model: its chat template changes the answers, so that their steps cannot be found in its text; fix the template in its "
            "folder"
        )
    return [at + min(end - cut, len(kept)) for end in step_ends]


def _last_token(ends: Sequence[int], place: int) -> int:
    """The token that holds the character before this place; of several that hold a part of it, the last."""
    first = min(bisect_left(ends, place), len(ends) - 1)
    return bisect_right(ends, ends[first]) - 1
