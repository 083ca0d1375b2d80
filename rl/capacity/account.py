"""What a run holds on one device at its fullest, known before anything of it is taken.

One account for everybody who asks: rl/capacity/choose.py, which picks what is "auto" by it, and `plumbline plan` (rl/command/plan.py). The
activations and the output layer are rl/capacity/memory.py's.
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
from rollout.engine.fused_decoder import Capacity

GIB = 1 << 30
ROUNDED = 2  # bytes of a number in bfloat16
MOMENTS = {"adamw": 2.0 * FLOAT32, "adamw-8bit": 2 * (1 + FLOAT32 / 256)}  # in 8 bits a scale for each 256
# NF4: half a byte, a scale of 8 bits for each 64 numbers, and one in float32 for each 256 of these (arXiv 2305.14314).
NF4 = 0.5 + 1 / 64 + FLOAT32 / (64 * 256)
# Of a token that may be drawn: its logit and probability, the sum of these in float64.
CANDIDATE_BYTES = 2 * FLOAT32 + 8
CUDA_CONTEXT = 0.8 * GIB  # of CUDA, cuBLAS and the kernels, outside of the allocator; 0.5 to 0.8 by card
# Between tensors torch's allocator leaves a rest of each block of 2 MiB and more; of few sizes that repeat it is some percent.
FRAGMENTATION = 1.05


@dataclass(frozen=True, kw_only=True)
class Account:
    """Bytes on one device of a run, whose options `asked` may leave values to the device ("auto").

    problems: of a step, that this process trains on. evaluated: completions of an evaluation. prompt_length, completion_length:
    the longest. per_rank: numbers of adapters of rank 1. rounded: numbers that rl/policy/precision.py may keep in 16 bits. shards:
    processes that weights are spread over. engine: what samples on this device; vLLM in this process takes its share by itself.
    critic_shape: of a critic that is another model than the policy.
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
    ) -> Account:
        """model: without adapters yet; a skeleton on torch's device "meta" does. critic: where that is another model."""
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
        )

    def with_options(self, **options: object) -> Account:
        """The same with other options of the run."""
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
            gradient_width=ROUNDED if run.gradient_dtype == "bfloat16" else FLOAT32,
            device=self.device,
            two_passes=run.chosen_algorithm().critic == "shared",
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
        return self.run.chosen_algorithm().kl_weight > 0

    @property
    def base(self) -> float:
        """The model's own weights."""
        run, every = self.run, self.cost.all_parameters
        in_4_bits = self.cost.block if run.lora_base == "nf4" else 0
        in_16_bits = self.rounded - in_4_bits if run.rounds_base(self.device) else 0
        return NF4 * in_4_bits + ROUNDED * in_16_bits + FLOAT32 * (every - in_4_bits - in_16_bits)

    @property
    def reference(self) -> float:
        """A model of its own, or under LoRA a copy of the adapters."""
        if not self.has_reference:
            return 0.0
        if self.run.lora_rank:
            return FLOAT32 * self.adapters
        in_16_bits = self.rounded if self.run.reference_dtype == "bfloat16" else 0
        return FLOAT32 * self.cost.all_parameters - ROUNDED * in_16_bits

    @property
    def engine_copy(self) -> float:
        """What the embedded engine multiplies with beside the trainer's own weights.

        None of the trainer's type, whose adapters it adds by themselves where the base is in 16 or 4 bits; over a base in float32
        they are merged. A whole float32 model where other weights than the policy's as it is are sampled with, or not all are here.
        """
        run, every = self.run, self.cost.all_parameters
        if self.engine != "torch":
            return 0.0
        apart = self.shards > 1 or run.one_step_ahead or run.chosen_algorithm().samples_from == "start"
        copy = float(FLOAT32 * every if apart else 0)
        if run.lora_base == "nf4" or run.lora_base == run.sampler_dtype == "bfloat16":
            return copy
        if run.sampler_dtype == "bfloat16":
            return copy + ROUNDED * every
        return copy + (FLOAT32 * self.cost.block if run.lora_rank else 0)

    @property
    def rows(self) -> int:
        """Completions that the embedded engine decodes at once."""
        return self.rows_of(max(self.problems * self.group_size, self.evaluated))

    def rows_of(self, asked: int) -> int:
        """A group is never split."""
        return min(asked, max(self.run.sampler_rows, self.least_rows))

    @property
    def least_rows(self) -> int:
        return max(self.group_size, self.run.eval_samples)

    @property
    def keys_and_values(self) -> float:
        """Of a step's rows and an evaluation's, which share one cache: every prompt once for its group, each field as large as the
        larger needs, on a GPU rounded up to buckets. None while the update runs."""
        width = ROUNDED if self.run.sampler_dtype == "bfloat16" else FLOAT32
        asked = [(self.problems * self.group_size, self.group_size), (self.evaluated, max(1, self.run.eval_samples))]
        rows, groups = (max(sizes) for sizes in zip(*((self.rows_of(n), ceil(self.rows_of(n) / g)) for n, g in asked)))
        room = Capacity(rows, groups, self.prompt_length, self.completion_length)
        if self.device == "cuda":
            room = room._replace(width=room.width + 1).bucketed()
        return float(key_value_bytes(self.cost, room.groups, room.rows, room.shared_width, room.width, width))

    @property
    def critic_parameters(self) -> int:
        """Numbers that are trained beside the policy's."""
        return self.value_head + (self.critic.trained if self.critic else 0)

    @property
    def resident(self) -> float:
        """Fraction of the weights, gradients and moments that rests on this device."""
        return 0.0 if self.cpu_offload else 1 / self.shards

    def offloads(self, what: str) -> bool:
        return self.run.offload in (what, "all")

    def parts(self) -> dict[str, float]:
        """Bytes on one GPU. Sharding divides what is kept, not what a micro-batch needs.

        critic: weights, gradients and moments of its trunk and head; with LoRA a second set of adapters on the policy's base.
        gathered: with sharding, what is outside of the layers and two of them.
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
        """What is there between updates: weights, moments, reference, the critic's."""
        parts = self.parts()
        named = ("parameters", "optimiser", "reference", "critic")
        return sum(parts[name] for name in named) - self.policy.gradient_width * self.critic_parameters * self.resident

    @property
    def stepped(self) -> float:
        """What an optimiser holds of the numbers that it steps at once, where their gradients or moments come from elsewhere."""
        bytes_each = FLOAT32 if self.run.gradient_dtype == "bfloat16" else 0
        bytes_each += MOMENTS[self.run.optimizer] if self.offloads("optimizer") else 0
        most = BUCKET if self.run.lora_rank else max(BUCKET, self.cost.head)
        return bytes_each * min(most, self.policy.trained)

    def peak_of_update(self) -> float:
        """kept + the most of: the reference's pass, where it is elsewhere meanwhile; the critic's; the policy's with the critic's
        gradients beside it; the optimiser's step. From a second micro-batch on there are all gradients beforehand. The sampler's
        copy stays meanwhile; one step ahead it samples meanwhile.
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
            passes.append(self.reference * self.resident + self.policy.layer(row) + parts["head, a chunk"])
        return self.kept() + self.engine_copy + max(passes) + self.run.one_step_ahead * self.sampled_with(parts)

    def peak_of_sampling(self) -> float:
        return self.kept() + self.engine_copy + self.sampled_with(self.parts())

    @staticmethod
    def sampled_with(parts: Mapping[str, float]) -> float:
        """What is there while completions are sampled only."""
        return parts["key-value cache"] + parts["sampler's logits"]

    def peak(self) -> float:
        return max(self.peak_of_update(), self.peak_of_sampling())

    def needed(self, peak: float) -> float:
        """With what the allocator leaves unused between tensors; CUDA_CONTEXT comes to it."""
        return FRAGMENTATION * peak


def rounded_numbers(model: PreTrainedModel) -> int:
    """Of linear layers and plain tables, whatever they are kept in now."""
    read = (m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) or type(m) is nn.Embedding)
    return sum(map(size, {p for m in read for p in m.parameters(recurse=False)}))
