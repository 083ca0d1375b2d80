"""A class that is written for TRL's `environment_factory` is an environment: reset, methods as tools, get_reward."""

from __future__ import annotations

import json
import math
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest

import plumbline
from rewards.errors import UserError
from rewards.score import FinalState, Outcome, Score
from rewards.weighted import EnvironmentVerifier
from rollout import environment, own_process
from rollout.collect import Collector
from rollout.environment import Environment, EnvironmentClass, Environments
from rollout.environment_names import read_name, with_name
from rollout.prompts import PromptRenderer
from rollout.records import EndReason, Problem, RolloutGroup
from rollout.sampler import SampleRequest, SamplingParams
from rollout.tool_rollout import ToolRollout
from tests.rollout.some_environments import OTHER_ERRORS
from tests.rollout.test_tool_rollout import Speaks
from tests.rollout.tool_templates import HERMES, NO_TOOLS, tool_tokenizer

FILE = Path(__file__).with_name("some_environments.py")


def environments(*names: str, deadline: float = 5.0) -> Environments:
    return Environments([name if "=" in name else f"{FILE}:{name}" for name in names], deadline=deadline)


def row(**columns: Any) -> Problem:
    return Problem(id="row", prompt="Guess the word.", reference="", metadata=columns, verifier="environment")


def begin(name: str, *, deadline: float = 5.0, **columns: Any) -> tuple[Environment, str]:
    """The environment, and the question with what it says at its beginning."""
    environment, problem = environments(name, deadline=deadline).begin(row(**columns))
    return environment, problem.question


def test_a_game_is_played_by_its_methods() -> None:
    game, question = begin("Wordle", word="crane")
    assert [schema["function"]["name"] for schema in game.schemas] == ["guess"]
    assert game.schemas[0]["function"]["parameters"]["required"] == ["guess"] and game.of.has_reward
    assert question == "Guess the word. It has 5 letters."
    assert game.call("guess", {"guess": "crown"}) == ("GGXXX", False)
    assert game.call("guess", {"guess": "no"}) == ("Error: ValueError: a guess must have 5 letters", True)
    assert game.end().score == Score(0.0, Outcome.WRONG, {}, "returned 0.0")
    assert game.call("guess", {"guess": "crane"}) == ("GGGGG", False)
    assert game.end().score == Score(1.0, Outcome.CORRECT, {}, "returned 1.0")
    assert game.end().state == {"word": "crane", "guesses": 2, "reward": 1.0}


def test_instances_share_nothing_and_are_reset_for_the_next_episode() -> None:
    wordle = environments("Wordle")
    (one, _), (other, _) = wordle.begin(row(word="crane")), wordle.begin(row(word="bird"))
    assert one.call("guess", {"guess": "crane"}).text == "GGGGG"
    assert other.call("guess", {"guess": "bind"}).text == "GGXG" and one.end().state["reward"] == 1.0
    one.close()
    one.close()
    again, _ = wordle.begin(row(word="plane"))
    assert again is one and again.end().state == {"word": "plane", "guesses": 0, "reward": 0.0}
    third, _ = wordle.begin(row(word="plane"))
    assert third not in (one, other)


def test_methods_may_be_async_in_one_event_loop_and_reset_may_name_its_columns() -> None:
    slow, question = begin("Slow", size=3, other="column")
    assert question == "Guess the word." and not slow.of.has_reward
    assert slow.call("more", {"by": 4}) == ("7", False)
    assert slow.end().score is None and slow.end().state == {"size": 7, "same_loop": True, "same_thread": True}


def test_reset_is_given_the_columns_by_name_whatever_their_names() -> None:
    columns = {"answer": "a", "answers": ["a", "b"], "args": 1}
    assert begin("TakesAnything", **columns)[1] == "Guess the word. 0 ['answer', 'answers', 'args', 'prompt']"
    assert begin("NamesColumns", **columns)[1] == "Guess the word. a ['a', 'b'] 0 0"


