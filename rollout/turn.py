"""Defines where a turn of the model ends and which text of it is graded, in one place for all engines."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import takewhile

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rewards.errors import UserError
from rewards.extract import is_end_of_turn
from rollout.chat_template import added_tokens, template_turn_end


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids of all tokens that end a completion: those of the generation config, the tokenizer's EOS, and the token with which the
    chat template ends the model's turn. Ids for which the model has no logit cannot be sampled and are left out."""
    return {i for i in _named_ends(model, tokenizer) if 0 <= i < vocabulary_size(model)}


def _named_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    generation, end = model.generation_config, template_turn_end(tokenizer)
    named = [generation.eos_token_id if generation is not None else None, tokenizer.eos_token_id]
    named.append(tokenizer.get_vocab().get(end) if end is not None else None)
    listed = [ids if isinstance(ids, list) else [ids] for ids in named]
    ends = {i for ids in listed for i in ids if i is not None}
    for end in ends:
        if not isinstance(end, int):
            raise UserError(
                f"model: eos_token_id in its generation_config.json is {end!r}: it must be a token's number or a list of them, "
                f"such as {tokenizer.eos_token_id}; fix that file"
            )
    return ends


def vocabulary_size(model: PreTrainedModel) -> int:
    """The number of tokens for which the model has embeddings."""
    return len(model.get_input_embeddings().weight)  # pyright: ignore[reportArgumentType]


def describe_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop_strings: Sequence[str]) -> str:
    """A sentence about what ends a completion."""
    stops = stop_token_ids(model, tokenizer)
    names = [*map(str, tokenizer.convert_ids_to_tokens(sorted(stops))), *map(repr, stop_strings)]
    ends = f"a completion ends with {', '.join(names)}" if names else "nothing ends a completion but max_tokens"
    unknown = sorted(_named_ends(model, tokenizer) - stops)
    return ends + (
        f"; the model has no embeddings for the end tokens {unknown}, so it never writes them" if unknown else ""
    )


def turn_end_strings(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The stop string for a chat template that ends the model's turn with text instead of one token; () for any other."""
    end = template_turn_end(tokenizer)
    return () if end is None or end in tokenizer.get_vocab() else (end,)


@dataclass(frozen=True, kw_only=True)
class TurnReader:
    """Decodes a completion's tokens to the text that is graded: as written, special tokens included, up to the end of the turn.

    The turn ends before a token of `ends` or a string of `end_strings`, and behind one of the run's stop strings, which may be the
    closing tag that a verifier needs.
    """

    tokenizer: PreTrainedTokenizerBase
    ends: frozenset[int]
    end_strings: tuple[str, ...]

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerBase, stop_ids: Collection[int]) -> TurnReader:
        """The turn also ends at the pad token and at every token that ends a turn in some chat template. A stop token that is an
        ordinary word of the vocabulary is part of the text, as a stop string is."""
        added, pad = added_tokens(tokenizer), tokenizer.pad_token_id
        special = {*added.values(), *tokenizer.all_special_ids}
        ends = {i for token, i in added.items() if i == pad or is_end_of_turn(token)} | special.intersection(stop_ids)
        return TurnReader(tokenizer=tokenizer, ends=frozenset(ends), end_strings=turn_end_strings(tokenizer))

    def texts(self, rows: Sequence[Sequence[int]], stop_strings: Sequence[str] = ()) -> list[str]:
        kept = [list(takewhile(lambda token: token not in self.ends, row)) for row in rows]
        texts = self.tokenizer.batch_decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return [self._turn(text, stop_strings) for text in texts]

    def _turn(self, text: str, stop_strings: Sequence[str]) -> str:
        before = [at for end in self.end_strings if (at := text.find(end)) >= 0]
        behind = [at + len(s) for s in stop_strings if s not in self.end_strings and (at := text.find(s)) >= 0]
        return text[: min(before + behind, default=len(text))]
