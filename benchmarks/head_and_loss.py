"""The output layer, log-probs and GRPO loss alone, with gradients, at a real vocabulary: ours, TRL's, and plain logits.

    python -m benchmarks.head_and_loss --side trl

Hidden states of `tokens` scored tokens go in, the gradients of hidden states and head come out. All of them compute log-probs;
ours and TRL's compute entropies too, as both trainers do in every update. Seconds are medians; memory as in update_memory.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import tyro
from torch import Tensor
from torch.nn import functional as F

from benchmarks.our_side import clock
from benchmarks.update_memory import PeakMemory
from rl.forward.output_head import OutputHead
from rl.objective.losses import clipped_surrogate
from rl.objective.tokens import TokenScores
from rl.processes.runtime import cpu_cores
from rl.settings.options import DType

HeadSide = Literal["ours", "trl", "naive"]


@dataclass(frozen=True, kw_only=True)
class Options:
    side: HeadSide
    tokens: int = 256
    hidden_size: int = 896
    vocab_size: int = 151_936
    train_head: bool = True
    rounds: int = 3
    threads: int = cpu_cores()
    dtype: DType = "float32"


@dataclass(frozen=True)
class Inputs:
    hidden: Tensor
    weight: Tensor
    targets: Tensor
    advantages: Tensor

    def loss(self, logprobs: Tensor, part: slice = slice(None)) -> Tensor:
        """GRPO's, the policy being its own old one, a mean over tokens."""
        terms = clipped_surrogate(logprobs, logprobs.detach(), self.advantages[part], clip_low=0.2, clip_high=0.2)
        return terms.sum() / len(self.targets)


def ours(x: Inputs) -> Tensor:
    def loss_of(scores: TokenScores, part: slice) -> Tensor:
        return x.loss(scores.logprobs, part)

    return OutputHead(x.weight).loss(x.hidden, x.targets, 1.0, loss_of, token_level=True)[0]


def trl(x: Inputs) -> Tensor:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    outputs = ("log_probs", "entropy")  # what its GRPO trainer asks for
    logprobs, *_ = ChunkedLogProbFunction.apply(  # pyright: ignore[reportGeneralTypeIssues]
        x.hidden, x.weight, None, x.targets, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, outputs
    )
    return x.loss(logprobs)


def naive(x: Inputs) -> Tensor:
    logprobs = F.linear(x.hidden, x.weight).float().log_softmax(-1)
    return x.loss(logprobs.gather(1, x.targets[:, None])[:, 0])


SIDES: dict[str, Callable[[Inputs], Tensor]] = {"ours": ours, "trl": trl, "naive": naive}


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    shape = options.vocab_size, options.hidden_size
    x = Inputs(
        hidden=torch.randn(options.tokens, options.hidden_size, device=device).requires_grad_(),
        weight=(torch.randn(shape, device=device) * options.hidden_size**-0.5).requires_grad_(options.train_head),
        targets=torch.randint(options.vocab_size, (options.tokens,), device=device),
        advantages=torch.randn(options.tokens, device=device),
    )

    def run() -> float:
        started = clock(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=options.dtype == "bfloat16"):
            loss = SIDES[options.side](x)
        loss.backward()
        taken = clock(device) - started
        assert x.hidden.grad is not None
        norms.append(x.hidden.grad.norm().item())
        x.hidden.grad = x.weight.grad = None
        return taken

    norms: list[float] = []  # the sides must agree
    run()
    seconds = [run() for _ in range(options.rounds)]
    peak = PeakMemory(device)
    peak.start()
    run()
    print(json.dumps({"seconds": statistics.median(seconds), "peak_bytes": peak.stop(), "gradient_norm": norms[0]}))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
