"""Proofs in Coq: outcomes, and attacks on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rewards.proof import ProofVerifier
from rewards.proofs.coq_grader import CoqGrader
from rewards.proofs.prover_grader import Rejected
from rewards.proofs.task import parse_task
from rewards.score import Outcome
from rewards.verdict import BadReference
from tests.rewards.test_proof import FALSE


@pytest.fixture(scope="module")
def verifier() -> Iterator[ProofVerifier]:
    with ProofVerifier(num_workers=1, deadline=2.0) as made:
        yield made


COMMUTATIVE = {
    "system": "coq",
    "definitions": "Definition double (n : nat) := n + n.\nNotation \"'twice' n\" := (double n) (at level 10).",
    "statement": "forall n : nat, n = 0 -> twice n = n",
}


@pytest.fixture(scope="module")
def coq(tmp_path_factory: pytest.TempPathFactory) -> CoqGrader:
    grader = CoqGrader(folder=tmp_path_factory.mktemp("coq"), seconds=3.0, memory=4 << 30, allow_unsafe_code=False)
    try:
        grader.prover()
    except BadReference as error:
        pytest.skip(f"no proof for Coq was graded: {error}")
    return grader


def test_every_outcome_of_a_coq_proof(verifier: ProofVerifier, coq: CoqGrader) -> None:
    answers = {
        "intros n H. rewrite H. reflexivity.": Outcome.CORRECT,
        'Here it is:\n```coq\nProof.\n  intros. (* "easy. *)\n  unfold double; subst n.\n  auto.\nQed.\n```': Outcome.CORRECT,
        "intros n. { intros H. - now subst. }": Outcome.CORRECT,
        "intros n H. assert (n = 0 /\\ True) as [E _].\n1: split; auto.\n{ rewrite E. exact eq_refl. }": Outcome.CORRECT,
        "intros. reflexivity.": Outcome.WRONG,
        "intros n.": Outcome.WRONG,  # unfinished
        "intros n H. now subst": Outcome.WRONG,  # no full stop
        "intros. admit.": Outcome.WRONG,
        "do 1000000000 (pose proof I).": Outcome.TIMEOUT,
        "I am sure. Trust me.": Outcome.UNPARSED,
        "intros. (* unfold": Outcome.UNPARSED,
        'intros. idtac "unfold.': Outcome.UNPARSED,
    }
    scores = verifier.verify_batch(list(answers), [COMMUTATIVE] * len(answers))
    assert [(a, s.outcome, s.detail) for (a, o), s in zip(answers.items(), scores) if s.outcome is not o] == []
    assert scores[4].detail.startswith("line 1: In environment n : nat H : n = 0 Unable to unify")


def test_a_coq_proof_assumes_only_what_the_reference_allows(verifier: ProofVerifier, coq: CoqGrader) -> None:
    lists = {"imports": "Require Import Coq.Lists.List.\nImport ListNotations.", "statement": "[1] ++ [2] = [1; 2]"}
    excluded = {"imports": "Require Import Coq.Logic.Classical_Prop.", "statement": "forall P : Prop, P \\/ ~ P"}
    axiom = {"definitions": "Parameter A : Prop.\nAxiom a : A.", "statement": "A"}
    cases = [
        (lists, "reflexivity.", Outcome.CORRECT),
        (excluded, "intro P. apply classic.", Outcome.WRONG),
        ({**excluded, "axioms": ["Coq.Logic.Classical_Prop.classic"]}, "apply classic.", Outcome.CORRECT),
        ({**excluded, "axioms": ["Coq.Logic.Other.classic"]}, "apply classic.", Outcome.WRONG),
        (axiom, "exact a.", Outcome.CORRECT),  # what the trainer's own definitions assume is given
        ({"statement": "3"}, "auto.", Outcome.BAD_REFERENCE),
        ({"statement": "forall n, n = missing"}, "auto.", Outcome.BAD_REFERENCE),
        ({"statement": "forall n : nat, n = n."}, "auto.", Outcome.BAD_REFERENCE),  # a statement has no full stop
    ]
    scores = verifier.verify_batch([a for _, a, _ in cases], [{"system": "coq", **task} for task, _, _ in cases])
    assert [(c, s) for c, s in zip(cases, scores) if s.outcome is not c[2]] == []
    assert scores[1].detail == "the proof assumes Classical_Prop.classic"


# Each would be a proof of False if it were accepted. After "Abort." the text continues as a file of its own.
ATTACKS = {
    "admitted": "Admitted.",
    "admit": "admit.",
    "given up": "give_up.",
    "shelved": "shelve.",
    "another theorem of that name": "Abort. Theorem goal : True. Proof. exact I.",
    "False means True": "Abort. Definition False := True. Theorem goal : False. Proof. exact I.",
    "a notation for False": "Abort. Notation \"'False'\" := True (only parsing). Theorem goal : False. exact I.",
    "an axiom": "Abort. Axiom a : Logic.False. Theorem goal : False. exact a.",
    "a parameter": "Abort. Parameter a : False. Definition goal : False. exact a.",
    "a section's variable": "Abort. Section S. Variable a : False. Theorem goal : False. exact a. Qed. End S. "
    "Goal True. auto.",
    "a context": "Abort. Context (a : False). Theorem goal : False. exact a.",
    "no guard": "Unset Guard Checking. exact ((fix f (n : nat) : False := f n) 0).",
    "no guard by attribute": "Abort. #[bypass_check(guard)] Fixpoint f (n : nat) : False := f n. "
    "Theorem goal : False. exact (f 0).",
    "no positivity": "Abort. Unset Positivity Checking. Inductive b := c : (b -> False) -> b. Definition f (x : b) : False := "
    "match x with c g => g x end. Theorem goal : False. exact (f (c f)).",
    "no universes": "Abort. Require Import Coq.Logic.Hurkens. Unset Universe Checking. Polymorphic Definition U@{i} : Type@{i}"
    " := Type@{i}. Theorem goal : False. exact (TypeNeqSmallType.paradox U eq_refl).",
    "a module in the place of the given": "Abort. Module Task. Module Given. Definition statement : Type := True. End Given. "
    "End Task. Import Task. Theorem goal : True. exact I.",
    "an axiom that seems to be given": "Abort. Module Given. Axiom a : False. End Given. Theorem goal : False. exact Given.a.",
    "an axiom that seems to be allowed": "Abort. Module Classical_Prop. Axiom classic : False. End Classical_Prop. "
    "Theorem goal : False. exact Classical_Prop.classic.",
    "a module type's axiom": "Abort. Module Type T. Axiom a : False. End T. Declare Module M : T. "
    "Theorem goal : False. exact M.a.",
    "a cast that is not checked": "exact_no_check I.",
    "a cast to the virtual machine": "vm_cast_no_check I.",
    "a change that is not checked": "change_no_check True. exact I.",
    "a plugin": 'Declare ML Module "nothing". exact I.',
    "a file": 'Load "Given".',
    "a coercion": "Abort. Axiom a : True -> False. Coercion a : True >-> False. Theorem goal : False. exact I.",
    "the end": "Abort. Theorem goal : False. Admitted. Quit.",
    "going back": "Abort. Reset Initial. Theorem goal : True. exact I.",
    "a command that may fail": "Fail exact I. Timeout 1 Admitted.",
    "a primitive": "Abort. Primitive a := #int63_add. Theorem goal : False. exact a.",
    "a rewriting of what was built": 'Redirect "../given/Given.vo" Print nat. exact I.',
    "an existential": "refine ?[x']. [x']: { Admitted.",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_on_coq_proves_false(name: str, coq: CoqGrader) -> None:
    """With the screening, and without it, since the later checks must suffice alone."""
    task = parse_task({**FALSE, "axioms": ["Coq.Logic.Classical_Prop.classic"]})
    outcome, detail = coq.grade(ATTACKS[name], task)  # type: ignore[arg-type]
    assert outcome in (Outcome.WRONG, Outcome.UNPARSED), detail
    whole = ATTACKS[name] + ("" if ATTACKS[name].endswith("Admitted.") else "\nQed.\n")
    with pytest.raises(Rejected):
        coq.prove(whole, task)  # type: ignore[arg-type]


def test_a_truncated_list_of_assumptions_is_not_allowed(coq: CoqGrader) -> None:
    names = [f"{'a' * 60}{number}" for number in range(1000)]  # 64 KiB are read
    task = parse_task({**FALSE, "statement": "nat", "definitions": f"Parameters {' '.join(names)} : nat."})
    few, all_of_them = (coq.grade(f"exact ({' + '.join(some)}).", task) for some in (names[:9], names))  # type: ignore[arg-type]
    assert few == (Outcome.CORRECT, "proved")
    assert all_of_them == (Outcome.WRONG, "the list of the proof's assumptions is too long")


def test_coqchk_rejects_a_file_that_was_built_differently(coq: CoqGrader, tmp_path: Path) -> None:
    prover = coq.prover()
    folders = {"Answer": tmp_path}
    (tmp_path / "Answer.v").write_text("Theorem goal : True. exact I. Qed.")
    assert coq.build(prover, "Answer", folders).status == 0
    assert coq.recheck(prover, folders).status == 0
    built = (tmp_path / "Answer.vo").read_bytes()
    (tmp_path / "Answer.vo").write_bytes(built[:-40] + bytes(40))
    assert coq.recheck(prover, folders).status != 0


# Each closes the goal, or would, and then contains a command that no proof may: the screening alone must find it.
SMUGGLED = [
    "exact I. Qed. Axiom a : False.",
    'exact I. (* " *) Admitted. (* " *)',
    "exact I. (* (* *) *) Admitted. (**)",
    "exact I. (*) Admitted. *) Admitted.",
    'idtac "a"" (* ". Admitted. idtac "*) ".',
    'idtac "(*". Admitted. idtac "*)".',
    'idtac "a "" b. Admitted. ".',
    'idtac "\'". Admitted.',
    "- Admitted.",
    "{ Admitted. }",
    "{ exact I. } Qed.Axiom a : False. exact I.",
    "1: { Admitted. }",
    "all: Admitted.",
    "!: { Admitted. }",
    "[x]: { Admitted. }",
    "[x']: { Admitted. }",
    "exact I... Admitted. exact I.",
    "idtac.\x0cAdmitted. exact I.",
    "idtac.\N{NO-BREAK SPACE}Admitted. exact I.",
    "idtac.\r\nAdmitted. exact I.",
    "#[local] Axiom a : False.",
    "Time Admitted.",
    "exact I. Proof.",
    "infoH idtac. Print Assumptions goal. exact I.",
]


@pytest.mark.parametrize("text", SMUGGLED)
def test_the_screen_sees_every_command(text: str, tmp_path: Path) -> None:
    grader = CoqGrader(folder=tmp_path, seconds=1.0, memory=1 << 30, allow_unsafe_code=False)
    with pytest.raises(Rejected):
        grader.screen(text)
