"""Builds the source that is run: extracts the program from a completion and prepends the prefix of its task."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from rewards.extract import turn_ends
from rewards.programs.task import Task

_PYTHON = re.compile(r"py(?:thon)?[\d.]*", re.IGNORECASE)
# A fence on its own line or in a list: "```python", "~~~ {.python .numbered}", "1. ```py title=a.py". No backtick may
# follow, so that ```x``` is not a fence.
_FENCE = re.compile(
    r"[ \t]*(?:(?:[-*+]|\d{1,3}[.)])[ \t]+)?(?P<fence>`{3,}|~{3,})[ \t]*\{?\.?(?P<name>[\w+#.-]*)[^`]*$"
)
_FENCE_BEHIND_TEXT = re.compile(r"(?P<fence>`{3,})(?P<name>py(?:thon)?[\d.]*)[ \t\r]*$", re.IGNORECASE)
_NEAR = 60  # characters
_TAG = re.compile(r"(</?answer>|<think>)")


@dataclass(kw_only=True)
class _Block:
    indent: int
    fence: str
    name: str
    lines: list[str] = field(default_factory=list)

    def add(self, line: str) -> bool:
        """Adds a line; returns whether the block continues. It ends at a fence on its own line, or at a fence of
        backticks after the last line of code."""
        text = line.rstrip()
        code = text.rstrip(self.fence[0])
        if len(text) - len(code) < len(self.fence) or (code.strip() and self.fence[0] == "~"):
            self.lines.append(line)
            return True
        if code.strip():
            self.lines.append(code)
        return False

    @property
    def code(self) -> str:
        """The code without the indentation that the fence and all lines share."""
        indents = [len(line) - len(line.lstrip(" \t")) for line in self.lines if line.strip()]
        indent = min([self.indent, *indents])
        return "\n".join(line[min(indent, len(line) - len(line.lstrip(" \t"))) :] for line in self.lines)


def extract_program(completion: str) -> str:
    """The program in a model's completion.

    It is searched after the reasoning, and within the last <answer> if there is one: the last fenced block with the
    language Python, else the last block without a language, else the whole text. A block that is never closed extends
    to the end. Reasoning that is never closed contains no program. Tags inside blocks are ignored, since code may print
    them.
    """
    blocks: list[_Block] = []
    lines: list[str] = []
    block, counts = None, True
    for line in _own_turn(completion).rpartition("</think>")[2].split("\n"):
        if block:
            code, tag, behind = line.rpartition("</answer>")
            ends_answer = bool(tag) and not behind.strip()
            lines.append(code if ends_answer else line)
            goes_on = block.add(lines[-1]) and not ends_answer
            block, counts = block if goes_on else None, not ends_answer
            continue
        for part in _TAG.split(line):
            if part == "<think>":
                return ""
            if part == "<answer>":
                blocks, lines, counts = [], [], True
            elif part == "</answer>":
                counts = False
            elif counts:
                lines.append(part)
                block = _opened(part)
                blocks += [block] if block else []
    named = [block for block in blocks if _PYTHON.fullmatch(block.name)]
    for block in reversed(named or [block for block in blocks if not block.name]):
        return block.code
    return "\n".join(lines)


def _own_turn(completion: str) -> str:
    """The completion up to the end of the model's turn. End tokens in quotes ("</s>", "[PAD]") belong to code."""
    return completion[: next((at for at in turn_ends(completion) if not _is_quoted(completion, at)), len(completion))]


def _is_quoted(text: str, at: int) -> bool:
    """Whether the position lies between quotes of the same kind that are near to it and on its line."""
    before = text[max(0, at - _NEAR) : at].rpartition("\n")[2]
    behind = text[at : at + _NEAR].partition("\n")[0]
    quote = max(before.rfind("'"), before.rfind('"'))
    return quote >= 0 and before[quote] in behind


def _opened(line: str) -> _Block | None:
    fence = _FENCE.match(line) or _FENCE_BEHIND_TEXT.search(line)
    if fence is None:
        return None
    return _Block(indent=fence.start("fence") if fence.re is _FENCE else 0, fence=fence["fence"], name=fence["name"])


def full_source(program: str, task: Task) -> str:
    """The program with the task's prefix. A program that does not define the function itself continues the prefix, up
    to its first line without indentation: a base model continues with other text."""
    if not task.prefix:
        return program
    if task.defines is None or re.search(rf"^[ \t]*(async[ \t]+)?def[ \t]+{task.defines}\b", program, re.MULTILINE):
        return f"{task.prefix}\n\n{program}"
    lines = program.split("\n")
    end = next((i for i, line in enumerate(lines) if i > 0 and line[:1].strip()), len(lines))
    return task.prefix + "\n".join(lines[:end])
