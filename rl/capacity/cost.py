"""What a step costs at least: floating-point operations and bytes, counted from shapes. Nothing here is measured.

A matrix product of m x k and k x n is 2 m k n operations. A weight matrix costs 2 a parameter and token forward, and twice
that backward: once for the gradient by its input, once by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from torch import nn
from transformers import PreTrainedModel

from rl.forward.micro_batch import TrainGroup
from rl.forward.shapes import head_size, heads, key_width
from rl.objective.names import CriticSource

FLOAT32 = 4  # bytes


def size(parameter: nn.Parameter) -> int:
    """Numbers in it; of one that is kept in 4 bits those that it stands for."""
    return prod((getattr(parameter, "quant_state", None) or parameter).shape)


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """block: parameters of the layers' matrices, N_b. head: those of the output layer, V H. attention: layers x width of
    the queries; key_value: numbers that a token's keys and values take in all layers."""

    block: int
    head: int
    attention: int
    key_value: int
    all_parameters: int

    @staticmethod
    def of(model: PreTrainedModel) -> ModelCost:
        config, embeddings = model.config.get_text_config(), (nn.Embedding,)
        head = model.get_output_embeddings()
        inner = [m for m in model.modules() if m is not head and not isinstance(m, embeddings)]
        matrices = {p for m in inner for p in m.parameters(recurse=False) if p.dim() > 1}
        return ModelCost(
            block=sum(map(size, matrices)),
            head=config.vocab_size * config.hidden_size,
            attention=config.num_hidden_layers * heads(config) * head_size(config),
            key_value=2 * config.num_hidden_layers * key_width(config),
            all_parameters=sum(map(size, model.parameters())),
        )


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Tokens that go through the layers, tokens that are scored, and pairs of a query and a key that it sees."""

    tokens: int
    scored: int
    pairs: float

    @staticmethod
    def of(groups: Sequence[TrainGroup], *, shared: bool = True) -> Workload:
        """p prompt tokens and completions of c: p + sum (c - 1) tokens, p^2/2 + sum (p c + c^2/2) pairs; not shared, the prompt
        counts once for each completion."""
        tokens, scored, pairs = 0, 0, 0.0
        for group in groups:
            p = len(group.prompt_ids)
            lengths = [len(s.token_ids) for s in group.sequences]
            prompts = 1 if shared else len(lengths)
            tokens += prompts * p + sum(c - 1 for c in lengths)  # the last token of a completion is no input
            scored += sum(sum(s.scored) for s in group.sequences)
            pairs += prompts * p * p / 2 + sum(p * c + c * c / 2 for c in lengths)
        return Workload(tokens=tokens, scored=scored, pairs=pairs)


def forward_flops(cost: ModelCost, work: Workload) -> float:
    """2 (N_b T + V H S) + 4 L H_q pairs: layers on every token, the output layer on scored ones, scores and their sum."""
    return 2 * (cost.block * work.tokens + cost.head * work.scored) + 4 * cost.attention * work.pairs


def update_flops(cost: ModelCost, work: Workload, *, frozen: bool = False) -> float:
    """Forward and backward: three times the forward; twice where the weights are frozen (LoRA), attention still three times."""
    by_weights = 2 * (cost.block * work.tokens + cost.head * work.scored)
    return 3 * forward_flops(cost, work) - (by_weights if frozen else 0)


def trunk_update_flops(cost: ModelCost, work: Workload, *, frozen: bool = False) -> float:
    """The same of a critic, whose output layer is one row: u N_b T + 12 L H_q pairs, u = 6 (frozen weights: 4)."""
    return update_flops(replace(cost, head=0), work, frozen=frozen)


def step_flops(
    cost: ModelCost,
    work: Workload,
    *,
    critic: CriticSource,
    has_reference: bool = False,
    needs_old_logprobs: bool = False,
    num_epochs: int = 1,
    frozen: bool = False,
    checkpointed: bool = False,
) -> dict[str, float]:
    """Of a step's whole update, by what is run. Prompts that are run twice because their group was split are counted once.

    needs_old_logprobs: a forward of the policy, and of a critic of its own, before the first update. checkpointed: layers are run
    again in the backward pass. A shared trunk whose values are not known beforehand runs the output layer again, 2 V H S:
    its advantages need all values before the loss.
    """
    trunk = replace(cost, head=0)
    again = forward_flops(trunk, work) if checkpointed else 0.0
    second_head = 2 * cost.head * work.scored if critic == "shared" and not needs_old_logprobs else 0.0
    critics = int(critic == "separate")
    return {
        "reference": has_reference * forward_flops(cost, work),
        "look ahead": needs_old_logprobs * (forward_flops(cost, work) + critics * forward_flops(trunk, work)),
        "forward/backward, policy": num_epochs * (update_flops(cost, work, frozen=frozen) + again) + second_head,
        "forward/backward, critic": critics * num_epochs * (trunk_update_flops(cost, work, frozen=frozen) + again),
    }


def optimizer_bytes(cost: ModelCost) -> float:
    """AdamW in float32 reads weight, gradient and two moments, and writes all but the gradient."""
    return 7 * FLOAT32 * cost.all_parameters


def decode_seconds(
    cost: ModelCost,
    prompt_lengths: Sequence[int],
    completion_lengths: Sequence[Sequence[int]],
    *,
    flops_per_second: float,
    bytes_per_second: float,
    bytes_per_number: int = FLOAT32,
) -> float:
    """The least time of decoding all rows together, prompts prefilled once a group, without a row that has ended.

    Each step reads the weights and the live keys and values (a prompt's once for its group), and computes 2 (N_b + V H) per
    live row and 4 L H_q per row and visible key; the slower of the two bounds it. Reading is bounded by memory, though what
    lies in a cache may come faster.
    """
    seconds = 0.0
    for step in range(max(max(lengths) for lengths in completion_lengths)):
        live = [sum(c > step for c in lengths) for lengths in completion_lengths]
        rows, own = sum(live), sum(n * (step + 1) for n in live)
        visible = own + sum(n * p for n, p in zip(live, prompt_lengths, strict=True))
        stored = own + sum(p for n, p in zip(live, prompt_lengths, strict=True) if n)
        flops = 2 * (cost.block + cost.head) * rows + 4 * cost.attention * visible
        moved = (cost.block + cost.head + cost.key_value * stored) * bytes_per_number
        seconds += max(flops / flops_per_second, moved / bytes_per_second)
    prefill = 2 * cost.block * sum(prompt_lengths) + 4 * cost.attention * sum(p * p / 2 for p in prompt_lengths)
    return seconds + prefill / flops_per_second


def key_value_bytes(
    cost: ModelCost, groups: int, rows: int, prompt_length: int, completion_length: int, width: int
) -> int:
    """2 L H_kv b (Q p + R c), for the rows that are decoded at once."""
    return width * cost.key_value * (groups * prompt_length + rows * completion_length)
