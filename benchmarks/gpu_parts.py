"""The parts of benchmarks/gpu_suite.py. Each is a function of a Bench and gives numbers; none prints."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol
from unittest import mock

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import rl.forward.output_head
from benchmarks.models import word_tokenizer
from benchmarks.real_model import load_carried
from rl.capacity.cost import ModelCost
from rl.command.plan import Plan, load_config
from rl.forward.choose_forward import explain_forward
from rl.forward.forward import packed_forward, padded_forward, plain_forward, varlen_forward
from rl.forward.layouts import packed_tokens
from rl.forward.micro_batch import MicroBatch, TrainGroup, TrainSequence
from rl.forward.output_head import OutputHead
from rl.objective.reductions import StepCounts
from rl.objective.tokens import TokenScores
from rl.processes.runtime import Runtime
from rl.run.build_learner import build_learner
from rl.settings.config import RunConfig
from rl.settings.options import PlanOptions
from rl.settings.resolve import resolve
from rl.update.batch import Batch
from rl.update.update import update
from rollout.rounding import mean_difference, rounding_noise
from rollout.sampler import SampleRequest, SamplingParams, Text
from rollout.torch_sampler import TorchSampler

PROBLEMS, GROUP, PROMPT, COMPLETION, BUDGET = 32, 8, 512, 1024, 8192
STAND_IN = Path(__file__).resolve().parent.parent / "tests" / "rl" / "stand_in"
Found = dict[str, Any]


class Timer(Protocol):
    def seconds(self, run: Callable[[], object]) -> float: ...

    def memory(self, run: Callable[[], object]) -> dict[str, float]: ...


@dataclass
class Bench:
    """model: a name in rl/model_configs. layers: fewer than it has, for a trial. carried: a file of real weights."""

    device: torch.device
    clock: Timer
    model: str = "qwen2.5-1.5b"
    carried: Path | None = None
    layers: int | None = None
    problems: int = PROBLEMS
    completion: int = COMPLETION
    made: PreTrainedModel | None = None

    def random_model(self) -> PreTrainedModel:
        """Of the model's shape, made once."""
        if self.made is None:
            config = load_config(self.model)
            if self.layers is not None:
                config.num_hidden_layers, config.layer_types = self.layers, config.layer_types[: self.layers]
            with torch.device(self.device):
                self.made = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        assert self.made is not None
        return self.made

    def real_models(self) -> Iterator[tuple[str, PreTrainedModel]]:
        yield "stand-in", AutoModelForCausalLM.from_pretrained(STAND_IN, dtype=torch.float32).eval()
        if self.carried is not None:
            yield "carried", load_carried(self.carried)

    def release(self) -> None:
        """What a part has made, but for the model."""
        if self.made is not None:
            self.made.zero_grad()
        gc.collect()

    def bfloat16(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16)


