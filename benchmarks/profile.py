"""Where the time of sampling and of an update goes, beside what each kind of work would take at this machine's limits.

    python -m benchmarks.profile                        shape b of benchmarks/shapes.py
    python -m benchmarks.profile --shape real           SmolLM2-135M-Instruct; --dtype bfloat16: as autocast on a GPU
    python -m benchmarks.profile --no-compiled          without compiled parts

Kinds: matrix products; attention (products of queries, keys and values); copies (gathers, scatters, casts, concatenation); views, which
move nothing; elementwise (all other operations); Python (the time between operations: interpreter, waiting for the interpreter's lock).
Seconds are those of a thread that runs operations: sampling has one on each core, an update one whose operations use all cores.

Limits: products and attention are operations that the mathematics needs (rl/capacity/cost.py) over the best rate of a product here;
copies and elementwise are the bytes of their inputs, read once, over the rate of a sum. The shares of the kinds are those of one round
under torch's profiler, which slows Python, so that its share is an upper bound; the seconds are these shares of the other rounds' median.

Writes benchmarks/results/profile_<shape>_<dtype>.json, or ..._torch.json without compiled parts.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch is imported: as the recipes, see rl/cli.py

import torch
import tyro
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import describe_machine, write_result
from benchmarks.our_side import OurSide, clock
from benchmarks.percent_of_limit import rates
from benchmarks.shapes import SHAPES, given
from rl.capacity.cost import FLOAT32, ModelCost, Workload, forward_flops
from rl.forward import cpu_kernels
from rl.processes.runtime import Runtime, cpu_cores
from rl.settings.options import DType
from rl.update.batch import Batch, pack
from rl.update.update import update
from rollout.engine import kernels
from rollout.records import RolloutGroup

COMPILED_PARTS: tuple[Any, ...] = (kernels, cpu_kernels)

KINDS = {
    "products": ("mm", "addmm", "_linear_pointwise", "mkldnn_linear", "linear"),
    "attention": ("bmm", "baddbmm", "baddbmm_", "_scaled_dot_product"),
    "copies": (
        *("copy_", "cat", "index_select", "index_copy_", "index", "index_put_", "_index_put_impl_", "embedding"),
        *("embedding_dense_backward", "gather", "scatter_", "constant_pad_nd", "fill_", "zero_", "clone", "_to_copy"),
    ),
    "views": (
        *(
            "view",
            "as_strided",
            "slice",
            "select",
            "narrow",
            "transpose",
            "t",
            "unbind",
            "split",
            "split_with_sizes",
            "chunk",
        ),
        *(
            "reshape",
            "_reshape_alias",
            "expand",
            "permute",
            "flatten",
            "unflatten",
            "unsqueeze",
            "squeeze",
            "detach",
            "alias",
        ),
        *("numpy_T", "mT", "swapaxes", "empty", "empty_like", "empty_strided", "resize_", "lift_fresh", "_unsafe_view"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    shape: str = "b"
    rounds: int = 5
    dtype: DType = "float32"
    compiled: bool = True
    slowest: int = 12
    """Print so many operations of each part."""


@dataclass(frozen=True)
class Times:
    """Seconds of a round, and how many cores were busy in it."""

    seconds: float
    busy: float

    @staticmethod
    def of(run: Callable[[], object], device: torch.device) -> Times:
        started, used = clock(device), time.process_time()
        run()
        seconds = clock(device) - started
        return Times(seconds, (time.process_time() - used) / seconds)


def kind_of(operation: str) -> str:
    name = operation.rpartition("::")[2]
    for kind, names in KINDS.items():
        if name in names or any(name.startswith(n) for n in names if n.startswith("_scaled")):
            return kind
    return "elementwise"


class Timed:
    """Compiled parts, timed: torch's profiler does not see them. seconds: by kind, added to."""

    def __init__(self, compiled: Any, seconds: dict[str, float]) -> None:
        self.compiled, self.seconds = compiled, seconds

    def __getattr__(self, name: str) -> Callable[..., object]:
        function = getattr(self.compiled, name)
        kind = "attention" if name in ("attend", "softmax", "softmax_backward") else "elementwise"

        def timed(*arguments: object) -> object:
            started = time.perf_counter()
            found = function(*arguments)
            self.seconds[kind] += time.perf_counter() - started
            return found

        return timed


def operations(run: Callable[[], object], slowest: int, lanes: int) -> dict[str, dict[str, float]]:
    """By kind: the share of its operations in the time of `lanes` threads, and the bytes of their inputs. Prints the slowest operations."""
    everywhere, compiled = _ExperimentalConfig(profile_all_threads=True), {"attention": 0.0, "elementwise": 0.0}
    before = [part.compiled for part in COMPILED_PARTS]
    for part, own in zip(COMPILED_PARTS, before, strict=True):
        part.compiled = own and Timed(own, compiled)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, experimental_config=everywhere) as found:
        started = time.perf_counter()
        run()
        taken = time.perf_counter() - started
    for part, own in zip(COMPILED_PARTS, before, strict=True):
        part.compiled = own
    kinds = {kind: {"share": 0.0, "bytes": 0.0} for kind in (*KINDS, "elementwise")}
    for row in found.key_averages(group_by_input_shape=True):
        if "::" in row.key:  # an operation: others are ranges, which contain some
            of_kind = kinds[kind_of(row.key)]
            of_kind["share"] += row.self_cpu_time_total / 1e6 / taken / lanes
            of_kind["bytes"] += row.count * FLOAT32 * sum(prod(shape) for shape in row.input_shapes or () if shape)
    for kind, seconds in compiled.items():
        kinds[kind]["share"] += seconds / taken / lanes
        print(f"  compiled: {seconds:.3f} s, {kind}")
    by_name = sorted((row for row in found.key_averages() if "::" in row.key), key=lambda row: -row.self_cpu_time_total)
    for row in by_name[:slowest]:
        seconds = row.self_cpu_time_total / 1e6
        print(
            f"  {row.key}: {row.count} times, {seconds:.3f} s ({1e6 * seconds / row.count:.1f} us each), {kind_of(row.key)}"
        )
    return kinds


