"""The forward of models of Llama's architecture (Llama, Qwen2, Qwen3, Mistral, SmolLM3) in few, large operations.

In 16 bits products are rounded, while the residual x, norms and attention scores are float32, and the output layer if it is a
Float32Linear (rollout/float32_head.py).
With h = rms_norm(x): x += o(attention(q, k, v)), then x += down(act(gate(h)) * up(h)); q|k|v and gate|up are one product
each. The caller provides attention: prefill and decoding keep their keys in different buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from rollout.attention import causal_window, grouped_attention, has_only_attention_layers
from rollout.engine.decode_weights import DecodeWeight, LowRank, is_lora, is_plain, is_readable_linear, product_dtype
from rollout.engine.kernels import gated, rms_norm, rotate_, silu_mul
from rollout.sampler import Text

# (layer, query [N, Hq, D], key [N, Hkv, D], value [N, Hkv, D]) -> [N, Hq, D]
Attend = Callable[["FusedLayer", Tensor, Tensor, Tensor], Tensor]

FIXED_ROTARY = {
    "default",
    "linear",
    "llama3",
    "yarn",
}  # other types change their frequencies with the length of the text


class Projection:
    """Linear layers with a common input, computed as one.

    packed: the weight in oneDNN's blocked layout, or None. With it products of few rows are up to twice as fast, as each would
        otherwise rearrange the weight.
    """

    def __init__(self, parent: nn.Module, *children: str, dtype: torch.dtype) -> None:
        self.weight = DecodeWeight(parent, children, "weight", dtype)
        has_bias = parent.get_submodule(children[0]).bias is not None
        self._bias = DecodeWeight(parent, children, "bias", dtype) if has_bias else None
        self.adapters = LowRank(parent, children, dtype)
        self.packed: Tensor | None = None

    @property
    def bias(self) -> Tensor | None:
        return self._bias.tensor if self._bias else None

    def weights(self) -> Iterator[DecodeWeight]:
        yield from (self.weight, *filter(None, [self._bias]))

    def pack(self) -> None:
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.tensor, None)

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is None:
            out = F.linear(x, self.weight.tensor, self.bias)
        else:
            out = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return self.adapters.add_to(out, x)

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + self(x). May overwrite residual."""
        if self.packed is None or residual.dtype != x.dtype:
            return residual.add_(self(x))
        return torch.ops.mkldnn._linear_pointwise(x, residual, self.packed, self.bias, "add")


class RMSNorm:
    """RMSNorm in float32, its result rounded to `dtype`, in which the next layer multiplies."""

    def __init__(self, parent: nn.Module, child: str, dtype: torch.dtype) -> None:
        self.weight = DecodeWeight(parent, (child,), "weight", torch.float32)
        self.epsilon: float = parent.get_submodule(child).variance_epsilon  # pyright: ignore
        self.dtype = dtype

    def __call__(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight.tensor, self.epsilon, self.dtype)


