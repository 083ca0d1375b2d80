"""Extraction of the program from a text, and comparison of results with expected ones."""

from __future__ import annotations

import time
from typing import Any

import pytest

from rewards.programs.compare import same_output, same_value
from rewards.programs.source import extract_program, full_source
from rewards.programs.task import parse_task

FENCED = "```python\na\n```"


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        ("x = 1", "x = 1"),
        (f"Here:\n{FENCED}\nDone.", "a"),
        (f"{FENCED}\nbetter:\n```py\nb\n```", "b"),
        (f"{FENCED}\nIt prints\n```\n3\n```", "a"),
        (f"{FENCED}\nIt prints\n```text\n3\n```", "a"),
        ("```\na\n```", "a"),
        ("```cpp\nint x;\n```", "```cpp\nint x;\n```"),
        ("```Python3\na\r\n```", "a\r"),
        ("  ```python\n  a\n  ```", "a"),
        ("1. So:\n   ```python\n   if a:\n       b\n\n   c\n   ```", "if a:\n    b\n\nc"),
        ("1. ```python\n   a\n   ```", "a"),
        ("- ```python\n  if a:\n      b\n  ```", "if a:\n    b"),
        ("   ```python\nif a:\n    b\n   ```", "if a:\n    b"),
        ("```python\n    return a\n```", "    return a"),
        ("\t```python\n\tif a:\n\t\tb\n\t```", "if a:\n\tb"),
        ("```python\na```", "a"),
        ("```python\na``` \nDone.", "a"),
        ("```python\na```\nbetter:\n```python\nb```", "b"),
        ("Code:```python\nif a:\n    b\n```", "if a:\n    b"),
        ("~~~python\na\n~~~", "a"),
        ("~~~ python\na ~~~\n```\n~~~~", "a ~~~\n```"),
        ("````python\na\n```\nb\n````", "a\n```\nb"),
        ("````python\na````", "a"),
        ("```py3\na\n```", "a"),
        ("```python3.11\na\n```", "a"),
        ("```PY\na\n```", "a"),
        ('```python title="a.py" {1}\na\n```', "a"),
        ("```{python}\na\n```", "a"),
        ("``` {.python .numbered}\na\n```", "a"),
        ("```python:main.py\na\n```", "a"),
        ("```pyrex\na\n```", "```pyrex\na\n```"),
        ("<think>x</think><answer>```python\na\n```</answer>", "a"),
        ("<think>x</think>\n<answer>\n```python\na\n```\n</answer>", "a"),
        ("<think>x</think><answer>a\nb</answer> Done.", "a\nb"),
        ("<think>x</think>\n<answer>\na\n</answer>\n```python\nb\n```", "\na\n"),
        (f"{FENCED}\n<answer>b</answer>", "b"),
        (f"<answer>{FENCED}</answer>\n<answer>```python\nb```</answer>", "b"),
        ("<answer>```python\na</answer>", "a"),
        ("<answer>```python\na", "a"),
        ("<answer>a", "a"),
        (
            "```python\nprint('<answer>')\nb = '</answer>'\nprint('<think>')\n```",
            "print('<answer>')\nb = '</answer>'\nprint('<think>')",
        ),
        ("<think>maybe\n```python\na\n```\nhm", ""),
        (f"{FENCED}\n<think>or", ""),
        ("<think>x</think>a <think>", ""),
        (f"{FENCED}<|im_end|>\n<|im_start|>user\n```python\nb\n```", "a"),
        ("```python\na<|im_end|>", "a"),
        ("```python\nprint('a')<|im_end|>\nprint('b')", "print('a')"),
        ("```python\nprint('a')</s>it is \"b\"\n```", "print('a')"),
        (
            "```python\nx = s.replace('</s>', '')\nt = [\"[PAD]\", \"[EOS]\"]\n```<|im_end|>b",
            "x = s.replace('</s>', '')\nt = [\"[PAD]\", \"[EOS]\"]",
        ),
        ("```python\na\nb", "a\nb"),
        ("```python\n```", ""),
        ("`x` and ```x``` are names\n```python\na\n```", "a"),
        ("```x``` is a name\n```python\na\n```", "a"),
        (f"<think>{FENCED}</think>\n```python\nb\n```", "b"),
        (f"<think>\n{FENCED}\n</think>b", "b"),
    ],
)
def test_the_program_is_found_in_a_completion(completion: str, program: str) -> None:
    assert extract_program(completion) == program


ADD = {"type": "function", "fn_name": "add", "tests": [{"args": [1, 2], "expected": 3}]}
PREFIX = "import math\ndef add(a, b):\n"


@pytest.mark.parametrize(
    ("program", "whole"),
    [
        ("    return a + b", PREFIX + "    return a + b"),
        ("    return a + b\n\n    # x\nprint(add(1, 2))", PREFIX + "    return a + b\n\n    # x"),
        ("def add(a, b): return 3", f"{PREFIX}\n\ndef add(a, b): return 3"),
        (
            "class Solution:\n    async  def add(self): pass",
            f"{PREFIX}\n\nclass Solution:\n    async  def add(self): pass",
        ),
        ("    return a\ndef address(): pass", PREFIX + "    return a"),
    ],
)
def test_a_program_continues_the_prefix_or_repeats_it(program: str, whole: str) -> None:
    assert full_source(program, parse_task({**ADD, "prefix": PREFIX})) == whole


