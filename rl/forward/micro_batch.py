"""Groups of sequences become tensors: one row of tokens a micro-batch, without padding.

The row is [prompt of group 1 | prompt of group 2 ... | completion 1 | completion 2 ...]: a prompt stands once for its whole
group. The last token of a completion is only ever predicted, so it is a target and not an input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import compress

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rl.forward.row import AttentionBlock, Piece, RaggedPieces, blocks_of, pieces_of, transferred
from rl.objective.tokens import ScoredSequences


@dataclass(frozen=True, kw_only=True)
class TrainSequence:
    """One completion as the update sees it.

    T tokens, of which U are trained on (loss_mask; all of them unless it is said); the others are context.
    advantages: None where a critic computes them during the update. weight: what the reduction gives each trained token. view: the completion's.
    reward: of the whole; a critic takes it for that of the last trained token. None: the completion was cut, and the critic's
        value before its last token, which is not trained on, stands for all that would have followed.
    """

    token_ids: tuple[int, ...]
    sampler_logprobs: tuple[float, ...]
    advantages: Float[Tensor, " U"] | None
    weight: float
    reward: float | None = 0.0
    view: int | None = None
    loss_mask: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if all(self.loss_mask):
            object.__setattr__(self, "loss_mask", (True,) * len(self.token_ids))
        assert len(self.loss_mask) == len(self.token_ids)
        assert sum(self.loss_mask) == len(self.sampler_logprobs)
        assert self.advantages is None or len(self.advantages) == len(self.sampler_logprobs)

    @property
    def scored(self) -> tuple[bool, ...]:
        """Which tokens are scored: those that are trained on, and that whose value stands for a reward."""
        return (*self.loss_mask[:-1], self.loss_mask[-1] or self.reward is None)

    @staticmethod
    def to_score(token_ids: Sequence[int], sampler_logprobs: Sequence[float] | None = None) -> TrainSequence:
        """One that is scored and teaches nothing."""
        return TrainSequence(
            token_ids=tuple(token_ids),
            sampler_logprobs=tuple(sampler_logprobs or [0.0] * len(token_ids)),
            advantages=torch.zeros(len(token_ids)),
            weight=0.0,
        )


@dataclass(frozen=True)
class TrainGroup:
    prompt_ids: tuple[int, ...]
    sequences: tuple[TrainSequence, ...]

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + sum(len(s.token_ids) - 1 for s in self.sequences)


@dataclass(frozen=True, kw_only=True)
class MicroBatch(ScoredSequences):
    """N tokens in the row, of which S predict a scored token, of B sequences.

    views: as TrainSequence has them.
    score_from: the place in the row whose hidden state predicts each target.
    prompts, completions: the pieces of the row. What attention needs of them differs by kernel (rl/forward/row.py) and is made when it is
    first asked for: `blocks` with `attended_at`, or `ragged`, or `contexts`.
    """

    views: tuple[int | None, ...]
    input_ids: Int[Tensor, " N"]
    position_ids: Int[Tensor, " N"]
    score_from: Int[Tensor, " S"]
    targets: Int[Tensor, " S"]
    prompts: tuple[Piece, ...]
    completions: tuple[Piece, ...]

    @cached_property
    def blocks(self) -> tuple[AttentionBlock, ...]:
        """The row's attention by padded pieces."""
        made = (*blocks_of(self.prompts), *blocks_of(self.completions))
        tensors = {f"{i}.{name}": x for i, block in enumerate(made) for name, x in vars(block).items()}
        moved = transferred(tensors, self.device)
        return tuple(AttentionBlock(**{name: moved[f"{i}.{name}"] for name in vars(b)}) for i, b in enumerate(made))

    @cached_property
    def attended_at(self) -> Int[Tensor, " N"]:
        """Where each token of the row stands in the blocks' queries, one after the other."""
        return torch.cat([b.query_slots.flatten()[b.filled_queries] for b in self.blocks]).argsort()

    @cached_property
    def ragged(self) -> RaggedPieces:
        """The row's attention in one call."""
        made = RaggedPieces.of((*self.prompts, *self.completions))
        tensors = {name: x for name, x in vars(made).items() if isinstance(x, Tensor)}
        return replace(made, **transferred(tensors, self.device))

    @cached_property
    def contexts(self) -> Int[Tensor, "B K"]:
        """Of each completion the places of its prompt and itself, padded with 0: the row as whole sequences."""
        return pad_sequence([piece.key_slots() for piece in self.completions], batch_first=True).to(self.device)

    @property
    def device(self) -> torch.device:
        return self.input_ids.device

    @property
    def score_from_padded(self) -> Int[Tensor, " S"]:
        """The place in the flattened `contexts` whose hidden state predicts each target."""
        return self.sequence_of * self.contexts.shape[1] + self.position_ids[self.score_from]

    def to(self, device: torch.device) -> MicroBatch:
        tensors = {f.name: x for f in fields(self) if isinstance(x := getattr(self, f.name), Tensor)}
        return replace(self, **transferred(tensors, device))


def lay_out(groups: Sequence[TrainGroup]) -> MicroBatch:
    """The groups of one micro-batch in one row."""
    sequences = [s for g in groups for s in g.sequences]
    targets = [torch.tensor(s.token_ids) for s in sequences]
    inputs = [torch.tensor(g.prompt_ids) for g in groups] + [t[:-1] for t in targets]
    prompt_of = [q for q, group in enumerate(groups) for _ in group.sequences]
    pieces = pieces_of([len(g.prompt_ids) for g in groups], [len(t) - 1 for t in targets], prompt_of)
    prompts, completions = pieces[: len(groups)], pieces[len(groups) :]
    places = [list(compress(range(len(s.token_ids)), s.scored)) for s in sequences]
    lengths = [len(of_sequence) for of_sequence in places]
    mask = [m for s in sequences for m in compress(s.loss_mask, s.scored)]
    trained = torch.tensor(list(compress(range(len(mask)), mask)), dtype=torch.long)

    known = [s.advantages for s in sequences if s.advantages is not None]
    assert len(known) in (0, len(sequences))

    def of_trained(values: Tensor) -> Tensor:
        """0 for a token of which only the value is asked."""
        return torch.zeros(len(mask)).index_copy(0, trained, values)

    return MicroBatch(
        lengths=tuple(lengths),
        views=tuple(s.view for s in sequences),
        input_ids=torch.cat(inputs),
        position_ids=torch.cat([torch.arange(len(piece.before), piece.num_keys) for piece in pieces]),
        # The last token of the prompt predicts the first of each completion.
        score_from=torch.cat(
            [piece.key_slots()[-len(t) :][at] for piece, t, at in zip(completions, targets, places, strict=True)]
        ),
        targets=torch.cat([t[at] for t, at in zip(targets, places, strict=True)]),
        prompts=tuple(prompts),
        completions=tuple(completions),
        loss_mask=torch.tensor(mask, dtype=torch.float32),
        sequence_of=torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)]),
        sampler_logprobs=of_trained(torch.tensor([x for s in sequences for x in s.sampler_logprobs])),
        advantages=of_trained(torch.cat(known)) if known else None,
        rewards=torch.tensor([s.reward or 0.0 for s in sequences]),
        bootstraps=torch.tensor([s.reward is None for s in sequences]),
        weights=of_trained(torch.tensor([float(s.weight) for s in sequences for _ in s.sampler_logprobs])),
        trained=trained,
        num_sequences=len(sequences),
    )
