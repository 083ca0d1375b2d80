"""How near each phase of a step comes to what this machine's own matrix products and memory would allow.

    python -m benchmarks.percent_of_limit

Phases: sampling, update, optimiser, at a shape of benchmarks/shapes.py. The limit is counted in rl/capacity/cost.py from the tokens that
were really there, over the rates measured in the same rounds: the best matrix product (the micro-batch's and a large square
one) and the best stream (read). "algorithm" counts what the mathematics needs (each prompt once, no padding, silent groups
left out); "as run" what went through. The gain of sharing prompts is timed against the same code without it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro

from benchmarks.machine import describe_machine, write_result
from benchmarks.our_side import OurSide, clock
from benchmarks.shapes import SHAPES, Shape, given
from rl.capacity.cost import ModelCost, Workload, decode_seconds, optimizer_bytes, update_flops
from rl.forward.layouts import packed_tokens
from rl.forward.micro_batch import TrainGroup
from rl.processes.runtime import Runtime, cpu_cores
from rl.settings.options import DType
from rl.update.batch import Batch, pack
from rl.update.update import update


@dataclass(frozen=True, kw_only=True)
class Options:
    shape: str = "b"
    rounds: int = 7
    dtype: DType = "float32"


def best(run: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Seconds of the fastest of some runs."""
    times = []
    for _ in range(repeats):
        started = clock(device)
        run()
        times.append(clock(device) - started)
    return min(times)


def rates(
    model_width: int, inner_width: int, tokens: int, dtype: torch.dtype, device: torch.device
) -> tuple[float, float]:
    """(floating-point operations a second, bytes a second) of this machine, now."""
    flops = 0.0
    for m, k, n in ((tokens, model_width, inner_width), (2048, 2048, 2048)):
        a, b = torch.randn(m, k, device=device, dtype=dtype), torch.randn(n, k, device=device, dtype=dtype)
        flops = max(flops, 2 * m * k * n / best(lambda a=a, b=b: a @ b.T, device))
    block = torch.ones(1 << 26, device=device)
    return flops, block.numel() * 4 / best(block.sum, device, 3)


def apart(batch: Batch) -> Batch:
    """The same sequences, each with a prompt of its own."""
    groups = tuple(TrainGroup(g.prompt_ids, (s,)) for g in batch.groups for s in g.sequences)
    return Batch(groups, batch.counts)


def main(options: Options) -> None:
    if torch.get_num_threads() < cpu_cores():
        torch.set_num_threads(cpu_cores())
    runtime, shape = Runtime.start(dtype=options.dtype), SHAPES[options.shape]
    side = OurSide(shape, given(shape, runtime, num_problems=shape.problems * (options.rounds + 1)), runtime)
    rows: list[dict[str, float]] = []
    for number in range(options.rounds + 1):
        rows.append(one_round(side, shape, runtime, number))
        if number > 0:  # the first is warm-up
            print("  ".join(f"{k} {v:.3g}" for k, v in rows[-1].items()))
    medians = {key: statistics.median(row[key] for row in rows[1:]) for key in rows[0]}
    spreads = {key: [min(row[key] for row in rows[1:]), max(row[key] for row in rows[1:])] for key in rows[0]}
    result = {**describe_machine(), "configuration": vars(options), "medians": medians, "least_and_most": spreads}
    write_result(f"percent_of_limit_{options.shape}_{options.dtype}", __doc__ or "", result)


def one_round(side: OurSide, shape: Shape, runtime: Runtime, number: int) -> dict[str, float]:
    """A step's parts, timed, and what their operations would take at the rates of the same moment."""
    learner, algorithm, device = side.learner, side.learner.algorithm, runtime.device
    cost, config = ModelCost.of(learner.policy.model), learner.policy.model.config.get_text_config()
    parameters = learner.optimizer.param_groups[0]["params"]
    problems = side.stream.take(shape.problems)
    width = min(shape.token_budget, shape.rows * (shape.prompt_length + shape.max_tokens))
    dtype = torch.bfloat16 if runtime.dtype == "bfloat16" else torch.float32
    flops, stream = rates(config.hidden_size, config.intermediate_size, width, dtype, device)

    started = clock(device)
    collected = side.collector.collect(problems, step=number)
    sampled = clock(device) - started
    lengths = [[len(r.completion.token_ids) for r in g.rollouts] for g in collected.groups]
    prompts = [len(g.prompt_ids) for g in collected.groups]
    batch = pack(algorithm.assign_credit(collected.groups, shape.max_tokens), algorithm, shape.max_tokens)
    work = Workload.of(batch.groups)
    run = sum(packed_tokens(micro.groups) for micro in batch.micro_batches(shape.token_budget))

    seconds = {"update": 0.0, "apart": 0.0}
    for name, cut in (("update", batch), ("apart", apart(batch))):
        started = clock(device)
        update(learner, cut)
        seconds[name] = clock(device) - started
    for p in parameters:
        p.grad = torch.zeros_like(p)
    optimizer = best(learner.optimizer.step, device, 3)
    learner.optimizer.zero_grad()
    needed = update_flops(cost, work, frozen=shape.lora_rank > 0)
    as_run = update_flops(cost, Workload(tokens=run, scored=work.scored, pairs=work.pairs), frozen=shape.lora_rank > 0)
    return {
        "gflops": flops / 1e9,
        "gbytes": stream / 1e9,
        "sampling_seconds": sampled,
        "sampling": decode_seconds(
            cost,
            prompts,
            lengths,
            flops_per_second=flops,
            bytes_per_second=stream,
            bytes_per_number=2 if runtime.dtype == "bfloat16" else 4,
        )
        / sampled,
        "update_seconds": seconds["update"] - optimizer,
        "update, algorithm": needed / flops / (seconds["update"] - optimizer),
        "update, as run": as_run / flops / (seconds["update"] - optimizer),
        "optimizer_seconds": optimizer,
        "optimizer": optimizer_bytes(cost) / stream / optimizer,
        "sharing, gain": (seconds["apart"] - optimizer) / (seconds["update"] - optimizer),
        "sharing, of operations": update_flops(cost, Workload.of(batch.groups, shared=False)) / needed,
    }


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
