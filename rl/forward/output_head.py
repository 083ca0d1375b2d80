"""Log-probs, entropies and their gradients from the output layer, for one chunk of tokens at a time.

The logits of a micro-batch (tokens x vocabulary) would be its largest tensor by far; here only those of one chunk exist at a time. If
each token's loss depends on its own log-prob only, which holds for every loss except those with sequence-level ratios, the loss and
its derivative are known as soon as the chunk's log-probs are (the reduction's counts were computed before), so one pass computes the
loss and its gradient. If a token's loss needs other tokens' log-probs, the backward pass computes the logits a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rl.forward.casts import cast, product_dtype
from rl.objective.tokens import TokenScores
from rollout.float32_head import Float32Linear
from rollout.sampler import NUMBERS_IN_CACHE

VALUE_HEAD = "value_head.safetensors"
LOGITS_PER_CHUNK = 1 << 22  # 16 MiB in float32
LEAST_TOKENS_PER_CHUNK = 128  # with fewer, summing the weight's gradient takes longer than computing it
# A GPU does about 600 multiplications in the time in which it reads a number; with fewer tokens it would wait for the weight.
LOGITS_PER_CHUNK_ON_CUDA, LEAST_TOKENS_PER_CHUNK_ON_CUDA = 1 << 28, 2048


def tokens_per_chunk(vocab_size: int, device: torch.device) -> int:
    """Number of tokens whose logits are computed at once."""
    if device.type == "cuda":
        return max(LEAST_TOKENS_PER_CHUNK_ON_CUDA, LOGITS_PER_CHUNK_ON_CUDA // vocab_size)
    return max(LEAST_TOKENS_PER_CHUNK, LOGITS_PER_CHUNK // vocab_size)


LossOf = Callable[[TokenScores, slice], Float[Tensor, ""]]  # scores of a slice of the tokens, the slice -> its loss


@dataclass(frozen=True)
class ValueHead:
    """v = w h + b, in float32. trunk_scale: the factor on its gradient with respect to h."""

    weight: Float[Tensor, " H"]
    bias: Float[Tensor, ""]
    trunk_scale: float = 1.0

    @staticmethod
    def zeros(model: PreTrainedModel, trunk_scale: float = 1.0) -> ValueHead:
        """A trainable head for the model's hidden states, with w = 0 and b = 0."""
        weight = torch.zeros(model.config.get_text_config().hidden_size, device=model.device)
        return ValueHead(nn.Parameter(weight), nn.Parameter(weight.new_zeros(())), trunk_scale)

    def __call__(self, hidden: Float[Tensor, "S H"]) -> Float[Tensor, " S"]:
        """The value of each state, with gradients, in float32 also under autocast."""
        scaled = hidden if self.trunk_scale == 1 else torch.lerp(hidden.detach(), hidden, self.trunk_scale)
        with torch.autocast(hidden.device.type, enabled=False):
            return scaled.float() @ self.weight + self.bias

    def parameters(self) -> list[nn.Parameter]:
        return [x for x in (self.weight, self.bias) if isinstance(x, nn.Parameter)]

    def save(self, folder: Path) -> None:
        save_file({"weight": self.weight.detach(), "bias": self.bias.detach()}, folder / VALUE_HEAD)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        saved = load_file(folder / VALUE_HEAD)
        self.weight.copy_(saved["weight"])
        self.bias.copy_(saved["bias"])


