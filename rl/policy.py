"""The policy and its frozen reference: a Hugging Face causal LM and the forward that scores with it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rewards.errors import UserError, first_line
from rl.batch import MicroBatch
from rl.forward import (
    Attention,
    Forward,
    ForwardChoice,
    enable_gradient_checkpointing,
    explain_forward,
    fuse,
    plain_forward,
)
from rl.fused import Fused
from rl.head import Looked, LossOf, TokenScores, ValueHead
from rl.offload import send_home, visiting
from rl.precision import ROUNDED, return_float32, round_frozen, roundable
from rl.save_model import model_state, save_model, save_tensors
from rl.sharding import whole
from rollout.rounding import rounding_noise

EXACT_WEIGHTS = "exact_weights.pt"  # in a checkpoint whose model is stored in 16 bits: what training goes on from
# A weight file that is missing, cut short, or a pointer of Git LFS in its place.
UNREADABLE = (OSError, EOFError, SafetensorError, UnpicklingError)


def load_pretrained(
    model: str | Path,
    device: torch.device,
    *,
    nf4: torch.dtype | None = None,
    rounded: bool = False,
    needs_head: bool = True,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer from a local folder or the hub, in float32.

    nf4: its linear layers but the output layer are kept in 4 bits (QLoRA, arXiv 2305.14314) and multiply in this dtype.
    rounded: what rl/precision.py may keep in 16 bits is, before it goes to the device. needs_head: its output layer is used.
    """
    require_folder(model)
    folder = Path(model).expanduser().resolve()
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"model is {str(model)!r}: it holds adapters and no model; `plumbline merge {model} OUT` makes one, then give OUT"
        )
    source = str(folder) if folder.is_dir() else str(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        config = AutoConfig.from_pretrained(source)
        # The default attention of transformers leaves out Gemma 2's cap on attention scores without a word.
        capped = getattr(config, "attn_logit_softcapping", None) is not None
        found: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=torch.float32,
            attn_implementation="eager" if capped else None,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # require_weights refuses them by name
            **(_in_four_bits(nf4, device) if nf4 else {}),
        )
    except (*UNREADABLE, ValueError) as error:
        raise UserError(
            f"model is {str(model)!r}: it cannot be loaded as a causal LM with its tokenizer "
            f"({first_line(error)}); give a folder in Hugging Face format or a hub name"
        ) from None
    files = tokenizer.vocab_files_names.values()
    if folder.is_dir() and files and not any((folder / name).is_file() for name in files):
        # transformers has made one that knows no tokens.
        raise UserError(f"model is {str(model)!r}: it has no tokenizer; put one there ({', '.join(files)})")
    loaded, report = found
    require_weights(str(model), loaded, report, needs_head=needs_head)
    if rounded:
        round_frozen(loaded)
    if nf4:
        for module in loaded.modules():
            # Else bitsandbytes packs weights, which no gradient goes through.
            module.support_avx512bf16_for_cpu = False  # pyright: ignore[reportArgumentType]
        return loaded, tokenizer
    return loaded.to(device), tokenizer  # pyright: ignore[reportArgumentType]  the stubs lose `self`


def require_weights(name: str, model: PreTrainedModel, report: Mapping[str, Any], *, needs_head: bool) -> None:
    """All are there, of the configuration's shapes and finite: transformers makes up random ones for those that are not.

    report: what it says of the loading.
    """
    head = {n for n, p in model.named_parameters() if p is getattr(model.get_output_embeddings(), "weight", None)}
    unused = set() if needs_head else head
    for weight, stored, wanted in sorted(report["mismatched_keys"]):
        if weight not in unused:
            raise UserError(
                f"model is {name!r}: its config.json asks for a {weight} of shape {list(wanted)}, and its files have one of "
                f"{list(stored)}; give a config.json that belongs to the weights"
            )
    lacking = sorted(set(report["missing_keys"]) - unused)
    if lacking:
        raise UserError(
            f"model is {name!r}: its files lack {len(lacking)} of the weights that its config.json asks for ({', '.join(lacking[:3])}), "
            "which would be random; give a complete folder, or a config.json that fits"
        )
    for weight, parameter in model.named_parameters():
        if parameter.is_floating_point() and not torch.stack(torch.aminmax(parameter.detach())).isfinite().all():
            raise UserError(
                f"model is {name!r}: {weight} holds numbers that are not finite (nan or inf), so it computes none; give a model "
                "that was saved before it diverged"
            )


def require_folder(model: str | Path) -> None:
    """Where the name of a model is a path."""
    if str(model).startswith((".", "/", "~")) and not Path(model).expanduser().is_dir():
        raise UserError(
            f"model is {str(model)!r}: there is no such folder; give a folder in Hugging Face format or a hub name"
        )


