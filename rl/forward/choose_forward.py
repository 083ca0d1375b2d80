"""Selects the forward of a model on its device: the fastest one that reproduces the model's own log-probs, found by trial."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rewards.errors import UserError
from rl.forward.forward import (
    Attention,
    Forward,
    flash_forward,
    in_fused,
    packed_forward,
    padded_forward,
    plain_forward,
    varlen_forward,
)
from rl.forward.fused import Fused, kernel_errors, why_not_fused
from rl.forward.micro_batch import MicroBatch, TrainGroup, TrainSequence
from rl.forward.packed_attention import fastest, flash, flash_package, varlen
from rollout.attention import has_only_attention_layers, narrow_windows
from rollout.rounding import bound_of, float32_difference, in_float32, mean_difference, rounding_noise

log = logging.getLogger(__name__)
RAGGED = {"varlen": (varlen, varlen_forward), "flash": (flash, flash_forward)}


@dataclass(frozen=True)
class ForwardChoice:
    """The chosen forward. passed_over: the faster ones that this model cannot use on this device, each with the reason."""

    forward: Forward
    passed_over: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "; ".join([self.forward.name, *self.passed_over])


def choose_forward(model: PreTrainedModel, attention: Attention = "auto") -> Forward:
    return explain_forward(model, attention).forward


@torch.no_grad()
def explain_forward(model: PreTrainedModel, attention: Attention = "auto") -> ForwardChoice:
    """The fastest forward that reproduces this model's own log-probs, in the precision of the calling context.

    Each forward is tried, because families differ in soft-caps, logit scales and attention sinks. The comparison is made in float32,
    where rounding errors are negligible; for kernels that exist in 16 bits only, the bound is the model's own rounding error in 16
    bits (rollout/rounding.py).
    """
    micro, passed_over = _example(model.config.get_text_config().vocab_size).to(model.device), list[str]()
    if not has_only_attention_layers(model):
        passed_over.append("not packed: some layers are not plain attention")
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
    log.warning("%s uses the padded forward: %s", type(model).__name__, passed_over[-1])
    reason = _difference(padded_forward, model, micro)
    if reason is None:
        return ForwardChoice(padded_forward, tuple(passed_over))
    return ForwardChoice(plain_forward, (*passed_over, f"not without logits: {reason}"))


@torch.no_grad()
def fuse(choice: ForwardChoice, model: PreTrainedModel, wanted: Fused = "auto") -> ForwardChoice:
    """The choice with fused norms and gates (rl/forward/fused.py), if that reproduces this model's own log-probs."""
    if wanted == "none" or model.device.type not in ("cpu", "cuda"):
        return choice
    reason = why_not_fused(model) or _why_fused_differs(choice.forward, model)
    if reason is not None:
        return replace(choice, passed_over=(*choice.passed_over, f"norms and gates not fused: {reason}"))
    return replace(choice, forward=in_fused(choice.forward))


def _why_fused_differs(forward: Forward, model: PreTrainedModel) -> str | None:
    """The reason why the fused model is not the model's own; None if it is.

    It is compared in float32 with dense attention, as some attention kernels exist in 16 bits only, and under autocast with the
    attention of `forward`. A gradient through the fused layers is compared too.
    """
    micro = _example(model.config.get_text_config().vocab_size).to(model.device)
    reason = _difference(in_fused(packed_forward), model, micro)
    if reason is None and torch.is_autocast_enabled(model.device.type):
        reason = _difference_in_16_bits(in_fused(forward), model, micro)
    if reason is not None:
        return reason
    exact, found = (_gradient_of_first_norm(f, model, micro) for f in (packed_forward, in_fused(packed_forward)))
    error = ((found - exact).norm() / exact.norm()).item()
    return None if error < 1e-3 else f"the gradient of its first norm has a relative error of {error:.2g}"


def _gradient_of_first_norm(forward: Forward, model: PreTrainedModel, micro: MicroBatch) -> Tensor:
    """The gradient of the log-probs' sum with respect to the first layer's norm weight, through all layers, in float32."""
    weight = next(p for name, p in model.named_parameters() if name.endswith("input_layernorm.weight"))
    required_grad = weight.requires_grad
    weight.requires_grad_()
    with torch.enable_grad(), in_float32(model):
        (gradient,) = torch.autograd.grad(forward.score(model, micro, 1.0).logprobs.sum(), weight)
    weight.requires_grad_(required_grad)
    return gradient


def _why_not_ragged(name: str, model: PreTrainedModel, micro: MicroBatch) -> str | None:
    """The reason why a ragged attention kernel of RAGGED cannot be used; None if it can."""
    if name == "flash" and flash_package(model.device) is None:
        return "the package flash-attn is not installed (pip install 'plumbline-rl[flash]')"
    if model.device.type != "cuda":
        return f"it needs a GPU, and this is {model.device.type}"
    if not torch.is_autocast_enabled("cuda") and model.dtype != torch.bfloat16:
        return "it needs --dtype bfloat16"
    return _difference_in_16_bits(RAGGED[name][1], model, micro)


def _difference(forward: Forward, model: PreTrainedModel, micro: MicroBatch) -> str | None:
    """How the log-probs of `forward` differ from the model's own in float32; None if by rounding only.

    Compared with the model's own sliding windows and again with windows of 3 tokens, as the example is shorter than most windows.
    """
    for window in (nullcontext(), narrow_windows(model, 3)):
        with window, in_float32(model):
            found = _logprobs(forward, model, micro)
            if isinstance(found, str):
                return found
            reason = float32_difference(found, plain_forward.score(model, micro, 1.0).logprobs)
        if reason is not None:
            return reason
    return None


def _difference_in_16_bits(forward: Forward, model: PreTrainedModel, micro: MicroBatch) -> str | None:
    """As _difference, for a forward that computes in 16 bits: None if the model's own rounding explains the difference."""
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
    """The log-probs, or the error if the forward fails: the model's layers do not pass on the arguments of the attention function, the
    model has no separate decoder, or the device lacks the kernel."""
    try:
        return forward.score(model, micro, 1.0).logprobs
    except (TypeError, AttributeError, RuntimeError, ImportError, *kernel_errors()) as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _example(vocab_size: int) -> MicroBatch:
    """Two groups of arbitrary tokens, with completions of different lengths."""

    def sequence(start: int, length: int) -> TrainSequence:
        return TrainSequence.to_score([(start + 7 * i) % vocab_size for i in range(length)])

    prompts = [tuple((3 * i + n) % vocab_size for i in range(n)) for n in (3, 9)]
    return MicroBatch.of([TrainGroup(p, (sequence(len(p), 24), sequence(2, 2), sequence(5, 13))) for p in prompts])
