"""Options of the `plumbline` commands that have many. Nothing heavy is imported here: `plumbline --help` answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from rewards.errors import UserError
from rl.objective.names import CriticSource
from rollout.contamination import NGRAM
from rollout.records import PromptStyle

DType = Literal["float32", "bfloat16"]
AnyDType = Literal["auto", "float32", "bfloat16"]
BaseDType = Literal["auto", "float32", "bfloat16", "nf4"]
ReferenceDType = Literal["auto", "float32", "bfloat16"]
OptimizerName = Literal["adamw", "adamw-8bit"]
Offload = Literal["none", "reference", "optimizer", "all"]
ALL_LINEAR = "all-linear"
# GiB that torch reports of each.
CARDS = {"4090": 23.5, "a100-40": 39.4, "a100-80": 79.1, "h100": 79.1, "h200": 139.8, "b200": 178.4}


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Of `plumbline evaluate`. What is None is as in the run that the model is a checkpoint of."""

    model: tyro.conf.Positional[str]
    """tiny, a checkpoint of a run (adapters too), a folder in Hugging Face format or a hub name."""
    dataset: str | None = None
    """As in training. Of a checkpoint the run's own: what that held out."""
    dataset_config: str | None = None
    """Configuration of a hub data set that has several, such as main of openai/gsm8k."""
    split: str = "test"
    """Of a data set of the hub."""
    size: int | None = None
    """The first that many problems."""
    samples: int = 0
    """Completions n of each problem beside the greedy one, for pass@1, 2, 4 ... n and maj@n."""
    temperature: float = 1.0
    """Of the samples."""
    max_tokens: int | None = None
    """Longest completion. Of a checkpoint the run's, else 1024."""
    prompt_style: PromptStyle | None = None
    """Of a checkpoint the run's, else the one for the problem's verifier."""
    system_prompt: str | None = None
    """In place of the style's."""
    chat_template: str | None = None
    """A file with a Jinja template in place of the tokenizer's own, or the name of one of several that the tokenizer has."""
    max_prompt_tokens: int | None = None
    """Problems with a longer prompt are left out. Of a checkpoint the run's."""
    stop_strings: tuple[str, ...] | None = None
    """A completion also ends behind the first of these. Of a checkpoint the run's."""
    dtype: AnyDType = "auto"
    """The engine's; auto is bfloat16 on a GPU that has it, else float32."""
    sampler: Literal["torch", "vllm"] = "torch"
    """The embedded engine or vLLM in this process."""
    seed: int = 0
    """Of the samples."""
    against: str | None = None
    """Also look for problems that share words with this data set, such as the one that was trained on."""
    ngram: int = NGRAM
    """That many words in a row."""
    allow_unsafe_code: bool = False
    """Run programs even where this machine cannot shut them in."""
    device: Literal["auto", "cpu"] = "auto"
    out: Path | None = None
    """A JSON file for the numbers."""

    def __post_init__(self) -> None:
        counts = (("size", 1), ("samples", 0), ("max_tokens", 1), ("max_prompt_tokens", 1), ("ngram", 1))
        for name, least in counts:
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} is {value!r}: it must be at least {least}")
        if self.temperature <= 0:
            raise UserError(
                f"temperature is {self.temperature}: it must be more than 0; greedy accuracy is always measured"
            )
        if self.out is not None and (self.out.is_dir() or not self.out.parent.is_dir()):
            is_what = "it is a folder" if self.out.is_dir() else f"there is no folder {str(self.out.parent)!r}"
            raise UserError(f"out is {str(self.out)!r}: {is_what}; name a file in a folder that is there")


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Of `plumbline plan`."""

    model: str
    """tiny, qwen2.5-0.5b, -1.5b, -3b, -7b, -32b, qwen3-0.6b, -1.7b, -4b, -8b, a folder or file of a config.json, or a hub name in
    the cache."""
    algorithm: str = "grpo"
    """A name in rl/objective/algorithms.py."""
    value: CriticSource | None = None
    """PPO's critic, a head on the policy's trunk or a model of its own. By algorithm."""
    kl_weight: float | None = None
    """0 keeps no reference. By algorithm."""
    lora_rank: int = 0
    """Rank of the adapters that are trained; 0 trains all weights."""
    group_size: int = 8
    """Completions per problem."""
    problems_per_step: int = 32
    """Of all GPUs together."""
    prompt_length: int = 512
    """Tokens of a prompt."""
    completion_length: int = 1024
    """Tokens of every completion: the longest, for the most memory."""
    token_budget: int | Literal["auto"] = "auto"
    """Tokens in one forward. "auto": 8192; with card, what a run would choose there."""
    dtype: DType = "bfloat16"
    """bfloat16 is autocast over float32 weights."""
    gradient_checkpointing: bool | None = None
    """Run the layers again in the backward pass. None is off; with card, as a run would choose there."""
    lora_base: BaseDType = "auto"
    """Precision of the frozen weights under the adapters. "auto" is dtype, nf4 is 4 bits (QLoRA)."""
    reference_dtype: ReferenceDType = "auto"
    """Precision of a reference's weights. "auto" is dtype."""
    optimizer: OptimizerName = "adamw"
    """adamw-8bit keeps its moments in 8 bits."""
    gradient_dtype: DType = "float32"
    """bfloat16 halves the gradients' memory."""
    offload: Offload = "none"
    """What waits in the host's memory: the reference, the optimiser's moments, or all, both."""
    sampler_rows: int | Literal["auto"] = "auto"
    """Completions that the embedded engine decodes at once. "auto": 1024; with card, as many as fit."""
    gpus: int = 1
    """That the problems are shared out to."""
    sharding: Literal["none", "full", "offload"] = "none"
    """full divides weights, gradients and optimizer state by the GPUs (FSDP2); offload also keeps them in the host's memory."""
    sampler: Literal["torch", "vllm-server"] = "torch"
    """The embedded one on the same GPUs, or vLLM's servers on others."""
    card: float | str | None = None
    """GiB of one card, or its name: 4090, a100-40, a100-80, h100, h200, b200. What fits it at the largest is printed too."""
    dry_run: bool = True
    """Also run the update itself, without numbers, to count what it holds; not with sharding offload, which it cannot place."""

    def __post_init__(self) -> None:
        for name, least in (("prompt_length", 1), ("completion_length", 2), ("problems_per_step", 1), ("gpus", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least {least}; give a larger one")
        if self.card is not None and not self.gib > 0:
            raise UserError(
                f"card is {self.card}: it must be more than 0, the GiB of one card, or one of {', '.join(CARDS)}; give 80, for instance"
            )
        longest = self.prompt_length + self.completion_length - 1
        if self.token_budget != "auto" and longest > self.token_budget:
            raise UserError(
                f"token_budget is {self.token_budget}: one sequence of prompt_length {self.prompt_length} and completion_length "
                f"{self.completion_length} has {longest} tokens, and must fit one forward; raise token_budget to at least that"
            )
        if self.gpus > self.problems_per_step:
            raise UserError(
                f"gpus is {self.gpus}: it must be at most problems_per_step, {self.problems_per_step}, for each to have a problem"
            )
        if self.shards and self.gpus == 1:
            raise UserError(
                f"sharding is {self.sharding!r}: there is one GPU to shard over; set gpus to at least 2, or sharding none"
            )

    @property
    def shards(self) -> bool:
        return self.sharding != "none"

    @property
    def gib(self) -> float:
        """Of the card; 0 where its name says nothing."""
        name = f"{self.card:g}" if isinstance(self.card, float | int) else str(self.card).lower()
        if name in CARDS:
            return CARDS[name]
        try:
            return float(name)
        except ValueError:
            return 0.0

    @property
    def own_problems(self) -> int:
        """Of the GPU that has most."""
        return -(-self.problems_per_step // self.gpus)
