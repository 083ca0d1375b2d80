"""RolloutGroups and their advantages become tensors: one row of tokens a micro-batch, without padding.

The row is [prompt of group 1 | prompt of group 2 ... | completion 1 | completion 2 ...]: a prompt stands once for its whole
group. The last token of a completion is only ever predicted, so it is a target and not an input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import compress

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rewards.errors import UserError
from rl.reductions import Reduction, StepCounts
from rl.row import AttentionBlock, Piece, RaggedPieces, blocks_of, pieces_of, transferred
from rollout.records import FinishReason, Rollout, RolloutGroup


@dataclass(frozen=True, kw_only=True)
class TrainSequence:
    """One completion as the update sees it.

    T tokens, of which U are trained on (loss_mask; all of them unless it is said); the others are context.
    weight: what the reduction gives each trained token. view: the completion's.
    reward: of the whole; a critic takes it for that of the last trained token. None: the completion was cut, and the critic's
        value before its last token, which is not trained on, stands for all that would have followed.
    """

    token_ids: tuple[int, ...]
    sampler_logprobs: tuple[float, ...]
    advantages: Float[Tensor, " U"]
    weight: float
    reward: float | None = 0.0
    view: int | None = None
    loss_mask: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if all(self.loss_mask):
            object.__setattr__(self, "loss_mask", (True,) * len(self.token_ids))
        assert len(self.loss_mask) == len(self.token_ids)
        assert sum(self.loss_mask) == len(self.sampler_logprobs) == len(self.advantages)

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
class ScoredTokens:
    """What the loss knows of S tokens, sequence after sequence. loss_mask: 0 for one of which only the value is asked."""

    loss_mask: Float[Tensor, " S"]
    sequence_of: Int[Tensor, " S"]
    sampler_logprobs: Float[Tensor, " S"]
    advantages: Float[Tensor, " S"]
    weights: Float[Tensor, " S"]
    num_sequences: int


@dataclass(frozen=True, kw_only=True)
class MicroBatch(ScoredTokens):
    """N tokens in the row, of which S predict a scored token, of B sequences.

    lengths: of the sequences, in scored tokens; views and rewards as TrainSequence has them. bootstraps: whether the value of a
    sequence's last scored token stands in its reward's place. trained: the places of the scored tokens that are trained on.
    score_from: the place in the row whose hidden state predicts each target.
    prompts, completions: the pieces of the row. What attention needs of them differs by kernel (rl/row.py) and is made when it is
    first asked for: `blocks` with `attended_at`, or `ragged`, or `contexts`.
    """

    lengths: tuple[int, ...]
    views: tuple[int | None, ...]
    rewards: Float[Tensor, " B"]
    bootstraps: Bool[Tensor, " B"]
    trained: Int[Tensor, " U"]
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

    def tokens(self, part: slice) -> ScoredTokens:
        """Some of the scored tokens; sequences that are cut stay what they were."""
        return ScoredTokens(
            loss_mask=self.loss_mask[part],
            sequence_of=self.sequence_of[part],
            sampler_logprobs=self.sampler_logprobs[part],
            advantages=self.advantages[part],
            weights=self.weights[part],
            num_sequences=self.num_sequences,
        )

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
        advantages=of_trained(torch.cat([s.advantages for s in sequences])),
        rewards=torch.tensor([s.reward or 0.0 for s in sequences]),
        bootstraps=torch.tensor([s.reward is None for s in sequences]),
        weights=of_trained(torch.tensor([float(s.weight) for s in sequences for _ in s.sampler_logprobs])),
        trained=trained,
        num_sequences=len(sequences),
    )


@dataclass(frozen=True)
class Batch:
    """A step's groups that carry gradient, and the counts of all its groups."""

    groups: tuple[TrainGroup, ...]
    counts: StepCounts

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the update's forward."""
        return sum(g.num_tokens for g in self.groups)

    def share(self, rank: int, count: int) -> Batch:
        """What one of several processes trains on: parts of about equally many tokens. The counts stay those of the whole."""
        by_size = sorted(self.groups, key=lambda g: -g.num_tokens)
        return Batch(self.groups if count == 1 else tuple(by_size[rank::count]), self.counts)

    def idle(self) -> MicroBatch:
        """For a process that has none left while others have: a sequence that nothing is learnt from."""
        group = self.groups[0]
        micro = lay_out([TrainGroup(group.prompt_ids, group.sequences[:1])])
        nothing = torch.zeros_like(micro.weights)
        return replace(micro, weights=nothing, loss_mask=nothing, trained=micro.trained[:0])

    def micro_batches(self, token_budget: int) -> Iterator[MicroBatch]:
        """Micro-batches of at most token_budget tokens. Each part goes into the first that has room, the largest parts first: at
        most about 11/9 as many as there must be (first-fit decreasing)."""
        rows: list[list[TrainGroup]] = []
        filled: list[int] = []
        parts = [part for group in self.groups for part in split_to_fit(group, token_budget)]
        for part in sorted(parts, key=lambda g: -g.num_tokens):
            i = next((i for i, n in enumerate(filled) if n + part.num_tokens <= token_budget), len(rows))
            if i == len(rows):
                rows.append([])
                filled.append(0)
            rows[i].append(part)
            filled[i] += part.num_tokens
        for row in rows:
            yield lay_out(sorted(row, key=lambda g: g.num_tokens / len(g.sequences)))