@pytest.mark.parametrize(
    ("returned", "value", "outcome"),
    [
        (0.5, 0.5, Outcome.WRONG),
        (True, 1.0, Outcome.CORRECT),
        (None, None, Outcome.NOT_GRADED),
        (math.nan, None, Outcome.CRASHED),
        ([1.0], None, Outcome.CRASHED),
        ("the server is gone", None, Outcome.CRASHED),
    ],
)
def test_a_reward_that_is_none_is_never_a_zero(returned: Any, value: float | None, outcome: Outcome) -> None:
    environment, _ = begin("Rewards", returned=returned)
    score = environment.end().score
    assert score is not None and (score.value, score.outcome) == (value, outcome)
    assert not isinstance(returned, str) or "RuntimeError: the server is gone" in score.detail


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NoReset", r"environment is .*NoReset': it has no method reset; give it one, reset\(self, \*\*row\)"),
        ("Undescribed", "Undescribed': its method 'give_up': .*no docstring.*; or begin its name with _"),
        ("NeedsKey", "NeedsKey': no instance of it can be made: KeyError: 'API_KEY'"),
        ("RaisesAtOnce", "RaisesAtOnce': no instance of it can be made: KeyboardInterrupt"),
        (
            "Absent",
            "Absent': no instance of it can be made: it has no class 'Absent'; its classes are Deals, Decorated",
        ),
        ("1", "'1' is not the name of a class; write file.py:Class or module:Class"),
    ],
)
def test_a_class_that_is_no_environment_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        EnvironmentClass.load(f"{FILE}:{name}")


@pytest.mark.parametrize(
    ("name", "columns", "failure"),
    [
        ("Wordle", {}, "Wordle: reset fails: KeyError: 'word'"),
        ("Rewards", {"returned": 1.0, "observation": ["image"]}, "Rewards: reset returned a list, not text or None"),
        ("Hangs", {"where": "reset"}, "Hangs: reset gave no answer within 0.2 seconds"),
        ("Hangs", {"where": "wait"}, "Hangs: wait gave no answer within 0.2 seconds"),
    ],
)
def test_an_episode_that_cannot_go_on_fails_and_its_instance_is_not_used_again(
    name: str, columns: dict[str, Any], failure: str
) -> None:
    made = environments(name, deadline=0.2)
    environment, _ = made.begin(row(**columns))
    if not environment.failure:
        assert environment.call("wait", {}) == ("Error: wait gave no answer within 0.2 seconds", True)
    assert environment.end().failure.endswith(failure) and environment.end().score is None
    environment.close()
    assert made.begin(row(**columns))[0] is not environment


@pytest.mark.parametrize(
    "code", ["import time; time.sleep(9)", "class E:\n    def __init__(self): import time; time.sleep(9)"]
)
def test_a_class_that_hangs_as_it_is_imported_or_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    (tmp_path / "hangs.py").write_text(code)
    monkeypatch.setattr(environment, "_START_DEADLINE", 0.2)
    with pytest.raises(UserError, match=r"hangs.py:E': no instance of it was made within 0.2 seconds; mend"):
        EnvironmentClass.load(f"{tmp_path}/hangs.py:E")


@pytest.mark.parametrize("error", OTHER_ERRORS)
@pytest.mark.parametrize("where", ["act", "wait", "show"])
def test_whatever_a_method_raises_is_the_answer_to_its_call(where: str, error: str) -> None:
    raises, _ = begin("Raises", where=where, error=error)
    assert not raises.call("act" if where == "wait" else "wait", {}).failed
    answer = raises.call(where, {})
    assert answer.failed and answer.text.startswith("Error: ") and error in answer.text and "mine" in answer.text
    assert not raises.call("act" if where == "wait" else "wait", {}).failed
    score = raises.end().score
    assert score is not None and score.value == 1.0


@pytest.mark.parametrize("error", OTHER_ERRORS)
def test_whatever_reset_or_get_reward_raises_leaves_its_episode_ungraded(error: str) -> None:
    begun, _ = begin("Raises", where="reset", error=error)
    assert re.search(f"Raises: reset fails: .*{error}: mine", begun.end().failure)
    begun, _ = begin("Raises", where="get_reward", error=error)
    score = begun.end().score
    assert score is not None and score.outcome is Outcome.CRASHED and error in score.detail


