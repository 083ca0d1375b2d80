"""The update of TRL's AsyncGRPOTrainer on given completions, in its own train(), timed step by step.

It packs, and forwards a prompt once for its group, as this trainer does; its GRPOTrainer (benchmarks/trl_side.py) pads. Its settings
are kept but for these: float32 weights under bfloat16, and no checkpointing, as ours; two groups a micro-batch, about as many tokens
as ours; its attention kernel, which it loads from a hub, is replaced by the one that ours takes, torch's for ragged rows.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl.experimental.async_grpo import packing
from trl.experimental.async_grpo.async_grpo_config import AsyncGRPOConfig
from trl.experimental.async_grpo.async_grpo_trainer import AsyncGRPOTrainer
from trl.experimental.async_grpo.async_rollout_worker import RolloutSample

from rl.forward.packed_attention import torch_varlen
from rl.update.batch import Batch

GROUPS = 2  # of a micro-batch


class GivenCompletions:
    """A batch's completions in the place of TRL's rollout worker, once more than there are steps: its loader looks ahead."""

    def __init__(self, batch: Batch, num_steps: int) -> None:
        self.rollout_buffer: queue.Queue[Any] = queue.Queue()
        self.metrics_queue: queue.Queue[Any] = queue.Queue()
        for _ in range(num_steps + 1):
            for sample in samples_of(batch):
                self.rollout_buffer.put(sample)

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def update_model_version(self, model_version: int) -> None: ...

    def check_health(self, stale_after_s: float) -> None:
        raise RuntimeError("TRL asked for more completions than there are")


class NoTransfer:
    """In the place of its delivery to a server: nothing is sampled."""

    def init_weight_transfer(self) -> None: ...

    def pause(self) -> None: ...

    def send_weights(self, iterator: Iterator[tuple[str, Tensor]]) -> None: ...

    def resume(self) -> None: ...

    def destroy(self) -> None: ...


def samples_of(batch: Batch) -> Iterator[RolloutSample]:
    for i, group in enumerate(batch.groups):
        for sequence in group.sequences:
            before = len(group.prompt_ids)
            yield RolloutSample(
                prompt=[],
                completion=[],
                input_ids=np.array(group.prompt_ids + sequence.token_ids),
                completion_mask=np.array([0] * before + [1] * len(sequence.token_ids)),
                old_log_probs=np.array((0.0,) * before + sequence.sampler_logprobs, dtype=np.float32),
                advantage=float(sequence.advantages[0]),  # pyright: ignore[reportOptionalSubscript]  GRPO has them
                model_version=0,
                group_id=i,
                metrics={},
            )


class EachStep(TrainerCallback):
    def __init__(self, done: Callable[[], object]) -> None:
        self.done = done

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.done()


def train(
    batch: Batch,
    model: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_steps: int,
    after_each: Callable[[], object],
    attend: Callable[..., Tensor] = torch_varlen,
    **options: Any,
) -> AsyncGRPOTrainer:
    """num_steps updates on the batch, of the model in a folder; `after_each` is called once an update is done."""
    assert len(batch.groups) % GROUPS == 0

    def flash_attn_varlen_func(
        query: Tensor, key: Tensor, value: Tensor, *lengths: Any, softmax_scale: float, window_size: Any, **_: Any
    ) -> Tensor:
        names = ("query_starts", "key_starts", "most_queries", "most_keys")
        return attend(
            query, key, value, SimpleNamespace(**dict(zip(names, lengths, strict=True))), softmax_scale, window_size
        )

    with TemporaryDirectory() as folder, mock.patch.object(packing, "_flash_attn") as kernels:
        kernels.return_value.flash_attn_varlen_func = flash_attn_varlen_func
        arguments = AsyncGRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=GROUPS * len(batch.groups[0].sequences),
            gradient_accumulation_steps=len(batch.groups) // GROUPS,
            token_budget=0,  # as many completions in each micro-batch
            max_steps=num_steps,
            weight_sync_steps=num_steps + 1,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **{"bf16": True, "gradient_checkpointing": False, "optim": "adamw_torch_fused", **options},
        )
        trainer = AsyncGRPOTrainer(
            str(model),
            args=arguments,
            train_dataset=Dataset.from_list([{"prompt": ""}]),
            processing_class=tokenizer,
            rollout_worker=GivenCompletions(batch, num_steps),  # pyright: ignore[reportArgumentType]
            weight_transfer=NoTransfer(),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(EachStep(after_each))
        trainer.train()
    return trainer


def seconds_of_steps(wait: Callable[[], object], run: Callable[[Callable[[], object]], object]) -> list[float]:
    """Between the ends of steps; `wait` for the device. The first step is not counted."""
    ends: list[float] = []

    def end() -> None:
        wait()
        ends.append(time.perf_counter())

    run(end)
    return [after - before for before, after in pairwise(ends)]