@dataclass(frozen=True)
class OutputHead:
    """A linear output layer: logits z = cap tanh(scale (W h + b) / cap), or z = scale (W h + b) without a cap.

    Its methods take S hidden states and the S target tokens, and hold the logits of one chunk of tokens at a time. dtype: of the factors
    of the products; None is autocast's.
    """

    weight: Float[Tensor, "V H"]
    bias: Float[Tensor, " V"] | None = None
    scale: float = 1.0
    soft_cap: float | None = None
    dtype: torch.dtype | None = None

    @staticmethod
    def of(model: PreTrainedModel) -> OutputHead | None:
        """The model's own output layer; None if it is not a plain linear layer, such as one adapted by LoRA."""
        layer, config = model.get_output_embeddings(), model.config.get_text_config()
        if type(layer) is not nn.Linear and type(layer) is not Float32Linear:
            return None
        dtype = torch.float32 if type(layer) is Float32Linear else None
        scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        return OutputHead(layer.weight, layer.bias, scale, getattr(config, "final_logit_softcapping", None), dtype)

    def score(self, hidden: Float[Tensor, "S H"], targets: Int[Tensor, " S"], temperature: float) -> TokenScores:
        """log softmax(z / temperature) of each target and the entropy of that distribution, with gradients."""
        return TokenScores(*_TwoPasses.apply(self, targets, temperature, hidden, self.weight, self.bias))  # pyright: ignore

    @torch.no_grad()
    def logprobs(
        self, hidden: Float[Tensor, "S H"], targets: Int[Tensor, " S"], temperature: float
    ) -> Float[Tensor, " S"]:
        """log softmax(z / temperature) of each target, without gradients; probabilities and entropies are not computed."""
        parts = []
        for _part, chunk in _chunks(self, hidden, targets, temperature):
            parts.append(chunk.target_logprobs())
            del chunk  # frees its logits before the next chunk's are computed
        return torch.cat(parts)

    def loss(
        self,
        hidden: Float[Tensor, "S H"],
        targets: Int[Tensor, " S"],
        temperature: float,
        loss_of: LossOf,
        *,
        token_level: bool,
    ) -> tuple[Float[Tensor, ""], TokenScores]:
        """The loss of the tokens and their scores, the scores without gradient.

        token_level: each token's loss depends on its own scores only. Then the loss is the sum of loss_of over the chunks, and its
        gradient is computed in the same pass.
        """
        if not token_level:
            scores = self.score(hidden, targets, temperature)
            return loss_of(scores, slice(None)), scores.detach()
        loss, *scores = _OnePass.apply(self, targets, temperature, loss_of, hidden, self.weight, self.bias)  # pyright: ignore
        return loss, TokenScores(*scores)


