"""Delivers policy weights to the sampler, and checks that its engines hold them."""

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

MAX_RECORDS = 64  # earlier deliveries that a delivery is compared with
# The largest ratio of a delivery's error to the first delivery's, which precedes any update.
MAX_ERROR_RATIO = 30
FLOAT32_TOLERANCE = 1e-3  # nats: the largest tolerance that float32 needs
BFLOAT16_TOLERANCE = math.inf  # the model's own rounding error is the bound (rollout/rounding.py)
# The relative rounding errors of a tensor's fingerprint: sums in another order, or products that an engine rounds to 16 bits.
FLOAT32_ERROR, BFLOAT16_ERROR = 1e-5, 1e-2
SKETCH_ERROR = 1e-7  # of each number of a sketch: ten times what float32 sums in another order make of a model's


class DeliveryError(UserError):
    """The sampler does not hold the policy's weights."""


@dataclass(frozen=True)
class DeliveryRecord:
    """The trainer's data of one delivered version: log-probs of the probe texts, and for each engine a sketch of the weights."""

    version: int
    logprobs: Tensor
    sketches: dict[str, Tensor]


class Delivery:
    """Sends weights to a sampler, then compares each engine's log-probs of fixed texts and its weights with the trainer's.

    Each delivery makes three checks of each engine, and raises a DeliveryError if one fails:
    - The log-probs of `texts` are the trainer's. In float32 the largest difference is at most `tolerance`; if the engine or the trainer
      rounds to 16 bits (a tolerance above FLOAT32_TOLERANCE), the mean difference is at most what the model's own rounding explains on
      these texts (rollout/rounding.py). The first delivery's error lowers the tolerance; as training makes a model surer, its log-probs
      are more sensitive to any rounding, and the tolerance grows as its 16-bit rounding does.
    - The fingerprint of each of the engine's tensors is that of the policy's tensor.
    - Neither log-probs nor fingerprints are closer to those of an older version. This detects stale weights even if steps are small.

    texts: prompts with completions, preferably sampled from the model, because rounding changes their log-probs least; without them
    arbitrary tokens. processes: each process checks its own engine. All processes read the model's weights together, as these may be
    sharded.
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
        self.rounds = tolerance > FLOAT32_TOLERANCE
        self.texts = list(texts or arbitrary_texts(policy.vocab_size))
        self.micro = MicroBatch.of(policy.family.probe(self.texts)).to(policy.device)
        self.records: deque[DeliveryRecord] = deque(maxlen=MAX_RECORDS)
        # Nats: the mean change of these log-probs under 16-bit rounding, at the first delivery and when last measured.
        self.first_noise = self.noise = 0.0

    def deliver(self, version: int, policy: Policy | None = None) -> float:
        """Delivers the weights of the policy, or of another one, and checks them.

        Returns the mean absolute difference in nats between a probe token's log-prob in an engine and in the trainer, for the engine
        where it is largest.
        """
        policy = policy or self.policy
        ours = self._send(policy, version)
        trainer_logprobs = self._trainer_logprobs(policy)
        scored = self.sampler.probe(self.texts)
        held = {engine: found for engine, found in self.sampler.fingerprints().items() if ours.is_comparable(found)}
        record = DeliveryRecord(version, trainer_logprobs, {e: ours.sketch(found) for e, found in held.items()})
        sampled = {e: torch.tensor([x for row in r for x in row], dtype=torch.float64) for e, r in scored.items()}
        differences = {engine: (logprobs - trainer_logprobs).abs() for engine, logprobs in sampled.items()}
        errors = {engine: (d.mean() if self.rounds else d.max()).item() for engine, d in differences.items()}
        is_exceeded = not all(error <= self._bound for error in errors.values())
        if not self.records or any(self.processes.gather([is_exceeded])):
            self.noise = policy.rounding_noise(self.micro)  # measured again, as training changes it
            self.first_noise = self.first_noise or self.noise
        for engine, logprobs in sampled.items():
            found = held.get(engine, {})
            self._require_current(engine, logprobs, found, ours, record)
            self._require_close(engine, errors[engine], found, ours, version)
            self._require_same_tensors(engine, found, ours, version)
        if not self.records:
            self.tolerance = min(self.tolerance, max(LEAST, MAX_ERROR_RATIO * max(errors.values())))
        self.records.append(record)
        return max(difference.mean().item() for difference in differences.values())

    def _trainer_logprobs(self, policy: Policy) -> Tensor:
        with torch.no_grad():
            return policy.score(self.micro, temperature=1.0).logprobs.double().cpu()

    def _send(self, policy: Policy, version: int) -> Fingerprint:
        """Sends the weights. Returns their fingerprint, under the parameter names of a plain model."""
        ours, merged = Fingerprint(rounds=self.rounds), not self.sampler.takes_adapters

        def fingerprinted() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in policy.named_tensors(merged=True):
                ours.add(name, tensor)
                yield name, tensor

        # If the engine takes the tensors that are fingerprinted, sharded ones are gathered once for both.
        are_same = merged or not policy.freezes_base
        self.sampler.update_weights(Tensors(fingerprinted if are_same else policy.named_tensors), version)
        if not ours.fingerprints:
            for _ in fingerprinted():
                pass
        return ours

    def _require_current(
        self, engine: str, sampled: Tensor, held: dict[str, Tensor], ours: Fingerprint, newest: DeliveryRecord
    ) -> None:
        """Raises a DeliveryError if an engine's sketch or log-probs are at less than half the distance to an older version's."""

        def is_closer(found: Tensor, older: Tensor, newest: Tensor) -> bool:
            return bool((found - older).norm() < (found - newest).norm() / 2)

        sketch = ours.sketch_of(held) if held else None
        for older in self.records:
            is_stale = False
            if sketch is not None and engine in older.sketches:
                theirs, newer = (closest(sketch, r.sketches[engine]) for r in (older, newest))
                differ = bool((theirs - newer).norm() > SKETCH_ERROR * len(sketch) ** 0.5)
                is_stale = differ and is_closer(sketch, theirs, newer)
            # With 16-bit rounding the log-probs of single tokens would sometimes be closer to an older version's by chance.
            if sketch is None or not self.rounds:
                is_stale = is_stale or is_closer(sampled, older.logprobs, newest.logprobs)
            if is_stale:
                raise DeliveryError(
                    f"after delivery {newest.version} {engine}'s weights are those of delivery {older.version}: the weights arrive late, "
                    f"or not at all. {self._describe_differences(held, ours)}"
                )

    def _require_close(
        self, engine: str, error: float, held: dict[str, Tensor], ours: Fingerprint, version: int
    ) -> None:
        """Raises a DeliveryError if an engine's log-probs differ from the trainer's by more than the bound."""
        if not error <= self._bound:
            raise DeliveryError(
                f"after delivery {version} {engine}'s log-probs of the probe tokens differ from the trainer's by {error:.3g} "
                f"{'on average' if self.rounds else 'at most'} (rounding explains {self._bound:.2g}): it does not hold the policy's "
                f"weights. {self._describe_differences(held, ours)}"
            )

    @property
    def _bound(self) -> float:
        """Nats: the largest error of log-probs that is accepted; the mean with 16-bit rounding, the maximum in float32."""
        grown = self.tolerance * max(1.0, self.noise / max(self.first_noise, LEAST))
        return min(grown, bound_of(self.noise) if self.rounds else FLOAT32_TOLERANCE)

    def _require_same_tensors(self, engine: str, held: dict[str, Tensor], ours: Fingerprint, version: int) -> None:
        """Raises a DeliveryError if a tensor of an engine differs from the policy's by more than rounding."""
        if ours.differing(held, self._tensor_error):
            raise DeliveryError(
                f"after delivery {version} {engine} does not hold the policy's weights, though its log-probs are within the bound. "
                f"{self._describe_differences(held, ours)}"
            )

    @property
    def _tensor_error(self) -> float:
        return BFLOAT16_ERROR if self.rounds else FLOAT32_ERROR

    def _describe_differences(self, held: dict[str, Tensor], ours: Fingerprint) -> str:
        """A sentence that names the engine's tensors that are not the policy's."""
        wrong, compared = ours.differing(held, self._tensor_error), len(held.keys() & ours.fingerprints.keys())
        if not wrong:
            return f"Of the {compared} tensors that can be compared none differs by more than rounding"
        return f"Tensors that differ: {', '.join(wrong)}" if len(wrong) < compared else f"All {compared} tensors differ"


def closest(sketch: Tensor, variants: Tensor) -> Tensor:
    """The closer of a version's two sketches: of its exact weights, or of those rounded to bfloat16."""
    return min(variants, key=lambda variant: (sketch - variant).norm().item())


def arbitrary_texts(vocab_size: int) -> list[Text]:
    """A prompt and a completion of arbitrary tokens, for a model without sampled texts."""
    return [(tuple(i * 31 % vocab_size for i in range(1, 6)), tuple(i * 17 % vocab_size for i in range(1, 25)))]
