"""LoRA (arXiv 2106.09685) through peft: W x + (alpha / rank) B A x in place of W x; W is frozen, A and B are trained.

Only this file and rl/policy/merge.py import peft.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from peft import LoraConfig, PeftModel, get_peft_model, load_peft_weights
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rewards.errors import UserError
from rl.forward.output_head import ValueHead
from rl.policy.critic import Critic
from rl.policy.policy import Policy
from rl.processes.sharding import full_on_main, full_tensor, shard_like, swap_values
from rl.settings.options import ALL_LINEAR

POLICY, CRITIC_ADAPTERS = "default", "critic"  # names of the adapter sets in peft
# A marker file: these adapters were trained on the 4-bit base and must be merged into its dequantized weights.
IN_FOUR_BITS = "base-is-nf4"


def add_adapters(model: PreTrainedModel, *, rank: int, alpha: float, targets: Sequence[str], seed: int) -> PeftModel:
    """Adds float32 adapters to the model in place, and freezes all its other weights. B starts at zero, so the policy equals the base.

    targets: the last parts of linear layers' names; "all-linear" alone is all of them except the output layer, experts included.
    """
    head = model.get_output_embeddings()
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head}
    adapts_all = tuple(targets) == (ALL_LINEAR,)
    missing = [t for t in targets if not any(f".{name}".endswith(f".{t}") for name in linear)]
    advice = f"the linear layers here are {sorted({name.rpartition('.')[2] for name in linear})}; name some of them"
    if missing and not adapts_all:
        raise UserError(
            f"lora_targets is {tuple(targets)}: {missing} match nothing in {type(model).__name__}; {advice}, or {ALL_LINEAR} alone"
        )
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]  peft only divides it
        target_modules=ALL_LINEAR if adapts_all else list(targets),
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in linear.values()),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            adapted = get_peft_model(model, config)
        except ValueError as error:  # layers that peft knows it cannot adapt, such as Mamba's out_proj
            raise UserError(f"lora_targets is {tuple(targets)}: peft refuses them ({error}); {advice}") from None
    assert isinstance(adapted, PeftModel)
    for module in adapted.modules():
        if isinstance(module, BaseTunerLayer):
            # Otherwise peft casts 16-bit inputs to float32, and autocast casts them back.
            module.cast_input_dtype_enabled = False  # pyright: ignore[reportArgumentType]
    return adapted


@dataclass(frozen=True, kw_only=True, eq=False)
class LoraPolicy(Policy):
    """A policy of which only the adapters are trained. Its references share its model and differ in the adapters' values only."""

    adapted: PeftModel
    freezes_base: ClassVar[bool] = True

    @classmethod
    def of(cls, adapted: PeftModel, **options: Any) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The policy of a model with adapters from add_adapters. options: those of Policy.of."""
        return super().of(adapted.get_base_model(), adapted=adapted, **options)  # pyright: ignore[reportArgumentType]

    def frozen_copy(self, *, rounded: bool = False, offloaded: bool = False) -> Policy:
        """A frozen copy that copies only the adapters and shares the base, whose dtype and device it keeps."""
        adapters = adapter_parameters(self.model, POLICY)
        values = [(p, p.detach().clone()) for p in adapters.values()]
        are_zero = not any(p.any() for name, p in adapters.items() if ".lora_B." in name)
        return replace(self, value_head=None, activate=partial(self.swapped, values, disabled=are_zero))

    def copy_weights_to(self, reference: Policy) -> Policy:
        return self.frozen_copy()

    @contextmanager
    def swapped(self, values: Sequence[tuple[nn.Parameter, Tensor]], *, disabled: bool) -> Iterator[None]:
        """Inside the block the adapters have these values. disabled: they add nothing to the base, so the layers skip them.

        peft's own disable_adapter() first searches the whole model, which takes longer than disabling the layers.
        """
        layers: Any = self.adapted.base_model
        before = [(adapter, swap_values(adapter, tensor)) for adapter, tensor in values]
        try:
            if disabled:
                layers.disable_adapter_layers()
            yield
        finally:
            if disabled:
                layers.enable_adapter_layers()
            for adapter, tensor in before:
                swap_values(adapter, tensor)

    def trainable_parameters(self) -> list[nn.Parameter]:
        return list(adapter_parameters(self.model, POLICY).values())

    def named_tensors(self, *, merged: bool = False) -> Iterator[tuple[str, Tensor]]:
        """As Policy.named_tensors. Merged tensors W + (alpha / rank) B A are computed from the frozen W in float32 at each call."""
        with self.activate(), torch.no_grad():
            if not merged:
                yield from super().named_tensors()
                return
            for name, tensor in merged_tensors(self.model):
                yield name, full_tensor(tensor)

    def state(self) -> dict[str, Tensor]:
        with self.activate():
            return {
                f"base_model.model.{name}": full_on_main(p.detach())
                for name, p in adapter_parameters(self.model, POLICY).items()
            }

    def save(self, folder: Path, state: dict[str, Tensor] | None = None) -> None:
        # By default peft looks for resized embeddings, and queries the hub for that.
        self.adapted.save_pretrained(
            str(folder), save_embedding_layers=False, selected_adapters=[POLICY], state_dict=state or self.state()
        )
        if is_quantized(self.model):
            (folder / IN_FOUR_BITS).touch()

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        saved = load_peft_weights(str(folder), device=str(self.device))
        for name, adapter in adapter_parameters(self.model, POLICY).items():
            full = saved.pop(f"base_model.model.{name}".replace(f".{POLICY}", ""))
            adapter.copy_(shard_like(full, adapter))
        assert not saved


def lora_critic(policy: LoraPolicy, *, seed: int) -> Critic:
    """A separate critic on the policy's frozen base: a second set of adapters of the same rank in the same layers, with B = 0 at first."""
    adapted, layers = policy.adapted, policy.adapted.base_model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted.add_adapter(CRITIC_ADAPTERS, copy.deepcopy(adapted.peft_config[POLICY]))
    return Critic(
        trunk=policy,
        head=ValueHead.zeros(policy.model),
        trunk_parameters=adapter_parameters(policy.model, CRITIC_ADAPTERS),
        activate=partial(critic_adapters, layers),
    )


