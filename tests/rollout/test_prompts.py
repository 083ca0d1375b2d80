"""A prompt is rendered as the model's makers do it, and each special token stands in it once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from rewards.errors import UserError
from rl.tiny import tiny_tokenizer
from rollout.demonstrations import demonstration
from rollout.prompts import SYSTEM_PROMPTS, PromptRenderer
from rollout.records import WORKED, Problem

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHAT = Problem(id="chat", prompt=({"role": "user", "content": "1+1?"},), reference="2")
TEXT = Problem(id="text", prompt="1+1?", reference="2")


def adding_bos(template: str | None) -> PreTrainedTokenizerFast:
    """A tokenizer that puts a BOS before every text by itself, as Llama's and Gemma's do."""
    made = tiny_tokenizer()
    made.add_special_tokens({"bos_token": "<|begin|>"})
    bos = ("<|begin|>", made.bos_token_id)
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[bos])
    made.chat_template = template
    return made


def rendered(
    tokenizer: PreTrainedTokenizerFast, problem: Problem, style: str | None = "plain", own: str | None = None
) -> str:
    return tokenizer.decode(PromptRenderer(tokenizer, style=style, system_prompt=own).render(problem))


@pytest.mark.parametrize("problem", [CHAT, TEXT], ids=["messages", "text"])
def test_a_chat_model_gets_its_template_and_the_word(problem: Problem) -> None:
    """The turn is handed to the assistant; the template writes the BOS, so the tokenizer must not write one more."""
    assert rendered(adding_bos(TEMPLATE), problem) == "<|begin|><user>1+1?<assistant>"


@pytest.mark.parametrize("problem", [CHAT, TEXT], ids=["messages", "text"])
def test_a_base_model_gets_the_text_alone(problem: Problem) -> None:
    """No template writes the BOS here, so the tokenizer must, once."""
    assert rendered(adding_bos(None), problem) == "<|begin|>1+1?\n"


@pytest.mark.parametrize("style", ["plain", "boxed", "r1", "code"])
def test_the_system_prompt_says_where_the_answer_goes(style: str) -> None:
    """A model is scored for an answer in the place it was told of, and told nothing else."""
    system = SYSTEM_PROMPTS[style]
    first = "" if system is None else f"<system>{system}"
    assert rendered(adding_bos(TEMPLATE), CHAT, style) == f"<|begin|>{first}<user>1+1?<assistant>"
    before = "" if system is None else f"{system}\n\n"
    assert rendered(adding_bos(None), CHAT, style) == f"<|begin|>{before}1+1?\n"
    named = {
        "plain": (),
        "boxed": (r"\boxed{}",),
        "r1": ("<think>", "</think>", "<answer>", "</answer>"),
        "code": ("```python",),
    }[style]
    assert all(marker in (system or "") for marker in named)


@pytest.mark.parametrize(("verifier", "style"), [("math", "boxed"), ("program", "code"), ("puzzle", "plain")])
def test_without_a_style_the_verifier_decides(verifier: str, style: str) -> None:
    """A model that is to write a program must not be told to put a number in a box."""
    problem = Problem(id="p", prompt="1+1?", reference="2", verifier=verifier)
    assert rendered(adding_bos(TEMPLATE), problem, None) == rendered(adding_bos(TEMPLATE), problem, style)


def test_a_system_prompt_of_ones_own_replaces_the_styles() -> None:
    assert rendered(adding_bos(TEMPLATE), CHAT, "r1", "Be brief.") == "<|begin|><system>Be brief.<user>1+1?<assistant>"


@pytest.mark.parametrize("template", [TEMPLATE, None], ids=["chat", "base"])
def test_a_worked_solution_goes_on_from_the_prompt(template: str | None) -> None:
    """The BOS stands before the prompt; the solution has none of its own, and its end."""
    tokenizer = adding_bos(template)
    shown = demonstration(replace(CHAT, metadata={WORKED: "1+1=2"}), PromptRenderer(tokenizer, style="plain"))
    (rollout,) = shown.rollouts
    assert tokenizer.decode([*shown.prompt_ids, *rollout.completion.token_ids]).count("<|begin|>") == 1
    assert tokenizer.decode(rollout.completion.token_ids) == f"1+1=2{tokenizer.eos_token}"


def test_rendering_leaves_the_problem_alone() -> None:
    """The next epoch renders it again."""
    renderer = PromptRenderer(adding_bos(TEMPLATE), style="boxed")
    assert renderer.render(CHAT) == renderer.render(CHAT)
    assert CHAT.prompt == ({"role": "user", "content": "1+1?"},)


def test_a_prompt_of_no_tokens_is_refused() -> None:
    with pytest.raises(UserError, match=r"problem 'chat' has an empty prompt: a completion needs at least one token"):
        PromptRenderer(adding_bos("{{ '' }}"), style="plain").render(CHAT)


def test_where_a_template_refuses_a_system_role_the_user_says_both() -> None:
    """Gemma's template raises; the request for a box must still reach the model."""
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
    prompt = rendered(adding_bos(refusing), CHAT, own="Answer in a box.")
    assert prompt == "<|begin|><user>Answer in a box.\n\n1+1?<assistant>"


def test_a_system_message_of_the_data_set_stands_alone() -> None:
    own = Problem(id="own", prompt=({"role": "system", "content": "S"}, *CHAT.prompt), reference="2")  # pyright: ignore
    assert rendered(adding_bos(TEMPLATE), own, own="ours") == "<|begin|><system>S<user>1+1?<assistant>"
