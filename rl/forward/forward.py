"""The one forward: log-probs of a micro-batch's completions under a model, without padding, without logits, each prompt run once.

Every layer but attention works on the packed row of rl/forward/layouts.py as it is; attention is rl/forward/packed_attention.py's, the output layer
rl/forward/output_head.py's. A model whose attention is something else takes a padded forward.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rewards.errors import UserError
from rl.forward.fused import Fused, fused, kernel_errors, why_not_fused
from rl.forward.layouts import PackedRow, PaddedRows, packed_tokens, padded_tokens
from rl.forward.micro_batch import MicroBatch, TrainGroup, TrainSequence
from rl.forward.output_head import AnyHead, OutputHead
from rl.forward.packed_attention import PACKED, Kernel, dense, fastest, flash, flash_package, varlen
from rl.objective.tokens import TokenScores
from rollout.attention import attention_implementation, has_only_attention_layers, narrow_windows
from rollout.rounding import bound_of, float32_difference, in_float32, mean_difference, rounding_noise

log = logging.getLogger(__name__)

Attention = Literal["auto", "dense", "varlen", "flash"]


def enable_gradient_checkpointing(model: PreTrainedModel, *, fuses: bool = False) -> None:
    """Layers are run once more in the backward pass, exactly as the forward ran them. fuses: as Forward has it."""
    if not model.supports_gradient_checkpointing:
        raise UserError(
            f"gradient_checkpointing is True: transformers cannot run the layers of {type(model).__name__} twice; set it to False "
            "and lower token_budget if memory is short"
        )
    model.gradient_checkpointing_enable()
    layers: list[Any] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.training = True  # transformers checkpoints no layer in eval mode
        layer._gradient_checkpointing_func = partial(_checkpointed, model, layer, fuses)


def _checkpointed(model: PreTrainedModel, layer: nn.Module, fuses: bool, run: Callable[..., Any], *args: Any) -> Any:
    """run(*args), which is the layer's own forward; in the backward pass with the attention function that the model has now."""
    attention: Any = model.config._attn_implementation

    def in_eval_mode(*args: Any) -> Any:
        layer.training = False  # layers such as OPT's call dropout by their own flag
        try:
            return run(*args)
        finally:
            layer.training = True

    @contextmanager
    def as_now() -> Iterator[None]:
        with attention_implementation(model, attention), fused(model) if fuses else nullcontext():
            yield

    return checkpoint(in_eval_mode, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), as_now()))


def packed_states(model: PreTrainedModel, row: PackedRow, kernel: Kernel = dense) -> Float[Tensor, "S H"]:
    """The last hidden state before each scored token; every token of the row is run once."""
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
    """The same from whole sequences, padded on the right, which no causal model reads."""
    states = _decoder(model)(input_ids=rows.input_ids, use_cache=False).last_hidden_state
    return states.flatten(0, 1).index_select(0, rows.score_from)


def padded_logits(model: PreTrainedModel, rows: PaddedRows) -> Float[Tensor, "S V"]:
    """The logits before each scored token, by the model's own forward."""
    logits = model(input_ids=rows.input_ids, use_cache=False).logits
    return logits.flatten(0, 1).index_select(0, rows.score_from)


def _decoder(model: PreTrainedModel) -> nn.Module:
    decoder = model.get_decoder()
    assert isinstance(decoder, nn.Module)
    return decoder


