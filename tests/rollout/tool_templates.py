"""Chat templates of three families in short, with their places for tools and for what tools answer."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from rl.run.tiny import tiny_tokenizer

_ASKS = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
_MESSAGE = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
HERMES = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools> Answer <tool_call>{...}</tool_call>\n{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'tool' %}<|im_start|>user\n<tool_response>{{ m['content'] }}</tool_response><|im_end|>\n"
    "{% else %}" + _MESSAGE + "{% endif %}{% endfor %}" + _ASKS
)
LLAMA3 = (
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    'Respond in the format {"name": function name, "parameters": its arguments}.\n{% endif %}'
    "{% for m in messages %}<|start_header_id|>{{ 'ipython' if m['role'] == 'tool' else m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | tojson if m['role'] == 'tool' else m['content'] | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
NO_TOOLS = "{% for m in messages %}" + _MESSAGE + "{% endfor %}" + _ASKS
# Forgets the tool's answers of all turns but the last one.
FORGETS = HERMES.replace(
    "{% if m['role'] == 'tool' %}", "{% if m['role'] == 'tool' and not loop.last %}{% elif m['role'] == 'tool' %}"
)


def tool_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """A token per byte, and the tokens of the templates."""
    words = tiny_tokenizer()
    words.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>"]}
    )
    words.chat_template = template
    return words