def decoding_work(groups: list[RolloutGroup]) -> tuple[Workload, Workload]:
    """(of the prompts, which are processed once a group and score nothing, of the completions)."""
    prompts = [len(g.prompt_ids) for g in groups]
    lengths = [(len(g.prompt_ids), len(r.completion.token_ids)) for g in groups for r in g.rollouts]
    completed = sum(c for _, c in lengths)
    pairs = sum(p * c + c * c / 2 for p, c in lengths)
    return (
        Workload(tokens=sum(prompts), scored=0, pairs=sum(p * p / 2 for p in prompts)),
        Workload(tokens=completed, scored=completed, pairs=pairs),
    )


def split(cost: ModelCost, work: Workload) -> dict[str, float]:
    """Operations of a forward by kind."""
    attention = 4 * cost.attention * work.pairs
    return {"products": forward_flops(cost, work) - attention, "attention": attention}


def account(
    times: list[Times], found: dict[str, dict[str, float]], flops: dict[str, float], rate: float, stream: float
) -> dict[str, Any]:
    """Seconds and limits by kind."""
    seconds = statistics.median(t.seconds for t in times)
    parts = {
        kind: {
            "seconds": seconds * of_kind["share"],
            "limit": flops[kind] / rate if kind in flops else of_kind["bytes"] / stream if kind != "views" else 0.0,
        }
        for kind, of_kind in found.items()
    }
    parts["Python"] = {"seconds": seconds - sum(part["seconds"] for part in parts.values()), "limit": 0.0}
    return {"seconds": seconds, "cores_busy": statistics.median(t.busy for t in times), "parts": parts}


def main(options: Options) -> None:
    torch.set_num_threads(cpu_cores())
    if not options.compiled:
        for part in COMPILED_PARTS:
            part.compiled = None
    runtime, shape = Runtime.start(dtype=options.dtype, device="cpu"), SHAPES[options.shape]
    side = OurSide(shape, given(shape, runtime, num_problems=shape.problems * (options.rounds + 2)), runtime)
    times, ran, groups, batch = rounds(side, options)

    model = side.learner.policy.model
    cost, config = ModelCost.of(model), model.config.get_text_config()
    dtype = torch.bfloat16 if options.dtype == "bfloat16" else torch.float32
    rate, stream = rates(config.hidden_size, config.intermediate_size, shape.token_budget, dtype, runtime.device)
    prompts, completions = (split(cost, work) for work in decoding_work(groups))
    updated = split(cost, Workload.of(batch.groups))
    flops = {
        "sampling": {kind: prompts[kind] + completions[kind] for kind in prompts},
        "update": {kind: 3 * operations for kind, operations in updated.items()},
    }
    result = {part: account(times[part][1:], ran[part], flops[part], rate, stream) for part in flops}
    tokens = sum(len(r.completion.token_ids) for g in groups for r in g.rollouts)
    result["sampling"]["tokens_per_second"] = tokens / result["sampling"]["seconds"]
    print(time_table(result))
    machine = {**describe_machine(), "gflops": rate / 1e9, "gbytes": stream / 1e9}
    name = f"profile_{options.shape}_{options.dtype}{'' if options.compiled else '_torch'}"
    described = {**machine, "options": vars(options), "configuration": asdict(shape)}
    write_result(name, __doc__ or "", {**described, **result})


def rounds(
    side: OurSide, options: Options
) -> tuple[dict[str, list[Times]], dict[str, dict[str, dict[str, float]]], list[RolloutGroup], Batch]:
    """Sampling and updates in turn; the first round is warm-up, the last is profiled.
    -> (times of the others, `operations` of the last, its completions, the batch of them)"""
    learner, shape, device = side.learner, side.shape, side.runtime.device
    times: dict[str, list[Times]] = {"sampling": [], "update": []}
    groups: list[RolloutGroup] = []

    def sample() -> None:
        problems = side.stream.take(shape.problems)
        groups[:] = side.collector.collect(problems, step=len(times["update"])).groups

    def train() -> None:
        update(learner, batch)

    def packed() -> Batch:
        credited = learner.algorithm.assign_credit(groups, shape.max_tokens)
        return pack(credited, learner.algorithm, shape.max_tokens)

    for number in range(options.rounds + 1):
        times["sampling"].append(Times.of(sample, device))
        batch = packed()
        times["update"].append(Times.of(train, device))
        side.delivery.deliver(version=number + 1)
    sampled = operations(sample, options.slowest, lanes=cpu_cores())
    batch = packed()
    return times, {"sampling": sampled, "update": operations(train, options.slowest, lanes=1)}, groups, batch


def time_table(result: dict[str, Any]) -> str:
    lines = ["| part | kind | seconds | share | limit, s |", "| --- | --- | --- | --- | --- |"]
    for part in ("sampling", "update"):
        found = result[part]
        for kind, of_kind in sorted(found["parts"].items(), key=lambda item: -item[1]["seconds"]):
            share, limit = of_kind["seconds"] / found["seconds"], of_kind["limit"]
            lines.append(
                f"| {part} | {kind} | {of_kind['seconds']:.3f} | {share:.0%} | {f'{limit:.3f}' if limit else '-'} |"
            )
        total = sum(of_kind["limit"] for of_kind in found["parts"].values())
        lines.append(
            f"| {part} | all, {found['cores_busy']:.2f} cores busy | {found['seconds']:.3f} | 100% | {total:.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
