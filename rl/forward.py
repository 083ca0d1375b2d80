"""The one forward: what a micro-batch's completions score under a model, without padding, without logits, each prompt run once.

Every layer but attention works on the packed row of rl/batch.py as it is; attention is rl/packed_attention.py's, the output layer
rl/head.py's. A model whose attention is something else takes a padded forward.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rewards.errors import UserError
from rl.batch import MicroBatch, TrainGroup, TrainSequence, lay_out
from rl.head import (
    LossOf,
    OutputHead,
    TokenScores,
    ValueHead,
    loss_in_one_pass,
    score_by_autograd,
    score_in_two_passes,
)
from rl.packed_attention import PACKED, Kernel, dense, varlen
from rollout.attention import (
    BFLOAT16_ROUNDING,
    FLOAT32_ROUNDING,
    attention_implementation,
    has_only_attention_layers,
    narrow_windows,
)

log = logging.getLogger(__name__)

Attention = Literal["auto", "dense", "varlen"]


def enable_gradient_checkpointing(model: PreTrainedModel) -> None:
    """Layers run once more in the backward pass, by the same attention function as in the forward."""
    model.gradient_checkpointing_enable(
        {
            "use_reentrant": False,
            "context_fn": lambda: (nullcontext(), attention_implementation(model, PACKED)),
        }
    )
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True  # the condition to checkpoint; its children stay in eval mode: no dropout


def packed_states(model: PreTrainedModel, micro: MicroBatch, kernel: Kernel = dense) -> Float[Tensor, "S H"]:
    """The last hidden state before each target, every token of the row run once."""
    with attention_implementation(model, PACKED):
        out = _decoder(model)(
            input_ids=micro.input_ids[None],
            position_ids=micro.position_ids[None],
            use_cache=False,
            micro=micro,
            kernel=kernel,
        )
    return out.last_hidden_state[0].index_select(0, micro.score_from)


def padded_states(model: PreTrainedModel, micro: MicroBatch) -> Float[Tensor, "S H"]:
    """The same by whole sequences, padded on the right, which no causal model can see."""
    states = _decoder(model)(input_ids=micro.input_ids[micro.contexts], use_cache=False).last_hidden_state
    return states.flatten(0, 1).index_select(0, micro.score_from_padded)


def padded_logits(model: PreTrainedModel, micro: MicroBatch) -> Float[Tensor, "S V"]:
    """The model's own forward to the end."""
    logits = model(input_ids=micro.input_ids[micro.contexts], use_cache=False).logits
    return logits.flatten(0, 1).index_select(0, micro.score_from_padded)


def _decoder(model: PreTrainedModel) -> nn.Module:
    decoder = model.get_decoder()
    assert isinstance(decoder, nn.Module)
    return decoder


@dataclass(frozen=True)
class Forward:
    """How a model scores tokens. `states` come before the output layer; where it gives the logits, there is none left."""

    states: Callable[[PreTrainedModel, MicroBatch], Tensor]
    gives_logits: bool = False

    def __call__(
        self, model: PreTrainedModel, micro: MicroBatch, temperature: float, value: ValueHead | None = None
    ) -> TokenScores:
        """log softmax(z / temperature) of each target, the entropy of that distribution, the value; float32, with gradients."""
        states, head = self.states(model, micro), self._head(model, value)
        if isinstance(head, OutputHead):
            return score_in_two_passes(head, states, micro.targets, temperature)
        scores = score_by_autograd(head, states, micro.targets, temperature)
        return scores if value is None else scores._replace(values=value(states))

    def loss(
        self,
        model: PreTrainedModel,
        micro: MicroBatch,
        temperature: float,
        loss_of: LossOf,
        *,
        token_level: bool,
        value: ValueHead | None = None,
    ) -> tuple[Float[Tensor, ""], TokenScores]:
        """(loss, scores without gradient). token_level: the loss of a token depends on no other token's scores."""
        head = self._head(model, value)
        if token_level and isinstance(head, OutputHead):
            return loss_in_one_pass(head, self.states(model, micro), micro.targets, temperature, loss_of)
        scores = self(model, micro, temperature, value)
        return loss_of(scores, slice(None)), scores.detach()

    def _head(self, model: PreTrainedModel, value: ValueHead | None) -> OutputHead | Callable[[Tensor], Tensor]:
        if self.gives_logits:
            return nn.Identity()
        plain = OutputHead.of(model)
        if plain is not None:
            return replace(plain, value=value)
        layer = model.get_output_embeddings()
        assert layer is not None
        return layer


packed_forward = Forward(packed_states)
varlen_forward = Forward(partial(packed_states, kernel=varlen))
padded_forward = Forward(padded_states)
plain_forward = Forward(padded_logits, gives_logits=True)


@torch.no_grad()
def choose_forward(model: PreTrainedModel, attention: Attention = "auto") -> Forward:
    """The fastest that gives this model's own log-probs, in the precision of the context it is called in. Padding is said once.

    It is tried rather than looked up: families differ in soft-caps, logit scales and attention sinks.
    """
    micro = _example(model.config.get_text_config().vocab_size).to(model.device)
    if has_only_attention_layers(model):
        if attention != "dense" and model.device.type == "cuda" and _agrees(varlen_forward, model, micro):
            return varlen_forward
        if attention == "varlen":
            raise UserError(
                f"attention is 'varlen': torch {torch.__version__} has no such kernel for this model on {model.device.type} in "
                "this precision (it needs a GPU and --dtype bfloat16); use auto or dense"
            )
        if _agrees(packed_forward, model, micro):
            return packed_forward
    log.warning("%s takes the padded forward: its attention is not the plain one", type(model).__name__)
    return padded_forward if _agrees(padded_forward, model, micro) else plain_forward


def _agrees(forward: Forward, model: PreTrainedModel, micro: MicroBatch) -> bool:
    """Also with sliding windows narrower than the example, however wide the model's are."""
    exact = model.dtype == torch.float32 and not torch.is_autocast_enabled(model.device.type)
    tolerance = FLOAT32_ROUNDING if exact else BFLOAT16_ROUNDING
    for window in (nullcontext(), narrow_windows(model, 3)):
        with window:
            expected = plain_forward(model, micro, 1.0).logprobs
            try:
                found = forward(model, micro, 1.0).logprobs
            except (TypeError, AttributeError, RuntimeError, ImportError) as error:
                # It does not hand on our arguments, has no separate decoder, or the device lacks the kernel.
                log.info("%s: %s", type(model).__name__, error)
                return False
        if not (found - expected).abs().max() < tolerance:
            return False
    return True


def _example(vocab_size: int) -> MicroBatch:
    """Two groups of ragged lengths, any tokens."""

    def sequence(start: int, length: int) -> TrainSequence:
        return TrainSequence.to_score([(start + 7 * i) % vocab_size for i in range(length)])

    prompts = [tuple((3 * i + n) % vocab_size for i in range(n)) for n in (3, 5)]
    return lay_out([TrainGroup(p, (sequence(len(p), 4), sequence(2, 2))) for p in prompts])
