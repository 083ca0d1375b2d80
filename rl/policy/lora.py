"""LoRA (arXiv 2106.09685) through peft: W x + (alpha / rank) B A x in place of W x; W is frozen, A and B are trained.

Beside rl/policy/merge.py the only file that imports peft.
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

POLICY, CRITIC_ADAPTERS = "default", "critic"  # peft's names of the sets of adapters
IN_FOUR_BITS = (
    "base-is-nf4"  # a file beside adapters that were trained on the rounded base: on the exact one they are others
)


def add_adapters(model: PreTrainedModel, *, rank: int, alpha: float, targets: Sequence[str], seed: int) -> PeftModel:
    """Puts float32 adapters into the model itself, and freezes the rest of it. B starts at zero: the policy is the base.

    targets: names of linear layers, as they end; "all-linear" alone is all of them but the output layer, experts included.
    """
    head = model.get_output_embeddings()
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head}
    everywhere = tuple(targets) == (ALL_LINEAR,)
    missing = [t for t in targets if not any(f".{name}".endswith(f".{t}") for name in linear)]
    advice = f"the linear layers here are {sorted({name.rpartition('.')[2] for name in linear})}; name some of them"
    if missing and not everywhere:
        raise UserError(
            f"lora_targets is {tuple(targets)}: {missing} match nothing in {type(model).__name__}; {advice}, or {ALL_LINEAR} alone"
        )
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]  only divided
        target_modules=ALL_LINEAR if everywhere else list(targets),
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
            # Else 16 bits go to float32 first, and under autocast straight back.
            module.cast_input_dtype_enabled = False  # pyright: ignore[reportArgumentType]
    return adapted


@dataclass(frozen=True, kw_only=True, eq=False)
class LoraPolicy(Policy):
    """A policy whose adapters are trained. It and its references are one model: a reference is a choice of adapters."""

    adapted: PeftModel
    freezes_base: ClassVar[bool] = True

    @classmethod
    def of(cls, adapted: PeftModel, **options: Any) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The policy of a model that add_adapters has adapted. options: of Policy.of."""
        return super().of(adapted.get_base_model(), adapted=adapted, **options)  # pyright: ignore[reportArgumentType]

    def frozen_copy(self, *, rounded: bool = False, offloaded: bool = False) -> Policy:
        """The policy as it is now, at the price of a copy of the adapters: its base is the policy's, in the type and place of that."""
        adapters = adapters_of(self.model, POLICY)
        kept = [(p, p.detach().clone()) for p in adapters.values()]
        add_nothing = not any(p.any() for name, p in adapters.items() if ".lora_B." in name)
        return replace(self, value_head=None, activate=partial(self.swapped, kept, off=add_nothing))

    def copy_weights_to(self, reference: Policy) -> Policy:
        return self.frozen_copy()

    @contextmanager
    def swapped(self, kept: Sequence[tuple[nn.Parameter, Tensor]], *, off: bool) -> Iterator[None]:
        """Inside the block the adapters are the kept ones, and switched off where these add nothing to the base.

        peft's disable_adapter() would look through the whole model first, which takes longer than the switching.
        """
        layers: Any = self.adapted.base_model
        trained = [(adapter, swap_values(adapter, tensor)) for adapter, tensor in kept]
        try:
            if off:
                layers.disable_adapter_layers()
            yield
        finally:
            if off:
                layers.enable_adapter_layers()
            for adapter, tensor in trained:
                swap_values(adapter, tensor)

    def trainable_parameters(self) -> list[nn.Parameter]:
        return list(adapters_of(self.model, POLICY).values())

    def named_tensors(self, *, merged: bool = False) -> Iterator[tuple[str, Tensor]]:
        """W + (alpha / rank) B A is made anew from the frozen W at each call, in float32: nothing is ever added to W itself."""
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
                for name, p in adapters_of(self.model, POLICY).items()
            }

    def save(self, folder: Path, state: dict[str, Tensor] | None = None) -> None:
        # To look for new embeddings, as peft does unasked, would ask the hub.
        self.adapted.save_pretrained(
            str(folder), save_embedding_layers=False, selected_adapters=[POLICY], state_dict=state or self.state()
        )
        if is_quantized(self.model):
            (folder / IN_FOUR_BITS).touch()

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        saved = load_peft_weights(str(folder), device=str(self.device))
        for name, adapter in adapters_of(self.model, POLICY).items():
            full = saved.pop(f"base_model.model.{name}".replace(f".{POLICY}", ""))
            adapter.copy_(shard_like(full, adapter))
        assert not saved


def lora_critic(policy: LoraPolicy, *, seed: int) -> Critic:
    """A critic of its own on the policy's frozen base: a second set of adapters, of the same rank and places, that add nothing yet."""
    adapted, layers = policy.adapted, policy.adapted.base_model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted.add_adapter(CRITIC_ADAPTERS, copy.deepcopy(adapted.peft_config[POLICY]))
    return Critic(
        trunk=policy,
        head=ValueHead.zeros(policy.model),
        trunk_parameters=adapters_of(policy.model, CRITIC_ADAPTERS),
        activate=partial(critic_adapters, layers),
    )


@contextmanager
def critic_adapters(layers: Any) -> Iterator[None]:
    """Inside the block the critic's adapters are the active ones, which alone take gradients."""
    try:
        layers.set_adapter(CRITIC_ADAPTERS)
        yield
    finally:
        layers.set_adapter(POLICY)


def adapters_of(model: nn.Module, which: str) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if ".lora_" in name and f".{which}" in name}


def is_quantized(model: PreTrainedModel) -> bool:
    return getattr(model, "is_quantized", False)


def merged_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters of a plain model: W + (alpha / rank) B A for W, which in 4 bits is what these stand for."""
    for name, tensor in model.named_parameters(remove_duplicate=False):
        if ".lora_" in name:
            continue
        path, _, kind = name.rpartition(".")
        if getattr(tensor, "quant_state", None) is not None:
            tensor = dequantize_module_weight(model.get_submodule(path)).float()
        while path.endswith(".base_layer"):  # of experts each parameter has a wrapper, one around the other
            path = path.removesuffix(".base_layer")
            wrapper: Any = model.get_submodule(path)
            if getattr(wrapper, "parameter_name", "weight") == kind:
                tensor = tensor + wrapper.get_delta_weight(POLICY)
        yield f"{path}.{kind}" if path else kind, tensor
