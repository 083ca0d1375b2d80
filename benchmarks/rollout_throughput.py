"""Tokens per second: the embedded sampler beside `model.generate`, where rows end together and where they do not.

    python -m benchmarks.rollout_throughput

Four settings: the default task; a 3 M model whose rows all run to the end, in float32 and in bfloat16; the same model with
lengths of mean half the longest. Same weights, prompts, number of completions, temperature and token limit; generate gets
whole groups by num_return_sequences in one batch, left-padded, with its cache, and for bfloat16 a bfloat16 model. Medians
over rounds; a ratio is of each round's pair. `limit` says what part of the machine's own limit each reaches, see
rl/capacity/cost.py; generate is held against the same one.
"""

from __future__ import annotations

import copy
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.machine import describe_machine, spread, write_result
from benchmarks.models import SMALL, end_probability, random_model, word_tokenizer
from benchmarks.percent_of_limit import rates
from benchmarks.shapes import SHAPES, given
from rl.capacity.cost import ModelCost, decode_seconds
from rl.processes.runtime import Runtime, cpu_cores
from rollout.arithmetic import arithmetic_problems
from rollout.prompts import PromptRenderer
from rollout.sampler import SampleRequest, SamplingParams
from rollout.torch_sampler import TorchSampler


@dataclass(frozen=True, kw_only=True)
class Options:
    rounds: int = 7
    cpu_time: bool = False
    """One thread, and the process's CPU time instead of the wall's: for a machine that others use too."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompts: list[tuple[int, ...]]
    group_size: int
    max_tokens: int
    dtype: torch.dtype = torch.float32


def default_task() -> Setting:
    """The default run's base, as it begins."""
    what = given(SHAPES["a"], Runtime.start(dtype="float32", device="cpu"), num_problems=0)
    model, tokenizer = what.make_model(), what.tokenizer
    what.close()
    renderer = PromptRenderer(tokenizer, style="plain")
    prompts = [renderer.render(p) for p in arithmetic_problems(96, seed=1)]
    return Setting(model=model, tokenizer=tokenizer, prompts=prompts, group_size=10, max_tokens=32)


def random_task(
    *, problems: int, prompt_length: int, mean_tokens: float, dtype: torch.dtype, max_tokens: int = 128
) -> Setting:
    tokenizer = word_tokenizer(SMALL.vocab_size)
    model = random_model(SMALL, tokenizer, end_probability=end_probability(mean_tokens, max_tokens))
    chance = random.Random(0)
    prompts = [tuple(chance.randrange(2, SMALL.vocab_size) for _ in range(prompt_length)) for _ in range(problems)]
    return Setting(model=model, tokenizer=tokenizer, prompts=prompts, group_size=8, max_tokens=max_tokens, dtype=dtype)


def settings() -> dict[str, Setting]:
    full = {"problems": 8, "prompt_length": 32, "mean_tokens": 128}
    skewed = {"problems": 32, "prompt_length": 128, "mean_tokens": 64}
    return {
        "default task": default_task(),
        **{
            f"{name}, {str(dtype).removeprefix('torch.')}": random_task(**shape, dtype=dtype)
            for name, shape in (("all rows full", full), ("mean half of the longest", skewed))
            for dtype in (torch.float32, torch.bfloat16)
        },
    }


def ours(setting: Setting) -> Callable[[int], list[list[int]]]:
    sampler = TorchSampler(setting.model, setting.tokenizer, decode_dtype=setting.dtype)
    params = SamplingParams(max_tokens=setting.max_tokens)

    def lengths(round_number: int) -> list[list[int]]:
        first = round_number * len(setting.prompts) * setting.group_size
        seeds = [
            range(first + i * setting.group_size, first + (i + 1) * setting.group_size)
            for i in range(len(setting.prompts))
        ]
        requests = [SampleRequest(p, tuple(s)) for p, s in zip(setting.prompts, seeds, strict=True)]
        return [[len(c.token_ids) for c in group] for group in sampler.sample(requests, params)]

    return lengths


def generate(setting: Setting) -> Callable[[int], list[list[int]]]:
    model = copy.deepcopy(setting.model).to(setting.dtype)  # pyright: ignore[reportArgumentType]  the stubs lose `self`
    width = max(map(len, setting.prompts))
    pad = int(setting.tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in setting.prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in setting.prompts])

    @torch.no_grad()
    def lengths(round_number: int) -> list[list[int]]:
        torch.manual_seed(round_number)
        out = model.generate(  # pyright: ignore[reportCallIssue]
            ids,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            temperature=1.0,
            num_return_sequences=setting.group_size,
            max_new_tokens=setting.max_tokens,
            pad_token_id=pad,
        )
        return out[:, width:].ne(pad).sum(-1).view(-1, setting.group_size).tolist()

    return lengths


def compare(setting: Setting, rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    engines = {"ours": ours(setting), "generate": generate(setting)}
    config, cost, num_rows = (
        setting.model.config,
        ModelCost.of(setting.model),
        len(setting.prompts) * setting.group_size,
    )
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    shares: dict[str, list[float]] = {name: [] for name in engines}
    for round_number in range(rounds + 1):
        machine = rates(config.hidden_size, config.intermediate_size, num_rows, setting.dtype, torch.device("cpu"))
        for name, run in engines.items():
            started = clock()
            lengths = run(round_number)
            seconds = clock() - started
            limit = decode_seconds(
                cost,
                [len(prompt) for prompt in setting.prompts],
                lengths,
                flops_per_second=machine[0],
                bytes_per_second=machine[1],
                bytes_per_number=setting.dtype.itemsize,
            )
            if round_number > 0:  # the first warms up
                speeds[name].append(sum(map(sum, lengths)) / seconds)
                shares[name].append(limit / seconds)
    found = {f"{name}_tokens_per_second": statistics.median(values) for name, values in speeds.items()}
    found |= {f"{name}_share_of_limit": statistics.median(values) for name, values in shares.items()}
    print("  ".join(f"{name} {value:.3g}" for name, value in found.items()), end="  ")
    return {**found, **spread([a / b for a, b in zip(speeds["ours"], speeds["generate"], strict=True)])}


def main(options: Options) -> None:
    torch.set_num_threads(1 if options.cpu_time else cpu_cores())
    clock = time.process_time if options.cpu_time else time.perf_counter
    found = {}
    for name, setting in settings().items():
        print(name, end=": ", flush=True)
        found[name] = compare(setting, options.rounds, clock)
    result = {
        **describe_machine(),
        "rounds": options.rounds,
        "one_thread_cpu_time": options.cpu_time,
        "settings": found,
    }
    write_result("rollout_throughput", __doc__ or "", result)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
