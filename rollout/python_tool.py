"""The tool `python`: runs code that the model writes, in a sandbox, with what is printed as its answer."""

from __future__ import annotations

import sysconfig
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from rewards.errors import UserError
from rewards.program import require_isolation
from rewards.sandbox.child import Limits
from rewards.sandbox.client import SandboxError, SandboxLostError
from rewards.sandbox.layers import SECCOMP
from rewards.sandbox.sessions import MAX_SNIPPET, Session, Sessions, SnippetResult
from rollout.chat_template import ToolSchema
from rollout.code_fences import PYTHON
from rollout.toolbox import MAX_OUTPUT, Answer

PACKAGES = ("numpy", "sympy")  # that code may import, where they are installed, besides the standard library
MEMORY_LIMIT = 1 << 30  # bytes of address space of a session
_CPU_SECONDS = 600  # of a session


def schema(keeps_state: bool) -> ToolSchema:
    """The tool's schema, as the model is shown it."""
    kept = "Variables are kept between calls." if keeps_state else "Each call begins anew, without earlier variables."
    description = f"Runs Python code. Returns what it prints, and the value of an expression in its last line. {kept}"
    code = {"type": "string", "description": "The code to run."}
    parameters = {"type": "object", "properties": {"code": code}, "required": ["code"]}
    return {"type": "function", "function": {"name": PYTHON, "description": description, "parameters": parameters}}


class PythonTool:
    """The tool `python` of a run (rollout.toolbox.ToolSource). Each rollout has a session of its own, which its first call begins.

    keeps_state: variables are kept between the calls of a rollout; otherwise each call is run in a new process.
    deadline: seconds for one call. max_output: bytes of an answer, of which a longer one has its beginning and its end.
    Raises UserError if this machine cannot isolate code well enough and allow_unsafe_code is off, or if it can run none.
    """

    def __init__(
        self,
        *,
        keeps_state: bool = True,
        deadline: float = 5.0,
        max_output: int = MAX_OUTPUT,
        allow_unsafe_code: bool = False,
    ) -> None:
        self.schemas = [schema(keeps_state)]
        self.keeps_state = keeps_state
        self.limits: Limits = {
            "cpu_seconds": _CPU_SECONDS,
            "wall_seconds": deadline,
            "memory": MEMORY_LIMIT,
            "output": max_output,
        }
        self.layers = require_isolation(allow_unsafe_code).layers
        packages = [name for name in PACKAGES if find_spec(name)]
        readable = [sysconfig.get_path("purelib")] if packages else []
        try:
            self.sessions = Sessions(self.layers, packages=packages, readable=readable)
        except SandboxError as error:
            raise UserError(f"tools has {PYTHON!r}: code cannot be run here: {error}") from None

    def begin(self) -> PythonCalls:
        return PythonCalls(self)

    def close(self) -> None:
        """Ends all sessions. Safe to call twice."""
        self.sessions.close()


class PythonCalls:
    """The calls of one rollout, one at a time."""

    def __init__(self, tool: PythonTool) -> None:
        self._tool = tool
        self._session: Session | None = None

    def call(self, name: str, arguments: Mapping[str, Any]) -> Answer:
        """What the code printed, or why it could not be run. Raises SandboxError if the sandbox fails twice in new sessions."""
        code = arguments.get("code")
        if not isinstance(code, str) or len(arguments) != 1:
            return Answer.error(f"{PYTHON} takes one argument, code, which is text")
        try:
            num_bytes = len(code.encode())
        except UnicodeEncodeError:
            return Answer.error("the code has half of a surrogate pair, which is no character")
        if num_bytes > MAX_SNIPPET:
            return Answer.error(f"the code has {num_bytes} bytes, more than {MAX_SNIPPET}")
        return self._run(code)

    def _run(self, code: str) -> Answer:
        had_variables = self._session is not None
        try:
            return self._answer(self._attempt(code))
        except SandboxError as error:
            if had_variables:
                return Answer.error(
                    f"the sandbox failed, which was not the fault of the code ({error}); the session was ended, and variables are lost"
                )
        try:
            return self._answer(self._attempt(code))
        except SandboxLostError as error:
            if SECCOMP in self._tool.layers:
                raise
            return Answer.error(f"the sandbox was lost twice: {error}")  # without the filter code can end it

    def _attempt(self, code: str) -> SnippetResult:
        """Runs the code in the rollout's session, which it opens if there is none."""
        self._session = self._session or self._tool.sessions.open(self._tool.limits)
        try:
            result = self._session.run(code)
        except SandboxError:
            self.close()
            raise
        if result.ended or not self._tool.keeps_state:
            self.close()
        return result

    def _answer(self, result: SnippetResult) -> Answer:
        text = result.text.rstrip("\n")
        if result.ended:
            lost = ", and variables are lost" if self._tool.keeps_state else ""
            text = f"{text}\nError: the session was ended ({result.ended}){lost}".lstrip("\n")
        return Answer(text or "(no output)", result.failed)

    def close(self) -> None:
        """Ends the session. Safe to call twice."""
        if self._session is not None:
            self._session.close()
        self._session = None
