from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rewards.coq_judge import CoqJudge
from rewards.lean_judge import LeanJudge
from rewards.proof import ProofVerifier, available_provers
from rewards.proof_judge import proof_in
from rewards.proof_task import BadTask, parse_task
from rewards.prover_judge import Rejected
from rewards.prover_process import Prover, ProverError
from rewards.score import Outcome, Score

DATA = Path(__file__).resolve().parent / "data"
ID = "wph wph wph wi wi wph wph wi wph wph ax-1 wph wph wph wi wph wph wph wph wi ax-1 a2i ax-mp"
METAMATH = {"system": "metamath", "database": str(DATA / "propositional.mm"), "theorem": "id"}


@pytest.fixture(scope="module")
def verifier() -> Iterator[ProofVerifier]:
    with ProofVerifier(num_workers=1, deadline=2.0) as made:
        yield made


def outcomes(scores: list[Score]) -> list[Outcome]:
    return [score.outcome for score in scores]


def test_every_outcome_of_a_metamath_proof(verifier: ProofVerifier) -> None:
    doubling = "( wi ) AABZ" + "".join(f"{c}{c}BZ" for c in "CDEFGHIJKLMNOPQRST")  # 2^19 times ph
    answers = {
        f"```metamath\n{ID}\n```": Outcome.CORRECT,
        f"$= {ID} $.": Outcome.CORRECT,
        "id": Outcome.WRONG,
        "I do not know, sorry.": Outcome.UNPARSED,
        "": Outcome.NO_ANSWER,
        "<think> wph wph": Outcome.NO_ANSWER,
        doubling: Outcome.TIMEOUT,
        "wph " * 300_000: Outcome.TIMEOUT,
    }
    scores = verifier.verify_batch(list(answers), [METAMATH] * len(answers))
    assert outcomes(scores) == list(answers.values())
    assert scores[2].detail == "id is not active before id"
    assert {score.value for score in scores[1:]} == {0.0, 1.0}


def test_a_metamath_statement_of_the_trainers(verifier: ProofVerifier) -> None:
    database = "$c wff $. $v p $. wp $f wff p $. wpp $a wff p p $."
    task = {"system": "metamath", "source": database, "statement": "four $p wff p p p p $= ? $."}
    answers = ["wp wpp wpp", "( wpp ) ABB", "wp wp wpp", "four", "wq $f wff q $. four $a wff p p p p $."]
    scores = verifier.verify_batch(answers, [task] * 5)
    assert outcomes(scores) == [Outcome.CORRECT] * 2 + [Outcome.WRONG] * 2 + [Outcome.UNPARSED]
    scores = verifier.verify_batch(["wp wpp wpp"], [{**task, "without": ["wpp"]}])
    assert scores[0].detail == "wpp may not be used here"


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("forall n, n = n", "neither a JSON object nor the text of one"),
        ({"system": "hol"}, "one of metamath, coq, lean"),
        ({"system": "metamath", "theorem": "id"}, "exactly one of database and source"),
        ({**METAMATH, "statement": "x $p |- ph $= ? $."}, "exactly one of theorem and statement"),
        ({**METAMATH, "before": "id"}, "before goes with statement"),
        ({**METAMATH, "database": "/no/such.mm"}, "cannot read the database /no/such.mm: No such file"),
        ({**METAMATH, "theorem": "ax-1"}, "no $p statement labelled 'ax-1'"),
        ({**METAMATH, "theorem": "nothing"}, "no $p statement labelled 'nothing'"),
        ({**METAMATH, "without": ["nothing"]}, "no statement labelled 'nothing'"),
        ({**METAMATH, "without": "id"}, "without must be a list of texts"),
        ({**METAMATH, "axioms": []}, "'axioms' is no field"),
        ({"system": "metamath", "source": "$c a $", "theorem": "id"}, "database:1: $c is not followed by $."),
        ({"system": "metamath", "source": "", "theorem": "id"}, "exactly one of database and source"),
        ({"system": "coq"}, "statement is empty"),
        ({"system": "lean", "statement": 3}, "statement must be text, not int"),
    ],
)
def test_references_that_nothing_can_be_held_against(verifier: ProofVerifier, reference: Any, reason: str) -> None:
    scores = [*verifier.check_references([reference]), *verifier.verify_batch([ID], [reference])]
    assert outcomes(scores) == [Outcome.BAD_REFERENCE] * 2
    assert all(reason in score.detail and score.value is None for score in scores)


