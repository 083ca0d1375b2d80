"""The cache of keys and values on a GPU, and its graphs: growth by need, no second copy, release, one recording."""

from __future__ import annotations

import copy
import weakref
from collections import Counter
from collections.abc import Hashable

import pytest
import torch

from rollout.engine import fused_decoder
from rollout.engine.fused_decoder import FusedDecoder
from rollout.engine.graphs import Graphs
from rollout.engine.sizes import Capacity
from rollout.sampler import RequestQueue, SampleRequest, SamplingParams, in_request_order
from rollout.torch_sampler import TorchSampler
from tests.rollout.families import tiny_model
from tests.rollout.sampler_contract import requests, tokens
from tests.rollout.tiny import tokenizer


def bucketed(*, keeps_caches: bool, max_rows: int = 1024) -> TorchSampler:
    """As on a GPU, except that steps are not recorded."""
    sampler = TorchSampler(
        copy.deepcopy(tiny_model("qwen2", 0)), tokenizer(), max_rows=max_rows, keeps_caches=keeps_caches
    )
    sampler.bucketed, sampler.check_every = True, 8
    return sampler


def step_of_training(sampler: TorchSampler, step: int) -> None:
    """The calls of a training step: sampling, sleep during the update, new weights, the check of the delivery."""
    sampler.sample(requests(6, 4, step=step), SamplingParams(max_tokens=70))
    sampler.sleep()
    sampler.update_weights([], step)
    sampler.score((3, 4, 5), (6, 7, 8, 9))


@pytest.mark.parametrize("keeps_caches", [True, False])
def test_evaluation_and_training_do_not_evict_each_other(keeps_caches: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six steps with evaluations between them: where caches are kept, every kind of step is recorded once; where they are released,
    once within each step."""
    new: Counter[Hashable] = Counter()
    run = Graphs.run

    def counted(self: Graphs, kind: Hashable, *rest) -> object:
        new[kind] += kind not in self.seen
        return run(self, kind, *rest)

    sampler = bucketed(keeps_caches=keeps_caches)
    monkeypatch.setattr(Graphs, "run", counted)
    evaluated = [SampleRequest(r.prompt_ids, r.seeds[:1]) for r in requests(20, 1)]
    for step in range(6):
        if not keeps_caches:
            new.clear()
        if step % 2 == 0:
            sampler.sample(evaluated, SamplingParams(max_tokens=70, temperature=0))
        step_of_training(sampler, step)
        sizes = {kind for kind, count in new.items() if count > 1}
        assert not sizes, step
    assert new


def test_a_cache_that_is_too_small_is_released_before_a_larger_one_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The larger one has the capacity for both calls."""
    held: list[weakref.ref[torch.Tensor]] = []
    allocate = FusedDecoder._allocate

    def watched(self: FusedDecoder, capacity: Capacity) -> None:
        assert not any(tensor() is not None for tensor in held)
        allocate(self, capacity)
        held.extend(weakref.ref(tensor) for tensor in (self.shared, *self.own))

    sampler = bucketed(keeps_caches=False)
    monkeypatch.setattr(FusedDecoder, "_allocate", watched)
    sampler.sample(requests(6, 1), SamplingParams(max_tokens=10))
    sampler.sample(requests(2, 9), SamplingParams(max_tokens=100))
    assert sampler.kept is not None and sampler.kept.capacity == Capacity(32, 8, 64, 128)
    num_made = len(held)
    sampler.sample(requests(6, 3), SamplingParams(max_tokens=100))
    assert len(held) == num_made
    sampler.sleep()
    assert not any(tensor() is not None for tensor in held)


@pytest.mark.parametrize(("max_tokens", "columns"), [(70, 128), (150, 192)])
def test_own_keys_grow_with_what_is_written(max_tokens: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By 64 columns here, whatever the limit. Completions equal those of a cache that is allocated at once, and of one without buckets."""
    monkeypatch.setattr(fused_decoder, "BLOCK", 64)
    model, params = tiny_model("qwen2", 0), SamplingParams(max_tokens=max_tokens)
    model = copy.deepcopy(model)
    model.generation_config.eos_token_id = None  # pyright: ignore[reportOptionalMemberAccess]
    asked, widths = requests(5, 3), []
    grow = FusedDecoder._grow
    monkeypatch.setattr(FusedDecoder, "_grow", lambda self: widths.append(self.own[0].shape[3]) or grow(self))
    found = []
    for buckets, keeps in ((True, False), (True, True), (False, False)):
        sampler = TorchSampler(copy.deepcopy(model), tokenizer(), max_rows=7, keeps_caches=keeps)
        sampler.bucketed = buckets
        widths.clear()
        found.append(tokens(sampler.sample(asked, params)))
        if buckets:
            assert sampler.kept is not None and sampler.kept.own[0].shape[3] == columns
            assert widths == ([] if keeps else list(range(64, columns, 64)))
    assert found[0] == found[1] == found[2]


def test_caches_are_released_before_an_update_unless_they_are_kept() -> None:
    params, asked = SamplingParams(max_tokens=20), requests(4, 2)
    for keeps in (False, True):
        sampler = bucketed(keeps_caches=keeps)
        before = tokens(sampler.sample(asked, params))
        kept = sampler.kept
        assert kept is not None
        sampler.sleep()
        assert sampler.kept is (kept if keeps else None)
        assert tokens(sampler.sample(asked, params)) == before


@pytest.mark.parametrize("keeps_caches", [True, False])
def test_caches_grow_while_rows_are_decoded(keeps_caches: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """For later requests with longer prompts, more rows and a larger limit. Graphs are dropped, and the caches keep their size for the
    next call."""
    cleared, clear = [], Graphs.clear
    monkeypatch.setattr(Graphs, "clear", lambda self: cleared.append(self) or clear(self))
    sampler, params = bucketed(keeps_caches=keeps_caches), SamplingParams(max_tokens=30)
    first, later = requests(2, 2), SampleRequest(tuple(range(2, 52)) * 2, tuple(range(9)), max_tokens=80)
    queue, found = RequestQueue(), {}
    for request in first:
        queue.put(request)
    for i, j, completion in sampler.stream(queue, params):
        if not found:
            assert sampler.kept is not None and sampler.kept.capacity == Capacity(4, 2, 64, 64)
            cleared.clear()
            queue.put(later)
            queue.close()
        found[i, j] = completion
    assert sampler.kept is not None and sampler.kept.capacity == Capacity(16, 4, 128, 128)
    assert cleared and set(cleared) == {sampler.kept.graphs}
    expected = bucketed(keeps_caches=keeps_caches).sample([*first, later], params)
    assert tokens(in_request_order([*first, later], [(*place, found[place]) for place in found])) == tokens(expected)
