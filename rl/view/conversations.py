"""A completion as HTML: whose turn each part of it is, with what the policy did not write greyed, and long parts folded."""

from __future__ import annotations

import html
import json
from typing import Any, NamedTuple

from rl.view.progress import visible

TEXT_LIMIT = 4_000  # characters of one text that are embedded
MAX_PARTS = 20  # of a completion that are shown: the first and the last half of them
FOLDED_ABOVE = 600  # characters

CSS = """
.part{border:0;padding:4px 0 0}.part>summary{color:var(--muted);font-size:13px}
.masked>pre{color:var(--muted);background:none;border-left:3px solid var(--grid)}
"""


class Part(NamedTuple):
    role: str
    text: str
    is_masked: bool = False


def escaped(value: object, limit: int = TEXT_LIMIT) -> str:
    """A value of the run as escaped HTML text, lists and dictionaries as JSON, cut at `limit` characters."""
    text = json.dumps(value, ensure_ascii=False, indent=1) if isinstance(value, list | dict) else str(value)
    cut = f" … [{len(text) - limit:,} more characters]" if len(text) > limit else ""
    return html.escape(visible(text[:limit])) + cut


def parts_of(record: dict[str, Any]) -> list[Part]:
    """The turns of the model, and what tools answered or a thinking budget forced between them, in order.

    record: a line of completions.jsonl. Those of earlier versions do not say which part of `conversation` is masked: it is one part.
    """
    text, spans = record["conversation"], record.get("masked")
    if spans is None:
        return [Part("model and tools", text)]
    has_tools = record.get("tool_use") is not None
    parts, done = list[Part](), 0
    for start, end in spans:
        parts.append(Part("model, calls a tool" if has_tools else "model", text[done:start]))
        parts.append(Part("answer of the tool" if has_tools else "forced", text[start:end], is_masked=True))
        done = end
    return [part for part in (*parts, Part("model", text[done:])) if part.text]


def conversation(record: dict[str, Any]) -> str:
    """HTML of the completion of a line of completions.jsonl: of its one text where the policy wrote all of it in one turn."""
    if "conversation" not in record:
        return f"<pre>{escaped(record.get('completion'))}</pre>"
    shown = [_part(part) for part in parts_of(record)]
    if len(shown) > MAX_PARTS:
        half = MAX_PARTS // 2
        shown[half:-half] = [f"<p class=note>… {len(shown) - 2 * half:,} more parts …</p>"]
    return f"<p class=note>{escaped(_what_it_did(record), 500)}</p>{''.join(shown)}"


def _part(part: Part) -> str:
    kind = "part masked" if part.is_masked else "part"
    is_open = "" if len(part.text) > FOLDED_ABOVE else " open"
    size = "" if is_open else f" · {len(part.text):,} characters"
    return (f"<details class='{kind}'{is_open}><summary>{part.role}{size}</summary>"
            f"<pre>{escaped(part.text)}</pre></details>")  # fmt: skip


def _what_it_did(record: dict[str, Any]) -> str:
    """A line about the tools or the thinking of a completion."""
    if (used := record.get("tool_use")) is not None:
        facts = (f"{used['turns']} turns", f"{used['calls']} calls", f"{used['failed']} of them failed",
                 f"{used['seconds']:.2g} s in tools", f"ended by {used['end']}")  # fmt: skip
        return " · ".join(facts)
    if (thinking := record.get("thinking")) is not None:
        cut = ["cut by the budget"] if thinking["is_cut"] else []
        return " · ".join([f"{thinking['num_tokens']} thinking tokens", f"{thinking['num_waits']} waits", *cut])
    return "several turns"
