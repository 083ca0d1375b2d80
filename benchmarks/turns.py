"""Tokens per second of the embedded engine with 0, 1 and 4 tool calls in a rollout, at equal tokens, tools that answer in 5 ms.

    python -m benchmarks.turns
    python -m benchmarks.turns --model FOLDER --rounds 3       with a pretrained model in Hugging Face format

All completions have equally many tokens. With c calls 16 c of them are the tool's, and the rest is sampled in c + 1 turns of unequal
lengths, so that calls do not come all at once. A call sleeps for 5 ms in one of eight threads. Each kind of rollout also runs with the
whole context of every turn processed anew. Rounds are interleaved, medians are over rounds, a ratio is of a round's pair.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.machine import describe_machine, spread, write_result
from benchmarks.models import SMALL, random_model, word_tokenizer
from rl.processes.runtime import cpu_cores
from rollout.records import Completion, Problem
from rollout.rollouts import Call, Episode, Fixed, Turns, run_rollouts
from rollout.sampler import SamplingParams, completion_seed
from rollout.torch_sampler import TorchSampler

Clock = Callable[[], float]
CALLS, SECONDS, ADDED, THREADS = (0, 1, 4), 0.005, 16, 8


@dataclass(frozen=True, kw_only=True)
class Options:
    rounds: int = 7
    model: Path | None = None
    """A folder in Hugging Face format; by default a random model of 3 M parameters."""
    problems: int = 8
    group_size: int = 8
    prompt_length: int = 64
    tokens: int = 192
    """Tokens of each completion, those that calls add included."""
    cpu_time: bool = False
    """One thread, and the process's CPU time instead of the wall's: for a machine that others use too."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """prompts: one for each group. calls: of each rollout. added: what a call adds."""

    prompts: list[tuple[int, ...]]
    group_size: int
    tokens: int
    added: Fixed

    def rollouts(self, calls: int, round_number: int) -> list[list[Turns]]:
        return [
            [self._rollout(self._episode(p, prompt, i, round_number), calls, i) for i in range(self.group_size)]
            for p, prompt in enumerate(self.prompts)
        ]

    def _episode(self, p: int, prompt: tuple[int, ...], index: int, round_number: int) -> Episode:
        return Episode(
            problem=Problem(id=str(p), prompt="", reference=""),
            prompt_ids=prompt,
            max_tokens=self.tokens,
            seed_of=partial(completion_seed, 0, round_number, str(p), index),
        )

    def _rollout(self, episode: Episode, calls: int, index: int) -> Turns:
        parts: list[Completion | Fixed] = []
        # The first turns of a group have one limit, so that they share a request and its prompt.
        sampled = self.tokens - calls * ADDED
        first, *later = turn_lengths(sampled, calls + 1, seed=int(episode.problem.id))
        lengths = [first, *turn_lengths(sampled - first, calls, seed=episode.seed_of(0))] if later else [first]
        for length in lengths[:-1]:
            parts.append((yield episode.ask(parts, at_most=length)))
            yield Call(partial(time.sleep, SECONDS))
            parts.append(self.added)
        parts.append((yield episode.ask(parts, at_most=lengths[-1], is_last=True)))
        return episode.join(parts)


def turn_lengths(tokens: int, turns: int, *, seed: int) -> list[int]:
    """Random lengths of the turns, each at least 4, with this sum."""
    chance = random.Random(seed)
    ends = sorted(chance.sample(range(1, tokens // 4), turns - 1))
    return [4 * (b - a) for a, b in zip([0, *ends], [*ends, tokens // 4], strict=True)]


def load(options: Options) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, none of whose tokens ends a completion."""
    if options.model is None:
        tokenizer = word_tokenizer(SMALL.vocab_size)
        model = random_model(SMALL, tokenizer, end_probability=1e-9)
    else:
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token = None
    return model, tokenizer


def measured(sampler: TorchSampler, work: Work, calls: int, round_number: int, clock: Clock) -> tuple[float, int]:
    """(tokens of completions per second, prefilled tokens)"""
    rollouts, params = work.rollouts(calls, round_number), SamplingParams(max_tokens=work.tokens)
    before, started = sampler.num_prefilled, clock()
    whole = [whole for *_, whole in run_rollouts(rollouts, sampler, params, call_threads=THREADS)]
    seconds = clock() - started
    return sum(len(completion.token_ids) for completion in whole) / seconds, sampler.num_prefilled - before


def compare(sampler: TorchSampler, work: Work, rounds: int, clock: Clock) -> dict[str, Any]:
    kinds = [(calls, resumes) for calls in CALLS for resumes in (True, False) if calls or resumes]
    speeds: dict[tuple[int, bool], list[float]] = {kind: [] for kind in kinds}
    prefilled = dict[tuple[int, bool], int]()
    for round_number in range(rounds + 1):
        for kind in kinds if round_number % 2 else reversed(kinds):
            calls, sampler.resumes = kind
            speed, prefilled[kind] = measured(sampler, work, calls, round_number, clock)
            if round_number:  # the first warms up
                speeds[kind].append(speed)
    return {name(*kind): found(speeds[kind], speeds[0, True], prefilled[kind], name(*kind)) for kind in kinds}


def name(calls: int, resumes: bool) -> str:
    return f"{calls} calls" + ("" if resumes else ", processed anew")


def found(speeds: Sequence[float], single: Sequence[float], prefilled: int, name: str) -> dict[str, float]:
    speed = statistics.median(speeds)
    print(f"{name}: {speed:.0f} tokens per second, {prefilled} tokens prefilled", end="  ")
    ratios = spread([a / b for a, b in zip(speeds, single, strict=True)])
    return {"tokens_per_second": speed, "prefilled_tokens": prefilled, **ratios}


def main(options: Options) -> None:
    torch.set_num_threads(1 if options.cpu_time else cpu_cores())
    clock = time.process_time if options.cpu_time else time.perf_counter
    model, tokenizer = load(options)
    chance, words = random.Random(0), model.config.vocab_size
    tokens = [tuple(chance.randrange(2, words) for _ in range(options.prompt_length)) for _ in range(options.problems)]
    added = Fixed(tuple(chance.randrange(2, words) for _ in range(ADDED)), "")
    work = Work(prompts=tokens, group_size=options.group_size, tokens=options.tokens, added=added)
    result = compare(TorchSampler(model, tokenizer), work, options.rounds, clock)
    size = sum(parameter.numel() for parameter in model.parameters())
    write_result(
        "turns" if options.model is None else f"turns_{options.model.name}",
        __doc__ or "",
        {
            **describe_machine(),
            "parameters": size,
            "options": {**vars(options), "model": str(options.model)},
            "found": result,
        },
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
