"""Problems become token ids: the only place that renders a prompt."""

from __future__ import annotations

from functools import partial

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from rewards.errors import UserError
from rollout.records import Problem, PromptStyle

SYSTEM_PROMPTS: dict[str, str | None] = {
    "plain": None,
    "boxed": "Reason step by step, and put your final answer within \\boxed{}.",
    "r1": (
        "First think about the problem, then answer it. Enclose the reasoning in <think> </think> and the final answer "
        "in <answer> </answer>, i.e., <think> reasoning </think> <answer> answer </answer>."
    ),
    "code": "Solve the task in Python, and put the whole program in one ```python block.",
}
STYLE_OF: dict[str, PromptStyle] = {"math": "boxed", "program": "code"}  # by verifier; other problems say it themselves


class PromptRenderer:
    """The chat template where the tokenizer has one; for a base model the texts, one under the other.

    style: which system prompt goes before a problem; None is the one that says where its verifier looks for the answer.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, style: PromptStyle | None, system_prompt: str | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self._style, self._system_prompt = style, system_prompt

    def _system(self, problem: Problem) -> str | None:
        if self._system_prompt is not None:
            return self._system_prompt
        return SYSTEM_PROMPTS[self._style or STYLE_OF.get(problem.verifier) or "plain"]

    def render(self, problem: Problem) -> tuple[int, ...]:
        prompt = problem.prompt
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
        system = self._system(problem)
        if system is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": system})
        if self.tokenizer.chat_template is not None:
            ids = self.tokenizer(self._apply_template(messages), add_special_tokens=False).input_ids
        else:
            ids = self.tokenizer("\n\n".join(m["content"] for m in messages) + "\n").input_ids
        if not ids:
            raise UserError(
                f"problem {problem.id!r} has an empty prompt: a completion needs at least one token before it"
            )
        return tuple(ids)

    def _apply_template(self, messages: list[dict[str, str]]) -> str:
        """The template's text, its special tokens included; where it refuses a system role, the user says both."""
        render = partial(self.tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)
        try:
            return str(render(messages))
        except TemplateError:
            if len(messages) < 2 or messages[0]["role"] != "system":
                raise
            system, first, *rest = messages
            return str(render([{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]))
