"""Completions per second: the embedded sampler beside `model.generate`, on the default task, interleaved in one run.

    python -m benchmarks.rollout_throughput --model runs/seed0/checkpoints/step-000072

Same weights, prompts, number of completions, temperature and token limit; generate gets whole groups by
num_return_sequences in one batch, left-padded, with its cache. Medians over rounds; the ratio is of each round's pair.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from benchmarks.machine import describe_machine, spread, write_result
from rl.policy import load_pretrained
from rl.runtime import cpu_cores
from rollout.arithmetic import arithmetic_problems
from rollout.prompts import PromptRenderer
from rollout.sampler import SampleRequest, SamplingParams, completion_seed
from rollout.torch_sampler import TorchSampler


@dataclass(frozen=True, kw_only=True)
class Options:
    model: Path
    """Folder of the model: a checkpoint of a run, or the cached base (its path is printed by the default run)."""
    problems: int = 96
    group_size: int = 10
    max_tokens: int = 32
    rounds: int = 7


def main(options: Options) -> None:
    torch.set_num_threads(cpu_cores())
    model, tokenizer = load_pretrained(options.model, torch.device("cpu"))
    renderer = PromptRenderer(tokenizer, style="plain")
    problems = arithmetic_problems(options.problems, seed=1)
    prompts = [renderer.render(p) for p in problems]
    sampler = TorchSampler(model, tokenizer)
    params = SamplingParams(max_tokens=options.max_tokens)
    round_number = 0

    def ours() -> int:
        requests = [
            SampleRequest(ids, tuple(completion_seed(0, round_number, p.id, i) for i in range(options.group_size)))
            for p, ids in zip(problems, prompts, strict=True)
        ]
        return sum(len(c.token_ids) for group in sampler.sample(requests, params) for c in group)

    width = max(map(len, prompts))
    pad = int(tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts])

    @torch.no_grad()
    def generate() -> int:
        out = model.generate(  # pyright: ignore[reportCallIssue]
            ids,
            attention_mask=ids.ne(pad).long(),
            do_sample=True,
            top_k=0,
            temperature=1.0,
            num_return_sequences=options.group_size,
            max_new_tokens=options.max_tokens,
            pad_token_id=pad,
        )
        return int(out[:, width:].ne(pad).sum())

    def rate(run: Callable[[], int]) -> tuple[float, float]:
        started = time.perf_counter()
        tokens = run()
        seconds = time.perf_counter() - started
        return options.problems * options.group_size / seconds, tokens / seconds

    for run in (ours, generate):  # warm-up
        rate(run)
    pairs = []
    for round_number in range(1, options.rounds + 1):
        pairs.append((rate(ours), rate(generate)))
        print(f"round {round_number}: ours {pairs[-1][0][0]:7.0f}/s   generate {pairs[-1][1][0]:7.0f}/s")
    ratios = [a[0] / b[0] for a, b in pairs]
    result = {
        **describe_machine(),
        "configuration": {k: v for k, v in vars(options).items() if k != "model"},
        "ours_completions_per_second": statistics.median(a[0] for a, _ in pairs),
        "generate_completions_per_second": statistics.median(b[0] for _, b in pairs),
        **spread(ratios),
    }
    write_result("rollout_throughput", __doc__ or "", result)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
