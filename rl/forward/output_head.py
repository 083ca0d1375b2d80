"""Log-probs, entropies and their gradients without the logits: the output layer and its softmax, a chunk of tokens at a time.

The logits of a step are its largest tensor by far (tokens x vocabulary). Here those of one chunk exist at a time. Where the
loss is a sum over tokens, as all but the sequence-level ratios are, its derivative by each log-prob is known as soon as the
chunk's log-probs are (every normaliser was counted beforehand), and one pass makes the gradient too: `loss_in_one_pass`.
Where a token's loss needs other tokens' log-probs, the backward pass makes the logits again: `score_in_two_passes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rl.forward.casts import cast, product_dtype
from rl.objective.tokens import TokenScores

VALUE_HEAD = "value_head.safetensors"
LOGITS_PER_CHUNK = 1 << 22  # 16 MiB in float32
LEAST_TOKENS_PER_CHUNK = 128  # fewer would spend more time on adding up the weight's gradient than on computing it
# A GPU multiplies 600 times in the time in which it reads a number: with fewer tokens it would wait for the weight.
LOGITS_PER_CHUNK_ON_CUDA, LEAST_TOKENS_PER_CHUNK_ON_CUDA = 1 << 28, 2048


def tokens_per_chunk(vocab_size: int, device: torch.device) -> int:
    if device.type == "cuda":
        return max(LEAST_TOKENS_PER_CHUNK_ON_CUDA, LOGITS_PER_CHUNK_ON_CUDA // vocab_size)
    return max(LEAST_TOKENS_PER_CHUNK, LOGITS_PER_CHUNK // vocab_size)


class Looked(NamedTuple):
    """Without gradient: what a forward that nothing is trained by is run for."""

    logprobs: Float[Tensor, " S"]
    values: Float[Tensor, " S"] | None = None


LossOf = Callable[[TokenScores, slice], Float[Tensor, ""]]  # a part of the tokens' scores, and which part -> its loss


@dataclass(frozen=True)
class ValueHead:
    """v = w h + b, in float32. Of its gradient by h the share `trunk_scale` goes on into the trunk."""

    weight: Float[Tensor, " H"]
    bias: Float[Tensor, ""]
    trunk_scale: float = 1.0

    @staticmethod
    def zeros(model: PreTrainedModel, trunk_scale: float = 1.0) -> ValueHead:
        """To be trained, over the model's states: 0 at the start, whatever it reads."""
        weight = torch.zeros(model.config.get_text_config().hidden_size, device=model.device)
        return ValueHead(nn.Parameter(weight), nn.Parameter(weight.new_zeros(())), trunk_scale)

    def __call__(self, hidden: Float[Tensor, "S H"]) -> Float[Tensor, " S"]:
        """With gradients."""
        into_trunk = hidden if self.trunk_scale == 1 else torch.lerp(hidden.detach(), hidden, self.trunk_scale)
        return into_trunk.float() @ self.weight + self.bias

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
    """z = cap tanh(scale (W h + b) / cap), the logits; without a cap, z = scale (W h + b)."""

    weight: Float[Tensor, "V H"]
    bias: Float[Tensor, " V"] | None = None
    scale: float = 1.0
    soft_cap: float | None = None
    value: ValueHead | None = None

    @staticmethod
    def of(model: PreTrainedModel) -> OutputHead | None:
        """The model's own, or None where it is not a plain linear layer (adapted by LoRA, say)."""
        layer, config = model.get_output_embeddings(), model.config.get_text_config()
        if type(layer) is not nn.Linear:
            return None
        scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        return OutputHead(layer.weight, layer.bias, scale, getattr(config, "final_logit_softcapping", None))

    def tensors(self) -> tuple[Tensor | None, ...]:
        """What is trained here, as autograd must see it."""
        return self.weight, self.bias, *((self.value.weight, self.value.bias) if self.value else (None, None))


