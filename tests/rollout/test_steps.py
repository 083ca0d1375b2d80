"""The ends of a completion's steps, found in linear time and beside the sampling."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.run.tiny import tiny_tokenizer
from rollout import collect, steps
from rollout.records import Completion, FinishReason
from rollout.sampler import ScriptedSampler
from tests.rollout.test_collect import RENDERER, collector, encoded, problem

TOKENIZER = tiny_tokenizer()


def completion(token_ids: Sequence[int]) -> Completion:
    text = TOKENIZER.decode(list(token_ids), skip_special_tokens=True)
    return Completion(
        token_ids=tuple(token_ids),
        sampler_logprobs=(0.0,) * len(token_ids),
        finish_reason=FinishReason.STOP,
        policy_version=0,
        seed=0,
        text=str(text),
    )


@given(
    st.lists(
        st.sampled_from(["1+1=2\n", "2+2=4 é\n", "漢字 3+3=6", "🎉\n", "x ", "\\boxed{", "\n", "5+5=10 🎉🎉\n"]),
        min_size=1,
        max_size=12,
    )
)
@settings(max_examples=60, deadline=None)
def test_a_step_ends_with_the_first_token_that_completes_its_line(pieces: list[str]) -> None:
    """Compared with decoding the whole text up to each token, which takes quadratic time."""
    written = completion(encoded("".join(pieces)))
    found = steps.steps_of(TOKENIZER, problem("a"), written)
    ids = written.token_ids
    texts = TOKENIZER.batch_decode([list(ids[: t + 1]) for t in range(len(ids))], skip_special_tokens=True)
    expected = [
        next((t for t, text in enumerate(texts) if len(text) >= step.end), len(ids) - 1)
        for step in steps.score_steps(written.text)
    ]
    assert found.ends == tuple(expected)


@given(st.lists(st.integers(0, 255), min_size=1, max_size=200))
@settings(max_examples=60, deadline=None)
def test_bytes_that_are_no_text_do_no_harm(token_ids: list[int]) -> None:
    ends = steps._token_ends(TOKENIZER, token_ids)
    assert len(ends) == len(token_ids) and min(ends) >= 0


@pytest.mark.parametrize("text", ["1+1=2\n" * 150, "é" * 400, "漢" * 300])
def test_few_tokens_are_decoded_again_for_each(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most twice the tokens of a character, four, and of the one before it."""
    decoded: list[int] = []
    inner = steps._text

    def counting(tokenizer: object, token_ids: Sequence[int]) -> str:
        decoded.append(len(token_ids))
        return inner(TOKENIZER, token_ids)

    monkeypatch.setattr(steps, "_text", counting)
    ids = encoded(text)
    steps._token_ends(TOKENIZER, ids)
    assert sum(decoded) <= 2 * 8 * len(ids)
    decoded.clear()
    steps._token_ends(TOKENIZER, [255] * 400)  # never a character
    assert sum(decoded) <= 2 * 20 * 400


def test_steps_are_scored_beside_the_sampling_against_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []

    def noting(*args: object) -> steps.Steps:
        threads.append(threading.current_thread().name)
        return steps.steps_of(*args)  # pyright: ignore

    monkeypatch.setattr(collect, "steps_of", noting)
    asked = problem("a", text="1+1=2, so 2+2=?")
    ids = encoded("1+1=2\n2+2=4\n2+2=4")
    sampler = ScriptedSampler({RENDERER.render(asked): [ids]}, {ids: "1+1=2\n2+2=4\n2+2=4"})
    (group,) = collector(sampler, size=1, steps=True).collect([asked], step=1).groups
    assert group.rollouts[0].step_rewards == (1.0,)
    assert group.rollouts[0].step_ends == (11,)
    assert threads == ["verify_0"]


def test_the_answer_prefix_is_no_token_of_the_completion() -> None:
    """Its text is before the model's own, whose tokens the steps' ends count."""
    bare = completion(encoded("1+1=2\nso 2+2=4\n"))
    expected = steps.steps_of(TOKENIZER, problem("a"), bare)
    assert len(expected.ends) == 2 and expected.ends[0] < expected.ends[1] < len(bare.token_ids)
    opened = "<think>\n"
    assert steps.steps_of(TOKENIZER, problem("a"), replace(bare, text=opened + bare.text), opened) == expected