@dataclass(frozen=True)
class AnyHead:
    """Any output layer, differentiated by autograd with checkpointing, one chunk of tokens at a time. Slower than OutputHead."""

    layer: Callable[[Tensor], Tensor]

    def score(self, hidden: Float[Tensor, "S H"], targets: Int[Tensor, " S"], temperature: float) -> TokenScores:
        """As OutputHead.score."""

        def score(states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            logprobs = F.log_softmax(self.layer(states).float() / temperature, -1)
            entropies = -(logprobs.exp() * logprobs).sum(-1)
            return logprobs.gather(-1, targets[:, None])[:, 0], entropies

        size = tokens_per_chunk(self.layer(hidden[:1].detach()).shape[-1], hidden.device)
        pairs = zip(hidden.split(size), targets.split(size), strict=True)
        parts: list[Any] = [checkpoint(score, s, t, use_reentrant=False) for s, t in pairs]
        return _joined([TokenScores(*part) for part in parts])

    @torch.no_grad()
    def logprobs(
        self, hidden: Float[Tensor, "S H"], targets: Int[Tensor, " S"], temperature: float
    ) -> Float[Tensor, " S"]:
        """As OutputHead.logprobs."""
        return self.score(hidden, targets, temperature).logprobs

    def loss(
        self,
        hidden: Float[Tensor, "S H"],
        targets: Int[Tensor, " S"],
        temperature: float,
        loss_of: LossOf,
        *,
        token_level: bool,
    ) -> tuple[Float[Tensor, ""], TokenScores]:
        """As OutputHead.loss."""
        scores = self.score(hidden, targets, temperature)
        return loss_of(scores, slice(None)), scores.detach()


class _Chunk:
    """The logits of one chunk of tokens: computes scores, then the derivative of a loss with respect to the logits, in place."""

    def __init__(self, head: OutputHead, weight: Tensor, hidden: Tensor, targets: Tensor, temperature: float) -> None:
        self.head, self.weight, self.temperature = head, weight, temperature
        self.hidden, self.targets = hidden, targets[:, None]
        # Logits are float32, because rounding them would bias the gradient.
        logits = _exact_product(hidden.to(weight.dtype), weight.T)
        if head.bias is not None:
            logits += head.bias
        if head.scale != 1:
            logits *= head.scale
        if head.soft_cap is not None:
            logits.div_(head.soft_cap).tanh_().mul_(head.soft_cap)
        if temperature != 1:
            logits /= temperature
        self.normaliser, self.logits = logits.logsumexp(-1, keepdim=True), logits

    def target_logprobs(self) -> Tensor:
        """Log-probs of the targets only: log softmax needs only the normaliser of the rest of the vocabulary."""
        return (self.logits.gather(1, self.targets) - self.normaliser)[:, 0]

    def scores(self) -> TokenScores:
        """Log-probs of the targets, and entropies. Replaces the logits by the log-probs of the whole vocabulary."""
        self.logprobs = self.logits.sub_(self.normaliser)
        self.probs = self.logprobs.exp()
        self.entropies = -torch.linalg.vecdot(self.probs, self.logprobs)
        return TokenScores(self.logprobs.gather(1, self.targets)[:, 0], self.entropies)

    def d_logits(self, d_logprob: Tensor, d_entropy: Tensor | None) -> Tensor:
        """dL/d(W h + b), written over the probabilities. With y = z / temperature and p = softmax(y),

        dL/dy_j = dL/dlog p_t (1[j = t] - p_j) - dL/dH p_j (log p_j + H).
        """
        out = self.probs
        if d_entropy is None:
            out *= -d_logprob[:, None]
        else:
            out *= (self.logprobs + self.entropies[:, None]) * -d_entropy[:, None] - d_logprob[:, None]
        out.scatter_add_(1, self.targets, d_logprob[:, None])
        if self.head.soft_cap is not None:  # tanh' = 1 - tanh^2
            tanh = (self.logprobs + self.normaliser) * (self.temperature / self.head.soft_cap)
            out *= 1 - tanh.square()
        factor = self.head.scale / self.temperature
        return out if factor == 1 else out.mul_(factor)


class _Gradients:
    """Gradients with respect to the hidden states, the weight and the bias, summed over chunks in float32.

    wanted: autograd's needs_input_grad of these three; the others are not computed.
    """

    def __init__(self, head: OutputHead, hidden: Tensor, wanted: tuple[bool, ...]) -> None:
        self.head = head
        d_hidden, *d_tensors = wanted
        self.hidden = torch.empty_like(hidden, dtype=torch.float32) if d_hidden else None
        self.weight, self.bias = (
            torch.zeros_like(tensor, dtype=torch.float32) if want and tensor is not None else None
            for tensor, want in zip((head.weight, head.bias), d_tensors, strict=True)
        )

    def add(self, part: slice, chunk: _Chunk, d_logprob: Tensor, d_entropy: Tensor | None) -> None:
        """Adds the gradients of one chunk, of which `part` is the slice of tokens."""
        d_logits = chunk.d_logits(d_logprob, d_entropy)
        if self.bias is not None:
            self.bias += d_logits.sum(0)
        d_logits = d_logits.to(chunk.weight.dtype)
        if self.hidden is not None:
            self.hidden[part] = _product(d_logits, chunk.weight)
        if self.weight is not None:
            _add_product(self.weight, d_logits.T, chunk.hidden.to(d_logits.dtype))

    def release(self, hidden: Tensor, factor: Tensor | None) -> tuple[Tensor | None, ...]:
        """Returns the gradients times `factor`, in the dtypes of their tensors, and drops the references to them.

        Autograd copies a gradient that is referenced elsewhere.
        """
        pairs = ((self.hidden, hidden), (self.weight, self.head.weight), (self.bias, self.head.bias))
        del self.hidden, self.weight, self.bias
        return tuple(
            None if g is None or like is None else (g if factor is None else g.mul_(factor)).to(like.dtype)
            for g, like in pairs
        )


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32. With 16-bit factors a CPU rounds the product to 16 bits first, while a GPU does not round it."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a, b).float()


def _exact_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32, on a CPU too: the error of a product that is rounded to 16 bits is the product minus it, which is small and so is
    rounded by little."""
    if a.is_cuda or a.dtype == torch.float32:
        return _product(a, b)
    rounded = torch.mm(a, b)
    return rounded.float().add_(torch.addmm(rounded, a, b, beta=-1))


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, in float32, with the same rounding as _product."""
    if a.dtype == torch.float32:
        total.addmm_(a, b)
    elif a.is_cuda:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:  # a few rows at a time, whose 16-bit product stays in the cache until it is added
        rows = max(1, NUMBERS_IN_CACHE // b.shape[1])
        for part, factor in zip(total.split(rows), a.split(rows), strict=True):
            part += factor @ b


def _chunks(head: OutputHead, hidden: Tensor, targets: Tensor, temperature: float) -> Iterator[tuple[slice, _Chunk]]:
    """Yields the chunks with their slices. Products are in the head's dtype, or autocast's; the weight is cast once for all chunks."""
    device, weight = hidden.device.type, cast(head.weight, head.dtype or product_dtype(hidden, head.weight))
    size = tokens_per_chunk(len(weight), hidden.device)
    with torch.autocast(device, enabled=False):
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            yield part, _Chunk(head, weight, hidden[part], targets[part], temperature)


def _joined(parts: list[TokenScores]) -> TokenScores:
    logprobs, entropies = map(torch.cat, zip(*parts, strict=True))
    return TokenScores(logprobs, entropies)


class _OnePass(torch.autograd.Function):
    """Computes the loss, the scores and the gradient of the loss in one pass over the chunks."""

    @staticmethod
    def forward(
        ctx: Any,
        head: OutputHead,
        targets: Tensor,
        temperature: float,
        loss_of: LossOf,
        hidden: Tensor,
        *_: Tensor | None,
    ) -> tuple[Tensor, ...]:
        gradients = _Gradients(head, hidden, ctx.needs_input_grad[4:])
        loss, parts = hidden.new_zeros((), dtype=torch.float32), []
        for part, chunk in _chunks(head, hidden, targets, temperature):
            parts.append(chunk.scores())
            with torch.enable_grad():
                leaves = parts[-1].as_leaves()
                chunk_loss = loss_of(leaves, part)
            d_logprob, d_entropy = torch.autograd.grad(chunk_loss, leaves, allow_unused=True)
            if d_logprob is None:
                d_logprob = torch.zeros_like(leaves.logprobs)
            gradients.add(part, chunk, d_logprob, d_entropy)
            loss += chunk_loss.detach()
            del chunk  # frees its logits before the next chunk's are computed
        ctx.gradients, ctx.hidden = gradients, hidden
        scores = _joined(parts)
        ctx.mark_non_differentiable(*scores)
        return loss, *scores

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        return None, None, None, None, *ctx.gradients.release(ctx.hidden, d_loss)


class _TwoPasses(torch.autograd.Function):
    """Computes the scores; the backward pass computes each chunk's logits a second time."""

    @staticmethod
    def forward(
        ctx: Any, head: OutputHead, targets: Tensor, temperature: float, hidden: Tensor, *_: Tensor | None
    ) -> tuple[Tensor, ...]:
        ctx.head, ctx.temperature = head, temperature
        ctx.save_for_backward(hidden, targets)
        ctx.autocast = torch.is_autocast_enabled(hidden.device.type)
        parts = []
        for _part, chunk in _chunks(head, hidden, targets, temperature):
            parts.append(chunk.scores())
            del chunk  # as in _OnePass
        return tuple(_joined(parts))

    @staticmethod
    def backward(ctx: Any, d_logprob: Tensor, d_entropy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        hidden, targets = ctx.saved_tensors
        gradients = _Gradients(ctx.head, hidden, ctx.needs_input_grad[3:])
        with torch.autocast(hidden.device.type, enabled=ctx.autocast):
            for part, chunk in _chunks(ctx.head, hidden, targets, ctx.temperature):
                chunk.scores()
                gradients.add(part, chunk, d_logprob[part], d_entropy[part])
                del chunk  # as in _OnePass
        return None, None, None, *gradients.release(hidden, None)