def _in_four_bits(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    if find_spec("bitsandbytes") is None:
        raise UserError(
            "lora_base is 'nf4': it needs bitsandbytes, which is not installed; pip install 'plumbline-rl[qlora]', or leave it out"
        )
    quantized = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": quantized, "device_map": {"": device}}


def context_length(model: PreTrainedModel) -> int | None:
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


class Policy:
    """Scores tokens with a model. Always in eval mode: dropout would make the ratio differ from 1 before the first update.

    autocast: makes the context to run the forward in. weights: makes the one in which the model has this policy's weights; a
    reference may share the policy's model. at_hand: makes the one in which weights that wait in the host's memory are on the
    device. value_head: over the policy's own states, where a critic shares its trunk.
    frozen_base: the model's own weights are not trained. inside: runs what reads the model's weights; where these are spread
    over processes that is their Root. forward: how a model that is not causal scores, under the views that it sampled with.
    stored_dtype: the type in which the base was stored, and checkpoints are.
    """

    weights: Callable[[], AbstractContextManager[Any]] = nullcontext
    at_hand: Callable[[], AbstractContextManager[Any]] = nullcontext
    value_head: ValueHead | None = None
    frozen_base: bool = False
    stored_dtype: torch.dtype = torch.float32
    inside: Callable[[Callable[[], Any]], Any] = staticmethod(lambda run: run())

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        gradient_checkpointing: bool = False,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        attention: Attention = "auto",
        fused: Fused = "auto",
        forward: Forward | None = None,
    ) -> None:
        self.model = model.eval()
        self.autocast = autocast
        with autocast():
            self.choice = ForwardChoice(forward) if forward else fuse(explain_forward(model, attention), model, fused)
        self.forward = self.choice.forward
        self.plain = forward or plain_forward
        if gradient_checkpointing:
            enable_gradient_checkpointing(model, fuses=self.forward.fuses)

    def score(self, micro: MicroBatch, temperature: float) -> TokenScores:
        def run() -> TokenScores:
            with self.autocast():
                return self.forward(self.model, micro, temperature, self.value_head)

        with self.weights():
            return self.inside(run)

    def rounding_noise(self, micro: MicroBatch) -> float:
        """The mean by which bfloat16 moves the model's log-probs of these tokens, in nats (rollout/rounding.py)."""

        def plain() -> Tensor:
            return self.plain(self.model, micro, 1.0).logprobs

        with self.weights():
            return self.inside(lambda: rounding_noise(plain, self.model)[1])

    @torch.no_grad()
    def look(self, micro: MicroBatch, temperature: float) -> Looked:
        """Log-probs and values alone, without gradients."""

        def run() -> Looked:
            with self.autocast():
                return self.forward.look(self.model, micro, temperature, self.value_head)

        with self.weights():
            return self.inside(run)

    def loss(
        self, micro: MicroBatch, temperature: float, loss_of: LossOf, *, token_level: bool
    ) -> tuple[Tensor, TokenScores]:
        """See Forward.loss."""

        def run() -> tuple[Tensor, TokenScores]:
            with self.autocast():
                return self.forward.loss(
                    self.model, micro, temperature, loss_of, token_level=token_level, value=self.value_head
                )

        return self.inside(run)

    def share_trunk(self, trunk_scale: float) -> None:
        """A critic on the policy's own trunk."""
        if self.forward.gives_logits:
            raise UserError(
                f"value is 'shared': {type(self.model).__name__} does not show its last hidden states; use separate or none"
            )
        self.value_head = ValueHead.zeros(self.model, trunk_scale)

    def frozen_copy(self, *, rounded: bool = False, offloaded: bool = False) -> Policy:
        """The reference: the policy as it is now. rounded: kept in 16 bits (rl/precision.py). offloaded: in the host's memory."""
        clone = copy.copy(self)
        parts = roundable(self.model) if rounded else []
        already = {id(p): nn.Parameter(p.detach().to(ROUNDED), requires_grad=False) for p in parts}
        clone.model = copy.deepcopy(self.model, already).requires_grad_(False)
        clone.value_head = None
        if rounded:
            return_float32(clone.model)
        if offloaded:
            clone.at_hand = partial(visiting, clone.model, self.device)
            send_home(clone.model)
        return clone

    @torch.no_grad()
    def copied_to(self, reference: Policy) -> Policy:
        """An earlier frozen copy, made the policy as it is now."""
        for theirs, ours in zip(reference.model.parameters(), self.model.parameters(), strict=True):
            theirs.copy_(ours)
        return reference

    def trainable_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def state(self) -> dict[str, Tensor]:
        """What save() writes. All processes must ask for it."""
        return model_state(self.model)

    def save(self, folder: Path, state: dict[str, Tensor] | None = None) -> None:
        """In Hugging Face format and stored_dtype; where that rounds, the exact weights beside it."""
        state = state or self.state()
        save_model(self.model, folder, state, self.stored_dtype)
        if any(t.is_floating_point() and t.dtype != self.stored_dtype for t in state.values()):
            save_tensors(state, folder / EXACT_WEIGHTS)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        if (folder / EXACT_WEIGHTS).is_file():
            saved = torch.load(folder / EXACT_WEIGHTS, map_location="cpu", weights_only=True)
        else:
            saved = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        assert model_state(self.model).keys() <= saved.keys()
        own = self.model.state_dict()
        for name, tensor in saved.items():
            own[name].copy_(tensor)

    def named_tensors(self, *, merged: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Every parameter under every name it has, tied ones too: an engine may keep an output head of its own.

        merged: as a plain model has them, adapters added to what they adapt.
        """
        for name, tensor in self.model.named_parameters(remove_duplicate=False):
            yield name, whole(tensor)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def vocab_size(self) -> int:
        return self.model.config.get_text_config().vocab_size
