"""Kinds of policy, as values. A new kind is a new file with its functions, and a line of FAMILIES."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rl.forward.choose_forward import ForwardChoice, explain_forward, fuse
from rl.forward.forward import Attention, Forward, plain_forward
from rl.forward.fused import Fused
from rl.forward.micro_batch import TrainGroup, TrainSequence
from rl.policy.load import load_pretrained, require_folder
from rl.policy.save_model import save_model
from rollout.sampler import Sampler, Text
from rollout.torch_sampler import TorchSampler


@dataclass(frozen=True, kw_only=True)
class PolicyFamily:
    """Everything that differs between kinds of policy: the loss, the advantages, the verifiers and the loop know nothing of it.

    recognises: whether a model with this config belongs to the family.
    load: load_pretrained's arguments -> the model and its tokenizer. save: save_model's arguments.
    choose_forward: how this model lays groups out, what they cost in tokens, and how it scores them (rl/forward/forward.py).
    plain: the slow forward that is right by definition; what rounding does to it bounds what a delivery may differ by.
    sampler: TorchSampler's arguments -> the engine in this process. runs_in_vllm: whether vLLM can be the engine instead.
    view_at: a completion's view and an epoch -> the view that it is scored under in that epoch. None: the family reads no views.
    probe: prompts with completions -> what the proof of delivery scores (rl/update/delivery.py).
    """

    name: str
    recognises: Callable[[PretrainedConfig], bool]
    load: Callable[..., tuple[PreTrainedModel, PreTrainedTokenizerBase]] = load_pretrained
    save: Callable[..., None] = save_model
    choose_forward: Callable[[PreTrainedModel, Attention, Fused], ForwardChoice]
    plain: Forward = plain_forward
    sampler: Callable[..., Sampler] = TorchSampler
    runs_in_vllm: bool = True
    view_at: Callable[[int, int], int] | None = None
    probe: Callable[[Sequence[Text]], list[TrainGroup]]


def causal_forward(model: PreTrainedModel, attention: Attention = "auto", fused: Fused = "auto") -> ForwardChoice:
    """Packed rows where that gives the model's own log-probs, padded rows otherwise."""
    return fuse(explain_forward(model, attention), model, fused)


def causal_probe(texts: Sequence[Text]) -> list[TrainGroup]:
    """Every token of each completion, behind its prompt."""
    return [TrainGroup(prompt, (TrainSequence.to_score(completion),)) for prompt, completion in texts]


CAUSAL = PolicyFamily(name="causal", recognises=lambda config: True, choose_forward=causal_forward, probe=causal_probe)
FAMILIES = (CAUSAL,)  # the first that recognises a config


def family_of(model: str) -> PolicyFamily:
    """The family of a folder in Hugging Face format or a hub name."""
    require_folder(model)
    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError):
        return CAUSAL  # whose loading says what is wrong
    return next(family for family in FAMILIES if family.recognises(config))