def test_an_instance_may_ask_for_a_process_of_its_own() -> None:
    made = environments("InItsOwnProcess", deadline=2.0)
    (one, question), (other, _) = (made.begin(row(word=word, unfit=object())) for word in ("crane", "bird"))
    assert question.question == "Guess the word. It has 5 letters."
    assert one.call("guess", {"guess": "crane"}) == ("GGGGG", False)
    assert one.call("guess", {"guess": "no"}) == ("Error: ValueError: a guess must have 5 letters", True)
    assert one.end() == FinalState(
        Score(1.0, Outcome.CORRECT, {}, "returned 1.0"), {"word": "crane", "guesses": 1, "reward": 1.0}
    )
    pids = {environment.call("misuse", {"how": "print"}).text for environment in (one, other)}
    assert len(pids) == 2 and str(os.getpid()) not in pids
    one.close()
    other.close()
    made.close()
    for pid in pids:
        assert not Path("/proc", pid).exists()


@pytest.mark.parametrize(
    ("how", "failure"),
    [("die", "misuse fails: its process has died"), ("hang", "misuse gave no answer within 1 seconds")],
)
def test_a_process_that_dies_or_hangs_is_the_failure_of_its_episode_alone(how: str, failure: str) -> None:
    made = environments("InItsOwnProcess", deadline=1.0)
    (one, _), (other, _) = (made.begin(row(word="bird")) for _ in range(2))
    assert one.call("misuse", {"how": how}).failed and one.end().failure.endswith(failure)
    assert other.call("guess", {"guess": "bird"}) == ("GGGG", False)
    one.close()
    other.close()
    made.close()


def test_a_process_that_is_not_ready_in_time_is_the_failure_of_its_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    made = environments("InItsOwnProcess")
    monkeypatch.setattr(own_process, "_START_DEADLINE", 0.001)
    begun, _ = made.begin(row(word="bird"))
    assert begun.failure == "its process cannot be started: no answer within 0.001 seconds"


def test_a_state_that_is_too_long_to_be_sent_fails_its_episode() -> None:
    game, _ = begin("InItsOwnProcess", word="bird")
    game.call("misuse", {"how": "grow"})
    failure = game.end().failure
    game.end_host()
    assert "InItsOwnProcess: state fails: it returned 30000" in failure


def test_a_row_names_its_environment() -> None:
    both = environments(f"wordle={FILE}:Wordle", "Slow")
    game, _ = both.begin(row(environment="wordle", word="bird"))
    assert game.call("guess", {"guess": "bird"}) == ("GGGG", False)
    assert both.have_reward and [s["function"]["name"] for s in both.schemas_of(row(environment="Slow"))] == ["more"]
    for named in ({"environment": "chess"}, {}):
        with pytest.raises(UserError, match=r"problem 'row' has the environment ('chess'|None): .*one of wordle, Slow"):
            both.begin(row(**named))
    with pytest.raises(UserError, match="two that are called 'Slow'"):
        environments("Slow", f"Slow={FILE}:Wordle")


@pytest.mark.parametrize("name", [["Slow"], {"name": "Slow"}, 1])
def test_a_row_whose_environment_is_no_name_is_refused(name: Any) -> None:
    both = environments(f"wordle={FILE}:Wordle", "Slow")
    with pytest.raises(UserError, match=r"problem 'row' has the environment .*: it must be one of wordle, Slow"):
        both.begin(row(environment=name))


def test_methods_are_found_as_trl_finds_them_and_called_by_the_names_that_they_have() -> None:
    decorated, _ = begin("Decorated")
    assert [schema["function"]["name"] for schema in decorated.schemas] == ["double", "shout", "whisper"]
    said = [decorated.call(name, {"text": "Ab"}).text for name in ("double", "shout", "whisper")]
    assert said == ["AbAb", "AB", "ab"] and not decorated.of.has_reward


