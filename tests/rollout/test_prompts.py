"""A prompt is rendered by the model's own template and has each special token once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from rewards.errors import UserError
from rewards.extract import AnswerForm
from rl.run.tiny import tiny_tokenizer
from rollout.demonstrations import demonstration
from rollout.prompts import SYSTEM_PROMPTS, PromptRenderer
from rollout.records import SOLUTION, Problem

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHAT = Problem(id="chat", prompt=({"role": "user", "content": "1+1?"},), reference="2")
TEXT = Problem(id="text", prompt="1+1?", reference="2")


def adding_bos(template: str | None) -> PreTrainedTokenizerFast:
    """A tokenizer that adds a BOS to every text, like Llama's and Gemma's."""
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
def test_a_chat_model_gets_its_template_with_the_assistants_turn_begun(problem: Problem) -> None:
    """The template writes the BOS, so the tokenizer must not add another one."""
    assert rendered(adding_bos(TEMPLATE), problem) == "<|begin|><user>1+1?<assistant>"


@pytest.mark.parametrize("problem", [CHAT, TEXT], ids=["messages", "text"])
def test_a_base_model_gets_the_text_alone(problem: Problem) -> None:
    """Without a template the tokenizer writes the BOS, once."""
    assert rendered(adding_bos(None), problem) == "<|begin|>1+1?\n"


@pytest.mark.parametrize("style", ["plain", "boxed", "r1", "hashes", "code"])
def test_the_system_prompt_says_where_the_answer_goes(style: str) -> None:
    """It names the form in which the answer is graded, and no other."""
    system = SYSTEM_PROMPTS[style]
    first = "" if system is None else f"<system>{system}"
    assert rendered(adding_bos(TEMPLATE), CHAT, style) == f"<|begin|>{first}<user>1+1?<assistant>"
    before = "" if system is None else f"{system}\n\n"
    assert rendered(adding_bos(None), CHAT, style) == f"<|begin|>{before}1+1?\n"
    named = {
        "plain": (),
        "boxed": (r"\boxed{}",),
        "r1": ("<think>", "</think>", "<answer>", "</answer>"),
        "hashes": ("#### answer",),
        "code": ("```python",),
    }[style]
    assert all(marker in (system or "") for marker in named)


@pytest.mark.parametrize(("verifier", "style"), [("math", "boxed"), ("program", "code"), ("puzzle", "plain")])
def test_without_a_style_the_verifier_decides(verifier: str, style: str) -> None:
    """A model that is to write a program must not be instructed to put a number in a box."""
    problem = Problem(id="p", prompt="1+1?", reference="2", verifier=verifier)
    assert rendered(adding_bos(TEMPLATE), problem, None) == rendered(adding_bos(TEMPLATE), problem, style)


@pytest.mark.parametrize(
    ("form", "style"),
    [("boxed", "boxed"), ("tags", "r1"), ("hashes", "hashes"), ("last-number", "plain"), ("text", "plain")],
)
def test_the_form_of_the_answer_decides_for_math_problems(form: AnswerForm, style: str) -> None:
    """The style still comes first, and a program is not asked for in another form."""

    def shown(verifier: str, form: AnswerForm | None, style: str | None = None) -> str:
        renderer = PromptRenderer(adding_bos(TEMPLATE), style=style, answer_form=form)  # pyright: ignore[reportArgumentType]
        problem = Problem(id="p", prompt="1+1?", reference="2", verifier=verifier)
        return renderer.tokenizer.decode(list(renderer.render(problem)))

    assert shown("math", form) == shown("math", None, style)
    assert shown("math", form, "r1") == shown("math", None, "r1")
    assert shown("program", form) == shown("program", None)


def test_a_system_prompt_of_ones_own_replaces_the_styles() -> None:
    assert rendered(adding_bos(TEMPLATE), CHAT, "r1", "Be brief.") == "<|begin|><system>Be brief.<user>1+1?<assistant>"


@pytest.mark.parametrize("template", [TEMPLATE, None], ids=["chat", "base"])
def test_a_demonstrated_solution_continues_the_prompt(template: str | None) -> None:
    """The BOS is before the prompt only; the solution ends with the EOS."""
    tokenizer = adding_bos(template)
    shown = demonstration(replace(CHAT, metadata={SOLUTION: "1+1=2"}), PromptRenderer(tokenizer, style="plain"))
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


def test_a_system_message_that_a_template_refuses_begins_the_users_message() -> None:
    """Gemma's template raises; the instruction to use a box must still reach the model."""
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
    prompt = rendered(adding_bos(refusing), CHAT, own="Answer in a box.")
    assert prompt == "<|begin|><user>Answer in a box.\n\n1+1?<assistant>"


