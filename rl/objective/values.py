"""PPO's value targets: advantages and returns from rewards and a critic's values.

The value V_t is that of the state before token t. It is computed from the last hidden state at t - 1: of the policy's own trunk
("shared") or of a second model's ("separate").
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
    """The critic's values of S tokens, and GAE's advantages and returns from them; computed before the first update, then fixed."""

    values: Float[Tensor, " S"]
    advantages: Float[Tensor, " S"]
    returns: Float[Tensor, " S"]


@dataclass(frozen=True)
class FrozenTargets:
    """Per-token targets of a micro-batch that are fixed before the first update: log-probs of frozen models, value targets.

    old_logprobs: None until a forward before the first update has computed them. reference_logprobs: None without a reference.
    values: None until the critic has been run, and without a critic. teacher_logprobs: None without a teacher. preferences: DPO's
    coefficients, of the policy before each of its updates; None for other algorithms.
    """

    old_logprobs: Float[Tensor, " S"] | None = None
    reference_logprobs: Float[Tensor, " S"] | None = None
    values: ValueTargets | None = None
    teacher_logprobs: Float[Tensor, " S"] | None = None
    preferences: Float[Tensor, " S"] | None = None

    @property
    def advantages(self) -> Float[Tensor, " S"] | None:
        """What is computed during the update in place of advantages from rewards alone; None where these are used."""
        return self.preferences if self.values is None else self.values.advantages


@dataclass(frozen=True, kw_only=True)
class ValueRule:
    """How PPO computes advantages and returns from rewards and values, and how it trains the values.

    source: the critic's trunk: the policy's own ("shared") or a second model ("separate").
    gamma, lam: discount and GAE lambda of the advantages, arXiv 1506.02438. lam_critic: GAE lambda of the returns, the targets of the
        values (VC-PPO, arXiv 2503.01491, section 3.3: for long chains of thought the policy needs a lower lambda, the critic 1).
    lam_length: k, which replaces lam by a lambda of each sequence's length (lambdas); None is lam for all sequences.
    value_clip: the range around its old value to which the value loss clips a value (value_loss); None disables clipping.
    value_weight: the weight of the value loss relative to the policy loss, with a shared trunk.
    kl_in_reward: subtracts kl_weight x (b - f) from each token's reward, instead of adding a KL term to the loss.
    whiten: advantages are shifted to mean 0 and scaled to std 1 over the whole step.
    bootstrap_cut: the critic's value replaces what follows a completion that max_tokens truncated; otherwise the completion ends there.
    """

    source: Literal["shared", "separate"] = "shared"
    gamma: float = 1.0
    lam: float = 1.0
    lam_length: float | None = None
    lam_critic: float = 1.0
    value_clip: float | None = 0.2
    value_weight: float = 0.5
    kl_in_reward: bool = False
    whiten: bool = False
    bootstrap_cut: bool = False

    def targets(
        self, tokens: ScoredSequences, values: Float[Tensor, " S"], penalties: Float[Tensor, " S"] | None = None
    ) -> ValueTargets:
        """GAE over each sequence. The last token gets the sequence's reward; penalties are subtracted from every token's reward.

        A sequence that bootstraps has no reward: V before its last token stands for everything from that token on.
        """
        rewards = torch.zeros_like(values) if penalties is None else -penalties
        last = torch.tensor(tokens.lengths, device=values.device).cumsum(0) - 1
        # With its own value as reward the last token has advantage 0, and the token before it is followed by that value.
        rewards = rewards.index_copy(
            0, last, torch.where(tokens.bootstraps, values[last], tokens.rewards + rewards[last])
        )

        def padded(flat: Tensor) -> Tensor:
            return pad_sequence(list(flat.split(tokens.lengths)), batch_first=True)

        def flattened(rows: Tensor) -> Tensor:
            return torch.cat([row[:n] for row, n in zip(rows, tokens.lengths, strict=True)])

        rows = padded(rewards), padded(values), padded(torch.ones_like(values)) > 0
        advantages, returns = gae(*rows, gamma=self.gamma, lam=self.lambdas(tokens))
        if self.lam_length is not None or self.lam_critic != self.lam:
            _, returns = gae(*rows, gamma=self.gamma, lam=self.lam_critic)
        return ValueTargets(values, flattened(advantages), flattened(returns))

    def lambdas(self, tokens: ScoredSequences) -> float | Float[Tensor, " B"]:
        """The GAE lambda of the advantages: lam, or with lam_length k of each sequence of L tokens in the loss k^(1/L), in float32.

        JustRL-II. With gamma 1 the first token's advantage has k^((L-1)/L) of the last token's delta: all of it if L = 1, and the
        longer the sequence, the closer to k. VAPO's 1 - 1 / (alpha L), arXiv 2504.05118, is the same to first order in 1/L for
        alpha = 1 / ln(1/k). bfloat16 would round the lambda of k = 0.5 to 1 from 355 tokens on.
        """
        if self.lam_length is None:
            return self.lam
        lengths = tokens.loss_mask.new_zeros(tokens.num_sequences).index_add(0, tokens.sequence_of, tokens.loss_mask)
        return self.lam_length ** (1 / lengths.clamp(min=1).float())


def whitened(
    targets: Sequence[ValueTargets],
    sequences: Sequence[ScoredSequences],
    processes: Processes = SingleProcess(),  # noqa: B008
) -> list[ValueTargets]:
    """(A - mean) / (std + 1e-8), with mean and std over the tokens in the loss of the whole step, in all processes.

    Returns and values stay unchanged.
    """
    local = [t.advantages.index_select(0, s.loss_indices) for t, s in zip(targets, sequences, strict=True)]
    gathered = torch.cat(processes.gather(local))
    mean, std = gathered.mean(), gathered.std(correction=0)  # scalar tensors, which combine with tensors of any device
    return [t._replace(advantages=(t.advantages - mean) / (std + 1e-8)) for t in targets]
