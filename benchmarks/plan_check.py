"""Whether a plan comes true: memory and time of real updates beside what `plumbline plan` says of them.

    python -m benchmarks.plan_check

Memory: what an update takes beyond weights and optimiser state, in a process of its own, measured as
benchmarks/update_memory.py does; beside it the formula and the dry run. Time: updates of PPO over one of GRPO, all on the same
tokens, one thread, process CPU time, in turn; the median of the rounds' ratios beside the quotient of operations.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
import tyro

from benchmarks.machine import describe_machine, write_result
from benchmarks.models import LARGE, SMALL
from benchmarks.update_memory import PeakMemory, in_fresh_process
from rl.capacity.cost import forward_flops
from rl.command.dry_run import equal_batch, make_state, untrained_learner
from rl.command.plan import Plan
from rl.processes.runtime import Runtime
from rl.settings.options import PlanOptions
from rl.update.learner import Learner
from rl.update.update import update

SIZES = {"3M": SMALL, "28M": LARGE}
METHODS = ("grpo", "ppo", "ppo-separate")
STEP: dict[str, Any] = {"group_size": 8, "prompt_length": 96, "completion_length": 97, "problems_per_step": 2}


@dataclass(frozen=True, kw_only=True)
class Options:
    rounds: int = 8
    size: str | None = None
    """With algorithm and lora_rank: print the bytes of this one update only."""
    algorithm: str = "grpo"
    lora_rank: int = 0


def planned(size: str, algorithm: str, lora_rank: int, token_budget: int = 1024) -> Plan:
    options = PlanOptions(
        model=size,
        algorithm=algorithm,
        lora_rank=lora_rank,
        kl_weight=0.0,
        dtype="float32",
        token_budget=token_budget,
        **STEP,
    )
    return Plan(options, SIZES[size].config(), device="cpu")


def real_learner(plan: Plan) -> Learner:
    runtime = Runtime.start(dtype="float32", device="cpu")
    torch.set_num_threads(1)
    return untrained_learner(plan.config, plan.run, runtime)


def measured_bytes(plan: Plan) -> int:
    learner, peak = real_learner(plan), PeakMemory(torch.device("cpu"))
    batch = equal_batch(*(STEP[n] for n in ("problems_per_step", "group_size", "prompt_length", "completion_length")))
    make_state(learner)
    update(learner, batch)
    peak.start()
    update(learner, batch)
    return peak.stop()


def memory(size: str, algorithm: str, lora_rank: int) -> dict[str, Any]:
    plan = planned(size, algorithm, lora_rank)
    arguments = {"size": size, "algorithm": algorithm, "lora-rank": lora_rank}
    measured, dry = in_fresh_process("benchmarks.plan_check", arguments), plan.dry()
    formula = plan.peak_of_update() - plan.memory()["sampler's weights"] - plan.kept()
    found = {
        **arguments,
        "kept_mb": plan.kept() / 1e6,
        "measured_mb": measured / 1e6,
        "formula_over_measured": formula / measured,
        "dry_run_over_measured": (dry.peak - dry.kept) / measured,
        "whole_formula_over_measured": (plan.kept() + formula) / (plan.kept() + measured),
    }
    print(json.dumps(found), flush=True)
    return found


def times(rounds: int) -> dict[str, dict[str, float]]:
    """Whitening needs all values before the update: a forward beforehand."""
    plans = {name: planned("3M", name, 0) for name in METHODS}
    flops = {name: sum(n for what, n in plan.flops().items() if "backward" in what) for name, plan in plans.items()}
    learners = {name: real_learner(plan) for name, plan in plans.items()}
    whiten = real_learner(plans["ppo"])
    rule = whiten.algorithm.value_rule
    assert rule is not None
    whiten.algorithm = replace(whiten.algorithm, value_rule=replace(rule, whiten=True))
    learners["ppo, whitened"] = whiten
    flops["ppo, whitened"] = flops["grpo"] + forward_flops(
        plans["grpo"].cost, plans["grpo"].micro_batches.whole.workload
    )
    batch = equal_batch(*(STEP[n] for n in ("problems_per_step", "group_size", "prompt_length", "completion_length")))
    taken: dict[str, list[float]] = {name: [] for name in learners}
    for _ in range(1 + rounds):
        for name, learner in learners.items():
            started = time.process_time()
            update(learner, batch)
            taken[name].append(time.process_time() - started)
    return {
        name: {
            "measured": statistics.median(a / b for a, b in zip(seconds[1:], taken["grpo"][1:], strict=True)),
            "predicted": flops[name] / flops["grpo"],
        }
        for name, seconds in taken.items()
    }


def main(options: Options) -> None:
    if options.size:
        print(measured_bytes(planned(options.size, options.algorithm, options.lora_rank)))
        return
    ratios = times(options.rounds)
    print(json.dumps(ratios, indent=2))
    rows = [memory(size, algorithm, rank) for size in SIZES for algorithm in METHODS for rank in (0, 16)]
    write_result(
        "plan_check", __doc__ or "", {**describe_machine(), "step": STEP, "time_over_grpo": ratios, "memory": rows}
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
