"""The proof verifier: scores proofs of given statements in Metamath, Coq or Lean."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import weakref

from rewards.pool import WorkerPool
from rewards.pooled_verifier import PooledVerifier
from rewards.proofs.coq_grader import CoqGrader
from rewards.proofs.lean_grader import LeanGrader
from rewards.score import Outcome

_READING_SECONDS = 120.0  # for a worker to read a large database, which is not counted for an answer
_MAX_RUNS = 8  # of a prover for one item: four for a statement that is new to the worker, three for an answer


class ProofVerifier(PooledVerifier):
    """Checks proofs; a `rewards.score.Verifier`. The statement to prove comes from the reference, only the proof from
    the answer.

    A reference is one of the following (explained in docs/proofs.md)
        {"system": "metamath", "database": path, "theorem": label}
        {"system": "metamath", "source": str, "statement": "... label $p |- ... $= ? $."}      before, without: optional
        {"system": "coq", "statement": str}      imports, definitions: optional text; axioms: optional names
        {"system": "lean", "statement": str}     with the same optional fields

    num_workers: worker processes.
    deadline: seconds for one Metamath proof, or of processor time for one run of Coq or Lean, which may take twice as
    long in
        wall-clock time.
    memory_limit: bytes of address space of a worker, and of a prover.
    allow_unsafe_code: run Coq and Lean even if they cannot be sandboxed. Otherwise their references are BAD_REFERENCE
    then.
    """

    def __init__(
        self,
        *,
        num_workers: int = 2,
        deadline: float = 10.0,
        memory_limit: int = 4 << 30,
        allow_unsafe_code: bool = False,
    ) -> None:
        if not 0 < deadline <= 200:
            raise ValueError(f"deadline={deadline!r} must be between 0 and 200: it is the seconds for one proof")
        folder = tempfile.mkdtemp(prefix="plumbline-proofs-")
        self._remove_files = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        pool = WorkerPool(
            "rewards.proofs.grader:load",
            {
                "folder": folder,
                "deadline": deadline,
                "memory_limit": memory_limit,
                "allow_unsafe_code": allow_unsafe_code,
            },
            num_workers=num_workers,
            deadline=_READING_SECONDS + 2 * _MAX_RUNS * deadline,  # the grader enforces `deadline` itself
            memory_limit=memory_limit,
            max_chunk=8,
            timeout_outcome=Outcome.CRASHED,
        )
        super().__init__("proof", pool)

    def close(self) -> None:
        super().close()
        self._remove_files()


def available_provers() -> dict[str, str]:
    """For each proof system the installed version, or why it is unavailable."""
    found = {"metamath": "built in"}
    for name, grader in (("coq", CoqGrader), ("lean", LeanGrader)):
        program = shutil.which(grader.executable)
        if program is None:
            found[name] = grader.remedy
            continue
        try:
            version = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60, check=True)
            found[name] = version.stdout.partition("\n")[0]
        except (OSError, subprocess.SubprocessError) as error:
            found[name] = f"{program} --version failed: {error}"
    return found
