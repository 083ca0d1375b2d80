"""Policy weights to the sampler, and the proof that they arrived."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from rewards.errors import UserError
from rl.batch import TrainGroup, TrainSequence, lay_out
from rl.policy import Policy
from rl.sharding import is_spread
from rollout.sampler import Sampler, image

REMEMBERED = 64  # deliveries
# An error may be that many times the first one: the first delivery is of weights that nobody has trained yet.
SPREAD = 30
EXACT = 1e-3  # nats: no tolerance of float32 is larger
LEAST = 1e-4  # nats, for float32 sums in another order


class DeliveryError(UserError):
    """The sampler does not hold the policy's weights."""


class Delivery:
    """Sends weights, then compares the log-probs of fixed tokens, as the sampler and as the trainer computes them.

    Two things are asked. Is the largest difference within `tolerance`, what rounding explains at most, and within what it was at
    the first delivery, with a margin? And are the sampler's log-probs nearer to what the trainer computed for older weights
    than to what it computes for these? Late weights are caught by the second, however short the steps, as soon as these are
    longer than rounding.
    """

    def __init__(self, policy: Policy, sampler: Sampler, *, tolerance: float) -> None:
        self.policy, self.sampler, self.tolerance = policy, sampler, tolerance
        size = policy.vocab_size
        self.prompt = tuple(i * 31 % size for i in range(1, 6))
        self.probe = tuple(i * 17 % size for i in range(1, 25))
        group = TrainGroup(self.prompt, (TrainSequence.to_score(self.probe),))
        self.micro = lay_out([group]).to(policy.device)
        self.older: deque[tuple[int, Tensor]] = deque(maxlen=REMEMBERED)

    def deliver(self, version: int, policy: Policy | None = None) -> float:
        """The policy's weights, or another's in its place. -> the largest absolute difference of a probe token's log-prob, in nats."""
        policy = policy or self.policy
        self._send(policy, version)
        with torch.no_grad():
            trained = policy.score(self.micro, temperature=1.0).logprobs.double().cpu()
        sampled = torch.tensor(self.sampler.score(self.prompt, self.probe), dtype=torch.float64)
        difference = sampled - trained
        error = difference.abs().max().item()
        for older, logprobs in self.older:
            if (sampled - logprobs).norm() < difference.norm() / 2:
                raise DeliveryError(
                    f"after delivery {version} the sampler's log-probs of the probe tokens are those of delivery {older}: the weights "
                    f"arrive late, or not at all. {self._culprits(policy)}"
                )
        if not error <= self.tolerance:
            raise DeliveryError(
                f"after delivery {version} the sampler's log-probs of the probe tokens differ from the trainer's by {error:.3g} "
                f"(rounding explains {self.tolerance:.2g}): the sampler does not hold the policy's weights. {self._culprits(policy)}"
            )
        if not self.older:
            self.tolerance = min(self.tolerance, max(LEAST, SPREAD * error))
        self.older.append((version, trained))
        return error

    def _send(self, policy: Policy, version: int) -> None:
        self.sampler.update_weights(policy.named_tensors(merged=not self.sampler.takes_adapters), version)

    def _culprits(self, policy: Policy) -> str:
        """Which of the sampler's tensors are not the policy's."""
        if any(is_spread(p) for p in policy.model.parameters()):  # whole in no process: all would have to ask at once
            return "Run it in one process to have the wrong tensors named"
        held, rounding = self.sampler.images(), 1e-5 if self.tolerance <= EXACT else 2e-2
        ours = {n: image(t).cpu() for n, t in policy.named_tensors(merged=not self.sampler.takes_adapters) if n in held}
        wrong = [n for n, x in ours.items() if not (held[n].cpu() - x).norm() <= rounding * (x.norm() + 1e-6)]
        if not wrong:
            return f"Of the {len(ours)} tensors that can be compared none differs by more than rounding"
        return (
            f"These tensors of it differ: {', '.join(wrong)}"
            if len(wrong) < len(ours)
            else f"All {len(ours)} tensors differ"
        )
