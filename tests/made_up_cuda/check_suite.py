"""Every part of benchmarks/gpu_suite.py on the made-up GPU, with few and short layers and steps: nothing of it is wrong but the numbers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tests.made_up_cuda.device import CUDA, without_contents  # isort: skip  (before torch)

from transformers import PreTrainedModel

import benchmarks.gpu_parts as parts
from benchmarks.gpu_suite import Results, run_parts
from rl.processes.runtime import Runtime
from rollout.engine import decode_weights, fused_model
from rollout.records import Completion, FinishReason
from rollout.sampler import SampleRequest, SamplingParams
from rollout.torch_sampler import TorchSampler


class Clock:
    def seconds(self, run: Callable[[], object]) -> float:
        run()
        return 1.0

    def memory(self, run: Callable[[], object]) -> dict[str, float]:
        run()
        return {"allocated": 0.0, "reserved": 0.0}


class Bench(parts.Bench):
    def real_models(self) -> Iterator[tuple[str, PreTrainedModel]]:
        """Files have contents, the device has none: a random model stands for them."""
        yield "stand-in", self.random_model()


def sample(engine: TorchSampler, requests: Sequence[SampleRequest], params: SamplingParams) -> list[list[Completion]]:
    """Some steps, of which nobody can read what was drawn."""
    engine.probe([(request.prompt_ids, (1, 2, 3)) for request in requests])
    one = Completion(
        token_ids=(1, 2, 3),
        sampler_logprobs=(0.0, 0.0, 0.0),
        finish_reason=FinishReason.LENGTH,
        policy_version=0,
        seed=0,
        text="",
    )
    return [[one] * len(request.seeds) for request in requests]


def main(out: Path) -> None:
    start = Runtime.start
    Runtime.start = lambda **options: replace(start(**options), device=CUDA)  # pyright: ignore[reportAttributeAccessIssue]
    for module in (decode_weights, fused_model):  # tensors without contents are of a type of their own
        module.is_plain = lambda _: True  # pyright: ignore[reportAttributeAccessIssue]
    TorchSampler.sample = sample  # pyright: ignore[reportAttributeAccessIssue]
    results = Results(out / "gpu_suite.json")
    with without_contents():
        bench = Bench(CUDA, Clock(), model="qwen2.5-0.5b", layers=2, problems=2, completion=64)
        run_parts(bench, results, 1000.0, list(parts.PARTS))
    print(json.dumps(results.found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
