"""Which problems a run trains and evaluates on, and what it says of prompts that the model cannot take."""

from __future__ import annotations

from dataclasses import replace

import pytest

import rl.run.load_data
from rewards.errors import UserError
from rl.run.load_data import (
    joined,
    load_data,
    load_held_out,
    require_closing_token,
    require_room,
    within_limit,
)
from rl.run.setup import build_collector
from rl.run.tiny import tiny_tokenizer
from rl.settings.config import RunConfig
from rl.settings.resolve import resolve
from rollout.prompts import PromptRenderer
from rollout.records import Problem

RENDERER = PromptRenderer(tiny_tokenizer(), style="plain")


def problem(text: str) -> Problem:
    return Problem(id=text, prompt=text, reference="1")


PROBLEMS = [problem("a" * n) for n in (1, 4, 9)]  # with a newline 2, 5, 10 tokens


@pytest.mark.parametrize(
    ("options", "training", "held_out"),
    [
        ({"dataset_config": "main"}, ("x/y", "main", "train"), None),
        ({"dataset_config": "main", "eval_split": "test"}, ("x/y", "main", "train"), ("x/y", "main", "test")),
        ({"dataset_split": "all", "eval_dataset": "v/w"}, ("x/y", None, "all"), ("v/w", None, "test")),
        ({"dataset_config": "main", "eval_dataset": "x/y"}, ("x/y", "main", "train"), ("x/y", "main", "test")),
        (
            {"dataset_config": "a", "eval_dataset": "v/w", "eval_config": "b", "eval_split": "dev"},
            ("x/y", "a", "train"),
            ("v/w", "b", "dev"),
        ),
    ],
)
def test_configurations_and_splits_reach_the_data_set_that_they_are_of(
    options: dict[str, str], training: tuple[str | None, ...], held_out: tuple[str | None, ...] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked: list[tuple[str | None, ...]] = []

    def load(dataset: str, *, config: str | None, split: str, **rest: object) -> list[Problem]:
        asked.append((dataset, config, split))
        assert rest["prompt_column"] == "q"
        return [problem(f"{dataset} {config} {split} {n}") for n in range(3)]

    monkeypatch.setattr(rl.run.load_data, "load_problems", load)
    config = RunConfig(dataset="x/y", prompt_column="q", eval_size=2, **options)  # pyright: ignore[reportArgumentType]
    settings = resolve(config, "cpu")
    trained, evaluated = load_data(settings)
    assert asked == [training, *([held_out] if held_out else [])]
    assert len(evaluated) == 2 and not {p.id for p in joined(trained)} & {p.id for p in evaluated}
    assert load_held_out(settings) == evaluated


def test_overlong_prompts_are_left_out_and_reported() -> None:
    said: list[str] = []
    assert within_limit(RENDERER, PROBLEMS, "training", None, said.append) == PROBLEMS and not said
    assert within_limit(RENDERER, PROBLEMS, "training", 5, said.append) == PROBLEMS[:2]
    assert said == [
        "1 of 3 training problems are left out, their prompt is longer than max_prompt_tokens 5: problem 'aaaaaaaaa' has 10 tokens"
    ]
    with pytest.raises(UserError, match="max_prompt_tokens is 1: the shortest prompt of the training problems has 2"):
        within_limit(RENDERER, PROBLEMS, "training", 1, said.append)


def test_a_prompt_that_the_model_cannot_take_is_refused_with_what_to_do() -> None:
    """Its tokenizer may have more tokens than the model has embeddings, as long as no prompt has one of them."""
    with pytest.raises(UserError, match=r"the model's context is 12; .*--max-prompt-tokens 4"):
        require_room(RENDERER, PROBLEMS, 8, context=12)
    vocabulary = len(RENDERER.tokenizer)
    assert require_room(RENDERER, PROBLEMS, 8, context=None, vocabulary=vocabulary - 1) == 18
    boxed = replace(PROBLEMS[0], id="b", prompt="\\boxed{")
    with pytest.raises(UserError, match=rf"problem 'b' has token {vocabulary - 1}, .*embeddings for {vocabulary - 1}"):
        require_room(RENDERER, [boxed], 8, context=None, vocabulary=vocabulary - 1)


def test_worked_solutions_end_with_a_token_that_the_model_has() -> None:
    require_closing_token(RENDERER, RENDERER.closing_id + 1)
    with pytest.raises(UserError, match=rf"worked solutions end with token {RENDERER.closing_id}, .*resize"):
        require_closing_token(RENDERER, RENDERER.closing_id)


def test_a_run_stops_at_its_stop_strings_and_where_its_template_ends_a_turn() -> None:
    """Where the template's end is text of several tokens the engine must look for that text."""
    words = tiny_tokenizer()
    words.chat_template = "{% for m in messages %}{{ m['content'] }}\n### End\n{% endfor %}"
    settings = resolve(RunConfig(stop_strings=("</answer>",), max_tokens=7), "cpu")
    made = build_collector(settings, None, {}, PromptRenderer(words, style="plain"), None)  # pyright: ignore
    assert made.params.stop_strings == ("</answer>", "### End") and made.params.max_tokens == 7


def test_the_rounds_of_dynamic_sampling_are_an_option() -> None:
    settings = resolve(RunConfig(algorithm="dapo", max_refills=7), "cpu")
    renderer = PromptRenderer(tiny_tokenizer(), style="plain")
    assert build_collector(settings, None, {}, renderer, None).max_refills == 7  # pyright: ignore