@pytest.mark.parametrize(
    ("given", "name", "of"),
    [
        ("games.py:Wordle", None, "games.py:Wordle"),
        ("my game=games.py:Wordle", "my game", "games.py:Wordle"),
        ("game=/tmp/x=y/games.py:Wordle", "game", "/tmp/x=y/games.py:Wordle"),
        ("/tmp/x=y/games.py:Wordle", None, "/tmp/x=y/games.py:Wordle"),
        ("./x=y.py:Wordle", None, "./x=y.py:Wordle"),
    ],
)
def test_an_equals_sign_behind_a_slash_belongs_to_the_path(given: str, name: str | None, of: str) -> None:
    assert read_name(given) == (name, of)
    assert name is None or with_name(name, of) == given


def test_a_name_that_is_empty_or_could_not_be_read_back_is_refused() -> None:
    with pytest.raises(UserError, match=r"environment is '=games.py:Wordle': nothing stands before its ="):
        read_name("=games.py:Wordle")
    unfit: list[Any] = ["a=b", "a/b", "a:b", " ", 1, None]
    for name in unfit:
        with pytest.raises(UserError, match=f"environment has the name {name!r}: it must be text without ="):
            plumbline.train(environment={name: "games.py:Wordle"})


def test_one_environment_without_a_name_is_that_of_every_row_whatever_its_columns() -> None:
    game, _ = begin("Wordle", word="bird", environment="Paris")
    assert game.call("guess", {"guess": "bird"}) == ("GGGG", False)


def test_the_game_of_the_page_can_be_played(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "environments.md").read_text()
    (code,) = (block for block in page.split("```python\n") if block.startswith("# games.py"))
    (tmp_path / "games.py").write_text(code.partition("```")[0])
    game, problem = Environments([f"{tmp_path}/games.py:Wordle"], deadline=5.0).begin(row(word="crane"))
    assert problem.question == "Guess the word. It has 5 letters."
    assert game.call("guess", {"guess": "nacre"}) == ("YYYYG", False)
    assert game.call("guess", {"guess": "crane"}) == ("GGGGG", False)
    assert game.end().score == Score(1.0, Outcome.CORRECT, {}, "returned 1.0")


class Plays(Speaks):
    """A model that says the turns of `said` for each rollout, by the number of the turn."""

    said: list[str]

    def completions(self, request: SampleRequest) -> Any:
        self.contexts.append(self.words.decode(request.prompt_ids))
        turn = self.contexts[-1].count("<tool_response>")
        text = self.said[min(turn, len(self.said) - 1)]
        self.turns = iter([text] * len(request.seeds))
        return super().completions(request)


def play(
    name: str,
    said: list[str],
    rows: list[Problem],
    *,
    group_size: int = 1,
    max_tokens: int = 900,
    deadline: float = 5.0,
) -> tuple[list[RolloutGroup], Plays]:
    words = tool_tokenizer(HERMES)
    sampler = Plays(words, [])
    sampler.said = said
    made = environments(name, deadline=deadline)
    rollout = ToolRollout.of((), words, tool_format=None, max_turns=4, deadline=None, num_workers=1, environments=made)
    assert rollout is not None
    collector = Collector(
        sampler=sampler,
        verifiers={"environment": EnvironmentVerifier()},
        renderer=PromptRenderer(words, style="plain", tools_of=rollout.schemas_of),
        params=SamplingParams(max_tokens=max_tokens),
        group_size=group_size,
        run_seed=0,
        rollout=rollout,
    )
    groups = collector.collect(rows, step=1).groups
    collector.close()
    return groups, sampler


def guess(word: str) -> str:
    return "<tool_call>" + json.dumps({"name": "guess", "arguments": {"guess": word}}) + "</tool_call>"


def test_a_rollout_is_scored_by_the_environment_that_it_has_played_in() -> None:
    before = threading.active_count()
    groups, sampler = play("Wordle", [guess("bird"), "I think so."], [row(word="bird"), row(word="bind")])
    assert [group.rollouts[0].score.value for group in groups] == [1.0, 0.0]
    completion = groups[0].rollouts[0].completion
    assert completion.text == guess("bird") + "\nI think so." and completion.final_state is None
    assert "Guess the word. It has 4 letters." in sampler.contexts[0] and any("GGGG" in c for c in sampler.contexts)
    assert completion.tool_use is not None and completion.tool_use.end is EndReason.ANSWER
    while threading.active_count() > before:  # the threads of the instances end with the run
        pass


