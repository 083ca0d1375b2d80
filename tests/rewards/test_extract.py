"""Where the final answer of a text is found, in time linear in the text."""

from __future__ import annotations

import time
from typing import get_args

import pytest

from rewards.extract import AnswerForm, Reading, answer_by_form, final_answer, reference_answer


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


EVERY_MARK = "So 3.\n<answer> 4 </answer>\n\\boxed{5}\n#### 6\nThat is 1 of 7."


@pytest.mark.parametrize(
    ("form", "answer"),
    [
        ("boxed", "5"),
        ("tags", "4"),
        ("hashes", "6"),
        ("last-number", "7"),
        ("text", EVERY_MARK),
        (None, "5"),
        ("flexible", "5"),
    ],
)
def test_a_form_reads_its_own_mark_and_no_other(form: Reading | None, answer: str) -> None:
    """Only text after the reasoning and up to the end of the turn counts, and blank text is no answer."""
    assert answer_by_form(EVERY_MARK, form) == answer
    assert answer_by_form(f"<think>{EVERY_MARK}</think> \u200b<|im_end|>{EVERY_MARK}", form) is None
    assert answer_by_form(f"<think>{EVERY_MARK}", form) is None


@pytest.mark.parametrize("form", get_args(AnswerForm))
def test_a_text_without_the_mark_has_no_answer(form: AnswerForm) -> None:
    text = "The answer is twelve."
    assert answer_by_form(text, form) == (text if form == "text" else None)


def test_a_box_in_a_mark_stands_for_its_content() -> None:
    assert answer_by_form(r"<answer> $\boxed{4}$ </answer>", "tags") == "4"
    assert answer_by_form(r"#### \boxed{4}", "hashes") == "4"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 + 4 = 7", "7"),
        ("10-3=7 and 10 - 3", "3"),  # a minus sign between numbers is no sign of one
        ("x = -5.", "-5"),
        ("(2) \u22125", "\u22125"),
        ("$1,234.50, in all", "1,234.50"),
        ("1,2,3", "3"),
        ("12,34", "34"),  # no thousands
        ("about 3/4 of it", "3/4"),
        ("**18** apples", "18"),
        ("H2O and v2", None),
        ("none", None),
    ],
)
def test_the_last_number_has_its_sign_thousands_and_decimals(text: str, number: str | None) -> None:
    assert answer_by_form(text, "last-number") == number


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It is 5. The answer is 18. He has 3 left.", "18"),
        ("The final answer is: **$1,200.50**\nQuestion 2", "$1,200.50"),
        ("**Answer:** yes", "yes"),
        ("Answer = (3, 4)", "(3, 4)"),
        ("The answer is:\n\n7\n", "7"),
        ("The answer is 4. No, the answer is 5.", "5"),
        ("The answer is 4, so #### 5", "5"),  # a mark comes before words
        ("The answers: 3 and 4", "4"),  # else the last number
        ("####\nso 6", "6"),
        ("no idea", None),
    ],
)
def test_flexible_reading_takes_the_answer_in_words_or_the_last_number(text: str, answer: str | None) -> None:
    assert answer_by_form(text, "flexible") == answer


@pytest.mark.parametrize(
    "piece", ["the answer is ", "answer ", "answer is 1 ", "1,111", "1", "-", ".", "1/", " ", "a1"]
)
@pytest.mark.parametrize("form", ["flexible", "last-number", "tags"])
def test_reading_by_form_is_linear_in_the_text(piece: str, form: Reading) -> None:
    # As above: one pass needs less than 0.2 s, a quadratic one minutes.
    start = time.monotonic()
    answer_by_form("answer is" + piece * 40_000, form)
    assert time.monotonic() - start < 2


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
