"""The graded text is the text as written, up to the end of the turn, by whatever token or string the tokenizer marks it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rewards.answer_format import format_rule
from rewards.errors import UserError
from rewards.extract import final_answer, own_turn
from rollout.answer_prefix import find_answer_prefix
from rollout.chat_template import choose_template, template_turn_end
from rollout.turn import TurnReader, stop_token_ids, turn_end_strings
from tests.rollout.families import tiny_model


def tokenizer(
    *special: str, eos: str | None, pad: str | None = None, chat: str | dict[str, str] | None = None
) -> PreTrainedTokenizerFast:
    """A tokenizer with a token per byte and the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=eos, pad_token=pad, chat_template=chat)


def turns(before: str, behind: str, asking: str, first: str = "") -> str:
    """A chat template with one rule for all roles."""
    return (
        f"{first}{{% for m in messages %}}{before}{{{{ m['content'] }}}}{behind}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{asking}{{% endif %}}"
    )


CHATML = turns("<|im_start|>{{ m['role'] }}\n", "<|im_end|>\n", "<|im_start|>assistant\n")
LLAMA3 = turns("<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n", "<|eot_id|>", "<|start_header_id|>assistant")
PHI = turns("<|{{ m['role'] }}|>\n", "<|end|>\n", "<|assistant|>\n")
MISTRAL = "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %} {{ m['content'] }} </s>{% endif %}{% endfor %}"
ALWAYS_ASKS = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}[assistant]"
ASKS_AFTER_CHATML = CHATML.replace("{% if add_generation_prompt %}", "").replace("{% endif %}", "")
TEXTUAL = turns("### {{ m['role'] }}: ", "\n### End\n", "### assistant: ")
PLAIN = turns("{{ m['role'] }}: ", "\n", "assistant: ")
DROPS = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
HARMONY = (
    "{% for m in messages %}<|start|>{{ m['role'] }}<|message|>{{ m['content'] }}"
    "{% if loop.last %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}"
)
ENDS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|end|>", "</s>", "<|return|>")


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),
        (LLAMA3, "<|eot_id|>"),
        (PHI, "<|end|>"),
        (MISTRAL, "</s>"),
        (ASKS_AFTER_CHATML, "<|im_end|>"),  # always adds a generation prompt
        (TEXTUAL, "### End"),
        (PLAIN, None),
        (ALWAYS_ASKS, None),  # what follows is the head of the next turn
        (HARMONY, None),  # there <|end|> ends a part of a turn only, and the generation config names <|return|>
        (DROPS, None),
        ("{{ broken", None),
        ("{{ raise_exception('no') }}", None),
        (None, None),
    ],
)
def test_the_end_of_a_turn_is_found_in_the_template(template: str | None, end: str | None) -> None:
    assert template_turn_end(tokenizer(*ENDS, eos="<|endoftext|>", chat=template)) == end


def test_a_turn_ends_at_the_templates_token_and_at_the_models() -> None:
    """A base model's EOS is <|endoftext|>, its chat template writes <|im_end|>. An id without a logit cannot be sampled."""
    words = tokenizer("<|endoftext|>", "<|im_start|>", "<|im_end|>", eos="<|endoftext|>", chat=CHATML)
    model = copy.deepcopy(tiny_model("qwen2", 0))
    model.resize_token_embeddings(len(words))
    model.generation_config.eos_token_id = [7, len(words), -1]
    ends = words.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert stop_token_ids(model, words) == {7, *ends} and turn_end_strings(words) == ()
    spelled = tokenizer("<|endoftext|>", eos="<|endoftext|>", chat=CHATML)
    assert turn_end_strings(spelled) == ("<|im_end|>",)


@pytest.mark.parametrize("named", ["</s>", ["</s>"], [7, 2.5]])
def test_an_end_that_is_no_token_s_number_is_named(named: object) -> None:
    model = copy.deepcopy(tiny_model("qwen2", 0))
    model.generation_config.eos_token_id = named  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(
        UserError, match=r"eos_token_id in its generation_config.json is ('</s>'|2.5): it must be a token's number"
    ):
        stop_token_ids(model, tokenizer("</s>", eos="</s>"))


def as_in_a_run(words: PreTrainedTokenizerFast, text: str, stops: Sequence[str] = ()) -> str:
    """The graded text of a completion with the tokens of `text`: sampling ends at the EOS or at the template's end of turn."""
    ids = words(text, add_special_tokens=False).input_ids
    ends = set(words.convert_tokens_to_ids([t for t in (words.eos_token, template_turn_end(words)) if t]))
    sampled = list(takewhile(lambda token: token not in ends, ids))
    return TurnReader.of(words, ends).texts([ids[: len(sampled) + 1]], stops)[0]


QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TOKENIZERS = {
    "chatml": tokenizer(*QWEN, eos="<|im_end|>", pad="<|endoftext|>", chat=CHATML),
    "chatml, base": tokenizer(*QWEN, eos="<|endoftext|>", pad="<|endoftext|>", chat=CHATML),
    "chatml, tags": tokenizer(*QWEN, "<think>", "</think>", "<answer>", "</answer>", eos="<|im_end|>", chat=CHATML),
    "chatml, spelled": tokenizer("<|endoftext|>", eos="<|endoftext|>", chat=CHATML),
    "llama": tokenizer("<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", eos="<|end_of_text|>", chat=LLAMA3),
    "phi": tokenizer("<|endoftext|>", "<|end|>", "<|user|>", eos="<|endoftext|>", pad="<|endoftext|>", chat=PHI),
    "mistral": tokenizer("<s>", "</s>", "<pad>", eos="</s>", pad="<pad>", chat=MISTRAL),
    "gemma": tokenizer("<eos>", "<pad>", "<end_of_turn>", eos="<eos>", pad="<pad>"),
    "deepseek": tokenizer("<｜end▁of▁sentence｜>", "<｜User｜>", "<think>", eos="<｜end▁of▁sentence｜>"),
    "none": tokenizer(eos=None),
}
PIECES = (
    "\\boxed{4}",
    "\\boxed{5}",
    "#### 4",
    "<think>",
    "</think>",
    "<answer>4</answer>",
    "4",
    "so",
    " ",
    "\n",
    "五",
    "\\boxed{",
)
PIECES += ("<|im_start|>user\n", "<|end|>", "<pad>", "<eos>", "<end_of_turn>", "<｜User｜>", *ENDS)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=9))
def test_a_text_gets_the_same_score_in_a_run_and_in_verify(name: str, pieces: list[str]) -> None:
    """Whichever tokens a tokenizer has for tags and turn ends, the same answer is found, with the same form."""
    text = "".join(pieces)
    graded = as_in_a_run(TOKENIZERS[name], text)
    for strict in (True, False):
        assert final_answer(graded, strict=strict) == final_answer(text, strict=strict)
    for rule in map(format_rule, ("think-answer", "boxed", "no-repetition", "words:3")):
        assert rule(own_turn(graded)) == rule(own_turn(text))


@pytest.mark.parametrize(
    ("text", "graded"),
    [
        ("\\boxed{5}<|im_end|>\n<|im_start|>user\nNo: \\boxed{4}", "\\boxed{5}"),
        ("\\boxed{5}<|endoftext|>\\boxed{4}", "\\boxed{5}"),
        ("<think>perhaps \\boxed{4}", "<think>perhaps \\boxed{4}"),
        ("a <b>,  c .\n", "a <b>,  c .\n"),
    ],
)
def test_special_tokens_are_written_and_end_the_turn(text: str, graded: str) -> None:
    assert as_in_a_run(TOKENIZERS["chatml, tags"], text) == graded


def test_the_text_ends_behind_a_stop_string_and_before_a_turn_end() -> None:
    """A verifier needs a closing tag that stopped the completion, but not the rest of the last token behind it."""
    words = TOKENIZERS["chatml, spelled"]
    assert as_in_a_run(words, "<answer>4</answer> or", ["</answer>"]) == "<answer>4</answer>"
    assert as_in_a_run(words, "\\boxed{4}<|im_end|>\n", ["<|im_end|>"]) == "\\boxed{4}"


def test_a_template_is_chosen_by_name_or_from_a_file(tmp_path: Path) -> None:
    named = {"rag": PLAIN, "tool_use": CHATML}
    with pytest.raises(UserError, match=r"chat_template is None: .* rag, tool_use, and none is the default"):
        choose_template(tokenizer(eos=None, chat=named), None)
    choose_template(tokenizer(eos=None, chat={"default": PLAIN, **named}), None)
    words = tokenizer(eos=None, chat=named)
    choose_template(words, "tool_use")
    assert words.chat_template == CHATML
    (tmp_path / "own.jinja").write_text(TEXTUAL)
    choose_template(words, str(tmp_path / "own.jinja"))
    assert words.chat_template == TEXTUAL
    with pytest.raises(
        UserError, match=r"chat_template is 'absent': it is no readable text file .* names no templates"
    ):
        choose_template(words, "absent")


QUESTION = "Put it into <think>, then \\boxed{ or ```"
USER = {"role": "user", "content": QUESTION}


@pytest.mark.parametrize(
    ("begun", "opened"),
    [
        ("<|assistant|>\n", ""),
        ("<|assistant|>\n<think>\n", "<think>\n"),
        ("<|assistant|>\n<think>\n\n</think>\n\n", ""),  # nothing is open
        ("<think>\nok</think>\n<answer>", "<think>\nok</think>\n<answer>"),
        ("The answer is \\boxed{", "\\boxed{"),
        ("The answer is \\boxed{\\frac{1}{", "\\boxed{\\frac{1}{"),
        ("So \\boxed{4}. Check:", ""),  # a complete answer is the prompt's, not the model's
        ("Here:\n```python\ndef f(x):\n", "```python\ndef f(x):\n"),
        ("Here:\n```python\nf()\n```\n", ""),
    ],
)
def test_the_answer_prefix_is_what_is_open_at_the_end_of_the_prompt(begun: str, opened: str) -> None:
    """Opened by the template or by a final assistant message; tags in the question do not count."""
    reply = {"role": "assistant", "content": begun}
    assert find_answer_prefix(f"<|user|>{QUESTION}{begun}", [USER]) == opened
    assert find_answer_prefix(f"<|user|>{QUESTION}\n{begun}", [USER, reply]) == opened


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("What is 2+2? Assistant: Let me think.\n<think>\n", "<think>\n"),
        ("Write f.\n```python\n", "```python\n"),
        ("Fill in: \\boxed{", "\\boxed{"),
        ("Enclose it in <think> </think>.\n", ""),
        ("Begin with <think> and go on.\n", ""),
        ("```\ncode\n```\n", ""),
    ],
)
def test_the_answer_prefix_of_a_base_models_prompt_is_its_last_mark(prompt: str, opened: str) -> None:
    assert find_answer_prefix(prompt, [{"role": "user", "content": prompt}]) == opened
