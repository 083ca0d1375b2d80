"""Proofs in Metamath and Lean, and the sandbox of provers. For Coq see test_proof_coq.py."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rewards.proof import ProofVerifier, available_provers
from rewards.proofs.coq_grader import CoqGrader
from rewards.proofs.grader import extract_proof
from rewards.proofs.lean_grader import LeanGrader
from rewards.proofs.prover_grader import Rejected
from rewards.proofs.prover_process import Prover, ProverError
from rewards.proofs.task import parse_task
from rewards.score import Outcome, Score
from rewards.verdict import BadReference

DATA = Path(__file__).resolve().parent / "data"
ID = "wph wph wph wi wi wph wph wi wph wph ax-1 wph wph wph wi wph wph wph wph wi ax-1 a2i ax-mp"
FALSE = {"system": "coq", "statement": "False"}
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


def test_a_metamath_statement_in_the_reference_is_graded(verifier: ProofVerifier) -> None:
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
        ("forall n, n = n", "neither a JSON object nor the text of a JSON object"),
        ({"system": "hol"}, "one of metamath, coq, lean"),
        ({"system": "metamath", "theorem": "id"}, "exactly one of database and source"),
        ({**METAMATH, "statement": "x $p |- ph $= ? $."}, "exactly one of theorem and statement"),
        ({**METAMATH, "before": "id"}, "before is given without statement"),
        ({**METAMATH, "database": "/no/such.mm"}, "cannot read the database /no/such.mm: No such file"),
        ({**METAMATH, "theorem": "ax-1"}, "no $p statement labelled 'ax-1'"),
        ({**METAMATH, "theorem": "nothing"}, "no $p statement labelled 'nothing'"),
        ({**METAMATH, "without": ["nothing"]}, "no statement labelled 'nothing'"),
        ({**METAMATH, "without": "id"}, "without must be a list of strings"),
        ({**METAMATH, "axioms": []}, "'axioms' is not a field"),
        ({"system": "metamath", "source": "$c a $", "theorem": "id"}, "database:1: $c is not followed by $."),
        ({"system": "metamath", "source": "", "theorem": "id"}, "exactly one of database and source"),
        ({"system": "coq"}, "statement is empty"),
        ({"system": "lean", "statement": 3}, "statement must be text, not int"),
    ],
)
def test_invalid_references_are_bad_references(verifier: ProofVerifier, reference: Any, reason: str) -> None:
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
def test_the_proof_is_found_in_a_completion(completion: str, proof: str) -> None:
    assert extract_proof(completion, {"", "coq"}) == proof


def test_finding_and_screening_a_proof_takes_linear_time(tmp_path: Path) -> None:
    options = {"folder": tmp_path, "seconds": 1.0, "memory": 1 << 30, "allow_unsafe_code": False}
    screens = [CoqGrader(**options).screen, LeanGrader(**options).screen]  # type: ignore[arg-type]
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
        extract_proof(text * 100_000, {"", "coq"})
        for screen in screens:
            with contextlib.suppress(Rejected):
                screen(text * 100_000)
    extract_proof("<answer>" * 100_000 + "</answer>" * 100_000, {"", "coq"})
    assert time.monotonic() - start < 10.0


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


@pytest.mark.skipif(sys.platform != "linux", reason="provers are sandboxed on Linux only")
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
        sandboxed=True,
    )
    try:
        ran = python.run("-c", _ATTEMPTS, str(tmp_path), folder=tmp_path / "home", readable=[tmp_path / "given"])
    except ProverError as error:
        pytest.skip(f"this machine shuts nothing in: {error}")
    said = [line for line in ran.output.split("\n") if line]
    assert said[:3] == ["did write at home", "did start a thread", "did read a given file"], ran
    assert [line for line in said[3:] if not line.startswith("failed to")] == []
    assert len(said) == 13


def test_a_prover_has_limits_of_time_and_output(tmp_path: Path) -> None:
    python = Prover(program=Path(sys.executable), libraries=(), seconds=1.0, memory=1 << 30, sandboxed=False)
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


def test_a_missing_prover_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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


def test_a_prover_that_cannot_be_sandboxed_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "coqc").write_text("#!/bin/sh\n")
    (tmp_path / "coqc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("rewards.proofs.prover_process.kernel.restrict_files", _no_landlock)
    grader = CoqGrader(folder=tmp_path, seconds=1.0, memory=1 << 30, allow_unsafe_code=False)
    with pytest.raises(BadReference, match=r"no landlock here; allow_unsafe_code"):
        grader.check_task(parse_task(FALSE))  # type: ignore[arg-type]


def _no_landlock(allowed: object) -> None:
    raise OSError("no landlock here")


# A stub of Lean, which was not available. It tests the handling of files, folders and verdicts, and nothing of Lean
# itself.
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


def test_the_output_of_a_stub_of_lean_becomes_the_verdict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stub = tmp_path / "lean"
    stub.write_text(_LEAN.format(python=sys.executable))
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    grader = LeanGrader(folder=tmp_path, seconds=10.0, memory=4 << 30, allow_unsafe_code=True)
    task = parse_task({"system": "lean", "statement": "1 + 1 = 2", "imports": "import Mathlib\nopen Nat"})
    assert grader.grade("by\n  norm_num", task) == (Outcome.CORRECT, "proved")  # type: ignore[arg-type]
    assert grader.grade("ring", task) == (Outcome.WRONG, "line 1: ring failed")  # type: ignore[arg-type]
    assert grader.grade("cheat", task) == (Outcome.WRONG, "the proof assumes sorryAx")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "proof",
    ["sorry", "exact (by\n sorry)", "native_decide", "decide +native", "set_option debug.skipKernelTC true in simp",
     "rfl\naxiom a : False", "rfl\n@[simp] theorem b : True := trivial", "run_tac Lean.Elab.Tactic.getMainGoal", "rfl\n#eval 1",
     "rfl\nunsafe def f := 1", "rfl\nmacro \"x\" : tactic => `(tactic| rfl)", "rfl\nopen Lean Elab in\nelab \"y\" : tactic => skip",
     "rfl\nend Model", "rfl\nlocal notation \"z\" => 1", "rfl\ninstance : Inhabited False := x", "exact Lean.ofReduceBool _ _ rfl"],
)  # fmt: skip
def test_the_screen_for_lean_refuses_every_other_command(proof: str, tmp_path: Path) -> None:
    grader = LeanGrader(folder=tmp_path, seconds=1.0, memory=1 << 30, allow_unsafe_code=False)
    with pytest.raises(Rejected):
        grader.screen(proof)
    assert grader.screen("by\nintro h\nexact h.symm") == "  \n  intro h\n  exact h.symm\n"