@pytest.mark.parametrize("text", ["\n" * 200_000, " \n" * 100_000, "def\n" * 50_000, "```\n" * 50_000, "```python\n" * 20_000, "```a" * 50_000, " " * 200_000 + "```", "~" * 200_000, "<answer>" * 25_000, "`" * 200_000 + "\n" + "`" * 100_000, "```python\n" + "a```b\n" * 30_000,
    "</answer>" * 20_000, "'</s>'" * 40_000, "1. " * 60_000 + "```python", "<answer>a\n" * 20_000, " ```python\n" + "  a\n" * 50_000])  # fmt: skip
def test_texts_are_read_in_linear_time(text: str) -> None:
    """Two of these took minutes with a pattern that matches across lines."""
    task, start = parse_task({**ADD, "prefix": PREFIX}), time.monotonic()
    full_source(extract_program(text) + text, task)
    assert time.monotonic() - start < 2.0


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("result", "expected", "same"),
    [
        (3, 3, True), (3.0, 3, True), (3, 3.0, True), (3, 4, False), ("3", 3, False), (3, "3", False),
        (True, True, True), (1, True, False), (True, 1, False), (0, False, False), (None, None, True), (0, None, False), (None, 0, False),
        (NAN, NAN, False), (INF, INF, True), (INF, 3, False), (3, INF, False), (10**4000, 1.0, False), (1.0, 10**4000, False),
        ([1, 2], [1, 2], True), ((1, (2,)), [1, [2]], True), ([1], [1, 2], False), ([1, 2, 3], [1, 2], False), ({1, 2}, [1, 2], False),
        ("ab", ["a", "b"], False), (b"a", "a", False), ([[1]], [[True]], False), ([], {}, False), ({}, [], False), ([], None, False),
        ({"a": 1}, {"a": 1}, True), ({1: 2}, {"1": 2}, True), ({1.5: 2}, {"1.5": 2}, True), ({True: 1}, {"True": 1}, False),
        ({"a": 1, "b": 2}, {"a": 1}, False), ({"a": 1}, {"a": 1, "b": 2}, False), ({"1": 1, 1: 1}, {"1": 1, "2": 1}, False),
        ({10**5000: 1}, {"a": 1}, False), ({("a",): 1}, {"a": 1}, False), (1 + 0j, 1, False),
    ],
)  # fmt: skip
def test_values_are_the_same_by_type_and_value(result: Any, expected: Any, same: bool) -> None:
    assert same_value(result, expected, 0.0) is same


@pytest.mark.parametrize(
    ("result", "expected", "same"),
    [(1.009, 1, True), (1.02, 1, False), (101, 100.0, True), (102, 100.0, False), (101.005, 100.0, False), (0.005, 0, True), (INF, 1, False), (NAN, 1, False),
     (10**4000, 1, False), (10**4000 + 1, 10**4000, False), (True, 1, False), ([1.001, 2], [1, 2], True),
     (5.0, INF, False), (5, -INF, False), (-1e308, INF, False), (INF, -INF, False), (INF, INF, True), ([0.0, 0.0], [0.0, INF], False)],
)  # fmt: skip
def test_a_tolerance_is_relative_above_one_and_absolute_below(result: Any, expected: Any, same: bool) -> None:
    assert same_value(result, expected, 0.01) is same


@pytest.mark.parametrize(
    ("output", "expected", "tolerance", "same"),
    [
        ("3", "3\n", 0.0, True), ("3 \n\n", "3", 0.0, True), ("3\r\n4\r\n", "3\n4", 0.0, True), (" 3", "3", 0.0, False),
        ("3\n4", "3", 0.0, False), ("3", "3\n4", 0.0, False), ("3\n\n4", "3\n4", 0.0, False), ("3\0", "3", 0.0, False), ("", "3", 0.0, False),
        ("3.0", "3", 0.0, False), ("3.001", "3", 0.01, True), ("x 3.001", "x 3", 0.01, True), ("y 3", "x 3", 0.01, False),
        ("3 4", "3", 0.01, False), ("3  4", "3 4", 0.01, True), ("3\n4", "3 4", 0.01, False), ("3\n4", "3", 0.01, False), ("nan", "3", 0.01, False), ("inf", "3", 0.01, False),
        ("0.0", "inf", 0.01, False), ("-1e308", "Infinity", 0.01, False), ("inf", "-inf", 0.01, False), ("-inf", "-Infinity", 0.01, True), ("1e999", "inf", 0.01, False),
        ("inf", "1e999", 0.01, False), ("nan", "nan", 0.01, True), ("nan", "NaN", 0.01, False), ("1_0", "10", 0.01, False), ("10", "1_0", 0.01, False), ("١٠", "10", 0.01, False),
        ("1e1", "10", 0.01, True), ("10.", "10", 0.01, True), (".5", "0.5", 0.01, True), ("+10", "10", 0.01, True), ("0x10", "16", 0.01, False),
    ],
)  # fmt: skip
def test_output_is_compared_line_by_line(output: str, expected: str, tolerance: float, same: bool) -> None:
    assert same_output(output, expected, tolerance) is same
