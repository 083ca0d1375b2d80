"""Verifiers by name: a problem names the one that judges it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rewards.math_answer import MathVerifier
from rewards.score import Verifier


@dataclass(frozen=True, kw_only=True)
class VerifierOptions:
    """num_workers: processes that judge at once, of each verifier. deadline: seconds for one answer."""

    num_workers: int = 2
    deadline: float = 2.0


def _math(options: VerifierOptions) -> Verifier:
    return MathVerifier(num_workers=options.num_workers, deadline=options.deadline)


VERIFIERS: Mapping[str, Callable[[VerifierOptions], Verifier]] = {"math": _math}


class Verifiers(dict[str, Verifier]):
    """Verifiers by name, each started when it is first asked for."""

    def __init__(self, options: VerifierOptions) -> None:
        super().__init__()
        self._options = options

    def __missing__(self, name: str) -> Verifier:
        self[name] = VERIFIERS[name](self._options)
        return self[name]

    def close(self) -> None:
        """End every worker process. Safe to call twice."""
        for verifier in self.values():
            verifier.close()
