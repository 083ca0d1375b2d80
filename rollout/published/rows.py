"""Rows of published test sets, in their published columns, as problems: question, reference, and the verifier that grades it.

Which system prompt asks for the answer follows from the verifier (rollout/prompts.py). A loader numbers the problems.
"""

from __future__ import annotations

import base64
import hashlib
import json
import pickletools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from rewards.errors import UserError
from rewards.extract import reference_answer
from rewards.score import Reference
from rollout.messages import require_encodable
from rollout.program_tasks import program_task, tested_function
from rollout.records import Problem

Row = Mapping[str, Any]
ReadRow = Callable[[Row], Problem]
# Opcodes of a pickled text; any other would build an object.
_TEXT_OPCODES = {"PROTO", "FRAME", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "MEMOIZE", "BINPUT", "STOP"}


def _problem(question: Any, reference: Reference, verifier: str) -> Problem:
    return Problem(id="", prompt=require_encodable(str(question), "a question"), reference=reference, verifier=verifier)


def math_problem(question: str, answer: str) -> ReadRow:
    """Reads a math problem from its columns. An answer is itself, a solution that ends with a box or ####, or a list of answers, all of
    which are asked for."""

    def read(row: Row) -> Problem:
        found = row[answer] if isinstance(row[answer], list) else [row[answer]]
        return _problem(row[question], ", ".join(reference_answer(str(one)) for one in found), "math")

    return read


def human_eval(row: Row) -> Problem:
    """The prompt is the beginning of the program, which `test` checks by check(candidate)."""
    return _problem(row["prompt"], program_task(row), "program")


def mbpp(row: Row) -> Problem:
    """The asserts of test_list are shown, as in the paper (arXiv 2108.07732), since they alone name the function."""
    return _problem(_with_asserts(row["text"], row), program_task(row), "program")


def mbpp_plus(row: Row) -> Problem:
    """MBPP's question and asserts; the tests of EvalPlus are one text that calls the function on many inputs."""
    setup, asserts = "\n".join(row["test_imports"]), row["test_list"]
    task = {"type": "asserts", "entry_point": tested_function(asserts, setup), "asserts": [row["test"]], "setup": setup}
    return _problem(_with_asserts(row["prompt"], row), task, "program")


def _with_asserts(question: str, row: Row) -> str:
    return f"{question}\n\nYour code should pass these tests:\n\n" + "\n".join(row["test_list"])


def live_code_bench(row: Row) -> Problem:
    """Programs that read standard input, or a method of a class Solution where there is starter code; public and private tests."""
    tests = [*json.loads(row["public_test_cases"]), *private_tests(row["private_test_cases"])]
    starter = row["starter_code"]
    asked = (
        f"Complete this code:\n\n```python\n{starter}\n```"
        if starter
        else "Read the input from stdin and write the output to stdout."
    )
    task = program_task({"tests": tests, "metadata": row["metadata"]})
    return _problem(f"{row['question_content']}\n\n{asked}", task, "program")


def private_tests(text: str) -> list[Any]:
    """The private test cases of LiveCodeBench: JSON, or base64 of a zlib stream of a pickled text of JSON. The text is read out of the
    pickle's opcodes, of which any that could build an object is refused: nothing is unpickled."""
    if text.lstrip().startswith("["):
        return json.loads(text)
    opcodes = list(pickletools.genops(zlib.decompress(base64.b64decode(text))))
    texts = [given for _, given, _ in opcodes if isinstance(given, str)]
    if not {code.name for code, _, _ in opcodes} <= _TEXT_OPCODES or len(texts) != 1:
        raise UserError("suite: private_test_cases of a LiveCodeBench row is a pickle of something else than one text")
    return json.loads(texts[0])


def gpqa(row: Row) -> Problem:
    """The four choices stand in the order of their hashes with the question, which is the same at each evaluation and says nothing of which
    is right. The reference is a letter."""
    question, correct = row["Question"].strip(), row["Correct Answer"].strip()
    choices = [correct, *(row[f"Incorrect Answer {n}"].strip() for n in (1, 2, 3))]
    choices.sort(key=lambda choice: hashlib.sha256(f"{question}\n{choice}".encode()).digest())
    listed = "\n".join(f"({letter}) {choice}" for letter, choice in zip("ABCD", choices, strict=True))
    asked = f"{question}\n\n{listed}\n\nThe final answer is the letter of the right choice."
    return _problem(asked, "ABCD"[choices.index(correct)], "math")


def if_eval(row: Row) -> Problem:
    """The instructions with the arguments that they have; a table has an empty cell for each argument of another kind."""
    arguments = [{key: value for key, value in given.items() if value is not None} for given in row["kwargs"]]
    return _problem(
        row["prompt"], {"instruction_id_list": row["instruction_id_list"], "kwargs": arguments}, "instructions"
    )