def test_a_database_that_has_changed_is_read_again(verifier: ProofVerifier, tmp_path: Path) -> None:
    path = tmp_path / "changing.mm"
    reference = f'{{"system": "metamath", "database": "{path}", "theorem": "th"}}'  # as text, as data sets have it
    path.write_text("$c a $. ax $a a $. th $p a $= ? $.")
    assert outcomes(verifier.verify_batch(["ax"], [reference])) == [Outcome.CORRECT]
    path.write_text("$c a b $. ax $a b $. th $p a $= ? $.")
    assert outcomes(verifier.verify_batch(["ax"], [reference])) == [Outcome.WRONG]


@pytest.mark.parametrize(
    ("completion", "proof"),
    [
        ("A B", "A B"),
        ("First:\n```\nold\n```\nbetter:\n```coq\nnew\n```\nDone.", "new"),
        ("```python\nprint(1)\n```\n```\nproof\n```", "proof"),
        ("```python\nprint(1)\n```", "```python\nprint(1)\n```"),  # no block is a proof: all of the text
        ("```coq\nintros.\n", "intros."),  # cut off: a block that is not closed goes to the end
        ("```lean\nsimp\n```", "```lean\nsimp\n```"),
        ("<think>```coq\nno\n```</think>yes", "yes"),
        ("<think>still at it ```coq\nno\n```", ""),
        ("<answer>one</answer> or <answer>\n```\ntwo\n```\n</answer> bye", "two"),
        ("intros.<|im_end|>\nuser: more", "intros."),
        ("```coq\na\n```coq\nb\n```", "a\n```coq\nb"),  # within a block only bare ``` ends it
    ],
)
def test_where_the_proof_is(completion: str, proof: str) -> None:
    assert proof_in(completion, {"", "coq"}) == proof


def test_finding_and_screening_a_proof_takes_linear_time(tmp_path: Path) -> None:
    options = {"folder": tmp_path, "seconds": 1.0, "memory": 1 << 30, "allow_unsafe_code": False}
    screens = [CoqJudge(**options).screen, LeanJudge(**options).screen]  # type: ignore[arg-type]
    start = time.monotonic()
    for text in (
        "```a\n",
        "<think>",
        '"',
        "(*",
        "1 ",
        "1",
        "[x",
        "- ",
        "a. ",
        "]  ",
        "all ",
        "1-",
        ". ",
        "{1:",
        "Nat.",
    ):
        proof_in(text * 100_000, {"", "coq"})
        for screen in screens:
            with contextlib.suppress(Rejected):
                screen(text * 100_000)
    proof_in("<answer>" * 100_000 + "</answer>" * 100_000, {"", "coq"})
    assert time.monotonic() - start < 10.0


COMMUTATIVE = {
    "system": "coq",
    "definitions": "Definition double (n : nat) := n + n.\nNotation \"'twice' n\" := (double n) (at level 10).",
    "statement": "forall n : nat, n = 0 -> twice n = n",
}
FALSE = {"system": "coq", "statement": "False"}


@pytest.fixture(scope="module")
def coq(tmp_path_factory: pytest.TempPathFactory) -> CoqJudge:
    judge = CoqJudge(folder=tmp_path_factory.mktemp("coq"), seconds=3.0, memory=4 << 30, allow_unsafe_code=False)
    try:
        judge.prover()
    except BadTask as error:
        pytest.skip(f"no proof for Coq was judged: {error}")
    return judge


def test_outcomes_of_coq_proofs(verifier: ProofVerifier, coq: CoqJudge) -> None:
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


def test_what_a_coq_statement_may_stand_on(verifier: ProofVerifier, coq: CoqJudge) -> None:
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


# Each would be a proof of False, were it believed. After "Abort." the text goes on as a file of its own.
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
def test_no_attack_on_coq_proves_false(name: str, coq: CoqJudge) -> None:
    """Neither through the screen nor, for the checks behind it are to hold alone, without it."""
    task = parse_task({**FALSE, "axioms": ["Coq.Logic.Classical_Prop.classic"]})
    outcome, detail = coq.judge(ATTACKS[name], task)  # type: ignore[arg-type]
    assert outcome in (Outcome.WRONG, Outcome.UNPARSED), detail
    whole = ATTACKS[name] + ("" if ATTACKS[name].endswith("Admitted.") else "\nQed.\n")
    with pytest.raises(Rejected):
        coq.prove(whole, task)  # type: ignore[arg-type]