def test_a_system_message_of_the_data_set_replaces_the_options() -> None:
    own = Problem(id="own", prompt=({"role": "system", "content": "S"}, *CHAT.prompt), reference="2")  # pyright: ignore
    assert rendered(adding_bos(TEMPLATE), own, own="ours") == "<|begin|><system>S<user>1+1?<assistant>"


REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
DROPS = TEMPLATE.replace(
    "<{{ m['role'] }}>{{ m['content'] }}", "{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}"
)
SYSTEM, REPLY = {"role": "system", "content": "S"}, {"role": "assistant", "content": "Let me think: "}


def reports(tokenizer: PreTrainedTokenizerFast, *prompts: object, **options: object) -> tuple[list[str], list[str]]:
    """-> (the rendered prompts, the renderer's reports)"""
    said: list[str] = []
    renderer = PromptRenderer(tokenizer, report=said.append, **{"style": "plain", **options})  # pyright: ignore
    problems = [Problem(id=str(i), prompt=prompt, reference="2") for i, prompt in enumerate(prompts)]  # pyright: ignore
    return [tokenizer.decode(renderer.render(problem)) for problem in problems], said


@pytest.mark.parametrize(
    ("template", "prompt", "options", "rendered", "said"),
    [
        (TEMPLATE, (SYSTEM, *CHAT.prompt), {"system_prompt": "S"}, "<|begin|><system>S<user>1+1?<assistant>", ""),
        (TEMPLATE, (SYSTEM, *CHAT.prompt), {"system_prompt": "T"}, "<|begin|><system>S<user>1+1?<assistant>", "in place of system_prompt"),
        (TEMPLATE, (SYSTEM, *CHAT.prompt), {"style": "r1"}, "<|begin|><system>S<user>1+1?<assistant>", "in place of prompt_style 'r1'"),
        (REFUSES, CHAT.prompt, {"system_prompt": "T"}, "<|begin|><user>T\n\n1+1?<assistant>", "no place for system messages, so that 'T'"),
        (DROPS, CHAT.prompt, {"system_prompt": "T"}, "<|begin|>T\n\n1+1?<assistant>", "no place for system messages, so that 'T'"),
        (DROPS, (SYSTEM,), {}, "<|begin|>S<assistant>", "no place for system messages"),
        (DROPS, ({"role": "tool", "content": "t"}, *CHAT.prompt), {}, "<|begin|>1+1?<assistant>", "leaves out messages of role 'tool', 't'"),
        (TEMPLATE, (*CHAT.prompt, REPLY), {}, "<|begin|><user>1+1?<assistant>Let me think: ", "'Let me think: ', which the model continues"),
        (None, (*CHAT.prompt, REPLY), {}, "<|begin|>1+1?\n\nLet me think: ", "'Let me think: ', which the model continues"),
        (TEMPLATE + "<|end|>\n", "a", {}, "<|begin|><user>a<assistant><|end|>", "ends prompts with the EOS, '<|end|>'"),
        (TEMPLATE, "a<|end|>b", {}, "<|begin|><user>a<|end|>b<assistant>", "'<|end|>', which the model reads as a special token"),
        (TEMPLATE, ({"role": "user", "content": [{"type": "text", "text": "1+"}, "1?"]},), {}, "<|begin|><user>1+1?<assistant>", ""),
    ],
)  # fmt: skip
def test_a_prompt_that_differs_from_the_options_or_the_data_is_reported_once(
    template: str | None, prompt: object, options: dict[str, object], rendered: str, said: str
) -> None:
    """With an example. A final assistant message is continued; a system message that a template drops is put into the user's."""
    assert template is None or DROPS != TEMPLATE
    texts, found = reports(adding_bos(template), prompt, prompt, **options)
    assert texts == [rendered] * 2
    assert len(found) == bool(said) and all(said in text and "first such problem is '0'" in text for text in found)


