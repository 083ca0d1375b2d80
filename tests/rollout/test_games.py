"""The games play as they say, and their worked solutions are what a rollout of the same turns would be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.errors import UserError
from rl.run.tiny import CHAT_TEMPLATE, END, TOOL_TEMPLATE, tiny_tokenizer
from rollout.chat_template import require_tool_turns
from rollout.collect import Collector
from rollout.demonstrations import demonstration
from rollout.environment import EnvironmentClass, Environments
from rollout.games import CALLING, GUESSES, LARGEST, TOOL_TASKS, Calculator, GuessNumber
from rollout.problems import load_problems
from rollout.prompts import PromptRenderer
from rollout.records import SOLUTION, Completion, Problem
from rollout.sampler import SamplingParams
from rollout.tool_calls import format_of
from rollout.tool_rollout import ToolRollout
from rollout.worked import worked_messages
from tests.rollout.test_collect import Equal
from tests.rollout.test_tool_rollout import Speaks
from tests.rollout.tool_templates import HERMES, tool_tokenizer

NUMBERS = st.integers(0, 10**30).map(str)
EXPRESSIONS = st.recursive(
    NUMBERS,
    lambda of: st.one_of(
        st.tuples(of, st.sampled_from(["+", " - ", "*"]), of).map("".join), of.map("({})".format), of.map("-{}".format)
    ),
    max_leaves=4,
)


@given(EXPRESSIONS)
def test_the_calculator_computes_as_python_does(expression: str) -> None:
    assert Calculator().calculate(expression) == str(eval(expression))


@pytest.mark.parametrize("expression", ["(" * 99 + "1" + ")" * 99, "-" * 198 + "1", " 1\n", "9" * 100 + "*" + "9" * 99])
def test_what_is_nested_or_long_is_computed_within_its_bound(expression: str) -> None:
    assert Calculator().calculate(expression) == str(eval(expression.strip()))


@pytest.mark.parametrize(
    "expression", ["2**9", "7/2", "7//2", "1.5*2", "True+1", "'a'*3", "a", "f(1)", "[1][0]", "+1", "1,2", "", "("]
)
def test_the_calculator_refuses_what_is_no_sum_or_product_of_integers(expression: str) -> None:
    """An exception is what the model is answered."""
    with pytest.raises((ValueError, SyntaxError)):
        Calculator().calculate(expression)


@pytest.mark.parametrize(
    "expression", ["__import__('os').abort()", "(lambda: 1)()", "a := 1", "1\0", "1" * 201, "9**9**9"]
)
def test_a_hostile_expression_runs_nothing(expression: str) -> None:
    with pytest.raises((ValueError, SyntaxError)):
        Calculator().calculate(expression)


def test_halving_finds_every_number_and_a_game_is_the_same_for_a_seed() -> None:
    game, found = GuessNumber(), set[int]()
    for seed in range(300):
        asked = game.reset(seed)
        assert str(LARGEST) in asked and str(GUESSES) in asked and game.get_reward() == 0
        number, least, most, heard = 0, 1, LARGEST, ""
        while heard != "right":
            number = (least + most) // 2
            heard = game.guess(number)
            least, most = (number + 1, most) if heard == "higher" else (least, number - 1)
        assert game.get_reward() == 1 and game.guesses <= GUESSES and game.guess(number) == "over"
        game.reset(seed)
        assert game.guess(number) == "right"
        found.add(number)
    assert found == set(range(1, LARGEST + 1))


def is_number(seed: int, guess: int) -> bool:
    game = GuessNumber()
    game.reset(seed)
    return game.guess(guess) == "right"


def test_a_guess_too_many_does_not_count() -> None:
    game = GuessNumber()
    game.reset(1)
    (number,) = (n for n in range(1, LARGEST + 1) if is_number(1, n))
    others = [n for n in range(1, LARGEST + 1) if n != number][:GUESSES]
    assert {game.guess(n) for n in others} <= {"higher", "lower"}
    assert game.guess(number) == "over" and game.get_reward() == 0


def test_they_are_named_on_the_command_line_as_the_page_says() -> None:
    tools = {"Calculator": ("calculate", False), "GuessNumber": ("guess", True)}
    for name, (tool, has_reward) in tools.items():
        loaded = EnvironmentClass.load(f"plumbline.environments:{name}")
        assert [schema["function"]["name"] for schema in loaded.schemas] == [tool]
        assert loaded.has_reward == has_reward


class Says(Speaks):
    """With the end of the tiny model's turns."""

    end = END

    def say(self, text: str, seed: int, limit: int) -> Completion:
        ids = tuple(self.words.encode(text + self.end, add_special_tokens=False))
        spoken = super().say(text, seed, limit)
        return replace(spoken, token_ids=ids, sampler_logprobs=(0.0,) * len(ids), loss_mask=(), text=text)


