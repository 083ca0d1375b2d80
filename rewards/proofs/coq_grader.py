"""Grades proofs with Coq."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rewards.proofs.prover_grader import ProverGrader, Rejected
from rewards.proofs.prover_process import Prover, RunResult
from rewards.proofs.task import ProverTask
from rewards.score import Outcome

# The ends of Coq's sentences: a full stop that no name continues (Coq also requires white space after it), and the
# brace after a goal selector.
_SENTENCE_END = re.compile(r"\.(?![\w'.])|(?:[\]\d!]|\ball|\bpar)\s*:\s*\{")
# Prefixes of tactics, which may also stand alone: bullets, braces, goal selectors.
_MARKERS = re.compile(r"\A(?:\s|[-+*{}]|(?:[\d,\s-]*\d|all|par|!|\[\s*\w+\s*\])\s*:(?!=))*")
# Coq's commands begin with a capital letter or with # for an attribute (see `Print Grammar vernac`); tactics do not.
_TACTIC = re.compile(r"[a-z_()\[\]|,;=>]")
_COMMENT_OR_STRING = re.compile(r'\(\*|"[^"]*(?P<closed>"?)')
_COMMENT_MARK = re.compile(r"\(\*|\*\)")
_CLOSED = "Closed under the global context"
_OPTIONS = ("-q", "-w", "none", "-noglob", "-native-compiler", "no")


class CoqGrader(ProverGrader):
    """Grades proofs of a theorem called goal: the sentences between Proof. and Qed., with or without these."""

    executable = "coqc"
    remedy = "coqc is not on PATH: install Debian's coq"
    suffix = ".v"
    given_file = "{imports}\n{definitions}\nDefinition statement : Type := (\n{statement}\n).\n"
    answer_header = "{imports}\nRequire Import Task.Given.\nTheorem goal : (\n{statement}\n).\n"
    admitted_proof = "Admitted.\n"
    check_file = (
        "Require Task.Given Model.Answer.\n"
        "Definition check : Task.Given.statement := @Model.Answer.goal.\n"
        "Print Assumptions check.\n"
    )
    error_pattern = re.compile(r"line (\d+), characters \d+-\d+:\s*Error:")

    def libraries(self, program: Path) -> Sequence[Path]:
        prefix = program.parent.parent
        folders = [prefix / part for part in ("lib/coq", "lib/coq-core", "lib/ocaml", "share/coq")]
        return [*folders, program.parent / "coqchk", Path("/etc/ocamlfind.conf")]

    def build(self, prover: Prover, name: str, folders: Mapping[str, Path]) -> RunResult:
        options = [*_OPTIONS, *_load_path(folders), f"{name}.v"]
        return prover.run(*options, folder=folders[name], readable=[*folders.values()])

    def recheck(self, prover: Prover, folders: Mapping[str, Path]) -> RunResult:
        """Checks the compiled answer with coqchk, Coq's separate checker with a smaller kernel."""
        checker = dataclasses.replace(prover, program=prover.program.parent / "coqchk")
        options = ["-silent", *_load_path(folders), "-norec", "Model.Answer"]
        return checker.run(*options, folder=folders["Answer"], readable=[*folders.values()])

    def screen(self, proof: str) -> str:
        text = _without_comments(proof)
        ends = [match.end() for match in _SENTENCE_END.finditer(text)]
        sentences = [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)])]
        while sentences and not sentences[-1].strip():
            sentences.pop()
        if sentences and sentences[-1].split() == ["Qed."]:
            sentences.pop()
        if sentences and sentences[0].split() == ["Proof."]:
            sentences.pop(0)
        steps = [_MARKERS.sub("", sentence, count=1) for sentence in sentences]
        other = [step for step in steps if step and not _TACTIC.match(step)]
        if other:
            outcome = Outcome.WRONG if len(other) < len(steps) else Outcome.UNPARSED
            raise Rejected(
                outcome, f"{' '.join(other[0][:40].split())!r} is not a tactic: a proof consists of tactics only"
            )
        return f"{''.join(sentences)}\nQed.\n"

    def parse_assumptions(self, output: str) -> Sequence[str]:
        if output.strip() == _CLOSED:
            return []
        entries = [line.partition(" : ")[0] for line in output.splitlines() if line[:1].strip() and line != "Axioms:"]
        return entries or ["axioms that Coq does not name"]

    def is_allowed(self, assumption: str, task: ProverTask) -> bool:
        """Whether the task allows the assumption. Coq prints names without the prefix that it can omit. Assumptions of
        the reference's own definitions (module Given) are allowed."""
        if re.fullmatch(r"Given(\.[\w']+)+", assumption):
            return True
        return any(f".{name}".endswith(f".{assumption}") for name in task.axioms)


def _load_path(folders: Mapping[str, Path]) -> list[str]:
    libraries = {"Given": "Task", "Answer": "Model"}
    return [part for name, path in folders.items() if name in libraries for part in ("-Q", str(path), libraries[name])]


def _without_comments(text: str) -> str:
    """The text with each comment replaced by its line ends. The meaning of quotes in comments does not matter, because
    Coq gets the text without comments."""
    kept, start, position = [], 0, 0
    while (mark := _COMMENT_OR_STRING.search(text, position)) is not None:
        position = mark.end()
        if mark[0] == "(*":
            position = _comment_end(text, position)
            kept += [text[start : mark.start()], " ", "\n" * text.count("\n", mark.start(), position)]
            start = position
        elif not mark["closed"]:
            raise Rejected(Outcome.UNPARSED, "a string is not closed")
    return "".join([*kept, text[start:]])


def _comment_end(text: str, position: int) -> int:
    depth = 1
    for mark in _COMMENT_MARK.finditer(text, position):
        depth += 1 if mark[0] == "(*" else -1
        if depth == 0:
            return mark.end()
    raise Rejected(Outcome.UNPARSED, "a comment is not closed")
