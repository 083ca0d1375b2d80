"""Peak memory of a run on one device, predicted before it allocates anything.

rl/capacity/choose.py chooses the values of "auto" options by it, and `plumbline plan` (rl/command/plan.py) prints it. Activations and the
output layer are computed by rl/capacity/memory.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rl.capacity.cost import FLOAT32, ModelCost, key_value_bytes, size
from rl.capacity.memory import MicroBatchPlan, TrainedTrunk, adapter_numbers
from rl.policy.offload import BUCKET
from rl.settings.config import RunConfig
from rl.settings.options import Engine
from rl.settings.resolve import RunSettings, resolve
from rollout.engine.sizes import Capacity

GIB = 1 << 30
ROUNDED = 2  # bytes of a bfloat16 number
MOMENTS = {
    "adamw": 2.0 * FLOAT32,
    "adamw-8bit": 2 * (1 + FLOAT32 / 256),
}  # 8-bit moments have one float32 scale per 256
# NF4: half a byte per number, an 8-bit scale per 64 numbers, and a float32 scale per 256 of these scales (arXiv 2305.14314).
NF4 = 0.5 + 1 / 64 + FLOAT32 / (64 * 256)
# Per vocabulary entry of a row: logit and probability in float32, cumulative sum in float64.
CANDIDATE_BYTES = 2 * FLOAT32 + 8
CUDA_CONTEXT = 0.8 * GIB  # CUDA, cuBLAS and kernels, outside of the allocator; 0.5 to 0.8 GiB depending on the card
# torch's allocator leaves part of each block of 2 MiB or more unused; with few, repeating sizes that is some percent.
FRAGMENTATION = 1.05


@dataclass(frozen=True, kw_only=True)
class Account:
    """Predicted bytes of a run on one device.

    asked: the options as given, of which some may depend on the device (RunConfig.on). problems: problems per step of this process.
    evaluated: completions of an evaluation in this process. prompt_length, completion_length: the longest, in tokens. per_rank:
    parameters of LoRA adapters of rank 1. rounded: parameters that rl/policy/precision.py can store in 16 bits. engine: the sampler on
    this device; vLLM in this process reserves its own memory. shards: processes that the weights are sharded over. cpu_offload: sharded
    weights, gradients and moments rest in the host's memory. critic_shape: size of a critic that is another model than the policy.
    teacher: bytes of a teacher's weights.
    """

    asked: RunConfig
    config: PretrainedConfig
    cost: ModelCost
    per_rank: int
    rounded: int
    prompt_length: int
    completion_length: int
    problems: int
    evaluated: int = 0
    device: str = "cuda"
    engine: Engine = "torch"
    shards: int = 1
    cpu_offload: bool = False
    critic_shape: tuple[ModelCost, PretrainedConfig] | None = None
    teacher: float = 0.0

    @staticmethod
    def of(
        asked: RunConfig,
        model: PreTrainedModel,
        *,
        prompt_length: int,
        device: str,
        engine: Engine = "torch",
        processes: int = 1,
        shards: bool = False,
        cpu_offload: bool = False,
        critic: PreTrainedModel | None = None,
        teacher: PreTrainedModel | None = None,
    ) -> Account:
        """model: without adapters; one on torch's device "meta" is enough. critic: the critic where it is another model."""
        run = resolve(asked, device, shards=shards)
        evaluated = run.eval_size * max(1, run.eval_samples)
        return Account(
            asked=asked,
            config=model.config.get_text_config(),
            cost=ModelCost.of(model),
            per_rank=adapter_numbers(model, 1, run.lora_targets),
            rounded=rounded_numbers(model),
            prompt_length=prompt_length,
            completion_length=max(2, run.max_tokens),
            problems=-(-run.problems_per_step // processes),
            evaluated=-(-evaluated // processes),
            device=device,
            engine=engine,
            shards=processes if shards else 1,
            cpu_offload=cpu_offload,
            critic_shape=None if critic is None else (ModelCost.of(critic), critic.config.get_text_config()),
            teacher=0.0 if teacher is None else teacher_bytes(teacher, run, device),
        )

    def with_options(self, **options: object) -> Account:
        """The account of the same run with other options."""
        return replace(self, asked=replace(self.asked, **options))  # pyright: ignore[reportArgumentType]

    @cached_property
    def run(self) -> RunSettings:
        """The settings of the run; what is still to be chosen has its default."""
        return resolve(self.asked, self.device, shards=self.shards > 1)

    @property
    def adapters(self) -> int:
        return self.run.lora_rank * self.per_rank

    @property
    def group_size(self) -> int:
        return self.run.group_size

    @cached_property
    def micro_batches(self) -> MicroBatchPlan:
        lengths = (self.prompt_length, self.completion_length)
        return MicroBatchPlan.of(self.problems, self.group_size, *lengths, self.run.token_budget)

    @cached_property
    def policy(self) -> TrainedTrunk:
        run, is_bfloat16 = self.run, self.run.dtype == "bfloat16"
        has_varlen = self.device == "cuda" and is_bfloat16 and run.attention != "dense"
        return TrainedTrunk(
            cost=self.cost,
            config=self.config,
            is_bfloat16=is_bfloat16,
            checkpointed=run.gradient_checkpointing,
            dense=not has_varlen and run.attention != "varlen",
            lora_rank=run.lora_rank,
            adapters=self.adapters,
            base_rounded=run.lora_base != "float32",
            head_rounded=run.rounds_base(self.device),
            float32_head=bool(self.exact_head),
            gradient_width=ROUNDED if run.gradient_dtype == "bfloat16" else FLOAT32,
            device=self.device,
            two_passes=not run.chosen_algorithm().token_level,
        )

    @cached_property
    def critic(self) -> TrainedTrunk | None:
        if self.run.chosen_algorithm().critic != "separate":
            return None
        cost, config = self.critic_shape or (self.cost, self.config)
        return replace(self.policy, has_head=False, cost=cost, config=config)

    @property
    def value_head(self) -> int:
        trunk = self.critic or self.policy
        return 0 if self.run.chosen_algorithm().critic == "none" else trunk.config.hidden_size + 1

    @property
    def has_reference(self) -> bool:
        return self.run.chosen_algorithm().needs_reference

    @property
    def exact_head(self) -> int:
        """Parameters of the output layer, and of the embeddings if they are tied to it, where head_dtype keeps them in float32; else 0."""
        return self.cost.head if self.run.head_dtype == "float32" else 0

    @property
    def base(self) -> float:
        """Bytes of the model's own weights."""
        run, every = self.run, self.cost.all_parameters
        in_4_bits = self.cost.block if run.lora_base == "nf4" else 0
        in_16_bits = self.rounded - self.exact_head - in_4_bits if run.rounds_base(self.device) else 0
        return NF4 * in_4_bits + ROUNDED * in_16_bits + FLOAT32 * (every - in_4_bits - in_16_bits)

    @property
    def reference(self) -> float:
        """Bytes of the reference: a second model, or with LoRA a copy of the adapters."""
        if not self.has_reference:
            return 0.0
        if self.run.lora_rank:
            return FLOAT32 * self.adapters
        in_16_bits = self.rounded - self.exact_head if self.run.reference_dtype == "bfloat16" else 0
        return FLOAT32 * self.cost.all_parameters - ROUNDED * in_16_bits

    @property
    def start_copy(self) -> float:
        """Bytes of the policy at the start of the run, where completions are sampled from it; with LoRA a copy of the adapters."""
        if self.run.chosen_algorithm().samples_from != "start":
            return 0.0
        return FLOAT32 * (self.adapters if self.run.lora_rank else self.cost.all_parameters)

    @property
    def engine_copy(self) -> float:
        """Bytes of the embedded engine's own weights, beside the trainer's.

        The engine uses the trainer's weights where both have one type; with a base in 16 or 4 bits it computes the adapters separately,
        with a float32 base it merges them into a copy. It has a full float32 model of its own where it samples from other weights than
        the current policy's, and where the trainer's are sharded.
        """
        run, every = self.run, self.cost.all_parameters
        if self.engine != "torch":
            return 0.0
        apart = self.shards > 1 or run.one_step_ahead or run.chosen_algorithm().samples_from == "start"
        copy = float(FLOAT32 * every if apart else 0)
        if run.lora_base == "nf4" or run.lora_base == run.sampler_dtype == "bfloat16":
            return copy
        if run.sampler_dtype == "bfloat16":
            return copy + ROUNDED * (every - self.exact_head)
        return copy + (FLOAT32 * self.cost.block if run.lora_rank else 0)

    @property
    def rows(self) -> int:
        """Number of completions that the embedded engine decodes at once."""
        return self.rows_of(max(self.problems * self.group_size, self.evaluated))

    def rows_of(self, asked: int) -> int:
        """Rows decoded at once of `asked` completions. A group is never split."""
        return min(asked, max(self.run.sampler_rows, self.least_rows))

    @property
    def least_rows(self) -> int:
        return max(self.group_size, self.run.eval_samples)

    @property
    def keys_and_values(self) -> float:
        """Bytes of the key-value cache while sampling. Training and evaluation share it, so each dimension is the larger of the two, on
        a GPU rounded up to buckets. A prompt is stored once for its group. With a thinking budget or tools each row also has room for a
        whole context of its own: what is kept of an earlier turn, or the prompt of the next one where nothing is."""
        width = ROUNDED if self.run.sampler_dtype == "bfloat16" else FLOAT32
        asked = [(self.problems * self.group_size, self.group_size), (self.evaluated, max(1, self.run.eval_samples))]
        rows, groups = (max(sizes) for sizes in zip(*((self.rows_of(n), ceil(self.rows_of(n) / g)) for n, g in asked)))
        cache = Capacity(rows, groups, self.prompt_length, self.completion_length)
        if self.run.thinking_budget is not None or self.run.tools or self.run.environment:
            cache = cache._replace(groups=rows, shared_width=self.prompt_length + self.completion_length)
        if self.device == "cuda":
            cache = cache._replace(width=cache.width + 1).bucketed()
        return float(key_value_bytes(self.cost, cache.groups, cache.rows, cache.shared_width, cache.width, width))

    @property
    def critic_parameters(self) -> int:
        """Trained parameters beside the policy's."""
        return self.value_head + (self.critic.trained if self.critic else 0)

    @property
    def resident(self) -> float:
        """Fraction of the weights, gradients and moments that rests on this device."""
        return 0.0 if self.cpu_offload else 1 / self.shards

    def offloads(self, what: str) -> bool:
        return self.run.offload in (what, "all")

    def parts(self) -> dict[str, float]:
        """Bytes on one GPU, by name. Sharding divides weights, gradients and moments, but not what a micro-batch needs.

        critic: weights, gradients and moments of its trunk and head; with LoRA a second set of adapters on the policy's base.
        gathered: with sharding, the weights outside of the layers and those of two layers.
        """
        row, trained, resident = self.micro_batches.largest, self.policy.trained, self.resident
        gradient = self.policy.gradient_width
        moments = 0.0 if self.offloads("optimizer") else MOMENTS[self.run.optimizer]
        adapters = FLOAT32 * trained if self.run.lora_rank else 0
        gathered = self.policy.outside + 2 * self.cost.block / self.config.num_hidden_layers
        head = self.policy.head(row)
        again = self.policy.layer(row) if self.policy.checkpointed else 0
        samples = self.engine == "torch"
        return {
            "parameters": (self.base + adapters) * resident,
            "gradients": gradient * trained * resident,
            "optimiser": moments * trained * resident,
            "reference": 0.0 if self.offloads("reference") else self.reference * resident,
            "start": self.start_copy * resident,
            "teacher": 0.0 if self.offloads("reference") else self.teacher,
            "critic": (FLOAT32 + gradient + moments) * self.critic_parameters * resident,
            "gathered": FLOAT32 * gathered if self.shards > 1 else 0.0,
            "activations": float(self.policy.kept(row) + again),
            "head, a chunk": float(head["chunk"]),
            "head, gradient": float(head["gradient"]),
            "sampler's weights": self.engine_copy,
            "key-value cache": samples * self.keys_and_values,
            "sampler's logits": float(samples * CANDIDATE_BYTES * self.rows * self.config.vocab_size),
        }

    def kept(self) -> float:
        """Bytes held between updates: weights, moments, reference, start policy, teacher, and the critic's weights and moments."""
        parts = self.parts()
        named = ("parameters", "optimiser", "reference", "start", "teacher", "critic")
        return sum(parts[name] for name in named) - self.policy.gradient_width * self.critic_parameters * self.resident

    @property
    def stepped(self) -> float:
        """Bytes of the bucket that StreamedOptimizer steps at once: float32 gradients and moments that are stored otherwise."""
        bytes_each = FLOAT32 if self.run.gradient_dtype == "bfloat16" else 0
        bytes_each += MOMENTS[self.run.optimizer] if self.offloads("optimizer") else 0
        most = BUCKET if self.run.lora_rank else max(BUCKET, self.cost.head)
        return bytes_each * min(most, self.policy.trained)

    def peak_of_update(self) -> float:
        """kept() and the engine's copy, plus the largest of: the pass of an offloaded reference or teacher; the critic's pass; the policy's pass
        beside the critic's gradients; the optimizer step. From the second micro-batch on all gradients exist before a pass. With
        one_step_ahead sampling runs at the same time.
        """
        parts, row, is_first = self.parts(), self.micro_batches.largest, self.micro_batches.count == 1
        critic_gradients = self.policy.gradient_width * self.critic_parameters * self.resident
        before = 0.0 if is_first else parts["gradients"]
        passes = [
            parts["gradients"] + critic_gradients + self.stepped,
            before
            + critic_gradients
            + self.policy.peak(row, is_first=is_first and not self.cpu_offload, sharded=self.shards > 1),
        ]
        if self.critic is not None:
            passes.append(before + (0 if is_first else critic_gradients) + self.critic.peak(row, is_first=is_first))
        if self.offloads("reference"):
            passes.append(
                max(self.reference * self.resident, self.teacher) + self.policy.layer(row) + parts["head, a chunk"]
            )
        return self.kept() + self.engine_copy + max(passes) + self.run.one_step_ahead * self.sampled_with(parts)

    def peak_of_sampling(self) -> float:
        return self.kept() + self.engine_copy + self.sampled_with(self.parts())

    @staticmethod
    def sampled_with(parts: Mapping[str, float]) -> float:
        """Bytes that only sampling holds."""
        return parts["key-value cache"] + parts["sampler's logits"]

    def peak(self) -> float:
        return max(self.peak_of_update(), self.peak_of_sampling())

    def needed(self, peak: float) -> float:
        """The peak with the allocator's fragmentation, without CUDA_CONTEXT."""
        return FRAGMENTATION * peak


def teacher_bytes(teacher: PreTrainedModel, run: RunSettings, device: str) -> float:
    """Bytes of a teacher's weights as the run stores them: in 16 bits where it rounds them, but for an output layer that head_dtype
    keeps in float32."""
    cost = ModelCost.of(teacher)
    exact_head = cost.head if run.head_dtype == "float32" else 0
    in_16_bits = rounded_numbers(teacher) - exact_head if run.rounds_teacher(device) else 0
    return FLOAT32 * cost.all_parameters - ROUNDED * in_16_bits


def rounded_numbers(model: PreTrainedModel) -> int:
    """Number of parameters of linear layers and embedding tables, in whatever type they are stored now."""
    read = (m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) or type(m) is nn.Embedding)
    return sum(map(size, {p for m in read for p in m.parameters(recurse=False)}))