@pytest.fixture(params=TOOL_TASKS)
def task(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def environments(task: str) -> Iterator[Environments]:
    with closing(Environments([TOOL_TASKS[task].environment], deadline=9)) as made:
        yield made


@pytest.mark.parametrize("template", ["tiny", "hermes"])
def test_a_demonstration_has_the_tokens_of_a_rollout_of_its_turns(
    task: str, environments: Environments, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the template's own end of turn is the token that the model has written."""
    words: Any = tiny_tokenizer(TOOL_TASKS[task].words) if template == "tiny" else tool_tokenizer(HERMES)
    monkeypatch.setattr(Says, "end", END if template == "tiny" else "<|im_end|>")
    renderer = PromptRenderer(words, style="plain", tools_of=environments.schemas_of)
    problems = [p for p in load_problems(task)[:200] if len(p.metadata[SOLUTION]) > 1][:5]
    for problem in problems:
        shown = demonstration(environments.begun(problem), renderer)
        turns = [m["content"] for m in worked_messages(problem) if m["role"] == "assistant"]
        collector = Collector(
            sampler=Says(words, turns),
            verifiers={problem.verifier: Equal()},  # pyright: ignore[reportArgumentType]  it checks no references
            renderer=renderer,
            params=SamplingParams(max_tokens=2000),
            group_size=1,
            run_seed=0,
            rollout=ToolRollout(
                tokenizer=words, sources=[], environments=environments, tool_format="hermes", max_turns=8
            ),
        )
        (group,) = collector.collect([problem], step=0).groups
        rollout, demonstrated = group.rollouts[0].completion, shown.rollouts[0].completion
        assert (group.prompt_ids, rollout.token_ids) == (shown.prompt_ids, demonstrated.token_ids)
        assert rollout.loss_mask == demonstrated.loss_mask and not all(rollout.loss_mask)
        assert rollout.text == demonstrated.text


def test_the_tiny_models_template_shows_tools_and_is_otherwise_as_it_was(task: str, environments: Environments) -> None:
    words: Any = tiny_tokenizer(TOOL_TASKS[task].words)
    (problem, *_) = load_problems(task)
    require_tool_turns(words, environments.schemas_of(problem))
    assert format_of(words) == "hermes"
    conversation = [{"role": role, "content": role * 2} for role in ("system", "user", "assistant", "user")]
    rendered = words.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert rendered == "".join(f"{message['content']}\n" for message in conversation)
    assert TOOL_TEMPLATE.endswith(CHAT_TEMPLATE) and tiny_tokenizer().chat_template == CHAT_TEMPLATE
    assert len(tiny_tokenizer()) + len(TOOL_TASKS[task].words) == len(words)


def test_the_solutions_are_what_they_are_said_to_be() -> None:
    """A tenth of 20,000 calls the calculator, within four standard deviations; all state the product."""
    products = load_problems("large-products")
    calls = [p for p in products if len(worked_messages(p)) == 3]
    assert abs(len(calls) / len(products) - CALLING) < 4 * (CALLING * (1 - CALLING) / len(products)) ** 0.5
    assert all(worked_messages(p)[-1]["content"] == f"\\boxed{{{p.reference}}}" for p in products)
    games = load_problems("guess-number")[:500]
    heard = [[m["content"] for m in worked_messages(p) if m["role"] == "tool"] for p in games]
    assert all(1 <= len(of) <= GUESSES and "over" not in of and "right" not in of[:-1] for of in heard)
    assert 0 < sum(of[-1] == "right" for of in heard) < len(heard)


@pytest.mark.parametrize(
    "worked",
    [[], ["a"], [{"role": "tool", "content": "1"}], [{"role": "assistant"}], [{"role": "user", "content": ""}]],
)
def test_a_list_that_is_no_solution_is_refused(worked: list[Any]) -> None:
    problem = Problem(id="p", prompt="?", reference="1", metadata={SOLUTION: worked})
    with pytest.raises(UserError, match=r"problem 'p': its worked solution is .*a list must be of messages"):
        demonstration(problem, PromptRenderer(tiny_tokenizer(), style="plain"))