class FusedLayer:
    """A transformer layer. window: the number of latest tokens that attention covers, the current one included; None for all."""

    def __init__(self, index: int, layer: Any, config: Any, dtype: torch.dtype) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.index = index
        self.norm = RMSNorm(layer, "input_layernorm", dtype)
        self.qkv = Projection(attention, "q_proj", "k_proj", "v_proj", dtype=dtype)
        has_norms = hasattr(attention, "q_norm")
        self.head_norms = [RMSNorm(attention, name, dtype) for name in ("q_norm", "k_norm")] if has_norms else []
        self.out = Projection(attention, "o_proj", dtype=dtype)
        self.mlp_norm = RMSNorm(layer, "post_attention_layernorm", dtype)
        self.gate_up = Projection(mlp, "gate_proj", "up_proj", dtype=dtype)
        is_silu = type(mlp.act_fn) in (nn.SiLU, SiLUActivation)
        self.gated: Callable[[Tensor], Tensor] = silu_mul if is_silu else partial(gated, activation=mlp.act_fn)
        self.down = Projection(mlp, "down_proj", dtype=dtype)
        self.head_size: int = attention.head_dim
        self.query_heads = attention.q_proj.out_features // self.head_size
        self.key_heads = attention.k_proj.out_features // self.head_size
        self.queries_per_key = self.query_heads // self.key_heads
        self.scale: float = attention.scaling
        self.has_rotary = bool(getattr(attention, "use_rope", True))
        self.window: int | None = getattr(attention, "sliding_window", getattr(config, "sliding_window", None))

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """The residual stream behind the layer. x: the stream before it, float32[N, H], which may be overwritten."""
        heads = self.qkv(self.norm(x)).view(len(x), -1, self.head_size)
        query, key, value = heads.split_with_sizes((self.query_heads, self.key_heads, self.key_heads), 1)
        for norm, part in zip(self.head_norms, (query, key), strict=False):
            part.copy_(norm(part))
        if self.has_rotary:
            rotate_(heads.narrow(1, 0, self.query_heads + self.key_heads), cos, sin)
        x = self.out.added_to(x, attend(self, query, key, value).flatten(1))
        return self.down.added_to(x, self.gated(self.gate_up(self.mlp_norm(x))))


class FusedModel:
    """A model's layers, with its weights in `dtype`: the model's own memory where decode_weights.py can use it, otherwise a copy."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        trunk: Any = model.model
        self.names = {id(module): f"{name}.".lstrip(".") for name, module in model.named_modules()}
        self.dtype, self.device = dtype, model.device
        head_dtype = product_dtype(model.lm_head, dtype)
        is_tied = not is_lora(model.lm_head) and model.lm_head.weight is trunk.embed_tokens.weight
        self.embedding = DecodeWeight(trunk, ("embed_tokens",), "weight", head_dtype if is_tied else dtype)
        self.rotary: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = trunk.rotary_emb
        self.layers = [FusedLayer(i, layer, model.config, dtype) for i, layer in enumerate(trunk.layers)]
        self.norm = RMSNorm(trunk, "norm", head_dtype)
        self.head = Projection(model, "lm_head", dtype=head_dtype)
        if is_tied:
            self.head.weight = self.embedding

    def states(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """The last layer's hidden states. tokens, positions: [N] -> [N, H]."""
        x = F.embedding(tokens, self.embedding.tensor).float()  # the residual stream is not rounded
        cos, sin = (table[0, :, None] for table in self.rotary(x[None], positions[None]))
        half = sin.shape[-1] // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        for layer in self.layers:
            x = layer(x, cos, sin, attend)
        return x

    def logits(self, states: Tensor) -> Tensor:
        return self.head(self.norm(states))

    def logprobs(self, texts: Sequence[Text]) -> list[list[float]]:
        """The log-probs of the tokens of completions behind their prompts, in one forward."""
        tokens = [torch.tensor([*prompt, *completion], device=self.device) for prompt, completion in texts]
        block = pad_sequence([text[:-1] for text in tokens], batch_first=True)  # right-padded: causal hides it
        count, width = block.shape
        positions = torch.arange(width, device=self.device).repeat(count)
        states = self.states(block.flatten(), positions, partial(causal_attention, num_texts=count)).view(
            *block.shape, -1
        )
        scored = [
            states[i, len(prompt) - 1 : len(text) - 1] for i, (text, (prompt, _)) in enumerate(zip(tokens, texts))
        ]
        targets = torch.cat([text[len(prompt) :] for text, (prompt, _) in zip(tokens, texts)])
        logprobs = self.logits(torch.cat(scored)).float().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
        return [part.tolist() for part in logprobs.split([len(completion) for _, completion in texts])]

    def projections(self) -> Iterator[Projection]:
        for layer in self.layers:
            yield from (layer.qkv, layer.out, layer.gate_up, layer.down)
        yield self.head

    def weights(self) -> Iterator[DecodeWeight]:
        norms = [norm for layer in self.layers for norm in (layer.norm, *layer.head_norms, layer.mlp_norm)]
        yield from (self.embedding, *(norm.weight for norm in (*norms, self.norm)))
        for projection in self.projections():
            yield from projection.weights()

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The weights that products use, adapters merged, by a plain model's parameter names."""
        apart = {id(projection.weight): projection.adapters for projection in self.projections()}
        for weight in self.weights():
            parts = weight.parts() if id(weight) not in apart else apart[id(weight)].merged(weight.parts())
            for child, part in zip(weight.children, parts, strict=True):
                yield f"{self.names[id(weight.parent)]}{child}.{weight.name}", part

    @contextmanager
    def packed(self) -> Iterator[None]:
        """Within the context products read packed copies of the current weights, if their dtype and this device can pack them."""
        for projection in self.projections():
            if can_pack(projection.weight.dtype, self.device):
                projection.pack()
        try:
            yield
        finally:
            self._unpack()

    def _unpack(self) -> None:
        for projection in self.projections():
            projection.packed = None

    def refresh(self) -> bool:
        """Takes over the model's current weights. -> whether all addresses are unchanged"""
        self._unpack()
        before = self._addresses()
        for weight in self.weights():
            weight.refresh()
        for projection in self.projections():
            projection.adapters.refresh()
        return before == self._addresses()

    def _addresses(self) -> list[int]:
        adapters = [tensor for projection in self.projections() for tensor in projection.adapters.tensors()]
        return [tensor.data_ptr() for tensor in (*(weight.tensor for weight in self.weights()), *adapters)]


