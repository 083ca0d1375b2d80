"""Is this text a proof of the theorem, to a prover that is installed? Runs in a worker process only.

Three files, so that nothing in an answer can change what is asked of it. Given states the theorem, from the reference alone.
Answer states it again and holds the proof. Check, a new run, asks the prover whether what Answer proved is what Given states,
and what it assumes. Before that the text of the proof is screened: it may hold the steps of one proof and no other command.
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
    """What is wrong with a proof."""

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome


class ProverGrader(ABC):
    """folder: where its files go. seconds: of processor time for each run of the prover. memory: bytes of address space.
    allow_unsafe_code: let the prover run where it cannot be shut in."""

    executable: str
    remedy: str  # where there is none
    suffix: str  # of a source file
    given_file: str  # the file Given, with {imports}, {definitions} and {statement} in it
    answer_header: str  # what stands in the file Answer before the proof, with the same in it
    admitted_proof: str  # in the place of a proof: the prover takes the theorem for granted
    check_file: str  # the file Check
    error_pattern: re.Pattern[str]  # what an error begins with; its group is the line

    def __init__(self, *, folder: Path, seconds: float, memory: int, allow_unsafe_code: bool) -> None:
        self._folder, self._seconds = folder, seconds
        self._memory, self._allow_unsafe_code = memory, allow_unsafe_code
        self._prover: Prover | None = None
        self._built_statements: dict[ProverTask, Path] = {}

    @abstractmethod
    def libraries(self, program: Path) -> Sequence[Path]:
        """What the program reads, beside the system's libraries."""

    @abstractmethod
    def screen(self, proof: str) -> str:
        """The proof as it is to stand in Answer. Raises Rejected."""

    @abstractmethod
    def build(self, prover: Prover, name: str, folders: Mapping[str, Path]) -> RunResult:
        """Run the prover on the file of that name in its folder. What it imports has been built in the other folders."""

    @abstractmethod
    def parse_assumptions(self, output: str) -> Sequence[str]:
        """What Check has said that the proof assumes."""

    @abstractmethod
    def is_allowed(self, assumption: str, task: ProverTask) -> bool:
        """May a proof for the task assume it?"""

    def recheck(self, prover: Prover, folders: Mapping[str, Path]) -> RunResult:
        """A second opinion on Answer, where there is one to be had."""
        return RunResult(0, "")

    def find_executable(self) -> Path | None:
        """The prover's executable."""
        found = shutil.which(self.executable)
        return Path(found).resolve() if found else None

    def check_task(self, task: ProverTask) -> Verdict:
        """CORRECT if the prover can read what is to be proved. Raises BadReference and ProverError."""
        self._build_statement(task)
        return right("stated")

    def grade(self, proof: str, task: ProverTask) -> Verdict:
        """Raises BadReference and ProverError."""
        self.check_task(task)
        try:
            if len(proof) > MAX_LENGTH:
                raise Rejected(Outcome.TIMEOUT, f"a proof of more than {MAX_LENGTH} characters")
            self.prove(self.screen(proof), task)
        except Rejected as rejected:
            return Verdict(rejected.outcome, str(rejected))
        return right("proved")

    def prove(self, screened: str, task: ProverTask) -> None:
        """Raises Rejected unless the text proves what Given states, and assumes only what is allowed."""
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
                raise Rejected(Outcome.WRONG, "what the proof assumes is too long to read")
            return self.parse_assumptions(checked.output)

    def _build_statement(self, task: ProverTask) -> Path:
        """The folder in which Given was built. Raises BadReference where the prover cannot read the task."""
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
        """Raises Rejected where the prover found an error, ProverError where it did not get so far."""
        if ran.status == 0:
            return
        if ran.status == -signal.SIGKILL:
            raise ProverError("the prover was killed, and not by us")
        if ran.status is None:
            raise Rejected(Outcome.TIMEOUT, f"not done within {self._seconds:g} s of processor time")
        if _TOO_LARGE.search(ran.output):
            raise Rejected(Outcome.TIMEOUT, "needs more memory than it is given")
        error = self.error_pattern.search(ran.output)
        if error is None:
            ended = signal.Signals(-ran.status).name if ran.status < 0 else f"status {ran.status}"
            raise Rejected(Outcome.WRONG, f"the prover ended with {ended}: {_one_line(ran.output)}")
        raise Rejected(
            Outcome.WRONG, f"line {int(error[1]) - num_lines_before}: {_one_line(ran.output[error.end() :])}"
        )

    def prover(self) -> Prover:
        """The prover. Raises BadReference where there is none, and where it cannot be shut in and may not run free."""
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
                    raise BadReference(f"{error}; allow_unsafe_code runs it without being shut in") from None
                prover = dataclasses.replace(prover, sandboxed=False)
            self._prover = prover
        return self._prover


def _one_line(text: str) -> str:
    return " ".join(text[:2000].split())
