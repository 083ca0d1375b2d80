"""Grades proofs with an installed prover. Runs in a worker process only.

The prover gets three files, so that an answer cannot change the statement that it has to prove. Given states the
theorem, from the reference alone. Answer states it again and contains the proof. Check, compiled in a new process, has
the prover verify that the theorem proved in Answer is the one stated in Given, and print the assumptions of the proof.
Before that the text of the proof is screened: it may contain the steps of one proof and no other command.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import signal
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from rewards.proofs.prover_process import Prover, ProverError, RunResult
from rewards.proofs.task import ProverTask
from rewards.score import Outcome
from rewards.verdict import BadReference, Verdict, right

MAX_LENGTH = 1 << 18  # characters of a proof
_MAX_BUILT_STATEMENTS = 512
_TOO_LARGE = re.compile(r"out of memory|stack overflow|deep recursion", re.IGNORECASE)


class Rejected(Exception):
    """The proof is rejected, with this outcome and reason."""

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome


class ProverGrader(ABC):
    """Base class of the graders for installed provers.

    folder: for temporary files. seconds: processor time of each run of the prover. memory: bytes of address space.
    allow_unsafe_code: run the prover even if it cannot be sandboxed.
    """

    executable: str
    remedy: str  # the message if the executable is missing
    suffix: str  # of a source file
    given_file: str  # template of the file Given, with {imports}, {definitions} and {statement}
    answer_header: str  # template of the file Answer up to the proof, with the same fields
    admitted_proof: str  # replaces a proof and makes the prover accept the theorem without one
    check_file: str  # the file Check
    error_pattern: re.Pattern[str]  # matches the start of an error message; its group is the line number

    def __init__(self, *, folder: Path, seconds: float, memory: int, allow_unsafe_code: bool) -> None:
        self._folder, self._seconds = folder, seconds
        self._memory, self._allow_unsafe_code = memory, allow_unsafe_code
        self._prover: Prover | None = None
        self._built_statements: dict[ProverTask, Path] = {}

    @abstractmethod
    def libraries(self, program: Path) -> Sequence[Path]:
        """The files and folders that the program reads besides the system's libraries."""

    @abstractmethod
    def screen(self, proof: str) -> str:
        """The text of the proof for the file Answer. Raises Rejected if it contains anything but one proof."""

    @abstractmethod
    def build(self, prover: Prover, name: str, folders: Mapping[str, Path]) -> RunResult:
        """Runs the prover on the file of this name in its folder. Its imports are built in the other folders."""

    @abstractmethod
    def parse_assumptions(self, output: str) -> Sequence[str]:
        """The assumptions of the proof, from the output of Check."""

    @abstractmethod
    def is_allowed(self, assumption: str, task: ProverTask) -> bool:
        """Whether a proof for the task may use this assumption."""

    def recheck(self, prover: Prover, folders: Mapping[str, Path]) -> RunResult:
        """Checks Answer with a second checker, if the prover has one; the default accepts."""
        return RunResult(0, "")

    def find_executable(self) -> Path | None:
        """The path of the prover's executable, None if it is not installed."""
        found = shutil.which(self.executable)
        return Path(found).resolve() if found else None

    def check_task(self, task: ProverTask) -> Verdict:
        """CORRECT if the prover accepts the statement. Raises BadReference and ProverError."""
        self._build_statement(task)
        return right("stated")

    def grade(self, proof: str, task: ProverTask) -> Verdict:
        """The verdict on a proof. Raises BadReference and ProverError."""
        self.check_task(task)
        try:
            if len(proof) > MAX_LENGTH:
                raise Rejected(Outcome.TIMEOUT, f"a proof of more than {MAX_LENGTH} characters")
            self.prove(self.screen(proof), task)
        except Rejected as rejected:
            return Verdict(rejected.outcome, str(rejected))
        return right("proved")

    def prove(self, screened: str, task: ProverTask) -> None:
        """Raises Rejected unless the screened text proves the statement of Given with allowed assumptions only."""
        assumptions = self._assumptions(screened, task, self._build_statement(task))
        assumed = [name for name in assumptions if not self.is_allowed(name, task)]
        if assumed:
            raise Rejected(Outcome.WRONG, f"the proof assumes {', '.join(assumed)}")

    def _assumptions(self, screened: str, task: ProverTask, given: Path) -> Sequence[str]:
        with tempfile.TemporaryDirectory(dir=self._folder) as temporary:
            folders = {"Given": given, "Answer": Path(temporary, "answer")}
            header = self.answer_header.format(**dataclasses.asdict(task))
            self._require(self._build("Answer", header + screened, folders), header.count("\n"))
            checked = self._build("Check", self.check_file, {**folders, "Check": Path(temporary, "check")})
            try:
                self._require(checked)
                self._require(self.recheck(self.prover(), folders))
            except Rejected as rejected:
                raise Rejected(rejected.outcome, f"this does not prove the statement itself: {rejected}") from None
            if checked.cut_short:
                raise Rejected(Outcome.WRONG, "the list of the proof's assumptions is too long")
            return self.parse_assumptions(checked.output)

    def _build_statement(self, task: ProverTask) -> Path:
        """The folder in which Given is built. Raises BadReference if the prover rejects the statement."""
        if task not in self._built_statements:
            self.prover()
            folder = Path(tempfile.mkdtemp(dir=self._folder))
            try:
                self._require(
                    self._build("Given", self.given_file.format(**dataclasses.asdict(task)), {"Given": folder})
                )
                self._assumptions(self.admitted_proof, task, folder)
            except Rejected as rejected:
                shutil.rmtree(folder)
                raise BadReference(f"the statement cannot be used: {rejected}") from None
            while len(self._built_statements) >= _MAX_BUILT_STATEMENTS:
                shutil.rmtree(self._built_statements.pop(next(iter(self._built_statements))))
            self._built_statements[task] = folder
        return self._built_statements[task]

    def _build(self, name: str, text: str, folders: Mapping[str, Path]) -> RunResult:
        folders[name].mkdir(exist_ok=True)
        Path(folders[name], name + self.suffix).write_text(text, encoding="utf-8", errors="replace")
        return self.build(self.prover(), name, folders)

    def _require(self, ran: RunResult, num_lines_before: int = 0) -> None:
        """Raises Rejected if the prover failed or exceeded a limit, ProverError if it was killed from outside."""
        if ran.status == 0:
            return
        if ran.status == -signal.SIGKILL:
            raise ProverError("the prover was killed from outside")
        if ran.status is None:
            raise Rejected(Outcome.TIMEOUT, f"not finished within {self._seconds:g} s of processor time")
        if _TOO_LARGE.search(ran.output):
            raise Rejected(Outcome.TIMEOUT, "needs more memory than its limit")
        error = self.error_pattern.search(ran.output)
        if error is None:
            ended = signal.Signals(-ran.status).name if ran.status < 0 else f"status {ran.status}"
            raise Rejected(Outcome.WRONG, f"the prover ended with {ended}: {_one_line(ran.output)}")
        raise Rejected(
            Outcome.WRONG, f"line {int(error[1]) - num_lines_before}: {_one_line(ran.output[error.end() :])}"
        )

    def prover(self) -> Prover:
        """The prover. Raises BadReference if it is missing, or cannot be sandboxed and allow_unsafe_code is off."""
        if self._prover is None:
            program = self.find_executable()
            if program is None:
                raise BadReference(self.remedy)
            prover = Prover(
                program=program,
                libraries=tuple(self.libraries(program)),
                seconds=self._seconds,
                memory=self._memory,
                sandboxed=True,
            )
            try:
                with tempfile.TemporaryDirectory(dir=self._folder) as temporary:
                    self._require(prover.run("--version", folder=Path(temporary)))
            except (ProverError, Rejected) as error:
                if not self._allow_unsafe_code:
                    raise BadReference(f"{error}; allow_unsafe_code runs it without a sandbox") from None
                prover = dataclasses.replace(prover, sandboxed=False)
            self._prover = prover
        return self._prover


def _one_line(text: str) -> str:
    return " ".join(text[:2000].split())
