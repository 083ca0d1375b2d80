"""TRL's GRPOTrainer at a shape, in the settings that are best for it, and its own training loop timed step by step.

Set against its defaults, to its gain: no gradient checkpointing; AdamW fused; no logging, evaluation or checkpoints; the
micro-batch and the cache that the sweep of vs_trl found fastest. Its defaults that are kept: the fused head, which it takes
by itself on every device (Triton on a GPU, torch tiles on a CPU); attention by SDPA; no reference model where the KL's
weight is 0; no second forward for old log-probs, since it samples once for every update. Set to be equal to ours: AdamW's
betas, weight decay, clipping, the loss ("grpo"), the KL without TRL's factor.
"""

from __future__ import annotations

from collections.abc import Callable
from tempfile import gettempdir
from typing import Any

import torch
import transformers
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from benchmarks.our_side import ADAM_BETAS, MAX_GRAD_NORM, StepTime, clock
from benchmarks.shapes import Given, Shape
from rl.processes.runtime import Runtime


class TimedTrainer(GRPOTrainer):
    """Notes how long sampling took, rewards included, and how long the completions were.

    TRL runs the reference where it samples; that is counted as training, as in ours.
    """

    sample_seconds = 0.0
    lengths: tuple[int, ...] = ()

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        started = clock(self.accelerator.device)
        self.sample_seconds = 0.0
        batch = super()._generate_and_score_completions(inputs)
        self.sample_seconds += clock(self.accelerator.device) - started
        self.lengths = tuple(batch["completion_mask"].sum(1).tolist())
        return batch

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        started = clock(self.accelerator.device)
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if not torch.is_grad_enabled():
            self.sample_seconds -= clock(self.accelerator.device) - started
        return found


def build(
    shape: Shape, given: Given, runtime: Runtime, *, num_steps: int, trainer: type[GRPOTrainer] = TimedTrainer
) -> Any:
    """TRL's trainer. Long, as every option of it that bears on the comparison stands in one place."""
    transformers.logging.set_verbosity_error()
    # Before the arguments are made: those reset accelerate, and with it `runtime`, until there is a trainer.
    model, device = given.make_model(), runtime.device
    problems = given.stream().take(num_steps * shape.problems)  # the order in which ours takes them
    prompt_ids = [list(given.renderer.render(p)) for p in problems]
    prompts = given.tokenizer.batch_decode(prompt_ids)
    assert given.tokenizer(prompts).input_ids == prompt_ids, "TRL would see other prompt tokens"
    rows = [
        {"prompt": text, "reference": p.reference, "verifier": p.verifier}
        for text, p in zip(prompts, problems, strict=True)
    ]

    def reward(completions: list[str], reference: list[str], verifier: list[str], **_: Any) -> list[float | None]:
        assert len(set(verifier)) == 1
        return [score.value for score in given.verifiers[verifier[0]].verify_batch(completions, reference)]

    assert shape.rows % shape.trl_rows == 0
    arguments = GRPOConfig(
        output_dir=f"{gettempdir()}/vs_trl",  # nothing is written there
        per_device_train_batch_size=shape.trl_rows,
        gradient_accumulation_steps=shape.rows // shape.trl_rows,
        num_generations=shape.group_size,
        max_completion_length=shape.max_tokens,
        temperature=1.0,
        loss_type="grpo",
        beta=shape.kl_weight,
        use_bias_correction_kl=False,
        num_iterations=1,
        max_steps=num_steps,
        learning_rate=shape.learning_rate,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        adam_beta1=ADAM_BETAS[0],
        adam_beta2=ADAM_BETAS[1],
        weight_decay=0.0,
        max_grad_norm=MAX_GRAD_NORM,
        shuffle_dataset=False,
        use_cpu=device.type == "cpu",
        bf16=runtime.dtype == "bfloat16",
        gradient_checkpointing=False,
        cache_implementation=shape.trl_cache,
        dataloader_num_workers=0,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        log_completions=False,
        disable_tqdm=True,
        seed=given.seed,
    )
    adapters = None
    if shape.lora_rank:
        adapters = LoraConfig(
            r=shape.lora_rank, lora_alpha=shape.lora_alpha, target_modules="all-linear"
        )  # as rl/policy/lora.py
    built = trainer(
        model=model,
        reward_funcs=reward,  # pyright: ignore[reportArgumentType]
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=given.tokenizer,
        peft_config=adapters,
    )
    built.remove_callback(PrinterCallback)
    return built


class AfterEachStep(TrainerCallback):
    """Times TRL's steps, and stops its clock for what is done between them.

    A step is the time from the end of `between` to the next on_step_end: fetching the prompts, sampling, rewards, loss,
    backward, clipping, the optimiser.
    """

    def __init__(self, trainer: TimedTrainer, between: Callable[[StepTime], None]) -> None:
        self.trainer, self.between = trainer, between
        self.started = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.started = clock(self.trainer.accelerator.device)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        total = clock(self.trainer.accelerator.device) - self.started
        sample, lengths = self.trainer.sample_seconds, self.trainer.lengths
        no_signal = self.trainer._metrics["train"]["frac_reward_zero_std"][-1]
        self.between(StepTime(sample=sample, train=total - sample, lengths=lengths, no_signal=no_signal))
        self.started = clock(self.trainer.accelerator.device)


def run(trainer: TimedTrainer, between: Callable[[StepTime], None]) -> None:
    """All steps of TRL's own train(); after each `between` is called, which may do one of ours: A B A B."""
    trainer.add_callback(AfterEachStep(trainer, between))
    trainer.train()
