"""The context that every stage of the math grader gets, to compare parts of an answer recursively."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rewards.math_policy import MathPolicy
from rewards.verdict import Verdict, unparsed, wrong

MAX_DEPTH = 6  # of lists in lists


@dataclass(frozen=True)
class Comparison:
    """State of a comparison: the policy, the stages and the depth of the recursion.

    trust_text: accept equal texts as equal. Off when a reference is checked, so that it must also be readable.
    """

    policy: MathPolicy
    stages: tuple[Stage, ...]
    trust_text: bool = True
    depth: int = 0

    def compare(self, answer: str, reference: str, *, unevaluated: bool | None = None) -> Verdict:
        """The verdict on a part of the answer. unevaluated: overrides MathPolicy.unevaluated_arithmetic."""
        policy = self.policy if unevaluated is None else replace(self.policy, unevaluated_arithmetic=unevaluated)
        inner = replace(self, policy=policy, depth=self.depth + 1)
        if inner.depth > MAX_DEPTH:
            return wrong("nested too deeply")
        for stage in self.stages:
            verdict = stage(answer.strip(), reference.strip(), inner)
            if verdict is not None:
                return verdict
        return unparsed("no stage can read it")

    def all_equal(self, answers: Sequence[str], references: Sequence[str]) -> bool:
        return len(answers) == len(references) and all(
            self.compare(a, r).is_correct for a, r in zip(answers, references)
        )


Stage = Callable[[str, str, Comparison], Verdict | None]
"""(answer, reference, comparison) -> a verdict, or None to leave the decision to the next stage."""
