"""Lower bounds of a step's cost: floating-point operations and bytes, derived from shapes. Nothing here is measured.

A matrix product of m x k and k x n is 2 m k n operations. A weight matrix costs 2 a parameter and token forward, and twice
that backward: once for the gradient of its input, once for its own.
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
    """Number of elements; of a parameter packed in 4 bits, those of the unpacked one."""
    return prod((getattr(parameter, "quant_state", None) or parameter).shape)


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """Sizes of a model that its cost depends on. block: parameters of the layers' matrices, N_b. head: those of the output layer, V H.
    attention: layers x width of the queries. key_value: numbers in the keys and values of one token, all layers."""

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
    """tokens: tokens that run through the layers. scored: tokens that get a log-prob. pairs: pairs of a query and a key that it attends to."""

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
    """Forward and backward of a critic, whose output layer is one row: u N_b T + 12 L H_q pairs, u = 6 (frozen weights: 4)."""
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
    kl_in_reward: bool = False,
    critic_updates: int = 1,
    trains_policy: bool = True,
    prefers: bool = False,
) -> dict[str, float]:
    """Operations of a step's update, by pass. Prompts that run twice because their group was split are counted once.

    needs_old_logprobs: the policy, and a critic with its own trunk, run forward before the first update. checkpointed: layers run
    again in the backward pass. kl_in_reward: a shared trunk whose old log-probs are not known yet then applies the output layer twice,
    2 V H S more: its rewards need them before the loss. critic_updates: updates of a critic with its own trunk for each of the
    policy's. trains_policy: False while the critic is warmed up, where the policy runs forward only. prefers: DPO's
    coefficients are computed before each update.
    """
    trunk = replace(cost, head=0)
    again = forward_flops(trunk, work) if checkpointed else 0.0
    applies_head_twice = critic == "shared" and kl_in_reward and trains_policy and not needs_old_logprobs
    second_head = 2 * cost.head * work.scored * applies_head_twice
    critics = int(critic == "separate")
    policy_pass = update_flops(cost, work, frozen=frozen) + again if trains_policy else forward_flops(cost, work)
    critic_pass = trunk_update_flops(cost, work, frozen=frozen) + again
    return {
        "reference": has_reference * forward_flops(cost, work),
        "look ahead": needs_old_logprobs * (forward_flops(cost, work) + critics * forward_flops(trunk, work)),
        "preferences": prefers * num_epochs * forward_flops(cost, work),
        "forward/backward, policy": num_epochs * policy_pass + second_head,
        "forward/backward, critic": critics * num_epochs * critic_updates * critic_pass,
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
    """Lower bound of the seconds to decode all rows as one batch, which ended rows leave, with each prompt prefilled once per group.

    Each step reads the weights and the live keys and values (a prompt's once for its group), and computes 2 (N_b + V H) per
    live row and 4 L H_q per row and visible key; the slower of the two is the bound. Data that
    already lies in a processor cache may be read faster.
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
    """Bytes of the key-value cache, 2 L H_kv b (Q p + R c), of the rows that are decoded at once. width: b, bytes of a number."""
    return width * cost.key_value * (groups * prompt_length + rows * completion_length)
