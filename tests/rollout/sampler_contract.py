"""The contract tests of all sampling engines. An engine's test file subclasses SamplerContract and provides the fixture `engine`."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, takewhile

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rollout.records import Completion, FinishReason, Problem
from rollout.rollouts import Episode, Fixed, Turns, run_rollouts
from rollout.sampler import RequestQueue, Sampler, SampleRequest, SamplingParams, completion_seed, in_request_order
from tests.rl.models import VOCAB
from tests.rollout.tiny import END, PAD, plain_logits, plain_logprobs

# Float32 sums in another order: over 3,000 tokens of each family two forwards differ by up to 9e-6 (log-probs down to -4.5).
TOLERANCE = 3e-5


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine under test.

    model: a separate model with its weights, for plain forwards; `other` has the same architecture and other weights.
    sampler: makes a new engine with the weights of `model` that decodes about so many rows at once.
    uniform: (seed, counter) -> the draw; None where the engine does not define it. draws: their number in the test of frequencies.
    in_order: completions come in the order in which they end; over a network or from threads only roughly.
    """

    model: PreTrainedModel
    other: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sampler: Callable[[int], Sampler]
    uniform: Callable[[int, int], float] | None
    tolerance: float = TOLERANCE
    draws: int = 10_000
    in_order: bool = True


def prompts(count: int, *, longest: int = 9) -> list[tuple[int, ...]]:
    """Prompts of different lengths; the first has one token."""
    rng = random.Random(5)
    lengths = [1, *(rng.randint(1, longest) for _ in range(count - 1))]
    return [tuple(rng.randrange(2, VOCAB) for _ in range(n)) for n in lengths]


def requests(count: int, group_size: int, *, step: int = 0) -> list[SampleRequest]:
    return [
        SampleRequest(prompt, tuple(completion_seed(0, step, str(p), i) for i in range(group_size)))
        for p, prompt in enumerate(prompts(count))
    ]