@dataclass(frozen=True, kw_only=True)
class Forward:
    """One way to score the sampled tokens of a micro-batch under a model.

    lay_out: groups -> the tensors that `states` reads. num_tokens: what groups laid out together cost, for the token budget.
    states: the hidden state before each scored token, [S, H]; or the logits, [S, V], where `gives_logits`.
    name: for people to read. fuses: the model's norms and gates are those of rl/forward/fused.py, also where a layer runs again.
    """

    name: str
    lay_out: Callable[[Sequence[TrainGroup]], Any]
    num_tokens: Callable[[Sequence[TrainGroup]], int]
    states: Callable[[PreTrainedModel, Any], Tensor]
    gives_logits: bool = False
    fuses: bool = False

    def hidden_states(self, model: PreTrainedModel, micro: MicroBatch) -> Tensor:
        """`states` of a micro-batch."""
        return self.states(model, micro.laid_out(self.lay_out))

    def head(self, model: PreTrainedModel) -> OutputHead | AnyHead:
        """The output layer over `states`: log-probs, entropies, loss."""
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
RAGGED = {"varlen": (varlen, varlen_forward), "flash": (flash, flash_forward)}
padded_forward = Forward(name="padded rows, each with its own copy of the prompt", states=padded_states, **PADDED_ROWS)
plain_forward = Forward(
    name="padded rows by the model's own forward, logits and all",
    states=padded_logits,
    gives_logits=True,
    **PADDED_ROWS,
)


@dataclass(frozen=True)
class ForwardChoice:
    """passed_over: the faster ways that this model cannot take here, each with the reason."""

    forward: Forward
    passed_over: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "; ".join([self.forward.name, *self.passed_over])


def choose_forward(model: PreTrainedModel, attention: Attention = "auto") -> Forward:
    return explain_forward(model, attention).forward


@torch.no_grad()
def explain_forward(model: PreTrainedModel, attention: Attention = "auto") -> ForwardChoice:
    """The fastest that gives this model's own log-probs, in the precision of the context it is called in.

    It is tried rather than looked up: families differ in soft-caps, logit scales and attention sinks. Whether a forward is the
    model's is asked in float32, where rounding hides nothing; a kernel that has 16 bits only is held against what these
    explain (rollout/rounding.py).
    """
    micro, passed_over = _example(model.config.get_text_config().vocab_size).to(model.device), list[str]()
    if not has_only_attention_layers(model):
        passed_over.append("not packed: some layers are no plain attention")
    else:
        reasons = {name: _why_not_ragged(name, model, micro) for name in RAGGED if attention in ("auto", name)}
        ragged = {name: RAGGED[name][0] for name, reason in reasons.items() if reason is None}
        passed_over += [f"not {name}: {reason}" for name, reason in reasons.items() if reason is not None]
        if ragged:
            return ForwardChoice(RAGGED[fastest(ragged, model)][1], tuple(passed_over))
        if attention in RAGGED:
            raise UserError(f"attention is {attention!r}: {reasons[attention]}; use auto or dense")
        reason = _difference(packed_forward, model, micro)
        if reason is None:
            return ForwardChoice(packed_forward, tuple(passed_over))
        passed_over.append(f"not packed: {reason}")
    log.warning("%s takes the padded forward: %s", type(model).__name__, passed_over[-1])
    reason = _difference(padded_forward, model, micro)
    if reason is None:
        return ForwardChoice(padded_forward, tuple(passed_over))
    return ForwardChoice(plain_forward, (*passed_over, f"not without logits: {reason}"))


@torch.no_grad()
def fuse(choice: ForwardChoice, model: PreTrainedModel, wanted: Fused = "auto") -> ForwardChoice:
    """The same with elementwise work fused (rl/forward/fused.py), on a GPU, where that gives this model's own log-probs."""
    if wanted == "none" or model.device.type != "cuda":
        return choice
    reason = why_not_fused(model) or _why_not_the_same(choice.forward, model)
    if reason is not None:
        return replace(choice, passed_over=(*choice.passed_over, f"norms and gates not fused: {reason}"))
    return replace(choice, forward=in_fused(choice.forward))


def in_fused(forward: Forward) -> Forward:
    def states(model: PreTrainedModel, layout: Any) -> Tensor:
        with fused(model):
            return forward.states(model, layout)

    return replace(forward, states=states, name=f"{forward.name}, norms and gates fused", fuses=True)


