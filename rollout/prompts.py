"""Renders problems to prompt token ids; no other module renders a prompt."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from rewards.errors import UserError
from rewards.extract import AnswerForm
from rollout.answer_prefix import find_answer_prefix
from rollout.chat_template import TEMPLATE_ERRORS, ToolSchema, name_of, template_turn_end
from rollout.messages import read_messages, require_encodable
from rollout.records import STYLE_OF, STYLE_OF_FORM, Problem, PromptStyle

SYSTEM_PROMPTS: dict[str, str | None] = {
    "plain": None,
    "boxed": "Reason step by step, and put your final answer within \\boxed{}.",
    "r1": (
        "First think about the problem, then answer it. Enclose the reasoning in <think> </think> and the final answer "
        "in <answer> </answer>, i.e., <think> reasoning </think> <answer> answer </answer>."
    ),
    "hashes": "Reason step by step, and end with a line that has your final answer behind four hashes: #### answer",
    "code": "Solve the task in Python, and put the whole program in one ```python block.",
    "program-answer": (
        "Write a Python program that computes the final answer and prints it, and put the whole program in one ```python block."
    ),
}
_SHOWN = 120  # characters of a message that is shown as an example
log = logging.getLogger(__name__)
Messages = list[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A rendered prompt.

    answer_prefix: the part of the answer that the prompt has begun and not closed, such as a template's <think>; verifiers read it in
        front of what the model writes.
    """

    token_ids: tuple[int, ...]
    answer_prefix: str


