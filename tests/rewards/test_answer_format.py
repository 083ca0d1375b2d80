"""Format rules count, so that a text that only resembles the format earns nothing."""

from __future__ import annotations

import time

import pytest

from rewards.answer_format import format_rule
from rewards.errors import UserError
from rewards.extract import own_turn

UNSEEN = ["\u200b", " \u200b\n", "\u2060\ufeff", "\u00ad", "\u2800", "\u3164", "\u034f\ufe0f", "\u00a0\u3000"]
GOOD = "<think>\n6*7=42\n</think>\n<answer>42</answer>"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (GOOD, ""),
        (f"  {GOOD}\n\n", ""),
        # The next five get full marks from the regular expression with MULTILINE that is common elsewhere.
        (f"{GOOD}\nand more", "text outside"),
        (f"{GOOD}\n{GOOD}", "<think> occurs 2 times"),
        ("<think></think>\n<answer>42</answer>", "an empty section"),
        ("<think>\n6*7=42\n</think>\n<answer> </answer>", "an empty section"),
        ("<think>a<answer>b</answer></think><answer>c</answer>", "<answer> occurs 2 times"),
        (f"Sure! {GOOD}", "text outside"),
        *((f"<think>6*7</think><answer>{unseen}</answer>", "an empty section") for unseen in UNSEEN),
        *((f"<think>{unseen}</think><answer>42</answer>", "an empty section") for unseen in UNSEEN),
        (f"\ufeff{GOOD}", ""),
        ("<think>a</think> so <answer>b</answer>", "text outside"),
        ("<answer>42</answer>\n<think>6*7</think>", "out of order"),
        ("<think>6*7=42\n<answer>42</answer>", "</think> occurs 0 times"),
        ("42", "<think> occurs 0 times"),
        ("", "<think> occurs 0 times"),
    ],
)
def test_think_and_answer_tags_must_occur_once_in_order_and_enclose_text(text: str, problem: str) -> None:
    form = format_rule("think-answer")(text)
    assert form.value == float(not problem)
    assert problem in form.problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (r"so \boxed{42}", ""),
        (r"$$\boxed{\frac{1}{2}}.$$", ""),
        (r"\boxed 5", ""),
        (r"so $\boxed 5$.", ""),
        ("so \\boxed{42}\u200b", ""),
        (r"\[\boxed{\frac{1}{2}}.\]", ""),
        (r"\(\boxed{42}\)", ""),
        (r"\begin{align*}x&=\boxed{42}\end{align*}", ""),
        (r"**{\boxed{42}}**", ""),
        (r"\boxed{42} and more", "text after"),
        (r"\boxed{42} where f(x) = \frac{1}{2}", "text after"),  # ends in a brace, and not in the box's
        (r"\boxed{42} or {43}", "text after"),
        (r"\boxed 5 or \text{6}", "text after"),
        ("\\boxed{\u200b}", "empty"),
        (r"\boxed{41} no, \boxed{42}", "2 boxes"),
        (r"\boxed{}", "empty"),
        (r"\boxed{42", "not closed"),
        (r"<think>\boxed{42}</think> 42", "inside the reasoning"),
        ("42", "0 boxes"),
        (r"\boxedtimes", "0 boxes"),
    ],
)
def test_one_box_must_end_the_text(text: str, problem: str) -> None:
    form = format_rule("boxed")(text)
    assert form.value == float(not problem)
    assert problem in form.problem


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a b c", 1.0),  # no sequence of eight words
        ("a b c d e f g h i", 1.0),  # two of them, different
        ("a " * 9, 1 / 2),  # two, equal
        ("x y " * 6, 2 / 5),  # five, of two kinds
    ],
)
def test_repetition_lowers_the_value_by_its_share(text: str, value: float) -> None:
    assert format_rule("no-repetition")(text).value == value


@pytest.mark.parametrize(("count", "value"), [(0, 1.0), (10, 1.0), (15, 0.5), (20, 0.0), (500, 0.0)])
def test_length_costs_nothing_up_to_the_limit(count: int, value: float) -> None:
    assert format_rule("words:10")("word " * count).value == value


@pytest.mark.parametrize("name", ["tags", "words:", "words:0", "words:-1", "words:1e3"])
def test_an_unknown_rule_is_an_error_that_lists_the_known_ones(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}.*think-answer.*words:N"):
        format_rule(name)


def test_text_after_the_end_of_the_turn_is_ignored() -> None:
    assert format_rule("think-answer")(own_turn(f"{GOOD}<|im_end|>\nuser: next")).value == 1


@pytest.mark.parametrize("name", ["think-answer", "boxed", "no-repetition", "words:10"])
@pytest.mark.parametrize("piece", ["<think>", "</answer>", r"\boxed{", "a ", "} ", r"\boxed{1}" + "." * 50, "\n" * 9])
def test_hostile_text_takes_linear_time(name: str, piece: str) -> None:
    """A megabyte in a second: a rule that is quadratic in the text would need hours."""
    started = time.process_time()
    format_rule(name)(piece * (1_000_000 // len(piece)))
    assert time.process_time() - started < 3


@pytest.mark.parametrize(
    ("rule", "text", "share"),
    [
        ("script:latin", "We solve it: the sum is 12", 1.0),
        ("script:latin", "Größe naïve café", 1.0),
        ("script:latin", "因此 we", 0.5),
        ("script:han", "因此 we", 0.5),
        ("script:latin", r"so \(x = \alpha + π\) and 3 y", 1.0),  # symbols are in no language
        ("script:han", r"因此 \(x = \frac{a}{b}\)。<answer>3</answer>", 1.0),
        ("script:cyrillic", "решение da", 7 / 9),
        ("script:devanagari", "हिन्दी", 1.0),  # vowel signs are no letters
        ("script:kana", "これは三", 3 / 4),
        ("script:han+kana", "これは三", 1.0),
        ("script:latin", "12 + 3 = 15", 1.0),
        ("script:latin", "", 1.0),
    ],
)
def test_the_share_of_letters_of_a_script(rule: str, text: str, share: float) -> None:
    assert format_rule(rule)(text).value == pytest.approx(share)


def test_a_script_that_is_not_known_is_refused_by_the_names_of_others() -> None:
    for name in ("script:", "script:english", "script:latin+", "script:latin+runes"):
        with pytest.raises(UserError, match=r"script:NAME with a name of latin, .*, or several joined by \+"):
            format_rule(name)
