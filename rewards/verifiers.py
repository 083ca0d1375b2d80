"""Verifiers by name. Each problem names its verifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

from rewards.combine import CombinedVerifier
from rewards.extract import AnswerForm
from rewards.function_verifier import FunctionVerifier
from rewards.instruction_answer import InstructionVerifier
from rewards.math_answer import MathVerifier
from rewards.math_policy import MathPolicy
from rewards.program import ProgramVerifier
from rewards.program_answer import ProgramAnswerVerifier
from rewards.proof import ProofVerifier
from rewards.puzzle_answer import PuzzleVerifier
from rewards.reasoning_gym_tasks import ReasoningGymVerifier
from rewards.reward_spec import ENVIRONMENT, RewardSpec
from rewards.sandbox.isolation import Isolation
from rewards.score import Verifier
from rewards.weighted import EnvironmentVerifier, FormatVerifier, Weighted, WeightedVerifier

REWARD = "reward"  # name of the sum of the rewards that --reward names


@dataclass(frozen=True, kw_only=True)
class VerifierOptions:
    """Options of all verifiers.

    num_workers: worker processes of each verifier. deadline: seconds for one answer.
    answer_form, grading: where the math verifier finds answers, and how it compares them.
    allow_unsafe_code: run programs even if they cannot be sandboxed. packages: what programs and their tests may import
        beside the standard library.
    formats, format_weight, gate_format: format rules and their weight, see rewards.combine.
    rewards: what the verifier named REWARD sums; without them there is none of this name.
    has_environment: answers are given in environments, whose final state functions may ask for.
    """

    num_workers: int = 2
    deadline: float = 2.0
    answer_form: AnswerForm | None = None
    grading: MathPolicy = field(default_factory=MathPolicy)
    allow_unsafe_code: bool = False
    packages: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    format_weight: float = 0.1
    gate_format: bool = True
    rewards: tuple[RewardSpec, ...] = ()
    has_environment: bool = False


def _math(options: VerifierOptions) -> Verifier:
    return MathVerifier(
        form=options.answer_form,
        policy=options.grading,
        num_workers=options.num_workers,
        deadline=options.deadline,
    )


def _program(options: VerifierOptions) -> Verifier:
    return ProgramVerifier(
        completions=True,
        num_workers=options.num_workers,
        allow_unsafe_code=options.allow_unsafe_code,
        packages=options.packages,
    )


def _program_answer(options: VerifierOptions) -> Verifier:
    return ProgramAnswerVerifier(
        policy=options.grading,
        num_workers=options.num_workers,
        deadline=options.deadline,
        allow_unsafe_code=options.allow_unsafe_code,
    )


def _proof(options: VerifierOptions) -> Verifier:
    return ProofVerifier(num_workers=options.num_workers, allow_unsafe_code=options.allow_unsafe_code)


def _puzzle(options: VerifierOptions) -> Verifier:
    return PuzzleVerifier(num_workers=options.num_workers, deadline=options.deadline)


def _instructions(options: VerifierOptions) -> Verifier:
    return InstructionVerifier(num_workers=options.num_workers, deadline=options.deadline)


def _reasoning_gym(options: VerifierOptions) -> Verifier:
    return ReasoningGymVerifier(num_workers=options.num_workers, deadline=options.deadline)


VERIFIERS: Mapping[str, Callable[[VerifierOptions], Verifier]] = {
    "math": _math,
    "program": _program,
    "program-answer": _program_answer,
    "proof": _proof,
    "puzzle": _puzzle,
    "instructions": _instructions,
    "reasoning-gym": _reasoning_gym,
}


class Verifiers(dict[str, Verifier]):
    """Verifiers by name, each created at its first lookup.

    isolation: the isolation of the sandbox for programs; None until a verifier of programs is created.
    """

    def __init__(self, options: VerifierOptions) -> None:
        super().__init__()
        self._options = options
        self.isolation: Isolation | None = None

    def __missing__(self, name: str) -> Verifier:
        options = self._options
        verifier = self._sum_of_rewards() if name == REWARD and options.rewards else self._built_in(name)
        if options.formats:
            verifier = CombinedVerifier(
                verifier, options.formats, weight=options.format_weight, gated=options.gate_format
            )
        self[name] = verifier
        return verifier

    def _built_in(self, name: str) -> Verifier:
        verifier = VERIFIERS[name](self._options)
        if isinstance(verifier, ProgramVerifier | ProgramAnswerVerifier):
            self.isolation = verifier.isolation
        return verifier

    def _sum_of_rewards(self) -> Verifier:
        with ExitStack() as on_error:
            rewards = []
            for spec in self._options.rewards:
                verifier = self._one_reward(spec)
                on_error.callback(verifier.close)
                rewards.append(Weighted(name=spec.name, verifier=verifier, weight=spec.weight))
            on_error.pop_all()
        return WeightedVerifier(rewards)

    def _one_reward(self, spec: RewardSpec) -> Verifier:
        if spec.source == ENVIRONMENT:
            return EnvironmentVerifier()
        if spec.function is None:
            return self._built_in(spec.source) if spec.source in VERIFIERS else FormatVerifier(spec.source)
        options = self._options
        return FunctionVerifier(
            spec.source,
            spec.function,
            answer_form=options.answer_form,
            num_workers=options.num_workers,
            deadline=options.deadline,
            has_environment=options.has_environment,
        )

    def close(self) -> None:
        """Ends all worker processes. Safe to call twice."""
        for verifier in self.values():
            verifier.close()
