"""Instructions about the form of a response, as IFEval publishes them: each kind on a response that follows it and one that does not."""

from __future__ import annotations

from typing import Any

import pytest

from rewards.instruction_answer import InstructionVerifier, grade
from rewards.instructions.kinds import KINDS, count_sentences
from rewards.score import Outcome

# name, published arguments, responses that follow it, responses that do not
CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("keywords:existence", {"keywords": ["sun", "moon"]}, ["Moonlight, SUN."], ["The sun."]),
    ("keywords:forbidden_words", {"forbidden_words": ["sun"]}, ["Sunlight."], ["The Sun!"]),
    ("keywords:frequency", {"keyword": "sea", "frequency": 2, "relation": "at least"}, ["Sea seas"], ["sea"]),
    ("keywords:frequency", {"keyword": "sea", "frequency": 2, "relation": "less than"}, ["sea"], ["sea sea"]),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 2, "let_relation": "at least"}, ["Qq"], ["q"]),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 1, "let_relation": "less than"}, ["a"], ["#a"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, ["it's"], ["it's me"]),  # it, s, me
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, ["One. Two"], ["Mr. B"]),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, ["a\n***\nb", "***a***b"], ["a\n\nb", "a\n***\n***\nb"]),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "weeping"},
        ["a\n\n'Weeping, b", "a\n\nweeping"],
        ["weeping\n\na", "a\n\nweeping\n\nb", "weeping"],
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[a] [b] [c]"], ["[a]", "[a\n] [b]"]),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["a\np. s. b"], ["a PS b"]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["a\nP.P.S b"], ["a P.S. b"]),
    ("detectable_format:constrained_response", {}, ["So My answer is no."], ["My answer is No."]),
    ("detectable_format:json_format", {}, ['```json\n{"a": [1]}\n```', "[]"], ["{a: 1}", "so {}", "[" * 99999]),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\na\nSECTION 2\nb"],
        ["SECTION 1\na\nSection 2\nb", "SECTION a SECTION b"],
    ),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, ["* a\n- b"], ["* a", "* a\n* b\n* c", "**a\n* b"]),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, ["*a* *b*", "*a* and **b c**"], ["*a*", "* * *b*"]),
    ("detectable_format:title", {}, ["<<A song>>\nla"], ["<< >>", "<A>", "<<A\nB>>"]),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, [" say it. So."], ["So. Say it."]),
    ("combination:two_responses", {}, ["a\n******\nb", "a******b******"], ["a", "a******a", "a******b******c", "a************b"]),
    ("startend:end_checker", {"end_phrase": "The end."}, ['"Hm. THE END."\n'], ["The end. So."]),
    ("startend:quotation", {}, [' "a" '], ["a", '"', '"a']),
    ("change_case:english_capital", {}, ["A 1!"], ["A b", "1"]),
    ("change_case:english_lowercase", {}, ["a 1!"], ["A b"]),
    ("punctuation:no_comma", {}, ["a; b"], ["a, b"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "following", "breaking"), CASES, ids=[case[0] for case in CASES])
def test_a_kind_of_instruction(name: str, arguments: dict[str, Any], following: list[str], breaking: list[str]) -> None:
    reference = {"instruction_id_list": [name], "kwargs": [arguments | {"another_kinds": None}]}
    assert [grade(text, reference).outcome for text in following] == [Outcome.CORRECT] * len(following)
    assert [grade(text, reference).outcome for text in breaking] == [Outcome.WRONG] * len(breaking)


def test_every_kind_has_a_case() -> None:
    assert {name for name, *_ in CASES} == set(KINDS)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("One", 1),
        ("One. So do I. No! Three?", 4),
        ("Dr. Who paid 3.5 pounds, e.g. to J. Smith. Then he left...", 2),
        ('He said: "Go." She went (at once!). So', 3),
        ("one\n\ntwo", 1),
    ],
)
def test_sentences_end_where_a_reader_sees_them_end(text: str, count: int) -> None:
    assert count_sentences(text) == count


def test_all_instructions_must_be_followed_behind_the_reasoning() -> None:
    names = ["punctuation:no_comma", "startend:end_checker"]
    reference = {"instruction_id_list": names, "kwargs": [{}, {"end_phrase": "Bye."}]}
    texts = ["<think>a, b</think>Well. Bye.<|im_end|>", "Well, bye. Bye.", "Well, no", "<think>Bye.", ""]
    with InstructionVerifier(num_workers=1) as verifier:
        found = verifier.verify_batch(texts, [reference] * 5)
    assert [score.value for score in found] == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert found[1].detail == "1 of 2 instructions are followed, not punctuation:no_comma"
    assert [score.outcome for score in found[3:]] == [Outcome.NO_ANSWER] * 2


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no commas", "instructions are a JSON object, not str"),
        ({"instruction_id_list": [], "kwargs": []}, "of at least one instruction"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "lists of the same length"),
        ({"instruction_id_list": ["language:response_language"], "kwargs": [{"language": "de"}]}, "no check of the instruction 'language:response_language'"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"num_words": 3}]}, "unexpected keyword argument"),
        ({"instruction_id_list": ["startend:end_checker"], "kwargs": [{"end_phrase": None}]}, "missing a required argument"),
        ({"instruction_id_list": ["startend:end_checker"], "kwargs": [{"end_phrase": 3}]}, "has no attribute"),
        ({"instruction_id_list": ["length_constraints:number_words"], "kwargs": [{"num_words": 3, "relation": "at most"}]}, "must be one of at least, less than"),
    ],
)  # fmt: skip
def test_what_cannot_be_checked_is_a_bad_reference_and_never_wrong(reference: Any, message: str) -> None:
    with InstructionVerifier(num_workers=1) as verifier:
        (checked,), (graded,) = verifier.check_references([reference]), verifier.verify_batch(["Hello."], [reference])
    assert checked.outcome is graded.outcome is Outcome.BAD_REFERENCE and graded.value is None
    assert message in checked.detail
