"""Estimates of the KL: by hand, their bounds, and what value and gradient they have in expectation."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given
from torch import Tensor

from rl.objective.losses import (
    KLKind,
    kl_estimate,
)
from tests.parity.cases import FEW
from tests.parity.test_losses import EXACT, LOG_RATIOS, vector, with_gradient


def test_kl_estimates_by_hand() -> None:
    """d = ln 2: k1 = 0.693147; k2 = 0.693147^2 / 2 = 0.240227; k3 = 1/2 + 0.693147 - 1 = 0.193147.
    d = -ln 2: -0.693147; 0.240227; 2 - 0.693147 - 1 = 0.306853."""
    policy, reference = vector([-1, -1 - math.log(2)]), vector([-1 - math.log(2), -1])
    expected = {"k1": [0.693147, -0.693147], "k2": [0.240227, 0.240227], "k3": [0.193147, 0.306853]}
    for kind, values in expected.items():
        assert kl_estimate(policy, reference, kind).tolist() == pytest.approx(values, abs=1e-6)  # six digits above


@FEW
@given(LOG_RATIOS)
def test_k2_and_k3_are_never_negative_and_vanish_together(differences: list[float]) -> None:
    zeros = torch.zeros(len(differences), dtype=torch.float64)
    for kind in ("k2", "k3"):
        values = kl_estimate(vector(differences), zeros, kind).tolist()
        assert all(v >= -1e-15 for v in values)  # k3 near 0 is 1 + d^2/2 - 1: a rounding of 1
        assert kl_estimate(zeros, zeros, kind).tolist() == zeros.tolist()


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_estimates_are_the_restated_ones(kind: KLKind) -> None:
    rng = random.Random(4)
    pairs = [(rng.gauss(-2, 1), rng.gauss(-2, 1)) for _ in range(40)]
    d = [p - f for p, f in pairs]
    formula = {"k1": d, "k2": [x * x / 2 for x in d], "k3": [math.exp(-x) + x - 1 for x in d]}[kind]
    slope = {"k1": [1.0] * 40, "k2": d, "k3": [1 - math.exp(-x) for x in d]}[kind]
    reference = vector([f for _, f in pairs])
    values, gradient = with_gradient(lambda x: kl_estimate(x, reference, kind), [p for p, _ in pairs])
    assert values == pytest.approx(formula, abs=EXACT)
    assert gradient == pytest.approx(slope, abs=EXACT)


class Vocabulary:
    """A policy softmax(theta) and a reference over seven tokens: expectations are sums over all of them."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        self.theta = vector([rng.gauss(0, 1.5) for _ in range(7)]).requires_grad_()
        self.policy = self.theta.log_softmax(-1)
        self.reference = vector([rng.gauss(0, 1.5) for _ in range(7)]).log_softmax(-1)
        self.p, self.q = self.policy.detach().exp().tolist(), self.reference.exp().tolist()
        self.kl = sum(p * math.log(p / q) for p, q in zip(self.p, self.q, strict=True))

    def expected(self, kind: KLKind) -> Tensor:
        """Tokens are drawn from the policy as it is: their chances carry no gradient."""
        return (vector(self.p) * kl_estimate(self.policy, self.reference, kind)).sum()

    def gradient(self, kind: KLKind) -> list[float]:
        return torch.autograd.grad(self.expected(kind), self.theta)[0].tolist()


@pytest.mark.parametrize("seed", range(3))
def test_k1_and_k3_are_unbiased_and_k2_is_not(seed: int) -> None:
    words = Vocabulary(seed)
    assert words.expected("k1").item() == pytest.approx(words.kl, abs=EXACT)
    assert words.expected("k3").item() == pytest.approx(words.kl, abs=EXACT)
    assert abs(words.expected("k2").item() - words.kl) > 0.01


@pytest.mark.parametrize("seed", range(3))
def test_the_expected_gradient_of_k1_is_zero(seed: int) -> None:
    """E[grad log p] = 0: as a loss term k1 regularises nothing."""
    assert Vocabulary(seed).gradient("k1") == pytest.approx([0] * 7, abs=EXACT)


@pytest.mark.parametrize("seed", range(3))
def test_the_expected_gradient_of_k2_is_that_of_the_reverse_kl(seed: int) -> None:
    """d KL(p || q) / d theta_k = p_k (log p_k / q_k - KL)."""
    words = Vocabulary(seed)
    expected = [p * (math.log(p / q) - words.kl) for p, q in zip(words.p, words.q, strict=True)]
    assert words.gradient("k2") == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("seed", range(3))
def test_the_expected_gradient_of_k3_is_that_of_the_forward_kl(seed: int) -> None:
    """E_p[(1 - q/p) grad log p] = -sum q grad log p = grad KL(q || p), whose k-th entry is p_k - q_k."""
    words = Vocabulary(seed)
    assert words.gradient("k3") == pytest.approx([p - q for p, q in zip(words.p, words.q, strict=True)], abs=EXACT)
