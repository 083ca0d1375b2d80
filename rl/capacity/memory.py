"""The memory of an update in closed form, for models of Llama's shape: each term is derived from shapes.

Symbols: L layers, H hidden, H_q and H_kv the width of all query and key heads, h query heads of D, I the MLP's inner width, V
the vocabulary; N_b, N as in rl/capacity/cost.py. rl/command/dry_run.py measures the same by running the update
without contents. rl/capacity/account.py adds up the memory of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from rl.capacity.cost import FLOAT32, ModelCost, Workload
from rl.forward.output_head import tokens_per_chunk
from rl.forward.shapes import head_size, heads, inner_width, key_width
from rl.settings.options import ALL_LINEAR


@dataclass(frozen=True, kw_only=True)
class UniformBatch:
    """A packed micro-batch of equal lengths: Q prompts of p tokens and R completions of c tokens, R / Q for each prompt."""

    prompts: int
    sequences: int
    prompt_length: int
    completion_length: int

    @property
    def tokens(self) -> int:
        """T = Q p + R (c - 1)"""
        return self.prompts * self.prompt_length + self.sequences * (self.completion_length - 1)

    @property
    def scored(self) -> int:
        """S = R c"""
        return self.sequences * self.completion_length

    @property
    def gathered(self) -> int:
        """K = Q p + R (p + c - 1): keys that attention gathers: a prompt's for itself and for each of its completions."""
        return self.tokens + self.sequences * self.prompt_length

    @property
    def mask(self) -> int:
        """M = Q p^2 + R (c - 1) (p + c - 1): entries of a dense mask."""
        own = self.completion_length - 1
        return self.prompts * self.prompt_length**2 + self.sequences * own * (self.prompt_length + own)

    @property
    def workload(self) -> Workload:
        """Pairs of a query and a key: p^2 / 2 for a prompt, p c + c^2 / 2 for a completion."""
        p, c = self.prompt_length, self.completion_length
        pairs = self.prompts * p * p / 2 + self.sequences * (p * c + c * c / 2)
        return Workload(tokens=self.tokens, scored=self.scored, pairs=pairs)