class _Chunk:
    """The tokens of one chunk: their scores, then the derivative of a loss of them."""

    def __init__(self, head: OutputHead, weight: Tensor, hidden: Tensor, targets: Tensor, temperature: float) -> None:
        self.head, self.weight, self.temperature = head, weight, temperature
        self.hidden, self.targets = hidden, targets[:, None]
        # float32 from here on: rounded logits would bias what is learnt from them.
        logits = _product(hidden.to(weight.dtype), weight.T)
        if head.bias is not None:
            logits += head.bias
        if head.scale != 1:
            logits *= head.scale
        if head.soft_cap is not None:
            logits.div_(head.soft_cap).tanh_().mul_(head.soft_cap)
        if temperature != 1:
            logits /= temperature
        self.normaliser, self.logits = logits.logsumexp(-1, keepdim=True), logits

    def values(self) -> Tensor | None:
        return None if self.head.value is None else self.head.value(self.hidden)

    def looked(self) -> Looked:
        """Of the targets alone; of the rest of the vocabulary only the normaliser is needed."""
        return Looked((self.logits.gather(1, self.targets) - self.normaliser)[:, 0], self.values())

    def scores(self) -> TokenScores:
        self.logprobs = self.logits.sub_(self.normaliser)
        self.probs = self.logprobs.exp()
        self.entropies = -torch.linalg.vecdot(self.probs, self.logprobs)
        return TokenScores(self.logprobs.gather(1, self.targets)[:, 0], self.entropies, self.values())

    def by_logits(self, by_logprob: Tensor, by_entropy: Tensor | None) -> Tensor:
        """dL/d(W h + b), in place of the probabilities. With y the tempered logits and p their softmax,

        dL/dy_j = dL/dlog p_t (1[j = t] - p_j) - dL/dH p_j (log p_j + H).
        """
        out = self.probs
        if by_entropy is None:
            out *= -by_logprob[:, None]
        else:
            out *= (self.logprobs + self.entropies[:, None]) * -by_entropy[:, None] - by_logprob[:, None]
        out.scatter_add_(1, self.targets, by_logprob[:, None])
        if self.head.soft_cap is not None:  # tanh' = 1 - tanh^2
            tanh = (self.logprobs + self.normaliser) * (self.temperature / self.head.soft_cap)
            out *= 1 - tanh.square()
        factor = self.head.scale / self.temperature
        return out if factor == 1 else out.mul_(factor)


class _Gradients:
    """By hidden states and by the head's tensors, those of them that are wanted; added up chunk by chunk in float32."""

    def __init__(self, head: OutputHead, hidden: Tensor, wanted: tuple[bool, ...]) -> None:
        self.head = head
        by_hidden, *by_tensors = wanted
        self.hidden = torch.empty_like(hidden, dtype=torch.float32) if by_hidden else None
        self.tensors = [
            torch.zeros_like(tensor, dtype=torch.float32) if want and tensor is not None else None
            for tensor, want in zip(head.tensors(), by_tensors, strict=True)
        ]

    def add(self, part: slice, chunk: _Chunk, by_logprob: Tensor, by_entropy: Tensor | None, by_value: Tensor | None):
        weight, bias, value_weight, value_bias = self.tensors
        by_logits = chunk.by_logits(by_logprob, by_entropy)
        if bias is not None:
            bias += by_logits.sum(0)
        by_logits = by_logits.to(chunk.weight.dtype)
        if self.hidden is not None:
            self.hidden[part] = _product(by_logits, chunk.weight)
        if weight is not None:
            _add_product(weight, by_logits.T, chunk.hidden.to(by_logits.dtype))
        if by_value is not None and self.head.value is not None:
            if self.hidden is not None:
                self.hidden[part].addr_(by_value, self.head.value.weight, alpha=self.head.value.trunk_scale)
            if value_weight is not None:
                value_weight += by_value @ chunk.hidden.float()
            if value_bias is not None:
                value_bias += by_value.sum()

    def given_up(self, hidden: Tensor, factor: Tensor | None) -> tuple[Tensor | None, ...]:
        """In the types of what they are the gradients of. None is kept here: autograd copies a gradient that somebody else has."""
        found = ((self.hidden, hidden), *zip(self.tensors, self.head.tensors(), strict=True))
        del self.hidden, self.tensors
        return tuple(
            None if g is None or like is None else (g if factor is None else g.mul_(factor)).to(like.dtype)
            for g, like in found
        )


