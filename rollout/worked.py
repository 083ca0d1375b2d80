"""The worked solution of a problem, as supervised training reads it from a row."""

from __future__ import annotations

from rewards.errors import UserError
from rollout.messages import is_message
from rollout.records import SOLUTION, Message, Problem


def worked_messages(problem: Problem) -> list[Message]:
    """The worked solution: what the assistant says, and what tools answer. A text is one turn of the assistant. Raises UserError for a
    list that is no such conversation."""
    worked = problem.metadata[SOLUTION]
    if not isinstance(worked, list):
        return [{"role": "assistant", "content": str(worked)}]
    if not (worked and all(map(is_message, worked)) and worked[0]["role"] == worked[-1]["role"] == "assistant"):
        raise UserError(
            f"problem {problem.id!r}: its worked solution is {ascii(worked)[:80]}: a list must be of messages with 'role' and 'content', "
            "the first and the last of role assistant; change it, or give it as text"
        )
    return [{**message, "content": str(message["content"])} for message in worked]


def worked_text(problem: Problem) -> str:
    """What of the worked solution is graded, as of a rollout."""
    return "\n".join(message["content"] for message in worked_messages(problem) if message["role"] == "assistant")
