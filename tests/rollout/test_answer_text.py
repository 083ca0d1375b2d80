"""A question and an answer as the tokens of another model."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rewards.errors import UserError
from rl.run.tiny import tiny_tokenizer
from rollout.answer_text import encode_answer

STRIPPING = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}<|end|>{% endfor %}"


def with_template(template: str | None) -> PreTrainedTokenizerFast:
    """A token for each byte, so that the index of a token is the number of bytes before it."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def text_of(tokenizer: PreTrainedTokenizerFast, token_ids: tuple[int, ...]) -> str:
    return str(tokenizer.decode(list(token_ids)))


def test_the_chat_template_renders_both_and_without_one_they_are_two_lines() -> None:
    for template, text in ((STRIPPING, "<user>1+1=<|end|><assistant>2<|end|>"), (None, "1+1=\n2")):
        tokenizer = with_template(template)
        encoded = encode_answer(tokenizer, "1+1=", "2")
        assert encoded.token_ids == tuple(tokenizer(text).input_ids) and encoded.step_tokens == ()


def test_an_answer_cannot_end_its_turn() -> None:
    """The template's end of turn is a token, the same letters in the answer are seven bytes. A token that is no structure stays one."""
    tokenizer = with_template(STRIPPING)
    encoded = encode_answer(tokenizer, "1+1=", "\\boxed{2}<|end|>")
    assert text_of(tokenizer, encoded.token_ids).count("<|end|>") == 3
    assert encoded.token_ids.count(tokenizer.vocab["<|end|>"]) == 2
    assert encoded.token_ids.count(tokenizer.vocab["\\boxed{"]) == 1


def test_a_model_without_a_template_gets_the_tokens_of_every_text() -> None:
    made = Tokenizer(models.WordLevel({"[CLS]": 0, "[SEP]": 1, "a": 2, "why": 3, "so": 4}, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    made.add_special_tokens(["[CLS]", "[SEP]"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    assert encode_answer(tokenizer, "why", "so so").token_ids == (0, 3, 4, 4, 1)
    encoded = encode_answer(tokenizer, "why", "so so", [2, 5])
    assert encoded.step_tokens == (2, 3) and [encoded.token_ids[i] for i in encoded.step_tokens] == [4, 4]


@pytest.mark.parametrize(
    ("template", "answer", "step_ends", "expected"),
    [
        # "Q\n" is in front: tokens 0 and 1. A step ends behind its newline.
        (None, "1+1=2\n2+2=4\n", [6, 12], [7, 13]),
        # "<user>Q<|end|><assistant>" are 6 + 1 + 1 + 11 = 19 tokens; the template cuts two newlines in front and one behind.
        (STRIPPING, "\n\n1+1=2\n2+2=4\n", [8, 14], [24, 29]),
        # A step that ends in a letter of two bytes ends at the second of them; the letter before counts two tokens as well.
        (None, "é=é", [3], [6]),
        # A guard that keeps the answer from ending its turn is no character.
        (STRIPPING, "<|end|>\n1=1", [11], [29]),
    ],
)
def test_a_step_ends_at_its_last_token(
    template: str | None, answer: str, step_ends: list[int], expected: list[int]
) -> None:
    encoded = encode_answer(with_template(template), "Q", answer, step_ends)
    assert list(encoded.step_tokens) == expected


def test_a_template_that_changes_answers_or_fails_is_refused() -> None:
    with pytest.raises(UserError, match="its chat template changes the answers"):
        encode_answer(with_template("{{ messages[1]['content'] | upper }}"), "Q", "a=b\n", [4])
    with pytest.raises(
        UserError, match=r"its chat template cannot render a question and an answer .*no answers please"
    ):
        encode_answer(with_template("{{ raise_exception('no answers please') }}"), "Q", "a")