class PromptRenderer:
    """Renders by the tokenizer's chat template; without one (a base model) the messages' texts are joined by empty lines.

    style: the system prompt before a problem; None chooses the one that names the form in which the problem's verifier reads answers.
    answer_form: that form for math problems, if it is not the usual one.
    tools_of: the schemas of the tools that a problem's prompt shows by the chat template's own rule (see require_tool_turns).
    report: called once, with an example, for each way in which prompts differ from the options or the data.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        style: PromptStyle | None,
        system_prompt: str | None = None,
        answer_form: AnswerForm | None = None,
        tools_of: Callable[[Problem], Sequence[ToolSchema]] = lambda problem: (),
        report: Callable[[str], None] = log.warning,
    ) -> None:
        self.tokenizer = tokenizer
        self.tools_of = tools_of
        self._style, self._system_prompt = style, system_prompt
        self._style_of = STYLE_OF if answer_form is None else {**STYLE_OF, "math": STYLE_OF_FORM[answer_form]}
        self._report = report
        self._reported: set[str] = set()
        self._left_out_of: dict[tuple[str, ...], tuple[int, ...]] = {}

    @cached_property
    def closing_id(self) -> int:
        """The token that ends an answer: the chat template's end of turn, otherwise the tokenizer's EOS."""
        end = template_turn_end(self.tokenizer)
        closing = self.tokenizer.get_vocab().get(end) if end is not None else None
        closing = self.tokenizer.eos_token_id if closing is None else closing
        if closing is None:
            raise UserError(
                "model: its tokenizer has no EOS, with which a demonstrated solution must end; set eos_token in its tokenizer_config.json"
            )
        return int(closing)  # pyright: ignore[reportArgumentType]  the stubs allow lists

    def render(self, problem: Problem) -> tuple[int, ...]:
        return self.prompt(problem).token_ids

    def prompt(self, problem: Problem) -> Prompt:
        messages = self._with_system(problem)
        self._report_oddities(problem, messages)
        has_template = self.tokenizer.chat_template is not None
        text = self._by_template(problem, messages) if has_template else _plain(messages)
        ids = self.tokenizer(text, add_special_tokens=not has_template).input_ids
        if not has_template:
            ids = self._without_final_eos(problem, ids)
        if not ids:
            raise UserError(
                f"problem {problem.id!r} has an empty prompt: a completion needs at least one token before it"
            )
        return Prompt(token_ids=tuple(ids), answer_prefix=find_answer_prefix(text, messages))

    def _report_once(self, kind: str, problem: Problem, what: str) -> None:
        if kind not in self._reported:
            self._reported.add(kind)
            self._report(f"prompts: {what}. The first such problem is {problem.id!r}")

    def _with_system(self, problem: Problem) -> Messages:
        """The problem's messages with a system message before them; a system message of the row's own takes precedence."""
        messages = [dict(m) for m in read_messages(problem.prompt, f"problem {problem.id!r}")]
        style = self._style or self._style_of.get(problem.verifier) or "plain"
        system = SYSTEM_PROMPTS[style] if self._system_prompt is None else self._system_prompt
        if system is None:
            return messages
        require_encodable(system, "system_prompt")
        if messages[0]["role"] != "system":
            return [{"role": "system", "content": system}, *messages]
        if messages[0]["content"] != system:
            option = f"prompt_style {style!r}" if self._system_prompt is None else "system_prompt"
            what = f"rows have a system message of their own, {_example(messages[0]['content'])}, which stands in place of {option}"
            self._report_once("own system message", problem, what)
        return messages

    def _by_template(self, problem: Problem, messages: Messages) -> str:
        """The text by the template, special tokens included. A system message that it refuses or drops is put into the user's message."""
        tools = self.tools_of(problem)
        system, left_out = messages[0], self._left_out(messages, tools)
        if system["role"] == "system" and 0 in left_out:
            messages = _system_into_user(messages)
            left_out = self._left_out(messages, tools)
            what = f"the chat template has no place for system messages, so that {_example(system['content'])} begins the user's message"
            self._report_once("system message", problem, what)
        if len(messages) - 1 in left_out and self._tried(messages, tools):  # a prompt of no tokens is refused as such
            raise UserError(
                f"chat_template: the tokenizer's leaves out the last message of problem {problem.id!r} (role {messages[-1]['role']!r}, "
                f"{_example(messages[-1]['content'])}), so that the model never reads the question; give another with --chat-template"
            )
        for role, content in ((messages[i]["role"], messages[i]["content"]) for i in left_out):
            what = f"the chat template leaves out messages of role {role!r}, {_example(content)}"
            self._report_once(f"left out {role}", problem, what)
        try:
            text = self._rendered(messages, tools)
        except TEMPLATE_ERRORS as error:
            roles = ", ".join(message["role"] for message in messages)
            (reason, *_) = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f"problem {problem.id!r}: the chat template cannot render its messages (roles {roles}): {reason}. Change the messages of "
                "the data set, or give another template with --chat-template"
            ) from None
        end = str(self.tokenizer.eos_token or "")
        if end and text.rstrip().endswith(end):
            what = f"the chat template ends prompts with the EOS, {end!r}, and does not begin the assistant's turn"
            self._report_once("EOS of the template", problem, what)
        return text

    def _left_out(self, messages: Messages, tools: Sequence[ToolSchema]) -> tuple[int, ...]:
        """Indices of the messages that the template drops from a conversation with these roles and tools; 0 also where it refuses a
        system message."""
        roles = tuple(message["role"] for message in messages)
        key = (*roles, *map(name_of, tools))
        if key not in self._left_out_of:
            marked = [{"role": role, "content": f"plumbline-{i}-marker"} for i, role in enumerate(roles)]
            text = self._tried(marked, tools)
            if text is not None:
                found = tuple(i for i, message in enumerate(marked) if message["content"] not in text)
            else:
                is_refused = roles[0] == "system" and self._tried(_system_into_user(marked), tools) is not None
                found = (0,) if is_refused else ()
            self._left_out_of[key] = found
        return self._left_out_of[key]

    def _tried(self, messages: Messages, tools: Sequence[ToolSchema]) -> str | None:
        try:
            return self._rendered(messages, tools)
        except TEMPLATE_ERRORS:
            return None

    def _rendered(self, messages: Messages, tools: Sequence[ToolSchema]) -> str:
        """A final assistant message is left open: the model continues it."""
        is_continued = messages[-1]["role"] == "assistant"
        conversation: Any = messages
        shown: Any = list(tools) or None
        return str(
            self.tokenizer.apply_chat_template(
                conversation,
                tools=shown,
                tokenize=False,
                add_generation_prompt=not is_continued,
                continue_final_message=is_continued,
            )
        )

    def _report_oddities(self, problem: Problem, messages: Messages) -> None:
        *_, last = messages
        if last["role"] == "assistant":
            what = f"rows end in a message of the assistant's, {_example(last['content'])}, which the model continues"
            self._report_once("assistant", problem, what)
        user_texts = [message["content"] for message in messages if message["role"] == "user"]
        found = [token for token in self.tokenizer.all_special_tokens if any(token in text for text in user_texts)]
        if found:
            what = f"the user's text has {found[0]!r}, which the model reads as a special token"
            self._report_once("special token", problem, what)

    def _without_final_eos(self, problem: Problem, ids: list[int]) -> list[int]:
        """Removes the EOS that some tokenizers append to every text: behind it a model would begin another text."""
        end = self.tokenizer.eos_token_id
        if len(ids) < 2 or ids[-1] != end:
            return ids
        what = f"the tokenizer ends every text with its EOS, {self.tokenizer.eos_token!r}, which is removed"
        self._report_once("final EOS", problem, what)
        return ids[:-1]


def _plain(messages: Messages) -> str:
    text = "\n\n".join(message["content"] for message in messages)
    return text if messages[-1]["role"] == "assistant" else text + "\n"


def _system_into_user(messages: Messages) -> Messages:
    """Puts the system message before the user's first message; if there is none, it becomes a user message."""
    system, *rest = messages
    if not rest or rest[0]["role"] != "user":
        return [{"role": "user", "content": system["content"]}, *rest]
    first, *others = rest
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *others]


def _example(content: str) -> str:
    return repr(content if len(content) <= _SHOWN else content[:_SHOWN] + "…")
