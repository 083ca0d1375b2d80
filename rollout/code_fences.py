"""Tool-integrated reasoning in code fences, as of ToRA (arXiv 2309.17452) and DeepSeekMath (arXiv 2402.03300): no template has a part in it.

The model writes a block ```python and then ```output, where it is stopped. What the code prints is appended, with the closing fence,
and the model goes on in the same turn of the conversation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rewards.errors import UserError
from rollout.chat_template import encode_as_text
from rollout.records import ToolFormat
from rollout.rollouts import Fixed

CODE_FENCES: ToolFormat = "code-fences"
PYTHON = "python"  # the tool, and the language of its blocks
OUTPUT = "```output"  # a stop string: where the model waits for what its code prints
_BLOCK = re.compile(r"^[ \t]*```(?:python|py)[ \t]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


def code_before_output(text: str) -> str | None:
    """The last block of Python of a turn that waits for its output; "" if it has none, None if the turn does not wait."""
    if not text.endswith(OUTPUT):
        return None
    blocks = _BLOCK.findall(text)
    return blocks[-1] if blocks else ""


def output_block(output: str, tokenizer: PreTrainedTokenizerBase) -> Fixed:
    """The rest of the block that the model has opened. Text of a token in the output is text: code cannot end the turn.

    Of the output nothing is graded; its fences are, so that they do not swallow what the model writes behind them.
    """
    return Fixed(encode_as_text(tokenizer, f"\n{output}\n```\n"), "\n```\n")


def require_python_alone(tools: Sequence[str], environment: Sequence[str], tool_format: ToolFormat | None) -> None:
    """Raises UserError for code fences with any tool but python, whose calls they cannot write."""
    if tool_format != CODE_FENCES or (list(tools) == [PYTHON] and not environment):
        return
    option, given = ("environment", list(environment)) if environment else ("tools", list(tools))
    raise UserError(
        f"tool_format is {CODE_FENCES!r}: a block of code calls the tool {PYTHON} alone, and {option} is {given}; "
        f"give --tools {PYTHON} and no environment, or leave tool_format out"
    )
