"""The built-in task of proving: theorems of a small logic in Metamath, each a goal that follows from its hypotheses in a chain.

"P>Q; P; Q" asks for a proof of q from the hypotheses PQ, ( p -> q ), and hP, p. A proof in Metamath is the labels of its steps in the order
in which a stack machine takes them: "P Q hP PQ mp" is modus ponens of the two for the formulas p and q. The last step's formulas come first,
so a proof is planned from the goal back to the hypotheses, past those that lead nowhere.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

from rollout.records import INFORMAL, SOLUTION, Problem

LETTERS = "pqrstuvxyz"
STEPS, DISTRACTORS = range(1, 5), range(3)
# Propositional logic of implication. mp and the two axioms are assumed, the others proved from them.
DATABASE = "\n".join([
    "$c ( ) -> wff |- $.",
    f"$v {' '.join(LETTERS)} $.",
    *(f"{letter.upper()} $f wff {letter} $." for letter in LETTERS),
    "wi $a wff ( p -> q ) $.",
    "${ mp.1 $e |- p $. mp.2 $e |- ( p -> q ) $. mp $a |- q $. $}",
    "ax-1 $a |- ( p -> ( q -> p ) ) $.",
    "ax-2 $a |- ( ( p -> ( q -> r ) ) -> ( ( p -> q ) -> ( p -> r ) ) ) $.",
    "${ a1i.1 $e |- p $. a1i $p |- ( q -> p ) $= P Q P wi a1i.1 P Q ax-1 mp $. $}",
    "${ a2i.1 $e |- ( p -> ( q -> r ) ) $.",
    "   a2i $p |- ( ( p -> q ) -> ( p -> r ) ) $=",
    "   P Q R wi wi P Q wi P R wi wi a2i.1 P Q R ax-2 mp $. $}",
    "${ mpd.1 $e |- ( p -> q ) $. mpd.2 $e |- ( p -> ( q -> r ) ) $.",
    "   mpd $p |- ( p -> r ) $= P Q wi P R wi mpd.1 P Q R mpd.2 a2i mp $. $}",
    "${ syl.1 $e |- ( p -> q ) $. syl.2 $e |- ( q -> r ) $.",
    "   syl $p |- ( p -> r ) $= P Q R syl.1 Q R wi P syl.2 a1i mpd $. $}",
])  # fmt: skip


def theorems(count: int, *, seed: int, steps: Sequence[int] = STEPS) -> list[Problem]:
    """`count` different problems in random order; a longer list begins with the shorter one. steps: lengths of proofs, from 1 to 8."""
    rng = random.Random(seed)
    problems: dict[str, Problem] = {}
    while len(problems) < count:
        problem = _theorem(rng, steps)
        problems.setdefault(problem.id, problem)
    return list(problems.values())


def _theorem(rng: random.Random, steps: Sequence[int]) -> Problem:
    length = rng.choice(steps)
    letters = rng.sample(LETTERS, len(LETTERS))
    chain, others = letters[: length + 1], letters[length + 1 :]
    has_fact = length == 1 or rng.random() < 0.5  # whether the chain begins at a fact, or the goal is an implication
    dead_ends = [_dead_end(chain, others, rng) for _ in range(rng.choice(DISTRACTORS))]
    labels = {_implies(a, b): f"{a}{b}".upper() for a, b in (*pairwise(chain), *dead_ends)}
    if has_fact:
        labels[chain[0]] = f"h{chain[0].upper()}"
    given = rng.sample(sorted(labels), len(labels))
    goal = chain[-1] if has_fact else _implies(chain[0], chain[-1])
    hypotheses = [f"{labels[formula]} $e |- {formula} $." for formula in given]
    shown = "; ".join(map(_short, [*given, goal]))
    return Problem(
        id=shown,
        prompt=({"role": "user", "content": shown},),
        reference={
            "system": "metamath",
            "source": DATABASE,
            "statement": " ".join([*hypotheses, f"goal $p |- {goal} $= ? $."]),
        },
        verifier="proof",
        metadata={
            SOLUTION: _from_fact(chain, labels) if has_fact else _implication(chain, labels),
            INFORMAL: f"from {', '.join(chain[:-1])} to {chain[-1]}",
        },
    )


def _dead_end(chain: Sequence[str], others: Sequence[str], rng: random.Random) -> tuple[str, str]:
    """An implication between the chain and a letter beside it: it leads from where nothing is known, or to where nothing goes on."""
    inside, outside = rng.choice(chain), rng.choice(others)
    return (inside, outside) if rng.random() < 0.5 else (outside, inside)


def _implies(a: str, b: str) -> str:
    return f"( {a} -> {b} )"


def _short(formula: str) -> str:
    """As the prompt has it, by the labels of its letters: P>Q."""
    return formula.replace(" -> ", ">").strip("( )").upper()


def _from_fact(chain: Sequence[str], labels: dict[str, str]) -> str:
    """The proof of the chain's end from its beginning."""
    *before, end = chain
    if not before:
        return labels[end]
    formulas = f"{before[-1]} {end}".upper()
    return f"{formulas} {_from_fact(before, labels)} {labels[_implies(before[-1], end)]} mp"


def _implication(chain: Sequence[str], labels: dict[str, str]) -> str:
    """The proof that the chain's beginning implies its end."""
    *before, end = chain
    if len(before) == 1:
        return labels[_implies(before[0], end)]
    formulas = f"{chain[0]} {before[-1]} {end}".upper()
    return f"{formulas} {_implication(before, labels)} {labels[_implies(before[-1], end)]} syl"
