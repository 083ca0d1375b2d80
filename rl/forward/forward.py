"""The forwards that score a micro-batch's completions under a model; the packed one runs each prompt once, without padding or logits.

The model's own layers run on the packed row of rl/forward/layouts.py, with the attention of rl/forward/packed_attention.py and the
output layer of rl/forward/output_head.py. Models whose layers cannot run on a packed row use a padded forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rewards.errors import UserError
from rl.forward.fused import fused
from rl.forward.layouts import PackedRow, PaddedRows, packed_tokens, padded_tokens
from rl.forward.micro_batch import MicroBatch, TrainGroup
from rl.forward.output_head import AnyHead, OutputHead
from rl.forward.packed_attention import PACKED, Kernel, dense, flash, varlen
from rl.objective.tokens import TokenScores
from rollout.attention import attention_implementation

Attention = Literal["auto", "dense", "varlen", "flash"]


def enable_gradient_checkpointing(model: PreTrainedModel, *, fuses: bool = False) -> None:
    """Makes the backward pass recompute each layer, exactly as the forward computed it. fuses: see Forward."""
    if not model.supports_gradient_checkpointing:
        raise UserError(
            f"gradient_checkpointing is True: transformers cannot recompute the layers of {type(model).__name__}; set it to False "
            "and lower token_budget if memory is short"
        )
    model.gradient_checkpointing_enable()
    layers: list[Any] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.training = True  # transformers does not checkpoint a layer in eval mode
        layer._gradient_checkpointing_func = partial(_checkpointed, model, layer, fuses)


def _checkpointed(model: PreTrainedModel, layer: nn.Module, fuses: bool, run: Callable[..., Any], *args: Any) -> Any:
    """run(*args), the layer's own forward, checkpointed; the backward pass recomputes it with the attention function of this call."""
    attention: Any = model.config._attn_implementation

    def in_eval_mode(*args: Any) -> Any:
        layer.training = False  # layers such as OPT's apply dropout if this flag is set
        try:
            return run(*args)
        finally:
            layer.training = True

    @contextmanager
    def same_functions() -> Iterator[None]:
        with attention_implementation(model, attention), fused(model) if fuses else nullcontext():
            yield

    return checkpoint(in_eval_mode, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), same_functions()))


def packed_states(model: PreTrainedModel, row: PackedRow, kernel: Kernel = dense) -> Float[Tensor, "S H"]:
    """The last hidden state before each scored token, from one run of the packed row."""
    with attention_implementation(model, PACKED):
        out = _decoder(model)(
            input_ids=row.input_ids[None],
            position_ids=row.position_ids[None],
            use_cache=False,
            row=row,
            kernel=kernel,
        )
    return out.last_hidden_state[0].index_select(0, row.score_from)


def padded_states(model: PreTrainedModel, rows: PaddedRows) -> Float[Tensor, "S H"]:
    """As packed_states, from whole sequences padded on the right, where causal models do not see the padding."""
    states = _decoder(model)(input_ids=rows.input_ids, use_cache=False).last_hidden_state
    return states.flatten(0, 1).index_select(0, rows.score_from)


def padded_logits(model: PreTrainedModel, rows: PaddedRows) -> Float[Tensor, "S V"]:
    """The logits before each scored token, from the model's own forward."""
    logits = model(input_ids=rows.input_ids, use_cache=False).logits
    return logits.flatten(0, 1).index_select(0, rows.score_from)


def _decoder(model: PreTrainedModel) -> nn.Module:
    decoder = model.get_decoder()
    assert isinstance(decoder, nn.Module)
    return decoder


@dataclass(frozen=True, kw_only=True)
class Forward:
    """One way to score the sampled tokens of a micro-batch under a model.

    name: describes the forward in logs and reports. lay_out: groups -> the tensors that `states` reads. num_tokens: groups -> the
    number of tokens that their layout costs, for the token budget. states: the model and a layout -> the hidden state before each
    scored token, [S, H]; or the logits, [S, V], with gives_logits. fuses: norms and gates are those of rl/forward/fused.py, also when
    gradient checkpointing recomputes a layer.
    """

    name: str
    lay_out: Callable[[Sequence[TrainGroup]], Any]
    num_tokens: Callable[[Sequence[TrainGroup]], int]
    states: Callable[[PreTrainedModel, Any], Tensor]
    gives_logits: bool = False
    fuses: bool = False

    def hidden_states(self, model: PreTrainedModel, micro: MicroBatch) -> Tensor:
        """The hidden state before each scored token of a micro-batch, [S, H]; or the logits, [S, V], with gives_logits."""
        return self.states(model, micro.laid_out(self.lay_out))

    def head(self, model: PreTrainedModel) -> OutputHead | AnyHead:
        """The output layer, which computes log-probs, entropies and the loss from `hidden_states`."""
        if self.gives_logits:
            return AnyHead(nn.Identity())
        plain = OutputHead.of(model)
        if plain is not None:
            return plain
        layer = model.get_output_embeddings()
        assert layer is not None
        return AnyHead(layer)

    def score(self, model: PreTrainedModel, micro: MicroBatch, temperature: float) -> TokenScores:
        """log softmax(z / temperature) of each scored token and the entropy of that distribution; float32, with gradients."""
        return self.head(model).score(self.hidden_states(model, micro), micro.targets, temperature)


PACKED_ROW: dict[str, Any] = {"lay_out": PackedRow.of, "num_tokens": packed_tokens}
PADDED_ROWS: dict[str, Any] = {"lay_out": PaddedRows.of, "num_tokens": padded_tokens}

packed_forward = Forward(name="packed rows, dense attention", states=packed_states, **PACKED_ROW)
varlen_forward = Forward(
    name="packed rows, ragged attention by torch (varlen)", states=partial(packed_states, kernel=varlen), **PACKED_ROW
)
flash_forward = Forward(
    name="packed rows, ragged attention by flash-attn", states=partial(packed_states, kernel=flash), **PACKED_ROW
)
padded_forward = Forward(name="padded rows, each with its own copy of the prompt", states=padded_states, **PADDED_ROWS)
plain_forward = Forward(
    name="padded rows, the model's own forward with logits",
    states=padded_logits,
    gives_logits=True,
    **PADDED_ROWS,
)


def in_fused(forward: Forward) -> Forward:
    """The forward with the model's norms and gates fused (rl/forward/fused.py)."""

    def states(model: PreTrainedModel, layout: Any) -> Tensor:
        with fused(model):
            return forward.states(model, layout)

    return replace(forward, states=states, name=f"{forward.name}, norms and gates fused", fuses=True)
