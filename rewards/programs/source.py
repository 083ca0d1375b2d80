"""The source that is run: the program in a completion, and a task's prefix before it."""

from __future__ import annotations

import re

from rewards.programs.task import Task

_FENCE = re.compile(r"[ \t]*```[ \t]*([A-Za-z0-9_+-]*)[^`]*$")


def program_in(completion: str) -> str:
    """The program in a model's completion: after the reasoning the last fenced block that is called Python, else the last
    without a name, to the end if nothing closes it; where there is none the whole text."""
    text = completion.rpartition("</think>")[2]
    blocks: list[list[str]] = []
    inside = False
    for line in text.split("\n"):
        fence = _FENCE.match(line)
        if inside and fence and not fence[1]:
            inside = False
        elif inside:
            blocks[-1].append(line)
        elif fence:
            inside = True
            blocks.append([fence[1].lower()])
    for languages in ({"python", "py", "python3"}, {""}):
        for language, *lines in reversed(blocks):
            if language in languages:
                return "\n".join(lines)
    return text


def whole_program(program: str, task: Task) -> str:
    """The program with the task's prefix. One that does not define the function itself goes on where the prefix ends, as
    far as it is indented: a base model then writes on."""
    if not task.prefix:
        return program
    if task.defines is None or re.search(rf"^[ \t]*(async[ \t]+)?def[ \t]+{task.defines}\b", program, re.MULTILINE):
        return f"{task.prefix}\n\n{program}"
    lines = program.split("\n")
    end = next((i for i, line in enumerate(lines) if i > 0 and line[:1].strip()), len(lines))
    return task.prefix + "\n".join(lines[:end])
