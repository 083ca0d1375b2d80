"""How much the packed, prefix-shared update gains over padded whole sequences, in the same code, interleaved.

    python -m benchmarks.update_throughput --model runs/seed0/checkpoints/step-000072

The forward and backward of one step of the default run (groups sampled by the model itself), by rl.forward.packed_forward and by
plain_forward, with the micro-batches of the same token budget. Medians over rounds.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from benchmarks.machine import describe_machine, spread, write_result
from rl.batch import Batch, TrainGroup, TrainSequence
from rl.forward import Forward, packed_forward, plain_forward
from rl.policy import load_pretrained
from rl.reductions import StepCounts
from rl.runtime import cpu_cores
from rollout.arithmetic import arithmetic_problems
from rollout.prompts import PromptRenderer
from rollout.sampler import SampleRequest, SamplingParams, completion_seed
from rollout.torch_sampler import TorchSampler


@dataclass(frozen=True, kw_only=True)
class Options:
    model: Path
    problems: int = 96
    group_size: int = 10
    token_budget: int = 8192
    rounds: int = 7


def sampled_batch(options: Options, sampler: TorchSampler, renderer: PromptRenderer) -> Batch:
    problems = arithmetic_problems(options.problems, seed=1)
    requests = [
        SampleRequest(renderer.render(p), tuple(completion_seed(0, 0, p.id, i) for i in range(options.group_size)))
        for p in problems
    ]
    groups = [
        TrainGroup(
            request.prompt_ids,
            tuple(
                TrainSequence(
                    token_ids=c.token_ids,
                    sampler_logprobs=c.sampler_logprobs,
                    advantages=torch.ones(len(c.token_ids)),
                    weight=1e-3,
                )
                for c in completions
            ),
        )
        for request, completions in zip(requests, sampler.sample(requests, SamplingParams(max_tokens=32)), strict=True)
    ]
    return Batch(tuple(groups), StepCounts(num_tokens=1, num_sequences=1, max_tokens=32))


def main(options: Options) -> None:
    torch.set_num_threads(cpu_cores())
    model, tokenizer = load_pretrained(options.model, torch.device("cpu"))
    batch = sampled_batch(options, TorchSampler(model, tokenizer), PromptRenderer(tokenizer, style="plain"))

    def seconds(forward: Forward) -> float:
        started = time.perf_counter()
        for micro in batch.micro_batches(options.token_budget):
            scores = forward(model, micro, 1.0)
            (micro.weights * micro.advantages * scores.logprobs).sum().backward()
        return time.perf_counter() - started

    pairs = [(seconds(packed_forward), seconds(plain_forward)) for _ in range(options.rounds + 1)][1:]
    ratios = [padded / packed for packed, padded in pairs]
    result = {
        **describe_machine(),
        "configuration": {k: v for k, v in vars(options).items() if k != "model"},
        "tokens_packed": batch.num_tokens,
        "packed_seconds": statistics.median(a for a, _ in pairs),
        "padded_seconds": statistics.median(b for _, b in pairs),
        **spread(ratios),
    }
    write_result("update_throughput", __doc__ or "", result)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