@contextmanager
def critic_adapters(layers: Any) -> Iterator[None]:
    """Inside the block the critic's adapters are active, and only they receive gradients."""
    try:
        layers.set_adapter(CRITIC_ADAPTERS)
        yield
    finally:
        layers.set_adapter(POLICY)


def adapter_parameters(model: nn.Module, which: str) -> dict[str, nn.Parameter]:
    """The parameters of one set of adapters, POLICY or CRITIC_ADAPTERS, by name."""
    return {name: p for name, p in model.named_parameters() if ".lora_" in name and f".{which}" in name}


def is_quantized(model: PreTrainedModel) -> bool:
    """Whether the model was loaded with quantized weights."""
    return getattr(model, "is_quantized", False)


def merged_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters of the equivalent plain model: W + (alpha / rank) B A in place of W, with W dequantized if it is in 4 bits."""
    for name, tensor in model.named_parameters(remove_duplicate=False):
        if ".lora_" in name:
            continue
        path, _, kind = name.rpartition(".")
        if getattr(tensor, "quant_state", None) is not None:
            tensor = dequantize_module_weight(model.get_submodule(path)).float()
        while path.endswith(".base_layer"):  # each parameter of experts has a wrapper, nested in one another
            path = path.removesuffix(".base_layer")
            wrapper: Any = model.get_submodule(path)
            if getattr(wrapper, "parameter_name", "weight") == kind:
                tensor = tensor + wrapper.get_delta_weight(POLICY)
        yield f"{path}.{kind}" if path else kind, tensor