def causal_attention(layer: FusedLayer, query: Tensor, key: Tensor, value: Tensor, *, num_texts: int) -> Tensor:
    """Causal attention over num_texts texts of equal length, one after the other. [N, H, D] -> [N, H, D]"""
    query, key, value = (states.unflatten(0, (num_texts, -1)).transpose(1, 2) for states in (query, key, value))
    mask = None if layer.window is None else causal_window(query.shape[2], layer.window, query.device)
    return grouped_attention(query, key, value, mask=mask, causal=mask is None, scale=layer.scale).flatten(0, 1)


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def is_llama_like(model: PreTrainedModel) -> bool:
    """Whether FusedModel can read the model's structure. choose_decoder tests whether it computes the same."""
    trunk: Any = getattr(model, "model", None)
    if not has_only_attention_layers(model) or _parts(model) != {"model", "lm_head"}:
        return False
    if _parts(trunk) != {"embed_tokens", "layers", "norm"} or not hasattr(trunk, "rotary_emb"):
        return False
    is_fixed = getattr(trunk.rotary_emb, "rope_type", None) in FIXED_ROTARY
    is_together = len({p.device for p in model.parameters()}) == 1
    is_table = type(trunk.embed_tokens) is nn.Embedding and is_plain(trunk.embed_tokens)
    ends = is_table and _is_norm(trunk.norm) and is_readable_linear(model.lm_head)  # pyright: ignore
    return is_fixed and is_together and ends and all(map(_is_llama_layer, trunk.layers))


def _is_llama_layer(layer: Any) -> bool:
    if _parts(layer) != {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}:
        return False
    attention, mlp = layer.self_attn, layer.mlp
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    if hasattr(attention, "q_norm"):
        norms += [attention.q_norm, attention.k_norm]
    linears = {name: part for parent in (attention, mlp) for name, part in parent.named_children() if "proj" in name}
    expected = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    if set(linears) != expected or len(_parts(attention) | _parts(mlp)) != len(norms) - 2 + len(linears):
        return False
    if not all(map(_is_norm, norms)) or not all(map(is_readable_linear, linears.values())):
        return False
    fused = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
    return all(len({linears[name].bias is None for name in names}) == 1 for names in fused)


def _is_norm(module: nn.Module) -> bool:
    return hasattr(module, "variance_epsilon") and is_plain(module)


def _parts(module: nn.Module) -> set[str]:
    """The names of the children that hold parameters."""
    return {name for name, child in module.named_children() if any(True for _ in child.parameters())}
