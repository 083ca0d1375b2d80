"""Policy families, each a `PolicyFamily` value. A new family is a new file with its functions, and an entry in FAMILIES."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rl.forward.choose_forward import ForwardChoice, explain_forward, fuse
from rl.forward.forward import Attention, Forward, plain_forward
from rl.forward.fused import Fused
from rl.forward.micro_batch import TrainGroup, TrainSequence
from rl.policy.load import load_pretrained, require_folder
from rl.policy.save_model import save_model
from rollout.sampler import Sampler, Text
from rollout.torch_sampler import TorchSampler


def read_causal(folder: Path) -> dict[str, Tensor]:
    """The float32 tensors of a causal LM in Hugging Face format."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


@dataclass(frozen=True, kw_only=True)
class PolicyFamily:
    """The functions that differ between kinds of policy. The loss, advantages, verifiers and training loop do not depend on the family.

    recognises: whether a model with this config belongs to the family.
    load: takes load_pretrained's arguments, returns the model and its tokenizer. save: takes save_model's arguments. read: returns the
        float32 tensors of a folder that `save` wrote.
    choose_forward: the forward of a model: the layout of groups, its number of tokens, and the scoring (rl/forward/forward.py).
    plain: the slow forward that defines the right log-probs; its rounding error bounds the differences after a weight delivery.
    sampler: takes TorchSampler's arguments, returns the engine in this process. runs_in_vllm: whether vLLM can be the engine instead.
    view_at: a completion's view and an epoch -> the view that the completion is scored under in that epoch. None: the family does not
        support views.
    probe: prompts with completions -> the groups that are scored to check a weight delivery (rl/update/delivery.py).
    """

    name: str
    recognises: Callable[[PretrainedConfig], bool]
    load: Callable[..., tuple[PreTrainedModel, PreTrainedTokenizerBase]] = load_pretrained
    save: Callable[..., None] = save_model
    read: Callable[[Path], dict[str, Tensor]] = read_causal
    choose_forward: Callable[[PreTrainedModel, Attention, Fused], ForwardChoice]
    plain: Forward = plain_forward
    sampler: Callable[..., Sampler] = TorchSampler
    runs_in_vllm: bool = True
    view_at: Callable[[int, int], int] | None = None
    probe: Callable[[Sequence[Text]], list[TrainGroup]]


def causal_forward(model: PreTrainedModel, attention: Attention = "auto", fused: Fused = "auto") -> ForwardChoice:
    """Packed rows if they reproduce the model's own log-probs, padded rows otherwise."""
    return fuse(explain_forward(model, attention), model, fused)


def causal_probe(texts: Sequence[Text]) -> list[TrainGroup]:
    """Groups in which every token of each completion is scored after its prompt."""
    return [TrainGroup(prompt, (TrainSequence.to_score(completion),)) for prompt, completion in texts]


CAUSAL = PolicyFamily(name="causal", recognises=lambda config: True, choose_forward=causal_forward, probe=causal_probe)
FAMILIES = (CAUSAL,)  # family_of takes the first that recognises a config


def family_of(model: str) -> PolicyFamily:
    """The family of a model, given as a folder in Hugging Face format or a hub name."""
    require_folder(model)
    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError):
        return CAUSAL  # its `load` reports the error
    return next(family for family in FAMILIES if family.recognises(config))
