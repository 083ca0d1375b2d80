"""Policy weights to the sampler, and the proof that they arrived."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rewards.errors import UserError
from rl.forward.micro_batch import MicroBatch
from rl.policy.policy import Policy
from rl.update.fingerprint import Fingerprint
from rollout.processes import Processes, SingleProcess
from rollout.rounding import LEAST, bound_of
from rollout.sampler import Sampler, Tensors, Text

REMEMBERED = 64  # deliveries
# An error may be that many times the first one: the first delivery is of weights that nobody has trained yet.
GROWTH = 30
EXACT = 1e-3  # nats: no tolerance of float32 is larger
ROUNDED = math.inf  # where 16 bits round, what these explain of the model at hand is the bound
# Shares of a tensor's image by which rounding may change it: sums in another order; a product that an engine rounds to 16 bits.
FLOAT32_SHARE, BFLOAT16_SHARE = 1e-5, 1e-2


class DeliveryError(UserError):
    """The sampler does not hold the policy's weights."""


@dataclass(frozen=True)
class Delivered:
    """What the trainer computes for one version: the probe's log-probs, and the sketches of its tensors for each engine."""

    version: int
    logprobs: Tensor
    sketches: dict[str, Tensor]


class Delivery:
    """Sends weights, then compares what each engine makes of fixed texts, and what it holds, with the trainer's own.

    Three things are asked of each engine after each delivery. Are the log-probs of `texts` the trainer's? In float32 the largest
    difference is at most `tolerance`; where the engine or the trainer rounds to 16 bits (a tolerance above EXACT), the mean
    difference is at most what the model's own rounding explains on these texts (rollout/rounding.py). Is each tensor that the
    engine holds the policy's? And are log-probs and tensors not nearer to those of an older version? So weights that arrive late are
    caught however short the steps are.

    texts: prompts with completions, best the model's own samples, which rounding moves least; without them some odd tokens.
    processes: each proves its own engine; what the model's weights are read for is done by all at once, as these may be sharded.
    """

    def __init__(
        self,
        policy: Policy,
        sampler: Sampler,
        *,
        tolerance: float,
        texts: Sequence[Text] | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.policy, self.sampler, self.tolerance = policy, sampler, tolerance
        self.processes = processes or SingleProcess()
        self.rounds = tolerance > EXACT
        self.texts = list(texts or odd_texts(policy.vocab_size))
        self.micro = MicroBatch.of(policy.family.probe(self.texts)).to(policy.device)
        self.older: deque[Delivered] = deque(maxlen=REMEMBERED)
        self.noise = 0.0  # nats: the mean by which 16 bits move these log-probs, once it was measured

    def deliver(self, version: int, policy: Policy | None = None) -> float:
        """The policy's weights, or another's in its place. -> the mean absolute difference of a probe token's log-prob, in nats, of
        the engine where it is largest."""
        policy = policy or self.policy
        ours = self._send(policy, version)
        trained = self._trained(policy)
        scored = self.sampler.probe(self.texts)
        held = {engine: found for engine, found in self.sampler.fingerprints().items() if ours.is_comparable(found)}
        now = Delivered(version, trained, {engine: ours.sketch(found) for engine, found in held.items()})
        sampled = {e: torch.tensor([x for row in r for x in row], dtype=torch.float64) for e, r in scored.items()}
        differences = {engine: (logprobs - trained).abs() for engine, logprobs in sampled.items()}
        errors = {engine: (d.mean() if self.rounds else d.max()).item() for engine, d in differences.items()}
        is_open = self.rounds and not all(error <= self._explained for error in errors.values())
        if any(self.processes.gather([is_open])):
            self.noise = policy.rounding_noise(self.micro)  # it changes as the policy is trained
        for engine, logprobs in sampled.items():
            found = held.get(engine, {})
            self._require_not_late(engine, logprobs, found, ours, now)
            self._require_close(engine, errors[engine], found, ours, version)
            self._require_same_tensors(engine, found, ours, version)
        if not self.older:
            self.tolerance = min(self.tolerance, max(LEAST, GROWTH * max(errors.values())))
        self.older.append(now)
        return max(difference.mean().item() for difference in differences.values())

    def _trained(self, policy: Policy) -> Tensor:
        with torch.no_grad():
            return policy.score(self.micro, temperature=1.0).logprobs.double().cpu()

    def _send(self, policy: Policy, version: int) -> Fingerprint:
        """-> of what was sent, by the names of a plain model."""
        ours, merged = Fingerprint(rounds=self.rounds), not self.sampler.takes_adapters

        def looked_at() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in policy.named_tensors(merged=True):
                ours.add(name, tensor)
                yield name, tensor

        # Tensors that are spread over processes are put together once, for both uses.
        is_both = merged or not policy.freezes_base
        self.sampler.update_weights(Tensors(looked_at if is_both else policy.named_tensors), version)
        if not ours.images:
            for _ in looked_at():
                pass
        return ours

    def _require_not_late(
        self, engine: str, sampled: Tensor, held: dict[str, Tensor], ours: Fingerprint, now: Delivered
    ) -> None:
        def is_nearer(found: Tensor, older: Tensor, newest: Tensor) -> bool:
            return bool((found - older).norm() < (found - newest).norm() / 2)

        sketch = ours.sketch_of(held) if held else None
        for older in self.older:
            if sketch is not None and engine in older.sketches:
                is_late = is_nearer(sketch, *(nearest(sketch, v.sketches[engine]) for v in (older, now)))
            else:
                is_late = False
            # What 16 bits do to single tokens would now and then look like older weights.
            if sketch is None or not self.rounds:
                is_late = is_late or is_nearer(sampled, older.logprobs, now.logprobs)
            if is_late:
                raise DeliveryError(
                    f"after delivery {now.version} {engine}'s weights are those of delivery {older.version}: the weights arrive late, or "
                    f"not at all. {self._named(held, ours)}"
                )

    def _require_close(
        self, engine: str, error: float, held: dict[str, Tensor], ours: Fingerprint, version: int
    ) -> None:
        if not error <= self._explained:
            raise DeliveryError(
                f"after delivery {version} {engine}'s log-probs of the probe tokens differ from the trainer's by {error:.3g} "
                f"{'on average' if self.rounds else 'at most'} (rounding explains {self._explained:.2g}): it does not hold the policy's "
                f"weights. {self._named(held, ours)}"
            )

    @property
    def _explained(self) -> float:
        return min(self.tolerance, bound_of(self.noise)) if self.rounds else self.tolerance

    def _require_same_tensors(self, engine: str, held: dict[str, Tensor], ours: Fingerprint, version: int) -> None:
        if ours.differing(held, self._share):
            raise DeliveryError(
                f"after delivery {version} {engine} does not hold the policy's weights, though its log-probs hardly show it. "
                f"{self._named(held, ours)}"
            )

    @property
    def _share(self) -> float:
        return BFLOAT16_SHARE if self.rounds else FLOAT32_SHARE

    def _named(self, held: dict[str, Tensor], ours: Fingerprint) -> str:
        """Which of the engine's tensors are not the policy's."""
        wrong, compared = ours.differing(held, self._share), len(held.keys() & ours.images.keys())
        if not wrong:
            return f"Of the {compared} tensors that can be compared none differs by more than rounding"
        return (
            f"These tensors of it differ: {', '.join(wrong)}"
            if len(wrong) < compared
            else f"All {compared} tensors differ"
        )


def nearest(sketch: Tensor, kinds: Tensor) -> Tensor:
    """As they are, or as 16 bits round them."""
    return min(kinds, key=lambda kind: (sketch - kind).norm().item())


def odd_texts(vocab_size: int) -> list[Text]:
    return [(tuple(i * 31 % vocab_size for i in range(1, 6)), tuple(i * 17 % vocab_size for i in range(1, 25)))]