@dataclass(frozen=True, kw_only=True)
class MicroBatchPlan:
    """How a step of equal lengths is split into micro-batches.

    largest: the one with the most tokens. count: how many there are. whole: all of them as one.
    """

    largest: UniformBatch
    count: int
    whole: UniformBatch

    @staticmethod
    def of(
        problems: int, group_size: int, prompt_length: int, completion_length: int, token_budget: int
    ) -> MicroBatchPlan:
        """As many whole groups as fit the budget. A group that does not fit is split into parts that each repeat the prompt: parts of the
        largest size, one per micro-batch, and the remainders, several per micro-batch."""
        own = completion_length - 1
        lengths = {"prompt_length": prompt_length, "completion_length": completion_length}
        # (sequences per part, number of parts)
        most = min(group_size, (token_budget - prompt_length) // own)
        kinds = [(most, problems * (group_size // most)), (group_size % most, problems)]
        rows, count, prompts = [], 0, 0
        for sequences, parts in (kind for kind in kinds if kind[0]):
            together = min(parts, token_budget // (prompt_length + sequences * own))
            rows.append(UniformBatch(prompts=together, sequences=together * sequences, **lengths))
            count, prompts = count - (-parts // together), prompts + parts
        largest = max(rows, key=lambda row: row.tokens)
        whole = UniformBatch(prompts=prompts, sequences=problems * group_size, **lengths)
        return MicroBatchPlan(largest=largest, count=count, whole=whole)


@dataclass(frozen=True, kw_only=True)
class TrainedTrunk:
    """Bytes that a forward and backward of a model of Llama's shape hold. b is 4, or 2 under bfloat16 autocast.

    adapters: parameters of the LoRA adapters, 0 where all weights are trained. base_rounded: the frozen weights are stored in 16 or 4
    bits, so that autocast copies none of them; head_rounded: the same for the output layer. float32_head: the output layer's factors are
    in float32, so that there are no copies of it. gradient_width: bytes of a gradient's number.
    has_head: False for a critic. two_passes: the output layer runs twice (rl/forward/output_head.py).
    """

    cost: ModelCost
    config: PretrainedConfig
    is_bfloat16: bool
    checkpointed: bool
    dense: bool
    lora_rank: int = 0
    adapters: int = 0
    base_rounded: bool = False
    head_rounded: bool = False
    float32_head: bool = False
    gradient_width: int = FLOAT32
    device: str = "cuda"
    has_head: bool = True
    two_passes: bool = False

    @property
    def trained(self) -> int:
        """n, the number of trained parameters: the adapters, or all (a critic has no output layer of its own)."""
        if self.lora_rank:
            return self.adapters
        return self.cost.all_parameters - (0 if self.has_head or self.is_tied else self.cost.head)

    @property
    def is_tied(self) -> bool:
        return bool(getattr(self.config, "tie_word_embeddings", True))

    def layer(self, row: UniformBatch) -> int:
        """Activations that one layer keeps for its backward. With h heads, h D = H_q wide, H_kv of the keys:

        float32: 4 (T (6 H + 3 H_q + 4 I + h + 2) + 2 K H_kv + M). Each norm keeps its input and the normalised; q, k, v and
        gate, up read its output (6 H); attention its gathered queries, keys and values, output and that in the row's order
        (3 H_q + 2 K H_kv), a number a head, and the mask, if it is dense (M); the MLP both branches, one activated, their
        product (4 I).
        bfloat16: 2 (T (5 H + 3 H_q + 4 I) + 2 K H_kv + M) + 4 T (4 H + h + 2): norms stay in float32, and each of the five
        products that read them casts by itself.
        LoRA: 2 H less, as no norm is trained, and 7 r b T more, between A and B.
        """
        c = self.config
        tokens, hidden, queries = row.tokens, c.hidden_size, heads(c) * head_size(c)
        norms = 2 * hidden if self.lora_rank else 4 * hidden
        in_products = 3 * queries + 4 * inner_width(c) + 7 * self.lora_rank
        in_products += 5 * hidden if self.is_bfloat16 else 2 * hidden
        by_keys = 2 * row.gathered * key_width(c) + (row.mask if self.dense else 0)
        in_float32 = tokens * (norms + heads(c) + 2)
        return FLOAT32 * in_float32 + self.width * (tokens * in_products + by_keys)

    @property
    def width(self) -> int:
        return 2 if self.is_bfloat16 else FLOAT32

    def kept(self, row: UniformBatch) -> int:
        """Activations of all layers, or 4 L T H, their inputs, where they are checkpointed; then 4 ((2 H + 2 D) T + H S): the last norm, the
        rotary tables, the hidden states that are scored. Under autocast also its copies of the weights, 2 N_b, and 2 V H for a trained
        output layer; those of one layer, 2 N_b / L, where weights are frozen and layers checkpointed; none of weights stored in 16 bits."""
        c, layers = self.config, self.config.num_hidden_layers
        inner = layers * (FLOAT32 * row.tokens * c.hidden_size if self.checkpointed else self.layer(row))
        last_norm = c.hidden_size * (1 if self.lora_rank else 2)
        rest = row.tokens * (last_norm + 2 * head_size(c)) + row.scored * c.hidden_size
        # Autocast keeps the casts of trained weights; those of frozen ones stay with the layer whose backward needs them.
        cast = self.cost.block // layers if self.lora_rank and self.checkpointed else self.cost.block
        cast = 0 if self.base_rounded else cast
        head = self.cost.head if self.has_head and not self.lora_rank and not self.float32_head else 0
        casts = self.width * (cast + self.adapters + head) if self.is_bfloat16 else 0
        return inner + FLOAT32 * rest + casts

    def head(self, row: UniformBatch) -> dict[str, int]:
        """A chunk of t tokens: logits, probabilities and their product, 12 t V; 16 t V where a second pass differentiates by the
        entropy too. Gradients: 4 V H of the weight, if trained, 4 S H of the states. Under autocast a copy of a frozen weight, or
        a trained one's gradient by one chunk, 2 V H; a GPU adds that up in place."""
        if not self.has_head:
            return {"chunk": 0, "gradient": FLOAT32 * row.scored * self.config.hidden_size}
        vocab = self.config.vocab_size
        tokens = min(row.scored, tokens_per_chunk(vocab, torch.device(self.device)))
        trained = 0 if self.lora_rank else self.cost.head
        chunk, copy = (4 if self.two_passes else 3) * FLOAT32 * tokens * vocab, 0
        if self.is_bfloat16 and not self.float32_head:
            copy = 2 * self.cost.head if self.lora_rank and not self.head_rounded else 0
            chunk = max(chunk, 10 * tokens * vocab + (0 if self.device == "cuda" else 2 * trained))
        return {"chunk": chunk + copy, "gradient": FLOAT32 * (trained + row.scored * self.config.hidden_size)}

    @property
    def outside(self) -> int:
        """Numbers outside of the layers."""
        return self.cost.all_parameters - self.cost.block

    def peak(self, row: UniformBatch, *, is_first: bool, sharded: bool = False) -> int:
        """Peak beyond the weights and, unless is_first, the gradients of all n that exist before: the largest of

        the head:      kept + chunk + its gradients
        its backward:  kept + its gradients + 2 b T I: the MLP's product and branches have gradients before they are freed
        the last:      gradients, of n if is_first, and those of embedding and head, 4 V H each, before they are added up

        Where weights are sharded, those outside of the layers are gathered, and two layers in the forward; in the backward three
        layers, one of them a gradient.
        """
        kept, head = self.kept(row), self.head(row)
        of_mlp = 2 * self.width * row.tokens * inner_width(self.config)
        again = self.layer(row) if self.checkpointed else 0
        embedding = 0 if self.lora_rank else FLOAT32 * self.cost.head
        waiting = embedding if self.has_head and self.is_tied else 0
        last = self.gradient_width * self.trained + waiting if is_first else embedding + waiting
        layer = self.cost.block // self.config.num_hidden_layers
        forward, backward = (sharded * FLOAT32 * (self.outside + n * layer) for n in (2, 3))
        return max(
            kept + sum(head.values()) + forward, kept + head["gradient"] + again + of_mlp + backward, last + backward
        )


def adapter_numbers(model: PreTrainedModel, rank: int, targets: Sequence[str] = (ALL_LINEAR,)) -> int:
    """Parameters of LoRA adapters, sum of r (in + out) over the linear layers whose names end with a target, or all but the output layer."""
    head, everywhere = model.get_output_embeddings(), tuple(targets) == (ALL_LINEAR,)
    ends = tuple(f".{target}" for target in targets)
    linear = [
        m
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) and m is not head and (everywhere or f".{name}".endswith(ends))
    ]
    return sum(rank * (m.in_features + m.out_features) for m in linear)
