"""The tool python: what a rollout's calls share, what ends a session, and code fences."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from rewards import program
from rewards.errors import UserError
from rewards.sandbox.client import SandboxError, SandboxLostError
from rewards.sandbox.isolation import MIN_LEVEL, measure
from rewards.sandbox.layers import LANDLOCK, NAMESPACES, SECCOMP
from rewards.sandbox.sessions import MAX_SNIPPET, Session
from rollout.chat_template import require_tool_turns
from rollout.collect import Collector
from rollout.prompts import PromptRenderer
from rollout.python_tool import PythonCalls, PythonTool
from rollout.records import Completion, EndReason
from rollout.sampler import SamplingParams
from rollout.tool_rollout import ToolRollout
from rollout.toolbox import Answer
from tests.rollout.test_collect import Equal, problem
from tests.rollout.test_tool_rollout import END, Speaks
from tests.rollout.test_tool_turns import TEMPLATES
from tests.rollout.tool_templates import HERMES, NO_TOOLS, tool_tokenizer

pytestmark = pytest.mark.skipif(measure().rank < MIN_LEVEL, reason="this machine does not isolate code")


@pytest.fixture(scope="module")
def tool() -> Iterator[PythonTool]:
    with closing(PythonTool(deadline=1.0)) as made:
        yield made


@pytest.fixture(scope="module")
def stateless() -> Iterator[PythonTool]:
    with closing(PythonTool(deadline=1.0, keeps_state=False)) as made:
        yield made


@pytest.fixture
def calls(tool: PythonTool) -> Iterator[PythonCalls]:
    with closing(tool.begin()) as begun:
        yield begun


def run(calls: PythonCalls, code: Any) -> Answer:
    return calls.call("python", {"code": code})


def test_variables_are_kept_between_the_calls_of_a_rollout(calls: PythonCalls) -> None:
    assert run(calls, "x = 3") == Answer("(no output)")
    assert run(calls, "print('x is')\nx") == Answer("x is\n3")


def test_without_state_each_call_begins_anew(stateless: PythonTool) -> None:
    with closing(stateless.begin()) as calls:
        run(calls, "x = 3")
        answer = run(calls, "x")
        assert answer.failed and answer.text.endswith("NameError: name 'x' is not defined")
        assert run(calls, "while True: pass") == Answer(
            "Error: the session was ended (no answer within 1 seconds)", True
        )
        assert run(calls, "import random\nrandom.random()") == run(calls, "import random\nrandom.random()")


def test_rollouts_share_no_variables(tool: PythonTool) -> None:
    with closing(tool.begin()) as one, closing(tool.begin()) as two:
        run(one, "import math\nmath.pi = 3")
        assert run(one, "math.pi") == Answer("3")
        assert run(two, "import math\nmath.pi").text.startswith("3.14")


def test_numpy_and_sympy_can_be_used(calls: PythonCalls) -> None:
    code = "import numpy, sympy\nx = sympy.symbols('x')\nprint(sympy.solve(x**2 - 4), numpy.linalg.det(numpy.eye(200)))"
    assert run(calls, code) == Answer("[-2, 2] 1.0")


def test_the_next_call_after_a_session_has_ended_begins_a_new_one(calls: PythonCalls) -> None:
    run(calls, "x = 3")
    assert run(calls, "print('so far')\nwhile True: pass") == Answer(
        "so far\nError: the session was ended (no answer within 1 seconds), and variables are lost", True
    )
    assert run(calls, "'x' in globals()") == Answer("False")
    assert run(calls, "import os\nos._exit(0)").text == (
        "Error: the session was ended (exit status 0), and variables are lost"
    )
    assert run(calls, "2") == Answer("2")


@pytest.mark.parametrize(
    ("stream", "code", "error"),
    [
        ("None", "3", "RuntimeError: lost sys.stdout"),
        ("None", "1 / 0", "ZeroDivisionError: division by zero"),
        ("__import__('io').StringIO()", "1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_an_error_is_shown_also_where_code_has_taken_the_output_away(
    calls: PythonCalls, stream: str, code: str, error: str
) -> None:
    assert run(calls, f"import sys\nsys.stdout = {stream}") == Answer("(no output)")
    answer = run(calls, code)
    assert answer.failed and error in answer.text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "Error: python takes one argument, code, which is text"),
        ({"code": 3}, "Error: python takes one argument, code, which is text"),
        ({"code": "1", "timeout": 3}, "Error: python takes one argument, code, which is text"),
        ({"code": "'\ud800'"}, "Error: the code has half of a surrogate pair, which is no character"),
        ({"code": "#" * (MAX_SNIPPET + 1)}, f"Error: the code has {MAX_SNIPPET + 1} bytes, more than {MAX_SNIPPET}"),
    ],
)
def test_arguments_that_are_no_code_are_answered(calls: PythonCalls, arguments: dict[str, Any], text: str) -> None:
    assert calls.call("python", arguments) == Answer(text, failed=True)


def test_a_sandbox_that_fails_in_mid_turn_is_not_the_fault_of_the_code() -> None:
    with closing(PythonTool()) as tool, closing(tool.begin()) as calls, closing(tool.begin()) as other:
        run(calls, "x = 3")
        run(other, "x = 3")
        assert tool.sessions._zygote is not None
        tool.sessions._zygote.process.kill()
        time.sleep(0.3)  # until the first process of its tree has followed it
        for lost in (calls, other):
            assert run(lost, "x") == Answer(
                "Error: the sandbox failed, which was not the fault of the code (the zygote died); the session was ended, and variables "
                "are lost",
                failed=True,
            )
            assert run(lost, "'x' in globals()") == Answer("False")


def fail(error: SandboxError, session: Session, source: str) -> None:
    raise error


def test_a_first_call_is_made_again_and_a_sandbox_that_fails_twice_ends_the_collection(
    calls: PythonCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    once, runs = [SandboxLostError("lost")], Session.run
    monkeypatch.setattr(Session, "run", lambda *given: fail(once.pop(), *given) if once else runs(*given))
    assert run(calls, "2") == Answer("2")
    calls.close()
    monkeypatch.setattr(Session, "run", lambda *given: fail(SandboxLostError("lost"), *given))
    with pytest.raises(SandboxError, match="lost"):
        run(calls, "2")


def test_64_rollouts_call_at_the_same_time(tool: PythonTool) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(64) as threads:
        begun = [stack.enter_context(closing(tool.begin())) for _ in range(64)]
        for n in range(3):
            answers = threads.map(lambda of: run(of[1], f"x = globals().get('x', {of[0]}) + 1\nx"), enumerate(begun))
            assert [answer.text for answer in answers] == [str(i + n + 1) for i in range(64)]


@pytest.mark.parametrize(("which", "at_least"), [("tool", 150), ("stateless", 30)])
def test_short_calls_are_answered_fast(which: str, at_least: int, request: pytest.FixtureRequest) -> None:
    """By one client, on a machine that does other things too; docs/environments.md has what one core can do."""
    with closing(request.getfixturevalue(which).begin()) as calls:
        started = time.perf_counter()
        for _ in range(100):
            assert run(calls, "print(1 + 1)") == Answer("2")
        assert 100 / (time.perf_counter() - started) > at_least


def test_code_is_not_run_where_it_cannot_be_isolated(monkeypatch: pytest.MonkeyPatch) -> None:
    weak = partial(measure, frozenset({NAMESPACES, LANDLOCK, SECCOMP}))
    monkeypatch.setattr(program, "measure", lambda without: weak())
    with pytest.raises(UserError, match=r"cannot be run safely here: isolation is L0 .* allow_unsafe_code"):
        PythonTool()
    with closing(PythonTool(allow_unsafe_code=True)) as tool, closing(tool.begin()) as calls:
        assert run(calls, "2") == Answer("2")
        assert run(calls, "import os\nos.kill(os.getppid(), 9)\nwhile True: pass").text.startswith("Error: the sandbox")
        calls.close()
        answer = run(calls, "import os\nos.kill(os.getppid(), 9)\nwhile True: pass")
        assert answer.text.startswith("Error: the sandbox was lost twice")
        assert run(calls, "2") == Answer("2")


def test_templates_show_the_tool(tool: PythonTool) -> None:
    for name in ("qwen3", "llama3_1"):
        require_tool_turns(tool_tokenizer((TEMPLATES / f"{name}.jinja").read_text()), tool.schemas)


def rollout_of(tokenizer: PreTrainedTokenizerBase, specs: list[str], **given: Any) -> ToolRollout:
    options: dict[str, Any] = {"tool_format": None, "max_turns": None, "deadline": 1.0, "num_workers": 1, **given}
    made = ToolRollout.of(specs, tokenizer, **options)
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("specs", "given", "message"),
    [
        (["python", "python"], {}, "tools has two that are called 'python'"),
        (["math:sqrt"], {"tool_format": "code-fences"}, r"a block of code calls the tool python alone, and tools is \['math:sqrt'\]"),
        (["python", "math:sqrt"], {"tool_format": "code-fences"}, "calls the tool python alone"),
    ],
)  # fmt: skip
def test_tools_that_cannot_be_beside_each_other_are_refused(
    specs: list[str], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        rollout_of(tool_tokenizer(HERMES), specs, **given)


def rolled_out(
    turns: list[str], words: Any = None, *, specs: tuple[str, ...] = ("python",), **given: Any
) -> tuple[Completion, Speaks]:
    words = words or tool_tokenizer(NO_TOOLS)
    sampler = Speaks(words, turns)
    with closing(rollout_of(words, [*specs], **given)) as rollout:
        collector = Collector(
            sampler=sampler,
            verifiers={"equal": Equal()},  # pyright: ignore[reportArgumentType]  it checks no references
            renderer=PromptRenderer(words, style="plain", tools_of=rollout.schemas_of),
            params=SamplingParams(max_tokens=900, stop_strings=rollout.stop_strings),
            group_size=1,
            run_seed=0,
            rollout=rollout,
        )
        (group,) = collector.collect([problem("x?")], step=1).groups
    return group.rollouts[0].completion, sampler


def block(code: str) -> str:
    return f"So:\n```python\n{code}\n```\n```output"


class StopsAtOutput(Speaks):
    """As an engine with the stop string: it writes no end of the turn behind it."""

    def say(self, text: str, seed: int, limit: int) -> Completion:
        said = super().say(text, seed, limit)
        if not text.endswith("```output"):
            return said
        return replace(
            said,
            token_ids=said.token_ids[:-1],
            sampler_logprobs=said.sampler_logprobs[:-1],
            loss_mask=said.loss_mask[:-1],
        )


@pytest.mark.parametrize("template", [NO_TOOLS, None], ids=["a template without tools", "no template"])
def test_in_code_fences_the_output_is_appended_and_the_turn_goes_on(
    template: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.rollout.test_python_tool.Speaks", StopsAtOutput)
    turns = [block("x = 7\nprint(x * 6)"), f"It is 42.\n{block('x + <|im_end|>')}", "The answer is 42."]
    completion, sampler = rolled_out(turns, tool_tokenizer(template), tool_format="code-fences")
    assert [len(context) for context in sampler.contexts] == sorted({len(context) for context in sampler.contexts})
    first, second, third = sampler.contexts
    assert second == f"{first}{turns[0]}\n42\n```\n"
    assert third.startswith(f"{second}{turns[1]}\n") and "SyntaxError" in third[len(second) :]
    assert completion.text == f"{turns[0]}\n```\n{turns[1]}\n```\n{turns[2]}"  # no output is graded
    own = [t for t, is_own in zip(completion.token_ids, completion.loss_mask, strict=True) if is_own]
    assert sampler.words.decode(own) == "".join(turns) + END
    use = completion.tool_use
    assert use is not None and (use.turns, use.calls, use.failed, use.malformed) == (3, 2, 1, 0)
    assert use.end is EndReason.ANSWER


def test_output_that_names_a_special_token_is_text() -> None:
    """Code cannot end the model's turn, or begin one of the user."""
    words = tool_tokenizer(NO_TOOLS)
    completion, _ = rolled_out([block("print('<|im_' + 'end|>')"), "42"], words, tool_format="code-fences")
    (end,) = words.encode(END, add_special_tokens=False)
    appended = [t for t, is_own in zip(completion.token_ids, completion.loss_mask, strict=True) if not is_own]
    assert words.decode(appended) == f"\n{END}\n```\n" and end not in appended