def tokens(completions: Sequence[Sequence[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[c.token_ids for c in group] for group in completions]


def generated(model: PreTrainedModel, prompt: tuple[int, ...], max_tokens: int) -> tuple[int, ...]:
    """transformers' own greedy decoding."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_tokens, pad_token_id=PAD
    )
    return tuple(out[0, len(prompt) :].tolist())


def tempered(logits: torch.Tensor, temperature: float, top_p: float) -> list[float]:
    """The probabilities of one row: divided by the temperature, cut to the likeliest that reach top_p, renormalized."""
    probabilities = (logits / temperature).softmax(-1).tolist()
    kept, mass = {}, 0.0
    for token in sorted(range(len(probabilities)), key=lambda t: -probabilities[t]):
        if mass >= top_p:
            break
        kept[token] = probabilities[token]
        mass += probabilities[token]
    return [kept.get(token, 0.0) / mass for token in range(len(probabilities))]


def chi_square_p_value(counts: list[int], probabilities: list[float]) -> float:
    """Pearson's test with the exact tail of chi-square; cells with fewer than 5 expected counts are merged, as the approximation needs."""
    total = sum(counts)
    cells = [(c, p * total) for c, p in zip(counts, probabilities, strict=True)]
    large = [cell for cell in cells if cell[1] >= 5]
    small = [cell for cell in cells if cell[1] < 5]
    merged = (sum(c for c, _ in small), sum(e for _, e in small))
    if merged[1] >= 5:
        large.append(merged)
    assert len(large) > 5, "too few cells to test anything"
    statistic = sum((c - e) ** 2 / e for c, e in large)
    half = torch.tensor([(len(large) - 1) / 2, statistic / 2], dtype=torch.float64)
    return torch.special.gammaincc(half[0], half[1]).item()


def boundary_distance(engine: Engine, prompt: tuple[int, ...], first: Completion, second: Completion) -> float:
    """The distance of the first differing draw from the boundary between two tokens."""
    assert engine.uniform is not None
    pairs = enumerate(zip(first.token_ids, second.token_ids, strict=False))
    at = next(i for i, (a, b) in pairs if a != b)
    cdf = plain_logits(engine.model, prompt, first.token_ids[: at + 1])[at].softmax(-1).cumsum(-1)
    return (cdf - engine.uniform(first.seed, at)).abs().min().item()


def differing(engine: Engine, asked: list[SampleRequest], first: list, second: list) -> int:
    """The number of completions that differ. Each must differ by a draw that fell on the boundary between two tokens."""
    pairs = [
        (request.prompt_ids, a, b)
        for request, left, right in zip(asked, first, second, strict=True)
        for a, b in zip(left, right, strict=True)
        if a.token_ids != b.token_ids
    ]
    if engine.uniform is not None:
        # Probabilities of tokens are at most 1, so they differ by no more than the log-probs do.
        assert all(boundary_distance(engine, *pair) < engine.tolerance for pair in pairs)
    return len(pairs)


def two_turns(episode: Episode) -> Turns:
    """A turn of at most five tokens, two fixed tokens, and what the policy says to that."""
    parts = [(yield episode.ask(at_most=5)), Fixed((9, 5), "hd")]
    return episode.join([*parts, (yield episode.ask(parts))] if episode.num_left(parts) else parts)


def episodes(count: int, group_size: int, *, max_tokens: int) -> list[list[Episode]]:
    return [
        [
            Episode(
                problem=Problem(id=str(p), prompt="", reference=""),
                prompt_ids=prompt,
                max_tokens=max_tokens,
                seed_of=partial(completion_seed, 0, 0, str(p), i),
            )
            for i in range(group_size)
        ]
        for p, prompt in enumerate(prompts(count))
    ]


class SamplerContract:
    def test_greedy_is_the_models_own_greedy(self, engine: Engine) -> None:
        """Positions, masks, the cache, rows that enter and leave, compared with transformers' generate on one prompt at a time."""
        asked = requests(7, 1)
        sampled = engine.sampler(3).sample(asked, SamplingParams(max_tokens=14, temperature=0))
        for request, (completion,) in zip(asked, sampled, strict=True):
            assert completion.token_ids == generated(engine.model, request.prompt_ids, 14)
            expected = plain_logprobs(engine.model, request.prompt_ids, completion.token_ids)
            assert (expected - torch.tensor(completion.sampler_logprobs)).abs().max() < engine.tolerance

    def test_a_seed_gives_its_completion_in_any_batch(self, engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
        """The rows of a batch must not share a random stream: a seed gives the same text alone, among many, in another order and in few
        rows."""
        asked, params = requests(24, 8), SamplingParams(max_tokens=20)
        among_many = engine.sampler(1000).sample(asked, params)
        in_few_rows = engine.sampler(11).sample(asked[::-1], params)[::-1]
        count = differing(engine, asked, among_many, in_few_rows)
        sampler, few = engine.sampler(1000), asked[:4]
        alone = [[sampler.sample([SampleRequest(r.prompt_ids, (s,))], params)[0][0] for s in r.seeds[:3]] for r in few]
        count += differing(engine, few, [group[:3] for group in among_many[:4]], alone)
        with capsys.disabled():
            print(f"[{count} of {24 * 8 + 12} on a boundary]", end=" ")
        # In a trial 2 of 38,400 completions differed, by draws 1e-7 and 3e-8 from a boundary.
        assert count <= 2

    def test_other_seeds_give_other_completions(self, engine: Engine) -> None:
        """Also seeds that differ in one bit or only in the step: all bits of a seed count."""
        sampler, params = engine.sampler(1000), SamplingParams(max_tokens=16, temperature=2.0)
        (prompt,) = prompts(2)[1:]
        seeds = (0, 1, 1 << 32, 1 << 62, (1 << 63) - 1, *requests(2, 8)[1].seeds, *requests(2, 8, step=1)[1].seeds)
        sampled = sampler.sample([SampleRequest(prompt, seeds)], params)
        assert len(set(tokens(sampled)[0])) == len(seeds)

    @pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.5, 0.8)])
    def test_log_probs_are_of_the_distribution_sampled_from(
        self, engine: Engine, temperature: float, top_p: float
    ) -> None:
        """Importance weights divide by them, so they include temperature, top-p and renormalization."""
        params = SamplingParams(max_tokens=8, temperature=temperature, top_p=top_p)
        asked = requests(4, 3)
        for request, group in zip(asked, engine.sampler(100).sample(asked, params), strict=True):
            for completion in group:
                rows = plain_logits(engine.model, request.prompt_ids, completion.token_ids)
                for row, token, logprob in zip(rows, completion.token_ids, completion.sampler_logprobs, strict=True):
                    probability = torch.tensor(tempered(row, temperature, top_p)[token], dtype=torch.float64)
                    # Division by a small temperature and the sum over the nucleus magnify rounding slightly.
                    assert abs(probability.log().item() - logprob) < 3 * engine.tolerance

    @pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (2.0, 0.7)])
    def test_first_tokens_come_as_often_as_their_probability_says(
        self, engine: Engine, temperature: float, top_p: float
    ) -> None:
        """Chi-square over fixed seeds. A correct sampler fails for one choice of seeds in a thousand; these pass."""
        (prompt,) = prompts(2)[1:]
        seeds = tuple(completion_seed(0, 0, "frequencies", i) for i in range(engine.draws))
        params = SamplingParams(max_tokens=1, temperature=temperature, top_p=top_p)
        drawn = [c.token_ids[0] for c in engine.sampler(engine.draws).sample([SampleRequest(prompt, seeds)], params)[0]]
        expected = tempered(plain_logits(engine.model, prompt, [PAD])[0], temperature, top_p)
        assert all(expected[token] > 0 for token in set(drawn))
        assert chi_square_p_value([drawn.count(t) for t in range(VOCAB)], expected) > 1e-3

    def test_every_end_token_ends_a_completion(self, engine: Engine) -> None:
        """The end token is the last one and has its log-prob; a completion without one is cut at max_tokens with reason LENGTH."""
        ends = engine.model.generation_config.eos_token_id
        assert isinstance(ends, list)
        asked = requests(4, 16)
        sampled = engine.sampler(1000).sample(asked, SamplingParams(max_tokens=24, temperature=2.0))
        last = set()
        for request, group in zip(asked, sampled, strict=True):
            for completion in group:
                assert not set(completion.token_ids[:-1]) & set(ends)
                assert len(completion.token_ids) == len(completion.sampler_logprobs)
                if completion.finish_reason is FinishReason.STOP:
                    last.add(completion.token_ids[-1])
                    logits = plain_logits(engine.model, request.prompt_ids, completion.token_ids)[-1] / 2.0
                    expected = logits.log_softmax(-1)[completion.token_ids[-1]].item()
                    assert abs(completion.sampler_logprobs[-1] - expected) < engine.tolerance
                else:
                    assert len(completion.token_ids) == 24
                    assert completion.token_ids[-1] not in ends
        assert last == set(ends)

    def test_stop_strings_end_a_completion_where_they_are_complete(self, engine: Engine) -> None:
        """Wherever in a token they begin or end. Greedy decoding shows what would have followed without them."""
        asked, sampler = requests(6, 1), engine.sampler(1000)
        free = [group[0] for group in sampler.sample(asked, SamplingParams(max_tokens=16, temperature=0))]
        decode = engine.tokenizer.decode
        stops = tuple({text[3:6] for text in (decode(c.token_ids) for c in free[:4]) if len(text) > 3})
        params = SamplingParams(max_tokens=16, temperature=0, stop_strings=stops)
        stopped = [group[0] for group in sampler.sample(asked, params)]
        for completion, whole in zip(stopped, free, strict=True):
            texts = [decode(whole.token_ids[: n + 1]) for n in range(len(whole.token_ids))]
            cut = next((n for n, text in enumerate(texts) if any(s in text for s in stops)), None)
            assert completion.token_ids == (whole.token_ids if cut is None else whole.token_ids[: cut + 1])
            assert completion.finish_reason is (whole.finish_reason if cut is None else FinishReason.STOP)
        assert sum(len(c.token_ids) for c in stopped) < sum(len(c.token_ids) for c in free)

    def test_texts_are_the_tokens_up_to_the_end(self, engine: Engine) -> None:
        """Verifiers read the text, which contains what was sampled before the first end or pad token."""
        sampled = engine.sampler(1000).sample(requests(4, 8), SamplingParams(max_tokens=24, temperature=2.0))
        for completion in chain.from_iterable(sampled):
            kept = list(takewhile(lambda token: token not in (END, PAD), completion.token_ids))
            assert completion.text == engine.tokenizer.decode(kept)

    def test_new_weights_are_sampled_from(self, engine: Engine) -> None:
        """Every tensor arrives, also tied ones, and completions have the version of the weights."""
        sampler, asked, params = engine.sampler(1000), requests(5, 1), SamplingParams(max_tokens=10, temperature=0)
        before = sampler.sample(asked, params)
        assert {c.policy_version for group in before for c in group} == {0}
        sampler.update_weights(engine.other.named_parameters(remove_duplicate=False), version=3)
        after = sampler.sample(asked, params)
        assert {c.policy_version for group in after for c in group} == {3}
        assert sampler.policy_version == 3
        assert tokens(after) == [[generated(engine.other, r.prompt_ids, 10)] for r in asked]
        assert tokens(after) != tokens(before)

    def test_scores_are_the_plain_forwards(self, engine: Engine) -> None:
        """The check of a delivery compares them, so they must be the weights' log-probs at temperature 1."""
        sampler, completion = engine.sampler(1000), prompts(9)[-1]
        for prompt in prompts(4):
            scored = torch.tensor(sampler.score(prompt, completion), dtype=torch.float64)
            assert (scored - plain_logprobs(engine.model, prompt, completion)).abs().max() < engine.tolerance

    def test_a_group_larger_than_the_batch_is_sampled_whole(self, engine: Engine) -> None:
        """Completions are returned in the order of their requests and seeds, in whatever order they were decoded."""
        asked = [*requests(3, 9), SampleRequest(prompts(2)[1], (77,))]
        sampled = engine.sampler(4).sample(asked, SamplingParams(max_tokens=6))
        assert [[c.seed for c in group] for group in sampled] == [list(r.seeds) for r in asked]
        for request, group in zip(asked, sampled, strict=True):
            for completion in group:
                expected = plain_logprobs(engine.model, request.prompt_ids, completion.token_ids)
                assert (expected - torch.tensor(completion.sampler_logprobs)).abs().max() < engine.tolerance

    def test_completions_are_streamed_as_they_end(self, engine: Engine) -> None:
        """Each once, and equal to sample's. A short one comes before the longest has ended. An aborted stream does no harm."""
        asked, params = requests(6, 4), SamplingParams(max_tokens=24, temperature=2.0)
        sampled = engine.sampler(1000).sample(asked, params)
        sampler = engine.sampler(1000)
        started, streamed, seconds = time.perf_counter(), [], []
        for item in sampler.stream(asked, params):
            streamed.append(item)
            seconds.append(time.perf_counter() - started)
        assert sorted((i, j) for i, j, _ in streamed) == [(i, j) for i in range(6) for j in range(4)]
        assert all(completion == sampled[i][j] for i, j, completion in streamed)
        lengths = [len(completion.token_ids) for _, _, completion in streamed]
        assert lengths[0] < max(lengths) == lengths[-1] if engine.in_order else seconds[0] < 0.9 * seconds[-1]
        next(left := sampler.stream(asked, params))
        left.close()  # pyright: ignore[reportAttributeAccessIssue]
        assert tokens(sampler.sample(asked, params)) == tokens(sampled)

    def test_nothing_asked_is_nothing_sampled(self, engine: Engine) -> None:
        assert engine.sampler(4).sample([], SamplingParams(max_tokens=4)) == []

    def test_requests_that_come_later_are_served_in_the_same_stream(self, engine: Engine) -> None:
        """Each completion gets a request that continues it, so that prompts become more and longer. A seed gives the same completion as
        if all requests had been there from the start."""
        first, params = requests(5, 4), SamplingParams(max_tokens=12, temperature=2.0)
        queue, asked, found = RequestQueue(), list[SampleRequest](), {}
        for request in first:
            asked.append(request)
            assert queue.put(request) == len(asked) - 1
        for i, j, completion in engine.sampler(7).stream(queue, params):
            found[i, j] = completion
            longer = (*asked[i].prompt_ids, *completion.token_ids, 4)
            if len(asked) < 40 and len(longer) < 50:
                asked.append(SampleRequest(longer, (completion.seed + 1, completion.seed + 2)[: 1 + j % 2]))
                assert queue.put(asked[-1]) == len(asked) - 1
            if len(found) == sum(len(request.seeds) for request in asked):
                queue.close()
        assert len(asked) == 40 and max(len(request.prompt_ids) for request in asked) > 20
        later = in_request_order(asked, [(i, j, completion) for (i, j), completion in found.items()])
        for request, group in zip(asked, later, strict=True):
            for completion in group:
                rows = plain_logits(engine.model, request.prompt_ids, completion.token_ids) / 2.0
                expected = rows.log_softmax(-1).gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0]
                assert (expected - torch.tensor(completion.sampler_logprobs)).abs().max() < engine.tolerance
        assert differing(engine, asked, later, engine.sampler(1000).sample(asked, params)) <= 1

    def test_a_request_may_have_a_limit_of_its_own(self, engine: Engine) -> None:
        """Shorter or longer than the params', of a request that is there from the start or comes while shorter ones are decoded."""
        limits, params = (3, None, 1, 20, 12), SamplingParams(max_tokens=8, temperature=0)
        asked = [replace(r, max_tokens=limit) for r, limit in zip(requests(5, 2), limits, strict=True)]
        together, queue, later = engine.sampler(1000).sample(asked, params), RequestQueue(), {}
        queue.put(asked[0])
        for i, j, completion in engine.sampler(4).stream(queue, params):
            if not later:
                for request in asked[1:]:
                    queue.put(request)
                queue.close()
            later[i, j] = completion
        for i, (request, group) in enumerate(zip(asked, together, strict=True)):
            expected = generated(engine.model, request.prompt_ids, limits[i] or 8)
            assert {c.token_ids for c in (*group, *(later[i, j] for j in range(2)))} == {expected}
            is_cut = expected[-1] not in engine.model.generation_config.eos_token_id  # pyright: ignore
            assert {c.finish_reason for c in group} == {FinishReason.LENGTH if is_cut else FinishReason.STOP}

    def test_an_open_queue_is_waited_for_and_a_closed_one_ends_the_stream(self, engine: Engine) -> None:
        """Another thread puts a request and later closes the queue, each time while nothing is decoded."""
        (first, second), params = requests(2, 2), SamplingParams(max_tokens=4)
        sampler, queue, found = engine.sampler(4), RequestQueue(), []
        queue.put(first)
        for i, j, _ in sampler.stream(queue, params):
            found.append((i, j))
            if len(found) == 2:
                threading.Timer(0.2, queue.put, [second]).start()
            elif len(found) == 4:
                threading.Timer(0.2, queue.close).start()
        assert sorted(found) == [(0, 0), (0, 1), (1, 0), (1, 1)]
        never = RequestQueue()
        threading.Timer(0.2, never.close).start()
        assert list(sampler.stream(never, params)) == []

    def test_a_stream_that_is_closed_takes_no_further_requests(self, engine: Engine) -> None:
        sampler, queue, params = engine.sampler(4), RequestQueue(), SamplingParams(max_tokens=4)
        for request in requests(3, 4):
            queue.put(request)
        with closing(sampler.stream(queue, params)) as stream:
            next(stream)
        with pytest.raises(RuntimeError, match="closed"):
            queue.put(requests(1, 1)[0])
        assert len(sampler.sample(requests(3, 1), params)) == 3

    def test_fixed_tokens_are_context_of_the_next_turn(self, engine: Engine) -> None:
        """The next turn's log-probs are those that the engine's own probe gives behind the prompt, the first turn and the fixed tokens.
        Fixed tokens have no log-prob and count towards the limit."""
        sampler = engine.sampler(5)
        for limit in (6, 9):
            begun, params = episodes(4, 3, max_tokens=limit), SamplingParams(max_tokens=limit)
            rollouts = [[two_turns(episode) for episode in group] for group in begun]
            found = {(i, j): whole for i, j, whole in run_rollouts(rollouts, sampler, params)}
            assert len(found) == 12
            for (i, j), whole in found.items():
                at = whole.loss_mask.index(False)
                assert whole.token_ids[at : at + 2] == (9, 5)[: limit - at]
                assert [n for n, x in enumerate(whole.loss_mask) if not x] == [n for n in (at, at + 1) if n < limit]
                assert len(whole.token_ids) <= limit and whole.seed == completion_seed(0, 0, str(i), j)
                context, after = (*begun[i][j].prompt_ids, *whole.token_ids[: at + 2]), whole.token_ids[at + 2 :]
                if after:
                    scored = torch.tensor(sampler.score(context, after))
                    assert (scored - torch.tensor(whole.sampler_logprobs[at:])).abs().max() < engine.tolerance
                else:
                    assert whole.finish_reason is FinishReason.LENGTH
            assert any(len(c.token_ids) > 7 for c in found.values()) is (limit == 9)