def test_an_eos_that_the_tokenizer_appends_to_prompts_is_removed() -> None:
    """With add_eos_token the model would take the text as finished before the answer."""
    made = tiny_tokenizer()
    made.chat_template = None
    end = ("<|end|>", made.eos_token_id)
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A <|end|>", special_tokens=[end])
    texts, said = reports(made, "1+1?", "2+2?")
    assert texts == ["1+1?\n", "2+2?\n"] and len(said) == 1 and "its EOS, '<|end|>', which is removed" in said[0]


@pytest.mark.parametrize(
    ("template", "prompt", "message"),
    [
        ("{{ broken", CHAT.prompt, r"problem '0': the chat template cannot render its messages \(roles user\).*--chat-template"),
        ("{{ messages[0]['content'] | absent }}", CHAT.prompt, "cannot render its messages.*absent"),
        ("{{ messages[0]['content'] + 5 }}", CHAT.prompt, "cannot render its messages"),
        (REFUSES.replace("== 'system'", "== 'user'"), (*CHAT.prompt, REPLY), "roles user, assistant.*no system role"),
        (DROPS, (*CHAT.prompt, REPLY), "roles user, assistant.*final message"),
        (TEMPLATE, ({"role": "user", "content": None},), "problem '0': the content of a message is None: it must be text"),
        (TEMPLATE, ({"role": "user", "content": [{"type": "image"}]},), "problem '0': a part of a message is {'type': 'image'}"),
        (TEMPLATE, "half \ud83d", r"problem '0': its text has half of a surrogate pair, '\\ud83d', at character 5"),
        (TEMPLATE, ({"role": "user", "content": "\udcff"},), "half of a surrogate pair"),
        (TEMPLATE, {"text": "1+1?"}, "is neither text nor a list of messages"),
    ],
)  # fmt: skip
def test_messages_that_cannot_be_rendered_are_a_users_error(template: str, prompt: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        reports(adding_bos(template), prompt)


def test_a_system_prompt_that_no_tokenizer_encodes_is_refused() -> None:
    """A shell passes bytes that are not UTF-8 as lone surrogates."""
    with pytest.raises(UserError, match="system_prompt: its text has half of a surrogate pair"):
        reports(adding_bos(TEMPLATE), "1+1?", system_prompt="\udcff")


def test_a_demonstrated_solution_ends_as_the_template_ends_a_turn() -> None:
    """A model that is taught its EOS instead would not end its turn. Without a template's end and an EOS it is an error."""
    made = tiny_tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    made.chat_template = "{% for m in messages %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    solved = replace(CHAT, metadata={SOLUTION: "1+1=2"})
    (rollout,) = demonstration(solved, PromptRenderer(made, style="plain")).rollouts
    assert made.decode(rollout.completion.token_ids) == "1+1=2<|im_end|>"
    made.chat_template = made.eos_token = None
    with pytest.raises(UserError, match="its tokenizer has no EOS"):
        demonstration(solved, PromptRenderer(made, style="plain"))


@pytest.mark.parametrize(
    "template",
    [
        "the same for all",
        "{% for m in messages %}user: {{ m.content[0].text }}{% endfor %}",
        "{{ messages[0].content }}",
    ],
    ids=["constant", "parts", "first"],
)
def test_a_template_that_leaves_out_the_question_is_refused(template: str) -> None:
    """Every prompt would be the same, whatever the problem."""
    asked = Problem(
        id="7", prompt=({"role": "user", "content": "hi"}, {"role": "user", "content": "1+1?"}), reference="2"
    )
    renderer = PromptRenderer(adding_bos(template), style="plain")
    with pytest.raises(
        UserError, match=r"leaves out the last message of problem '7' \(role 'user', '1\+1\?'\).*--chat-template"
    ):
        renderer.render(asked)
