"""PPO's advantages and returns: what values make of rewards.

The value V_t is read before token t, from the last hidden state at t - 1: of the policy's own trunk (shared) or of the
critic's (separate).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rl.objective.advantages import gae
from rl.objective.tokens import ScoredSequences
from rollout.processes import Processes, SingleProcess


class ValueTargets(NamedTuple):
    """What GAE makes of S tokens' rewards and a critic's values before the first update: fixed while both are trained on them."""

    values: Float[Tensor, " S"]
    advantages: Float[Tensor, " S"]
    returns: Float[Tensor, " S"]


@dataclass(frozen=True)
class FrozenTargets:
    """Per-token values of a micro-batch that are fixed before the first update: old log-probs, reference log-probs, value targets.

    old_logprobs: None until the first training forward has computed them, in which the policy still is the old one.
    reference_logprobs: None where the KL has no weight. values: None until the critic has been run, or where there is none.
    """

    old_logprobs: Float[Tensor, " S"] | None = None
    reference_logprobs: Float[Tensor, " S"] | None = None
    values: ValueTargets | None = None


@dataclass(frozen=True, kw_only=True)
class ValueRule:
    """How PPO turns rewards and values into advantages and returns, and how values are trained.

    source: the policy's own trunk, or one of the critic's own.
    gamma, lam: of the advantages, arXiv 1506.02438. lam_critic: of the returns that values are trained towards (VC-PPO, arXiv
        2503.01491, section 3.3: with a long chain a lower lam serves the policy and 1 the critic).
    value_clip: how far a value counts as moved from what it was when sampled; None is off.
    value_weight: of the value loss beside the policy's, where they share a trunk.
    kl_in_reward: the algorithm's kl_weight x (b - f) is taken from each token's reward, in place of a term in the loss.
    whiten: advantages are centred and scaled to std 1 over the whole step.
    bootstrap_cut: a completion cut by the token limit goes on as its value says; otherwise the cut is its end.
    """

    source: Literal["shared", "separate"] = "shared"
    gamma: float = 1.0
    lam: float = 1.0
    lam_critic: float = 1.0
    value_clip: float | None = 0.2
    value_weight: float = 0.5
    kl_in_reward: bool = False
    whiten: bool = False
    bootstrap_cut: bool = False

    def targets(
        self, tokens: ScoredSequences, values: Float[Tensor, " S"], penalties: Float[Tensor, " S"] | None = None
    ) -> ValueTargets:
        """GAE over each sequence of its own. The sequence's reward is its last token's; penalties are taken from every token's.

        Of a sequence that goes on, V before the last token stands for all that would have followed from there, in place of the
        reward.
        """
        rewards = torch.zeros_like(values) if penalties is None else -penalties
        last = torch.tensor(tokens.lengths, device=values.device).cumsum(0) - 1
        # A value for a reward leaves the last token no advantage, and is what the token before it is followed by.
        rewards = rewards.index_copy(
            0, last, torch.where(tokens.bootstraps, values[last], tokens.rewards + rewards[last])
        )

        def by_sequence(flat: Tensor) -> Tensor:
            return pad_sequence(list(flat.split(tokens.lengths)), batch_first=True)

        def flat(rows: Tensor) -> Tensor:
            return torch.cat([row[:n] for row, n in zip(rows, tokens.lengths, strict=True)])

        rows = by_sequence(rewards), by_sequence(values), by_sequence(torch.ones_like(values)) > 0
        advantages, returns = gae(*rows, gamma=self.gamma, lam=self.lam)
        if self.lam_critic != self.lam:
            _, returns = gae(*rows, gamma=self.gamma, lam=self.lam_critic)
        return ValueTargets(values, flat(advantages), flat(returns))


def whitened(
    targets: Sequence[ValueTargets],
    sequences: Sequence[ScoredSequences],
    processes: Processes = SingleProcess(),  # noqa: B008
) -> list[ValueTargets]:
    """Advantages of a whole step, in all processes, less their mean and over their std. Returns stay as they were."""
    mine = [e.advantages.index_select(0, m.trained) for e, m in zip(targets, sequences, strict=True)]
    trained = torch.cat(processes.gather(mine))
    mean, std = trained.mean(), trained.std(correction=0)  # of no dimension: on the host they mix with any device
    return [e._replace(advantages=(e.advantages - mean) / (std + 1e-8)) for e in targets]
