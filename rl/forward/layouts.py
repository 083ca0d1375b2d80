"""The two layouts of a causal model's forward, one packed row or padded whole sequences, and the number of tokens of each.

The packed row is [prompt of group 1 | prompt of group 2 ... | completion 1 | completion 2 ...], without padding: it contains each
prompt once for its whole group. The last token of a completion is predicted but predicts nothing, so it is a target and no input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rl.forward.micro_batch import TrainGroup
from rl.forward.row import AttentionBlock, Piece, RaggedPieces, blocks_of, pieces_of, transferred


@dataclass(frozen=True, kw_only=True)
class PackedRow:
    """N tokens in one row, S of which predict a scored token.

    score_from: the index in the row of the hidden state that predicts each scored token. prompts, completions: the pieces of the row.
    Attention kernels read them in one of two forms (rl/forward/row.py): `ragged` for kernels that take all pieces in one call, or
    padded `blocks` with `attended_at`, which are computed on first use.
    """

    input_ids: Int[Tensor, " N"]
    position_ids: Int[Tensor, " N"]
    score_from: Int[Tensor, " S"]
    prompts: tuple[Piece, ...]
    completions: tuple[Piece, ...]
    ragged: RaggedPieces

    @staticmethod
    def of(groups: Sequence[TrainGroup]) -> PackedRow:
        sequences = [s for g in groups for s in g.sequences]
        tokens = (*(g.prompt_ids for g in groups), *(s.token_ids[:-1] for s in sequences))
        inputs = [torch.tensor(ids, dtype=torch.long) for ids in tokens]
        prompt_of = [q for q, group in enumerate(groups) for _ in group.sequences]
        pieces = pieces_of([len(g.prompt_ids) for g in groups], [len(s.token_ids) - 1 for s in sequences], prompt_of)
        prompts, completions = pieces[: len(groups)], pieces[len(groups) :]
        return PackedRow(
            input_ids=torch.cat(inputs),
            position_ids=torch.cat([torch.arange(len(piece.before), piece.num_keys) for piece in pieces]),
            # The last token of the prompt predicts the first token of each completion.
            score_from=torch.cat(
                [
                    piece.key_slots()[-len(s.token_ids) :][s.scored_indices()]
                    for piece, s in zip(completions, sequences, strict=True)
                ]
            ),
            prompts=tuple(prompts),
            completions=tuple(completions),
            ragged=RaggedPieces.of(pieces),
        )

    @cached_property
    def blocks(self) -> tuple[AttentionBlock, ...]:
        """The pieces of the row, padded, for kernels that attend one block at a time."""
        made = (*blocks_of(self.prompts), *blocks_of(self.completions))
        tensors = {f"{i}.{name}": x for i, block in enumerate(made) for name, x in vars(block).items()}
        moved = transferred(tensors, self.device)
        return tuple(AttentionBlock(**{name: moved[f"{i}.{name}"] for name in vars(b)}) for i, b in enumerate(made))

    @cached_property
    def attended_at(self) -> Int[Tensor, " N"]:
        """The index of each token of the row in the concatenation of the blocks' queries."""
        return torch.cat([b.query_slots.flatten()[b.filled_queries] for b in self.blocks]).argsort()

    @property
    def device(self) -> torch.device:
        return self.input_ids.device

    def to(self, device: torch.device) -> PackedRow:
        """The row on a device, transferred in one copy."""
        own = {f.name: x for f in fields(self) if isinstance(x := getattr(self, f.name), Tensor)}
        ragged_tensors = {name: x for name, x in vars(self.ragged).items() if isinstance(x, Tensor)}
        moved = transferred(own | ragged_tensors, device)
        ragged = replace(self.ragged, **{name: moved[name] for name in ragged_tensors})
        return replace(self, ragged=ragged, **{name: moved[name] for name in own})


@dataclass(frozen=True, kw_only=True)
class PaddedRows:
    """B sequences of at most K tokens, each with its own copy of the prompt, padded on the right with token 0.

    score_from: the index in the flattened rows of the hidden state that predicts each scored token.
    """

    input_ids: Int[Tensor, "B K"]
    score_from: Int[Tensor, " S"]

    @staticmethod
    def of(groups: Sequence[TrainGroup]) -> PaddedRows:
        sequences = [(len(g.prompt_ids), (*g.prompt_ids, *s.token_ids[:-1]), s) for g in groups for s in g.sequences]
        input_ids = pad_sequence([torch.tensor(tokens) for _, tokens, _ in sequences], batch_first=True)
        width = input_ids.shape[1]
        starts = [row * width + prompt - 1 for row, (prompt, _, _) in enumerate(sequences)]
        score_from = [start + s.scored_indices() for start, (_, _, s) in zip(starts, sequences, strict=True)]
        return PaddedRows(input_ids=input_ids, score_from=torch.cat(score_from))

    def to(self, device: torch.device) -> PaddedRows:
        return PaddedRows(**transferred({"input_ids": self.input_ids, "score_from": self.score_from}, device))


def packed_tokens(groups: Sequence[TrainGroup]) -> int:
    """Number of tokens of the packed row."""
    return sum(group.num_tokens for group in groups)


def padded_tokens(groups: Sequence[TrainGroup]) -> int:
    """Number of tokens of the padded rows, padding included: number of sequences x length of the longest."""
    return sum(len(group.sequences) for group in groups) * max(group.longest for group in groups)