def ceilings(bench: Bench) -> Found:
    """Bytes that a copy moves in a second, operations of a product in bfloat16 on random numbers."""
    numbers, side = 1 << 29, 8192
    source, target = (torch.zeros(numbers, device=bench.device) for _ in range(2))
    copying = bench.clock.seconds(lambda: target.copy_(source))
    del source, target
    a, b = (torch.randn(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    product = bench.clock.seconds(lambda: a @ b)
    return {
        "copy_TB_per_second": 8 * numbers / copying / 1e12,
        "product_TFLOP_per_second": 2 * side**3 / product / 1e12,
    }


def paths(bench: Bench) -> Found:
    """Which paths are taken in bfloat16, and how far each is from float32 on the model's own samples."""
    models = {name: model.to(bench.device) for name, model in bench.real_models()}  # pyright: ignore
    return {name: _paths_of(bench, model) for name, model in {**models, bench.model: bench.random_model()}.items()}


@torch.no_grad()
def _paths_of(bench: Bench, model: PreTrainedModel) -> Found:
    with bench.bfloat16():
        choice = str(explain_forward(model))
    engine = _engine(bench, model)
    texts = _own_texts(engine, model.config.vocab_size)
    micro = _micro(texts).to(bench.device)
    exact, noise = rounding_noise(lambda: plain_forward.score(model, micro, 1.0).logprobs, model)
    (rows,) = engine.probe(texts).values()
    errors: Found = {"embedded engine": _error(torch.tensor([x for row in rows for x in row]), exact.cpu())}
    for forward in (varlen_forward, packed_forward, padded_forward):
        with bench.bfloat16():
            try:
                errors[forward.name] = _error(forward.score(model, micro, 1.0).logprobs, exact)
            except RuntimeError as error:
                errors[forward.name] = {"failed": str(error).splitlines()[0]}
    return {"update": choice, "sampling": engine.path, "model's own noise": noise, "errors": errors}


def _engine(bench: Bench, model: PreTrainedModel, **options: Any) -> TorchSampler:
    return TorchSampler(model, word_tokenizer(64), decode_dtype=torch.bfloat16, autocast=bench.bfloat16, **options)


def _own_texts(engine: TorchSampler, vocab_size: int) -> list[Text]:
    chance = random.Random(0)
    prompts = [tuple(chance.randrange(vocab_size) for _ in range(chance.randint(16, 48))) for _ in range(8)]
    sampled = engine.sample([SampleRequest(p, (i,)) for i, p in enumerate(prompts)], SamplingParams(max_tokens=24))
    return [(prompt, completion.token_ids) for prompt, (completion,) in zip(prompts, sampled, strict=True)]


def _micro(texts: list[Text]) -> MicroBatch:
    return MicroBatch.of([TrainGroup(p, (TrainSequence.to_score(c),)) for p, c in texts])


def _error(found: Tensor, exact: Tensor) -> dict[str, float]:
    return {"mean": mean_difference(found, exact), "most": (found - exact).abs().max().item()}


def attention(bench: Bench) -> Found:
    """Forward and backward of one row of real lengths by each kind of attention, and what the first of them launches most."""
    model, found = bench.random_model(), {}
    micro = max(_real_batch(bench).micro_batches(BUDGET), key=lambda m: packed_tokens(m.groups)).to(bench.device)

    def pass_of(forward: Any) -> None:
        with bench.bfloat16():
            states = forward.hidden_states(model, micro)
        states.backward(torch.ones_like(states))

    for forward in (varlen_forward, packed_forward):
        try:
            found[forward.name] = {
                "seconds": bench.clock.seconds(lambda forward=forward: pass_of(forward)),
                "GiB": bench.clock.memory(lambda forward=forward: pass_of(forward)),
            }
        except (RuntimeError, ImportError) as error:
            found[forward.name] = {"failed": str(error).splitlines()[0]}
    return {"tokens": packed_tokens(micro.groups), **found, "kernels": _kernels(lambda: pass_of(varlen_forward))}


def _kernels(run: Callable[[], object]) -> Found:
    """Of one run: how many there were, and the twenty that took longest."""
    if not torch.profiler.kineto_available() or torch.version.cuda is None:
        return {}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    kernels = sorted(profile.key_averages(), key=lambda k: -k.self_device_time_total)
    longest = {k.key[:80]: {"count": k.count, "ms": k.self_device_time_total / 1e3} for k in kernels[:20]}
    return {"launches": sum(k.count for k in kernels), "longest": longest}


def _real_batch(bench: Bench) -> Batch:
    """Prompts of 100 to 512 tokens, completions of 450 on average and at most the longest."""
    chance = random.Random(0)

    def group() -> TrainGroup:
        lengths = [min(bench.completion, 2 + int(chance.expovariate(1 / 450))) for _ in range(GROUP)]
        sequences = tuple(_sequence(chance, length) for length in lengths)
        return TrainGroup(_tokens(chance, chance.randint(100, PROMPT)), sequences)

    groups = tuple(group() for _ in range(bench.problems))
    num_tokens = sum(len(s.token_ids) for g in groups for s in g.sequences)
    return Batch(
        groups,
        StepCounts(
            num_tokens=num_tokens,
            num_sequences=bench.problems * GROUP,
            num_groups=bench.problems,
            max_tokens=bench.completion,
        ),
    )


def _sequence(chance: random.Random, length: int) -> TrainSequence:
    return TrainSequence(
        token_ids=_tokens(chance, length),
        sampler_logprobs=(-1.0,) * length,
        advantages=torch.full((length,), chance.choice((-1.0, 1.0))),
        weight=1e-5,
    )


def _tokens(chance: random.Random, length: int) -> tuple[int, ...]:
    return tuple(chance.randrange(1000) for _ in range(length))


def head(bench: Bench) -> Found:
    """The output layer and its gradients, trained, frozen and without a gradient, by the number of tokens in a chunk."""
    model = bench.random_model()
    weight, count = model.get_output_embeddings().weight, 4096  # pyright: ignore
    hidden = torch.randn(count, weight.shape[1], device=bench.device, requires_grad=True)
    targets = torch.zeros(count, dtype=torch.long, device=bench.device)

    def run(trained: bool, backward: bool) -> None:
        output = OutputHead(weight if trained else weight.detach())
        with bench.bfloat16(), torch.set_grad_enabled(backward):
            loss, _ = output.loss(hidden, targets, 1.0, _sum_of, token_level=True)
        if backward:
            loss.backward()

    found: Found = {"tokens": count}
    for chunk in (128, 512, 2048, 4096):
        with mock.patch.object(rl.forward.output_head, "tokens_per_chunk", lambda *_, chunk=chunk: chunk):
            for name, options in {"trained": (True, True), "frozen": (False, True), "scored": (False, False)}.items():
                found[f"{name}, {chunk}"] = bench.clock.seconds(lambda options=options: run(*options))
    return found


def _sum_of(scores: TokenScores, part: slice) -> Tensor:
    return scores.logprobs.sum()


def decode(bench: Bench) -> Found:
    """Tokens a second of the embedded engine, graphs recorded in the first call and there in the second, beside the bandwidth's limit."""
    model, found = bench.random_model(), {}
    model.generation_config.eos_token_id = None  # pyright: ignore  rows are all as long as they may be
    for rows in (8, bench.problems * GROUP):
        groups = max(1, rows // GROUP)
        requests = [SampleRequest((i % 50 + 2,) * 128, tuple(range(i * GROUP, (i + 1) * GROUP))) for i in range(groups)]
        engine, params = _engine(bench, model, keeps_caches=True), SamplingParams(max_tokens=bench.completion // 2)
        first = _once(bench, lambda engine=engine, requests=requests, params=params: engine.sample(requests, params))
        again = bench.clock.seconds(
            lambda engine=engine, requests=requests, params=params: engine.sample(requests, params)
        )
        tokens = groups * GROUP * params.max_tokens
        found[f"{groups * GROUP} rows"] = {
            "first_call_seconds": first,
            "seconds": again,
            "tokens_per_second": tokens / again,
            "seconds_a_step": again / params.max_tokens,
            "weights_bytes": 2 * sum(p.numel() for p in model.parameters()),
        }
        engine.close()
    return found


def _once(bench: Bench, run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    if torch.version.cuda is not None:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def step(bench: Bench) -> Found:
    """An update of real lengths, all weights and LoRA: seconds, memory beside the plan's."""
    return {name: _update(bench, rank) for name, rank in {"full": 0, "LoRA": 16}.items()}


def _update(bench: Bench, rank: int) -> Found:
    options: Found = {"lora_rank": rank, "lora_alpha": 2.0 * rank} if rank else {}
    config = RunConfig(algorithm="grpo", dtype="bfloat16", token_budget=BUDGET, gradient_checkpointing=False, **options)
    bench.made = None
    batch = _real_batch(bench)
    with _learner(bench, config) as learner:
        seconds = bench.clock.seconds(lambda: update(learner, batch))
        memory = bench.clock.memory(lambda: update(learner, batch))
        flops = update(learner, batch)["flops/update"] or 0.0
    plan = Plan(
        PlanOptions(
            model=bench.model,
            lora_rank=rank,
            problems_per_step=bench.problems,
            group_size=GROUP,
            prompt_length=PROMPT,
            completion_length=bench.completion,
            token_budget=BUDGET,
        ),
        load_config(bench.model),
    )
    return {
        "seconds": seconds,
        "TFLOP_per_second": flops / seconds / 1e12,
        "tokens": batch.num_tokens,
        "GiB": memory,
        "GiB_by_plan": (plan.peak_of_update() - plan.memory()["sampler's weights"]) / 2**30,
    }


@contextmanager
def _learner(bench: Bench, config: RunConfig) -> Iterator[Any]:
    runtime = Runtime.start(dtype="bfloat16")
    nobody: Any = None  # a tokenizer to compare with
    model = bench.random_model()
    try:
        yield build_learner(resolve(config, "cuda"), model, nobody, runtime)
    finally:
        bench.made = None  # its weights were trained, or have adapters


def async_grpo(bench: Bench) -> Found:
    """An update of all weights, and that of TRL's AsyncGRPOTrainer on the same tokens."""
    if find_spec("trl") is None or torch.version.cuda is None:
        return {"skipped": "TRL is not installed, or has no GPU"}
    from benchmarks.trl_async_side import seconds_of_steps, train

    batch, ours = _real_batch(bench), _update(bench, 0)
    with TemporaryDirectory() as folder:
        bench.random_model().save_pretrained(folder)
        bench.made = None
        bench.release()

        def run(end: Callable[[], object]) -> None:
            train(batch, Path(folder), word_tokenizer(64), num_steps=4, after_each=end)

        found: list[float] = []
        memory = bench.clock.memory(lambda: found.extend(seconds_of_steps(torch.cuda.synchronize, run)))
    theirs = {"seconds": statistics.median(found), "GiB": memory}
    return {"ours": ours, "AsyncGRPO": theirs, "times": theirs["seconds"] / ours["seconds"]}


def vllm(bench: Bench) -> Found:
    """vLLM in this process: seconds to start, to sample a step, to take new weights, to sleep and to wake."""
    if find_spec("vllm") is None or torch.version.cuda is None:
        return {"skipped": "vLLM is not installed, or has no GPU"}
    from rollout.vllm_sampler import VLLMOptions, VLLMSampler

    model, tokenizer = bench.random_model(), word_tokenizer(64)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        options = VLLMOptions(
            dtype="bfloat16", max_length=128 + bench.completion, key_values=ModelCost.of(model).key_value
        )
        found, engines = {}, list[VLLMSampler]()
        found["start"] = _once(bench, lambda: engines.append(VLLMSampler(folder, tokenizer, set(), options)))
        requests = [
            SampleRequest((i + 2,) * 128, tuple(range(i * GROUP, (i + 1) * GROUP))) for i in range(bench.problems)
        ]
        params = SamplingParams(max_tokens=bench.completion // 2)

        def deliver() -> None:
            engines[0].update_weights(model.named_parameters(remove_duplicate=False), 1)

        found["sample"] = _once(bench, lambda: engines[0].sample(requests, params))
        found["take weights"] = _once(bench, deliver)
        found["sleep"] = _once(bench, engines[0].sleep)
        found["wake with new weights"] = _once(bench, deliver)
        engines[0].close()
    return {"seconds": found, "tokens_per_second": bench.problems * GROUP * params.max_tokens / found["sample"]}


# By name: what it does, and about how many seconds it takes. In the order of their worth.
PARTS: dict[str, tuple[Callable[[Bench], Found], int]] = {
    "ceilings": (ceilings, 5),
    "paths": (paths, 60),
    "attention": (attention, 60),
    "step": (step, 120),
    "decode": (decode, 90),
    "head": (head, 60),
    "async_grpo": (async_grpo, 120),
    "vllm": (vllm, 120),
}
