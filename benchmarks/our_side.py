"""This trainer at a shape: the public pieces put together as rl/run/setup.py does, and its step and its update timed."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from benchmarks.shapes import Given, Shape
from rl.objective.algorithms import GRPO
from rl.policy.lora import ALL_LINEAR, LoraPolicy, add_adapters
from rl.policy.policy import Policy
from rl.processes.runtime import Runtime
from rl.update.delivery import Delivery
from rl.update.learner import Learner
from rl.update.step import train_step
from rollout.collect import Collector
from rollout.problem_stream import ProblemStream
from rollout.sampler import SamplingParams
from rollout.torch_sampler import TorchSampler

ADAM_BETAS = (0.9, 0.99)
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """sample: seconds until the rewards are known. train: the rest of the step.

    lengths: of the completions. no_signal: the share of groups in which all rewards are equal.
    """

    sample: float
    train: float
    lengths: tuple[int, ...]
    no_signal: float

    @property
    def total(self) -> float:
        return self.sample + self.train

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


def clock(device: torch.device) -> float:
    """Seconds, once the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def policy_of(shape: Shape, model: PreTrainedModel, runtime: Runtime) -> Policy:
    if shape.lora_rank == 0:
        return Policy.of(model, autocast=runtime.autocast)
    adapted = add_adapters(model, rank=shape.lora_rank, alpha=shape.lora_alpha, targets=(ALL_LINEAR,), seed=0)
    return LoraPolicy.of(adapted, autocast=runtime.autocast)


class OurSide:
    def __init__(self, shape: Shape, given: Given, runtime: Runtime) -> None:
        model = given.make_model()
        policy = policy_of(shape, model, runtime)
        self.shape, self.runtime = shape, runtime
        self.learner = Learner(
            policy=policy,
            reference=policy.frozen_copy() if shape.kl_weight > 0 else None,
            optimizer=torch.optim.AdamW(
                policy.trainable_parameters(),
                lr=shape.learning_rate,
                betas=ADAM_BETAS,
                weight_decay=0.0,
                fused=True,
            ),
            runtime=runtime,
            algorithm=replace(GRPO, kl_weight=shape.kl_weight),
            temperature=1.0,
            token_budget=shape.token_budget,
            max_grad_norm=MAX_GRAD_NORM,
        )
        sampler = TorchSampler(
            model, given.tokenizer, decode_dtype=getattr(torch, runtime.dtype), autocast=runtime.autocast
        )
        self.collector = Collector(
            sampler=sampler,
            verifiers=given.verifiers,
            renderer=given.renderer,
            params=SamplingParams(max_tokens=shape.max_tokens),
            group_size=shape.group_size,
            run_seed=given.seed,
        )
        self.stream: ProblemStream = given.stream()
        self.delivery = Delivery(policy, sampler, tolerance=1e-3 if runtime.dtype == "float32" else 0.25)
        self.delivery.deliver(version=0)
        self.num_steps = 0

    def step(self) -> StepTime:
        self.num_steps += 1
        started = clock(self.runtime.device)
        result = train_step(
            self.learner,
            self.collector,
            self.stream,
            self.delivery,
            step=self.num_steps,
            num_problems=self.shape.problems,
        )
        total = clock(self.runtime.device) - started
        sample = (result.metrics["time/sample"] or 0.0) + (result.metrics["time/verify"] or 0.0)
        lengths = tuple(len(r.completion.token_ids) for c in result.sampled for r in c.group.rollouts)
        no_signal = result.metrics["groups/no_signal"] or 0.0
        return StepTime(sample=sample, train=total - sample, lengths=lengths, no_signal=no_signal)
