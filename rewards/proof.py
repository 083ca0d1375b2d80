"""The proof verifier: proofs and statements in, scores out."""

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

_READING_SECONDS = 120.0  # a worker's first sight of a large database, which no answer is to blame for
_MAX_RUNS = 8  # of a prover: four for a statement that is new to the worker, three for an answer


class ProofVerifier(PooledVerifier):
    """Checks proofs; a `rewards.score.Verifier`. What is to be proved is the reference's, only the proof is the answer's.

    A reference is one of (docs/proofs.md explains them)
        {"system": "metamath", "database": path, "theorem": label}
        {"system": "metamath", "source": str, "statement": "... label $p |- ... $= ? $."}      before, without: optional
        {"system": "coq", "statement": str}      imports, definitions: optional text; axioms: optional names
        {"system": "lean", "statement": str}     the same

    num_workers: processes that judge at once.
    deadline: seconds for one proof; for one run of Coq or Lean: of processor time, and twice as many by the clock.
    memory_limit: bytes of address space, for a worker and for a prover.
    allow_unsafe_code: run Coq and Lean even where they cannot be shut in. Without it their references are bad there.
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
            raise ValueError(f"deadline={deadline!r} must be seconds between 0 and 200: the time one proof may take")
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
            deadline=_READING_SECONDS + 2 * _MAX_RUNS * deadline,  # the judge keeps the time; beyond this it has failed
            memory_limit=memory_limit,
            max_chunk=8,
            timeout_outcome=Outcome.CRASHED,
        )
        super().__init__("proof", pool)

    def close(self) -> None:
        super().close()
        self._remove_files()


def available_provers() -> dict[str, str]:
    """Of each system the version that is installed, or why there is none."""
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
