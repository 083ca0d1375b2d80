"""Policy weights to the sampler, and the proof that they arrived."""

from __future__ import annotations

import torch

from rl.batch import TrainGroup, TrainSequence, lay_out
from rl.policy import Policy
from rollout.sampler import Sampler


class DeliveryError(RuntimeError):
    """The sampler does not hold the policy's weights."""


class Delivery:
    """Sends weights, then compares the log-probs of a few fixed tokens, as the sampler and as the trainer computes them.

    tolerance: the largest difference that rounding explains; float32 sums in another order differ by about 1e-5, bfloat16
    keeps 8 bits of a logit near 10.
    """

    def __init__(self, policy: Policy, sampler: Sampler, *, tolerance: float) -> None:
        self.policy, self.sampler, self.tolerance = policy, sampler, tolerance
        size = policy.vocab_size
        self.prompt = tuple(i * 31 % size for i in range(1, 6))
        self.probe = tuple(i * 17 % size for i in range(1, 9))
        sequence = TrainSequence(
            token_ids=self.probe, sampler_logprobs=(0.0,) * 8, advantages=torch.zeros(8), weight=0.0
        )
        self.micro = lay_out([TrainGroup(self.prompt, (sequence,))]).to(policy.device)

    def deliver(self, version: int, policy: Policy | None = None) -> float:
        """The policy's weights, or another's in its place. -> the largest absolute difference of a probe token's log-prob, in nats."""
        policy = policy or self.policy
        self.sampler.update_weights(policy.named_tensors(), version)
        with torch.no_grad():
            trained = policy.score(self.micro, temperature=1.0).logprobs.tolist()
        sampled = self.sampler.score(self.prompt, self.probe)
        error = max(abs(a - b) for a, b in zip(trained, sampled, strict=True))
        if not error <= self.tolerance:
            raise DeliveryError(
                f"after delivery {version} the sampler's log-probs of the probe tokens differ from the trainer's by {error:.3g} "
                f"(rounding explains {self.tolerance:g}): the sampler does not hold the policy's weights. "
                f"Sampler {[round(x, 4) for x in sampled]}, trainer {[round(x, 4) for x in trained]}"
            )
        return error
