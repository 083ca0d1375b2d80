"""Under DistributedDataParallel the packed forward and the one-pass output layer give the gradient of one process."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from rl.forward.forward import packed_forward
from rl.forward.micro_batch import MicroBatch
from rl.objective.tokens import TokenScores
from rl.update.batch import Batch
from tests.rl.families import of_family
from tests.rl.models import random_batch


class Loss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = of_family("Qwen2")

    def forward(self, micro: MicroBatch) -> Tensor:
        def loss_of(scores: TokenScores, part: slice) -> Tensor:
            tokens = micro.tokens(part)
            return (tokens.weights * (tokens.advantages * scores.logprobs + 0.3 * scores.entropies)).sum()

        states, head = packed_forward.hidden_states(self.model, micro), packed_forward.head(self.model)
        return head.loss(states, micro.targets, 0.7, loss_of, token_level=True)[0]


def backward(module: nn.Module, batch: Batch) -> None:
    """Two micro-batches; under DDP the first is not yet averaged over the processes."""
    first, second = batch.micro_batches(batch.num_tokens // 2 + 8)
    with module.no_sync() if isinstance(module, DistributedDataParallel) else torch.enable_grad():
        module(first).backward()
    module(second).backward()


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    module, batch = DistributedDataParallel(Loss()), random_batch(groups=6)
    backward(module, Batch(batch.groups[rank::2], batch.counts))
    if rank == 0:
        torch.save([p.grad for p in module.parameters()], Path(folder) / "gradients.pt")
    del module  # a reducer that outlives the group joins its threads while holding the lock that they wait for
    dist.destroy_process_group()


def test_two_processes_have_the_gradient_of_one(tmp_path: Path) -> None:
    spawn(one_of_two, (str(tmp_path),), nprocs=2)
    module, batch = Loss(), random_batch(groups=6)
    backward(module, batch)
    of_two = torch.load(tmp_path / "gradients.pt")
    for ours, theirs in zip(of_two, module.parameters(), strict=True):
        assert theirs.grad is not None
        assert (2 * ours - theirs.grad).abs().max() < 1e-4 * theirs.grad.abs().max()  # DDP takes the mean of both
