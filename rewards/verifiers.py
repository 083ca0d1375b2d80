"""Verifiers by name: a problem names the one that judges it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rewards.math_answer import MathVerifier
from rewards.program import ProgramVerifier
from rewards.score import Verifier


@dataclass(frozen=True, kw_only=True)
class VerifierOptions:
    """num_workers: processes that judge at once, of each verifier. deadline: seconds for one answer.
    allow_unsafe_code: run programs even where they cannot be shut in."""

    num_workers: int = 2
    deadline: float = 2.0
    allow_unsafe_code: bool = False


def _math(options: VerifierOptions) -> Verifier:
    return MathVerifier(num_workers=options.num_workers, deadline=options.deadline)


def _program(options: VerifierOptions) -> Verifier:
    return ProgramVerifier(
        completions=True, num_workers=options.num_workers, allow_unsafe_code=options.allow_unsafe_code
    )


VERIFIERS: Mapping[str, Callable[[VerifierOptions], Verifier]] = {"math": _math, "program": _program}


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