def test_assumptions_beyond_what_is_read_of_them_are_not_taken_for_allowed(coq: CoqJudge) -> None:
    names = [f"{'a' * 60}{number}" for number in range(1000)]  # 64 KiB are read
    task = parse_task({**FALSE, "statement": "nat", "definitions": f"Parameters {' '.join(names)} : nat."})
    few, all_of_them = (coq.judge(f"exact ({' + '.join(some)}).", task) for some in (names[:9], names))  # type: ignore[arg-type]
    assert few == (Outcome.CORRECT, "proved")
    assert all_of_them == (Outcome.WRONG, "what the proof assumes is too long to read")


def test_coqs_own_checker_reads_what_was_built(coq: CoqJudge, tmp_path: Path) -> None:
    prover = coq.prover()
    folders = {"Answer": tmp_path}
    (tmp_path / "Answer.v").write_text("Theorem goal : True. exact I. Qed.")
    assert coq.build(prover, "Answer", folders).status == 0
    assert coq.recheck(prover, folders).status == 0
    built = (tmp_path / "Answer.vo").read_bytes()
    (tmp_path / "Answer.vo").write_bytes(built[:-40] + bytes(40))
    assert coq.recheck(prover, folders).status != 0


# Each closes the goal, or would, and then has a command that no proof has: the screen alone must see it.
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
    judge = CoqJudge(folder=tmp_path, seconds=1.0, memory=1 << 30, allow_unsafe_code=False)
    with pytest.raises(Rejected):
        judge.screen(text)


_ATTEMPTS = """
import os, socket, subprocess, sys, threading
from pathlib import Path
def attempt(name, action):
    try:
        action()
        print("did", name)
    except OSError:
        print("failed to", name)
outside = Path(sys.argv[1])
attempt("write at home", lambda: Path("here").write_text("x"))
attempt("start a thread", threading.Thread(target=print).start)
attempt("read a given file", lambda: (outside / "given" / "file").read_text())
attempt("write a given file", lambda: (outside / "given" / "file").write_text("x"))
attempt("read a file", lambda: (outside / "secret").read_text())
attempt("write a file", lambda: (outside / "new").write_text("x"))
attempt("remove a file", (outside / "secret").unlink)
attempt("change a mode", lambda: os.chmod("here", 0o777))
attempt("read the memory of another", lambda: open(f"/proc/{os.getppid()}/mem"))
attempt("signal another", lambda: os.kill(os.getppid(), 0))
attempt("start a process", os.fork)
attempt("make a socket", socket.socket)
attempt("become another program", lambda: os.execv("/bin/sh", ["sh", "-c", "echo did become another"]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="provers are shut in on Linux only")
def test_a_prover_reaches_nothing_but_its_folder(tmp_path: Path) -> None:
    for folder in ("home", "given"):
        (tmp_path / folder).mkdir()
    (tmp_path / "given" / "file").write_text("given")
    (tmp_path / "secret").write_text("secret")
    python = Prover(
        program=Path(sys.executable).resolve(),
        libraries=(Path(sys.base_prefix),),
        seconds=5.0,
        memory=1 << 30,
        shut_in=True,
    )
    try:
        ran = python.run("-c", _ATTEMPTS, str(tmp_path), folder=tmp_path / "home", readable=[tmp_path / "given"])
    except ProverError as error:
        pytest.skip(f"this machine shuts nothing in: {error}")
    said = [line for line in ran.output.split("\n") if line]
    assert said[:3] == ["did write at home", "did start a thread", "did read a given file"], ran
    assert [line for line in said[3:] if not line.startswith("failed to")] == []
    assert len(said) == 13


def test_a_prover_is_ended_in_time_and_heard_in_measure(tmp_path: Path) -> None:
    python = Prover(program=Path(sys.executable), libraries=(), seconds=1.0, memory=1 << 30, shut_in=False)
    start = time.monotonic()
    assert python.run("-c", "while True: pass", folder=tmp_path).status is None  # by its processor time
    assert python.run("-c", "import time; time.sleep(60)", folder=tmp_path).status is None  # by the clock
    assert time.monotonic() - start < 10
    ran = python.run("-c", "print('x' * 10_000_000)", folder=tmp_path)
    assert len(ran.output) == 1 << 16 and ran.cut_short
    assert python.run("-c", "bytearray(1 << 32)", folder=tmp_path).status == 1
    limits = "import resource as r; print(r.getrlimit(r.RLIMIT_CPU)[0], r.getrlimit(r.RLIMIT_FSIZE)[0] < 1 << 30)"
    assert python.run("-c", limits, folder=tmp_path).output == "1 True\n"
    environment = python.run("-c", "import os; print(sorted(os.environ))", folder=tmp_path).output
    assert environment.strip() == str(["HOME", "LC_ALL", "TMPDIR"])


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert available_provers() == {
        "metamath": "built in",
        "coq": "coqc is not on PATH: install Debian's coq",
        "lean": "lean is not on PATH: install Lean 4 with elan",
    }
    with ProofVerifier(num_workers=1) as verifier:
        scores = verifier.check_references([FALSE, {"system": "lean", "statement": "False"}])
        scores += verifier.verify_batch(["auto."], [FALSE])
    assert outcomes(scores) == [Outcome.BAD_REFERENCE] * 3
    assert scores[0].detail == scores[2].detail == "coqc is not on PATH: install Debian's coq"


def test_a_prover_that_cannot_be_shut_in_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "coqc").write_text("#!/bin/sh\n")
    (tmp_path / "coqc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("rewards.prover_process.kernel.restrict_files", _no_landlock)
    judge = CoqJudge(folder=tmp_path, seconds=1.0, memory=1 << 30, allow_unsafe_code=False)
    with pytest.raises(BadTask, match=r"no landlock here; allow_unsafe_code"):
        judge.check_task(parse_task(FALSE))  # type: ignore[arg-type]


def _no_landlock(allowed: object) -> None:
    raise OSError("no landlock here")


# Stands for Lean, of which there was none where this was written. It shows that files, folders and verdicts go the right
# ways, and nothing of Lean itself.
_LEAN = """#!{python}
import os, sys
if len(sys.argv) == 2:
    sys.exit(print("/nonexistent"))  # --print-prefix, --version
