"""Trainable state (policy, reference, critic, optimizer) and one guarded optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn

from rewards.errors import UserError
from rl.capacity.cost import ModelCost, Workload, forward_flops, step_flops
from rl.forward.output_head import ValueHead
from rl.objective.algorithms import Algorithm
from rl.policy.critic import Critic
from rl.policy.policy import Policy
from rl.policy.served_teacher import ServedTeacher
from rl.processes.runtime import Runtime
from rl.processes.sharding import Optimizer, shard
from rl.update.reward_training import RewardTrainer


@dataclass(kw_only=True)
class Learner:
    """The state that a training step changes: policy, reference, critic, and their optimizer.

    teacher: a model whose log-probs of the policy's samples are learnt from, on this device or behind a server.
    reward_trainer: trains the reward model on the policy's samples; None without one, or if it is frozen.
    initial_policy: the policy at the start of the run, for algorithms that sample from it.
    optimizer: its first parameter group is the policy's, a second one the critic's or the value head's. The gradient norm of each group
        is clipped separately.
    num_minibatches: updates per epoch, each on a part of the step's groups.
    critic_updates: optimizer steps of a separate critic for each of the policy's.
    max_skipped: the largest number of consecutive updates that may be skipped because their loss or gradient is not finite.
    """

    policy: Policy
    reference: Policy | None
    teacher: Policy | ServedTeacher | None = None
    reward_trainer: RewardTrainer | None = None
    initial_policy: Policy | None = None
    critic: Critic | None = None
    optimizer: Optimizer
    runtime: Runtime
    algorithm: Algorithm
    temperature: float
    token_budget: int
    max_grad_norm: float
    num_epochs: int = 1
    num_minibatches: int = 1
    critic_updates: int = 1
    max_skipped: int = 3
    skipped_in_a_row: int = 0

    @property
    def learning_rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def set_learning_rate(self, rate: float) -> None:
        """Sets the policy's learning rate; the critic's keeps its ratio to it."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("relative_rate", 1.0)

    @cached_property
    def cost(self) -> ModelCost:
        return ModelCost.of(self.policy.model)

    def flops(self, work: Workload, *, needs_old_logprobs: bool, trains_policy: bool = True) -> float:
        """Floating-point operations of a step's update. needs_old_logprobs: old log-probs are computed before the first update."""
        parts = step_flops(
            self.cost,
            work,
            critic=self.algorithm.critic,
            has_reference=self.reference is not None,
            needs_old_logprobs=needs_old_logprobs,
            num_epochs=self.num_epochs,
            frozen=self.policy.freezes_base,
            checkpointed=self.policy.model.is_gradient_checkpointing,
            kl_in_reward=self.algorithm.kl_in_reward,
            critic_updates=self.critic_updates,
            trains_policy=trains_policy,
            prefers=self.algorithm.prefers,
        )
        taught = forward_flops(ModelCost.of(self.teacher.model), work) if isinstance(self.teacher, Policy) else 0.0
        return sum(parts.values()) + taught

    def parameters(self, *, of_policy: bool = True) -> list[nn.Parameter]:
        """All trained parameters, or only the critic's."""
        groups = self.optimizer.param_groups
        return [p for group in (groups if of_policy else groups[1:]) for p in group["params"]]

    @property
    def value_head(self) -> ValueHead | None:
        """The head that computes values, on the critic's trunk or the policy's; None without a critic."""
        return self.policy.value_head if self.critic is None else self.critic.head

    @torch.no_grad()
    def start_values_at(self, reward: float | None) -> None:
        """Sets the value head's bias to the mean reward of a run's first step, so that the critic's first updates need not learn it.

        JustRL-II, where the expected reward is given. None: nothing could be graded, and the bias stays 0.
        """
        if self.value_head is not None and reward is not None:
            self.value_head.bias.fill_(reward)

    def needs_old_logprobs(self, num_minibatches: int) -> bool:
        """Whether old log-probs and values must be computed before the first update.

        They must if some micro-batch is first trained on after that update, or if advantages are whitened over the whole step.
        """
        redraws = self.policy.family.view_at is not None and self.num_epochs > 1
        return num_minibatches > 1 or self.algorithm.whitens or redraws

    def step_if_finite(self, loss: float) -> tuple[bool, list[float]]:
        """Steps the optimizer, unless the loss or the gradient is not finite. Parameters without a gradient stay as they are.

        Returns whether it did, and the gradient norm of each parameter group.
        """
        norms = [
            self.runtime.clip_grad_norm(group["params"], self.max_grad_norm) for group in self.optimizer.param_groups
        ]
        is_finite = math.isfinite(loss + sum(norms))
        if is_finite:
            self.optimizer.step()
        self.optimizer.zero_grad()
        if is_finite:
            self.skipped_in_a_row = 0
            return True, norms
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > self.max_skipped:
            raise UserError(
                f"max_skipped is {self.max_skipped}: loss is {loss} and the gradient's norm {norms[0]}, {self.skipped_in_a_row} "
                f"updates in a row: training has diverged. These updates were skipped: lower learning_rate (now "
                f"{self.learning_rate:g}) and resume"
            )
        return False, norms

    def refresh_reference(self, step: int) -> None:
        """Iterative GRPO: copies the policy to the reference at the end of an outer iteration."""
        every = self.algorithm.refresh_reference_every
        if every and step % every == 0 and self.reference is not None:
            self.reference = self.policy.copy_weights_to(self.reference)

    def shard(self, make_optimizer: Callable[[Policy], Optimizer]) -> None:
        """Shards the weights over the processes, before the first step. make_optimizer: returns an optimizer of the sharded policy."""
        runtime = self.runtime
        policies = [p for p in (self.policy, self.reference, self.initial_policy) if p is not None]
        assert runtime.mesh is not None and not self.optimizer.state_dict()["state"]
        options = {"in_16_bits": runtime.dtype == "bfloat16", "offloads": runtime.offloads}
        models = dict.fromkeys(p.model for p in policies)
        roots = {m: shard(m, runtime.mesh, trains=m is self.policy.model, **options) for m in models}

        def in_root(policy: Policy) -> Policy:
            return replace(policy, run_in_root=roots[policy.model])

        self.policy = in_root(self.policy)
        self.reference = self.reference and in_root(self.reference)
        self.initial_policy = self.initial_policy and in_root(self.initial_policy)
        self.optimizer = make_optimizer(self.policy)