def test_a_fence_without_code_is_answered_and_counted() -> None:
    completion, sampler = rolled_out(["```output", "42"], tool_format="code-fences")
    assert sampler.contexts[1].endswith("\nError: write a block ```python before ```output\n```\n")
    assert completion.tool_use is not None and completion.tool_use.malformed == 1


def test_the_last_fences_are_answered_within_the_turn_limit() -> None:
    completion, sampler = rolled_out([block("1")] * 3, tool_format="code-fences", max_turns=2)
    assert completion.tool_use is not None and completion.tool_use.end is EndReason.TURNS
    assert len(sampler.contexts) == 2


@pytest.mark.parametrize(("keeps_state", "answer"), [(True, "8"), (False, "NameError")])
def test_calls_of_a_rollout_by_the_template(keeps_state: bool, answer: str) -> None:
    def call(code: str) -> str:
        return f"<tool_call>{json.dumps({'name': 'python', 'arguments': {'code': code}})}</tool_call>"

    turns = [call("x = 7"), call("x + 1"), "8"]
    completion, sampler = rolled_out(turns, tool_tokenizer(HERMES), keeps_state=keeps_state)
    assert "(no output)</tool_response>" in sampler.contexts[1]
    assert answer in sampler.contexts[2].rpartition("<tool_response>")[2]
    assert '"name": "python"' in sampler.contexts[0]
    assert completion.tool_use is not None and completion.tool_use.failed == (not keeps_state)


def test_a_rollout_ends_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Session] = []
    closes = Session.close
    monkeypatch.setattr(Session, "close", lambda session: (closed.append(session), closes(session))[1])
    rolled_out([block("x = 7"), "8"], tool_format="code-fences")
    assert len(closed) == 1