def split_to_fit(group: TrainGroup, token_budget: int) -> list[TrainGroup]:
    """A group larger than the budget becomes several, each with its prompt; the gradient is the same."""
    parts: list[TrainGroup] = []
    sequences: list[TrainSequence] = []
    for sequence in sorted(group.sequences, key=lambda s: len(s.token_ids)):
        alone = TrainGroup(group.prompt_ids, (sequence,))
        if alone.num_tokens > token_budget:
            raise UserError(
                f"token_budget is {token_budget}, smaller than one sequence of {alone.num_tokens} tokens: "
                "raise token_budget, or lower max_tokens"
            )
        if sequences and TrainGroup(group.prompt_ids, (*sequences, sequence)).num_tokens > token_budget:
            parts.append(TrainGroup(group.prompt_ids, tuple(sequences)))
            sequences = []
        sequences.append(sequence)
    return [*parts, TrainGroup(group.prompt_ids, tuple(sequences))]


def pack(
    groups: Sequence[RolloutGroup],
    rewards: Float[Tensor, "P G"],
    advantages: Sequence[Sequence[Tensor]],
    *,
    reduction: Reduction,
    max_tokens: int,
    drop_zero_advantages: bool,
    bootstrap_cut: bool = False,
) -> Batch:
    """Count over all graded completions, then keep those that carry gradient.

    advantages[i][j]: Float[T] of the completion j of group i. Completions without a value, or in which nothing is trained on, are in
    neither sum nor count.
    drop_zero_advantages: their policy terms are exactly zero; they may go where the loss has no other term.
    bootstrap_cut: completions that the token limit cut go on, as a critic says.
    """

    def trained_on(rollout: Rollout) -> tuple[bool, ...]:
        mask = rollout.completion.loss_mask
        return (*mask[:-1], False) if goes_on(rollout) else mask

    def goes_on(rollout: Rollout) -> bool:
        return bootstrap_cut and rollout.completion.finish_reason is FinishReason.LENGTH

    graded = [
        (
            group,
            [
                (r, reward, a[torch.tensor(mask)], mask)
                for r, reward, a in zip(group.rollouts, row.tolist(), of_group, strict=True)
                if r.is_graded and any(mask := trained_on(r))
            ],
        )
        for group, row, of_group in zip(groups, rewards, advantages, strict=True)
    ]
    lengths = [sum(mask) for _, rollouts in graded for *_, mask in rollouts]
    counts = StepCounts(num_tokens=sum(lengths), num_sequences=len(lengths), max_tokens=max_tokens)
    packed = []
    for group, rollouts in graded:
        kept = tuple(
            TrainSequence(
                token_ids=r.completion.token_ids,
                loss_mask=mask,
                sampler_logprobs=r.completion.sampler_logprobs[: sum(mask)],
                advantages=a,
                weight=reduction(sum(mask), counts),
                reward=None if goes_on(r) else reward,
                view=r.completion.view,
            )
            for r, reward, a, mask in rollouts
            if not drop_zero_advantages or bool(a.any())
        )
        if kept:
            packed.append(TrainGroup(group.prompt_ids, kept))
    return Batch(tuple(packed), counts)
