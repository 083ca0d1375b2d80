"""Grades proofs with Lean 4. Never run with a real Lean, which was not available: tested with a stub only."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from rewards.proofs.prover_grader import ProverGrader, Rejected
from rewards.proofs.prover_process import Prover, RunResult
from rewards.proofs.task import ProverTask
from rewards.score import Outcome

# A proof in Lean can run its own programs and bypass checks, so every word that could lead there is rejected anywhere
# in the proof: commands, attributes, options, metaprograms, and tactics that trust more than the kernel.
_FORBIDDEN = re.compile(
    r"\b(?:sorry|admit|stop|axiom|constant|opaque|unsafe|partial|native_decide|ofReduceBool|reduceBool|reduceNat"
    r"|trustCompiler|implemented_by|extern|csimp|macro|macro_rules|syntax|notation|infix[lr]?|prefix|postfix|elab|elab_rules"
    r"|run_tac|run_cmd|run_elab|by_elab|run_meta|eval_expr|initialize|builtin_\w+|set_option|attribute|import|namespace"
    r"|section|end|export|variable|universe|def|abbrev|theorem|lemma|example|instance|structure|class|inductive|mutual"
    r"|declare_\w+|include|IO|Lean|Elab|Meta|MacroM|TacticM|CoreM)\b|#|@\[|\+native|«"
)
_NO_AXIOMS = re.compile(r"'Model\.check' does not depend on any axioms")
_AXIOMS = re.compile(r"'Model\.check' depends on axioms: \[([^\]]*)\]")
_STANDARD_AXIOMS = {"propext", "Classical.choice", "Quot.sound"}


class LeanGrader(ProverGrader):
    """Grades proofs given as what follows `:= by`, with or without the `by`. The axioms of Lean's logic are allowed."""

    executable = "lean"
    remedy = "lean is not on PATH: install Lean 4 with elan"
    suffix = ".lean"
    given_file = "{imports}\n{definitions}\nabbrev Given.statement : Prop := ({statement})\n"
    answer_header = "import Given\n{imports}\ntheorem Model.goal : ({statement}) := by\n"
    admitted_proof = "  sorry\n"
    check_file = (
        "import Given\nimport Answer\ntheorem Model.check : Given.statement := Model.goal\n#print axioms Model.check\n"
    )
    error_pattern = re.compile(r"\.lean:(\d+):\d+: error:\s*")

    def find_executable(self) -> Path | None:
        """The executable of the toolchain that elan's `lean` proxy starts."""
        found = shutil.which(self.executable)
        if found is None:
            return None
        printed = subprocess.run([found, "--print-prefix"], capture_output=True, text=True, timeout=60, check=False)
        real = Path(printed.stdout.strip(), "bin", "lean")
        return real if real.is_file() else Path(found).resolve()

    def libraries(self, program: Path) -> Sequence[Path]:
        return [program.parent.parent]

    def build(self, prover: Prover, name: str, folders: Mapping[str, Path]) -> RunResult:
        path = ":".join(map(str, folders.values()))
        options = ["-o", f"{name}.olean", f"{name}.lean"]
        return prover.run(*options, folder=folders[name], readable=[*folders.values()], environment={"LEAN_PATH": path})

    def screen(self, proof: str) -> str:
        forbidden = _FORBIDDEN.search(proof)
        if forbidden:
            raise Rejected(Outcome.WRONG, f"{forbidden[0]!r} is not allowed in a proof")
        lines = re.sub(r"\A\s*by\b", "", proof).split("\n")
        return "".join(f"  {line}\n" for line in lines)

    def parse_assumptions(self, output: str) -> Sequence[str]:
        if _NO_AXIOMS.search(output):
            return []
        axioms = _AXIOMS.search(output)
        return [name.strip() for name in axioms[1].split(",")] if axioms else ["axioms that Lean does not name"]

    def is_allowed(self, assumption: str, task: ProverTask) -> bool:
        return assumption in _STANDARD_AXIOMS or assumption in task.axioms