def _product(a: Tensor, b: Tensor) -> Tensor:
    """In float32. Of 16-bit factors it is rounded to 16 bits on the way where the device cannot do otherwise."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a, b).float()


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """The same, added to a total in place."""
    if a.dtype == torch.float32:
        total.addmm_(a, b)
    elif a.is_cuda:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total += a @ b


def _chunks(head: OutputHead, hidden: Tensor, targets: Tensor, temperature: float) -> Iterator[tuple[slice, _Chunk]]:
    """The products in the type that autocast asks for, the weight cast once."""
    device, weight = hidden.device.type, cast(head.weight, product_dtype(hidden, head.weight))
    size = tokens_per_chunk(len(weight), hidden.device)
    with torch.autocast(device, enabled=False):
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            yield part, _Chunk(head, weight, hidden[part], targets[part], temperature)


def _joined(parts: list[TokenScores]) -> TokenScores:
    logprobs, entropies, values = zip(*parts, strict=True)
    return TokenScores(torch.cat(logprobs), torch.cat(entropies), None if values[0] is None else torch.cat(values))


class _OnePass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, head: OutputHead, targets: Tensor, temperature: float, loss_of: LossOf, hidden: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, ...]:
        gradients = _Gradients(head, hidden, ctx.needs_input_grad[4:])
        loss, parts = hidden.new_zeros((), dtype=torch.float32), []
        for part, chunk in _chunks(head, hidden, targets, temperature):
            parts.append(chunk.scores())
            with torch.enable_grad():
                leaves = parts[-1].as_leaves()
                of_part = loss_of(leaves, part)
            by_scores = iter(torch.autograd.grad(of_part, [x for x in leaves if x is not None], allow_unused=True))
            by_logprob, by_entropy, by_value = (None if x is None else next(by_scores) for x in leaves)
            if by_logprob is None:
                by_logprob = torch.zeros_like(parts[-1].logprobs)
            gradients.add(part, chunk, by_logprob, by_entropy, by_value)
            loss += of_part.detach()
            del chunk  # before the next one's logits are made
        ctx.gradients, ctx.hidden = gradients, hidden
        scores = _joined(parts)
        ctx.mark_non_differentiable(*(x for x in scores if x is not None))
        return loss, *scores

    @staticmethod
    def backward(ctx: Any, by_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        return None, None, None, None, *ctx.gradients.given_up(ctx.hidden, by_loss)


class _TwoPasses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, head: OutputHead, targets: Tensor, temperature: float, hidden: Tensor, *_: Tensor):
        ctx.head, ctx.temperature = head, temperature
        ctx.save_for_backward(hidden, targets)
        ctx.autocast = torch.is_autocast_enabled(hidden.device.type)
        parts = []
        for _part, chunk in _chunks(head, hidden, targets, temperature):
            parts.append(chunk.scores())
            del chunk  # before the next one's logits are made
        return tuple(_joined(parts))

    @staticmethod
    def backward(ctx: Any, by_logprob: Tensor, by_entropy: Tensor, by_value: Tensor | None):  # pyright: ignore
        hidden, targets = ctx.saved_tensors
        gradients = _Gradients(ctx.head, hidden, ctx.needs_input_grad[3:])
        with torch.autocast(hidden.device.type, enabled=ctx.autocast):
            for part, chunk in _chunks(ctx.head, hidden, targets, ctx.temperature):
                chunk.scores()
                of_value = None if by_value is None else by_value[part]
                gradients.add(part, chunk, by_logprob[part], by_entropy[part], of_value)
                del chunk  # as above
        return None, None, None, *gradients.given_up(hidden, None)


def loss_in_one_pass(
    head: OutputHead, hidden: Float[Tensor, "S H"], targets: Int[Tensor, " S"], temperature: float, loss_of: LossOf
) -> tuple[Float[Tensor, ""], TokenScores]:
    """(loss, scores without gradient): the loss of all tokens is the sum of loss_of over the chunks."""
    loss, *scores = _OnePass.apply(head, targets, temperature, loss_of, hidden, *head.tensors())  # pyright: ignore
    return loss, TokenScores(*scores)


def score_in_two_passes(
    head: OutputHead, hidden: Float[Tensor, "S H"], targets: Int[Tensor, " S"], temperature: float
) -> TokenScores:
    """log softmax(z / temperature) of each target, the entropy of that distribution, the value; all with gradients."""
    return TokenScores(*_TwoPasses.apply(head, targets, temperature, hidden, *head.tensors()))  # pyright: ignore


@torch.no_grad()
def look(head: OutputHead, hidden: Float[Tensor, "S H"], targets: Int[Tensor, " S"], temperature: float) -> Looked:
    """log softmax(z / temperature) of each target, and the value: no probabilities, no entropies."""
    parts = []
    for _part, chunk in _chunks(head, hidden, targets, temperature):
        parts.append(chunk.looked())
        del chunk  # before the next one's logits are made
    logprobs, values = zip(*parts, strict=True)
    return Looked(torch.cat(logprobs), None if values[0] is None else torch.cat(values))


def score_by_autograd(
    to_logits: Callable[[Tensor], Tensor], states: Float[Tensor, "S H"], targets: Int[Tensor, " S"], temperature: float
) -> TokenScores:
    """The same for any output layer, by autograd: slower."""

    def score(states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logprobs = F.log_softmax(to_logits(states).float() / temperature, -1)
        entropies = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(-1, targets[:, None])[:, 0], entropies

    size = tokens_per_chunk(to_logits(states[:1].detach()).shape[-1], states.device)
    pairs = zip(states.split(size), targets.split(size), strict=True)
    parts: list[Any] = [checkpoint(score, s, t, use_reentrant=False) for s, t in pairs]
    return _joined([TokenScores(*part) for part in parts])