def _why_not_the_same(forward: Forward, model: PreTrainedModel) -> str | None:
    """Attention aside, which some kernels have in 16 bits only, in float32; and all of it as it will be run."""
    micro = _example(model.config.get_text_config().vocab_size).to(model.device)
    reason = _difference(in_fused(packed_forward), model, micro)
    if reason is None and torch.is_autocast_enabled(model.device.type):
        reason = _what_rounding_does_not_explain(in_fused(forward), model, micro)
    if reason is not None:
        return reason
    exact, found = (_gradient_of_a_norm(f, model, micro) for f in (packed_forward, in_fused(packed_forward)))
    share = ((found - exact).norm() / exact.norm()).item()
    return None if share < 1e-3 else f"the gradient of its first norm is off by {share:.2g} of its length"


def _gradient_of_a_norm(forward: Forward, model: PreTrainedModel, micro: MicroBatch) -> Tensor:
    """Of the first layer's, through all that come after it, in float32."""
    weight = next(p for name, p in model.named_parameters() if name.endswith("input_layernorm.weight"))
    trained = weight.requires_grad
    weight.requires_grad_()
    with torch.enable_grad(), in_float32(model):
        (gradient,) = torch.autograd.grad(forward.score(model, micro, 1.0).logprobs.sum(), weight)
    weight.requires_grad_(trained)
    return gradient


def _why_not_ragged(name: str, model: PreTrainedModel, micro: MicroBatch) -> str | None:
    if name == "flash" and flash_package(model.device) is None:
        return "the package flash-attn is not installed (pip install 'plumbline-rl[flash]')"
    if model.device.type != "cuda":
        return f"it needs a GPU, and this is {model.device.type}"
    if not torch.is_autocast_enabled("cuda") and model.dtype != torch.bfloat16:
        return "it needs --dtype bfloat16"
    return _what_rounding_does_not_explain(RAGGED[name][1], model, micro)


def _difference(forward: Forward, model: PreTrainedModel, micro: MicroBatch) -> str | None:
    """Why `forward` is not the model's, in float32; None where it is. Also with sliding windows narrower than the example, however
    wide the model's are."""
    for window in (nullcontext(), narrow_windows(model, 3)):
        with window, in_float32(model):
            found = _logprobs(forward, model, micro)
            if isinstance(found, str):
                return found
            reason = float32_difference(found, plain_forward.score(model, micro, 1.0).logprobs)
        if reason is not None:
            return reason
    return None


def _what_rounding_does_not_explain(forward: Forward, model: PreTrainedModel, micro: MicroBatch) -> str | None:
    """The same of a forward that is there in 16 bits only."""
    for window in (nullcontext(), narrow_windows(model, 3)):
        with window:
            exact, noise = rounding_noise(lambda: plain_forward.score(model, micro, 1.0).logprobs, model)
            found = _logprobs(forward, model, micro)
        if isinstance(found, str):
            return found
        error = mean_difference(found, exact)
        if not error < bound_of(noise):
            return f"its log-probs are off by {error:.2g} on average, the model's own in 16 bits by {noise:.2g}"
    return None


def _logprobs(forward: Forward, model: PreTrainedModel, micro: MicroBatch) -> Tensor | str:
    """Or why there are none: it does not hand on our arguments, has no separate decoder, or the device lacks the kernel."""
    try:
        return forward.score(model, micro, 1.0).logprobs
    except (TypeError, AttributeError, RuntimeError, ImportError, *kernel_errors()) as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _example(vocab_size: int) -> MicroBatch:
    """Two groups of ragged lengths, any tokens: enough of them for a mean."""

    def sequence(start: int, length: int) -> TrainSequence:
        return TrainSequence.to_score([(start + 7 * i) % vocab_size for i in range(length)])

    prompts = [tuple((3 * i + n) % vocab_size for i in range(n)) for n in (3, 9)]
    return MicroBatch.of([TrainGroup(p, (sequence(len(p), 24), sequence(2, 2), sequence(5, 13))) for p in prompts])
