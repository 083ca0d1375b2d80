"""Where the final answer of a text is found, in time linear in the text."""

from __future__ import annotations

import time

import pytest

from rewards.extract import final_answer, reference_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{4}, no, \boxed{5} it is", "5"),  # the last box wins
        (r"\boxed{\frac{\sqrt{3}}{2}}", r"\frac{\sqrt{3}}{2}"),  # braces in braces
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),  # escaped braces do not close it
        (r"\fbox{7}", "7"),
        (r"\boxed 7 is it", "7"),  # TeX needs no brace
        (r"\boxed  {7}", "7"),
        (r"\boxed{5} and then \boxed{6", "5"),  # the last complete one
        (r"\boxed{\boxed{5}}", "{5}"),  # a box in a box is one box
        (r"\boxed{2\cdot\boxed{3}=6}", r"2\cdot{3}=6"),
        (r"$\boxed{4}$ and $\boxed{5}$", "4, 5"),  # side by side: a list
        (r"\boxed{4}, \boxed{4}", "4"),  # the same thing twice is no list
        (r"\boxed{1}, \boxed{2} \text{ or } \boxed{3}", "1, 2, 3"),
        ("- \\boxed{4}\n- \\boxed{5}", "4, 5"),  # also as items
        ("1. \\boxed{4}\n2. \\boxed{5}", "4, 5"),
        (r"\boxed{4} \\ \boxed{5}", "4, 5"),
        (r"\boxed{4} is the length. The area is \boxed{5}", "5"),  # words between: not a list
        (r"\boxed{0}^{\infty}", None),  # part of a larger expression
        (r"\boxed{4}, and so \boxed{5}^2", "4"),
        (r"\boxed{60}^\circ, $\boxed{60}^{\circ}$, \boxed{60}^*", "60"),
        (r"\boxedx{4}", None),
        (r"\boxed{}", None),
        ("\\boxed{\u200b \u2060}", None),  # nothing that can be seen
        (r"<think>\boxed{4}</think> \boxed{5}", "5"),
        (r"<think>a</think> so \boxed{4}</think> done", None),
        (r"<think>so \boxed{4}</think> done", None),  # the reasoning is not the answer
        (r"a \boxed{4}</think> \boxed{5}", "5"),  # a template may have opened the reasoning
        (r"<think>\boxed{4}", None),  # reasoning that never ended
        (r"\boxed{5}<|im_end|><|im_start|>user \boxed{7}", "5"),  # a turn that the model made up
        ("", None),
    ],
)
def test_the_answer_is_the_last_box_after_the_reasoning(text: str, answer: str | None) -> None:
    assert final_answer(text, strict=True) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("6*7=42\n#### 42\nbye", "42"),
        ("#### 41\n####42", "42"),
        ("#### **42**", "42"),
        ("<answer> 5 </answer>", "5"),
        ("<answer>4</answer> <answer>5</answer>", "5"),
        ("<answer>5</answer>\n#### 6", "5"),
        ("<answer>\\boxed{4}</answer>\n#### 6", "4"),  # a box comes before every other mark
        ("<think>#### 5</think>", None),
        ("####", None),
        ("The answer is 5.", None),
    ],
)
def test_without_strict_tags_and_hashes_mark_an_answer_too(text: str, answer: str | None) -> None:
    assert final_answer(text, strict=False) == answer
    boxed = final_answer(text, strict=True)
    assert boxed == ("4" if "boxed" in text else None)


def test_a_reference_may_be_a_worked_solution() -> None:
    assert reference_answer("2+3=<<2+3=5>>5\n#### 5") == "5"
    assert reference_answer(r"So it is \boxed{\frac12}.") == r"\frac12"
    assert reference_answer(" 5 ") == "5"
    assert reference_answer("#### Solution\nThe half is\n$$\\boxed{5}$$") == "5"  # a heading of Markdown
    assert reference_answer("#### Step 1\n...\n#### The answer is \\boxed{5}.\n") == "5"
    assert reference_answer("so it is\n#### 5\nwhich was to be shown") == "5"
    assert reference_answer("A box within: \\boxed{4}, and so\n#### 5") == "5"  # GSM8K's mark stands at the end


@pytest.mark.parametrize(
    "piece", ["\\boxed{", "{", "}", "\\boxed{}", "<think>", "#### ", "\\", "<answer>", "\\boxed   ", "\\boxed{1} "]
)
def test_extraction_is_linear_in_the_text(piece: str) -> None:
    # 40,000 pieces, up to 400 kB: one pass needs some 0.1 s, a quadratic one minutes.
    start = time.monotonic()
    final_answer(piece * 40_000 + "}" * 1000, strict=False)
    reference_answer(piece * 40_000 + "}" * 1000)
    assert time.monotonic() - start < 2


def test_extraction_is_linear_in_the_number_of_boxes() -> None:
    start = time.monotonic()
    boxes = " ".join(f"\\boxed{{{number}}}" for number in range(100_000))
    answer = final_answer(boxes, strict=True)
    assert answer is not None and answer.count(",") == 99_999
    assert final_answer("\\boxed{" * 100_000 + "5" + "}" * 100_000, strict=True) is not None
    final_answer("\\boxed{1}\\text{" + " " * 500_000 + "\\boxed{2}", strict=True)
    assert time.monotonic() - start < 3  # measured: 0.6 s
