"""The task of proving: its worked proofs are proofs of what the prompt asks, and of nothing else."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import pytest

from rewards.metamath.database import parse_database
from rewards.metamath.kernel import Limits, check
from rewards.proof import ProofVerifier
from rewards.score import Outcome
from rollout.problems import BUILT_IN
from rollout.records import INFORMAL, SOLUTION
from rollout.theorems import DATABASE, DISTRACTORS, STEPS, theorems


@pytest.fixture(scope="module")
def verifier() -> Iterator[ProofVerifier]:
    with ProofVerifier(num_workers=1) as made:
        yield made


def test_what_the_logic_proves_is_proved_from_its_axioms() -> None:
    database = parse_database(DATABASE)
    proved = [label for label, statement in database.statements.items() if getattr(statement, "proof", None)]
    assert proved == ["a1i", "a2i", "mpd", "syl"]
    for label in proved:
        theorem = database.theorem(label)
        check(database, theorem, theorem.proof, limits=Limits(deadline=time.monotonic() + 10))


def test_worked_proofs_prove_their_own_statement_only(verifier: ProofVerifier) -> None:
    problems = theorems(400, seed=0)
    proofs = [str(problem.metadata[SOLUTION]) for problem in problems]
    assert {s.outcome for s in verifier.verify_batch(proofs, [p.reference for p in problems])} == {Outcome.CORRECT}
    others = verifier.verify_batch(proofs[1:] + proofs[:1], [p.reference for p in problems])
    assert Outcome.CORRECT not in {score.outcome for score in others}
    steps = Counter(proof.count("mp") + proof.count("syl") for proof in proofs)
    assert set(steps) == {*STEPS} and max(len(p.question.split("; ")) for p in problems) > max(STEPS) + len(DISTRACTORS)


def test_the_prompt_shows_the_hypotheses_and_the_goal_of_the_statement() -> None:
    (problem,) = [
        p for p in theorems(400, seed=0) if p.metadata[SOLUTION] == "V X S V T X V P T VP PT syl TX syl XS syl"
    ]
    assert problem.question == "U>P; T>X; V>P; P>T; X>S; V>S"
    assert isinstance(problem.reference, dict)
    assert problem.reference["statement"] == (
        "UP $e |- ( u -> p ) $. TX $e |- ( t -> x ) $. VP $e |- ( v -> p ) $. PT $e |- ( p -> t ) $. XS $e |- ( x -> s ) $. "
        "goal $p |- ( v -> s ) $= ? $."
    )
    assert problem.metadata[INFORMAL] == "from v, p, t, x to s"


def test_hypotheses_come_in_no_order_that_gives_the_chain_away() -> None:
    problems = [p for p in theorems(2000, seed=0) if len(str(p.metadata[INFORMAL]).split(", ")) == 3]
    first = Counter(p.question.startswith(f"{str(p.metadata[INFORMAL])[5].upper()}>") for p in problems)
    assert 0.1 < first[True] / len(problems) < 0.5


def test_a_longer_list_begins_with_the_shorter_one_and_repeats_nothing() -> None:
    problems = BUILT_IN["theorems"]()
    assert problems[:50] == theorems(50, seed=0) != theorems(50, seed=1)
    assert len({p.question for p in problems}) == len(problems) == 5000