def test_what_differs_at_the_beginnings_of_a_group_is_context_of_each_completion() -> None:
    """The prompt that they share is what their prompts begin with; the rest of each is no token of the policy."""
    groups, sampler = play("Deals", ["done"], [row()], group_size=3)
    (group,) = groups
    words, wholes = sampler.words, sampler.contexts
    assert len(set(wholes)) == 3
    for rollout, n in zip(group.rollouts, (1, 2, 3), strict=True):
        completion = rollout.completion
        tokens = words.decode([*group.prompt_ids, *completion.token_ids])
        assert f"Guess the word. Your card is {n}." in tokens
        own = [t for t, chosen in zip(completion.token_ids, completion.loss_mask, strict=True) if chosen]
        assert words.decode(own).startswith("done") and completion.num_chosen == len(completion.sampler_logprobs)
    assert words.decode(group.prompt_ids).endswith("Your card is ")


def test_what_an_environment_says_first_counts_to_the_tokens_of_the_completion() -> None:
    alike, _ = play("Deals", ["x" * 500], [row()], max_tokens=100)
    said = len(" Your card is 1.")
    assert alike[0].rollouts[0].completion.num_chosen == 100 - said
    too_long, sampler = play("Deals", ["x" * 500], [row()], max_tokens=said)
    rollout = too_long[0].rollouts[0]
    assert (rollout.score.value, rollout.score.outcome) == (None, Outcome.CRASHED)
    assert f"what reset returned has {said} tokens, and max_tokens is {said}" in rollout.score.detail
    assert rollout.completion.num_chosen == 1 and "card" not in sampler.contexts[0]


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ({"name": "guess", "arguments": {"guess": "\ud800"}}, "Error: ValueError: no ?"),
        ({"name": "guess", "arguments": {"\ud800": 1}}, "got an unexpected keyword argument '?'"),
        ({"name": "\ud800", "arguments": 1}, "Error: the arguments of ? must be an object"),
        ({"name": "\ud800", "arguments": {}}, "Error: there is no tool '\\ud800'"),
    ],
)
def test_half_of_a_character_becomes_a_question_mark(call: dict[str, Any], answer: str) -> None:
    said = [f"<tool_call>{json.dumps(call)}</tool_call>", "done"]
    groups, sampler = play("HalfCharacters", said, [row()])
    assert groups[0].rollouts[0].score.value == 0.0 and "Guess the word. a?b" in sampler.contexts[0]
    assert answer in sampler.contexts[-1]


@pytest.mark.parametrize("where", ["reset", "wait"])
def test_an_environment_that_hangs_ends_its_rollout_ungraded(where: str) -> None:
    call = "<tool_call>" + json.dumps({"name": "wait", "arguments": {}}) + "</tool_call>"
    groups, _ = play("Hangs", [call], [row(where=where), row(where="")], deadline=0.2)
    hung, went_on = (group.rollouts[0] for group in groups)
    assert hung.score.value is None and f"{where} gave no answer within 0.2 seconds" in hung.score.detail
    assert hung.completion.tool_use is not None and hung.completion.tool_use.end is EndReason.FAILURE
    assert went_on.score.value == 0.0 and went_on.completion.tool_use is not None
    assert went_on.completion.tool_use.end is EndReason.TURNS


@pytest.mark.parametrize(
    ("tools", "template", "message"),
    [
        ((), NO_TOOLS, "tools are guess: the chat template has no place for tools"),
        ((f"{FILE}:guess",), HERMES, "tools has two that are called 'guess'"),
    ],
)
def test_what_the_model_could_not_call_is_refused(tools: tuple[str, ...], template: str, message: str) -> None:
    none: Any = dict.fromkeys(("tool_format", "max_turns", "deadline", "num_workers"))
    with pytest.raises(UserError, match=message):
        ToolRollout.of(tools, tool_tokenizer(template), **none, environments=environments("Wordle"))