output, source = sys.argv[2:4]
text = open(source).read()
for name in ("Given", "Answer"):
    if f"import {{name}}\\n" in text:
        assert any(os.path.exists(f"{{folder}}/{{name}}.olean") for folder in os.environ["LEAN_PATH"].split(":"))
if "ring" in text:
    sys.exit(print("Answer.lean:5:2: error: ring failed") or 1)
if source == "Answer.lean":
    known = ["[propext]", "[propext, sorryAx]"]["sorry" in text or "cheat" in text]
    open("axioms", "w").write(known)
if source == "Check.lean":
    folder = [f for f in os.environ["LEAN_PATH"].split(":") if os.path.exists(f + "/axioms")][0]
    print("'Model.check' depends on axioms: " + open(folder + "/axioms").read())
open(output, "w").write("built")
"""


def test_the_plumbing_of_lean_with_a_stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stub = tmp_path / "lean"
    stub.write_text(_LEAN.format(python=sys.executable))
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    judge = LeanJudge(folder=tmp_path, seconds=10.0, memory=4 << 30, allow_unsafe_code=True)
    task = parse_task({"system": "lean", "statement": "1 + 1 = 2", "imports": "import Mathlib\nopen Nat"})
    assert judge.judge("by\n  norm_num", task) == (Outcome.CORRECT, "proved")  # type: ignore[arg-type]
    assert judge.judge("ring", task) == (Outcome.WRONG, "line 1: ring failed")  # type: ignore[arg-type]
    assert judge.judge("cheat", task) == (Outcome.WRONG, "the proof assumes sorryAx")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "proof",
    ["sorry", "exact (by\n sorry)", "native_decide", "decide +native", "set_option debug.skipKernelTC true in simp",
     "rfl\naxiom a : False", "rfl\n@[simp] theorem b : True := trivial", "run_tac Lean.Elab.Tactic.getMainGoal", "rfl\n#eval 1",
     "rfl\nunsafe def f := 1", "rfl\nmacro \"x\" : tactic => `(tactic| rfl)", "rfl\nopen Lean Elab in\nelab \"y\" : tactic => skip",
     "rfl\nend Model", "rfl\nlocal notation \"z\" => 1", "rfl\ninstance : Inhabited False := x", "exact Lean.ofReduceBool _ _ rfl"],
)  # fmt: skip
def test_the_screen_for_lean(proof: str, tmp_path: Path) -> None:
    judge = LeanJudge(folder=tmp_path, seconds=1.0, memory=1 << 30, allow_unsafe_code=False)
    with pytest.raises(Rejected):
        judge.screen(proof)
    assert judge.screen("by\nintro h\nexact h.symm") == "  \n  intro h\n  exact h.symm\n"
