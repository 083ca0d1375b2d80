"""Sends weights to vLLM servers from GPU to GPU, by vLLM's own transfer engine. It imports vllm, so import it lazily."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import requests
import torch
from torch import Tensor

from rollout.vllm_worker import require_vllm
from rollout.weight_files import NamedTensors

require_vllm()

from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource  # noqa: E402  # pyright: ignore[reportMissingImports]
from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient  # noqa: E402  # pyright: ignore[reportMissingImports]
from vllm.distributed.weight_transfer.nccl_engine import (  # noqa: E402  # pyright: ignore[reportMissingImports]
    NCCLTrainerInitInfo,
    NCCLTrainerWeightTransferEngine,
)


class Source(WeightSource):
    """The tensors of the next transfer, each made when it is sent."""

    tensors: NamedTensors
    shapes: list[tuple[str, torch.dtype, torch.Size]]

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, dtype, tuple(shape)) for name, dtype, shape in self.shapes]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self.tensors)


class Channel:
    """An NCCL group of this process's GPU and all GPUs of one server. A restarted server needs a new channel."""

    def __init__(self, url: str) -> None:
        workers = requests.get(f"{url}/get_world_size", timeout=10).json()["world_size"]
        with socket.socket(type=socket.SOCK_DGRAM) as towards_it:
            towards_it.connect(
                (urlsplit(url).hostname, 9)
            )  # sends nothing; it determines our address on the way to the server
            address = towards_it.getsockname()[0]
        with socket.socket() as free:
            free.bind((address, 0))
            port = free.getsockname()[1]
        self.source = Source()
        self.engine = NCCLTrainerWeightTransferEngine.trainer_init(
            NCCLTrainerInitInfo(master_address=address, master_port=port, world_size=workers + 1, rank=0),
            client=HTTPVLLMWeightSyncClient(url),
            source=self.source,
        )

    @torch.no_grad()
    def send(self, tensors: NamedTensors, shapes: list[tuple[str, torch.dtype, torch.Size]]) -> None:
        self.source.tensors, self.source.shapes = tensors, shapes
        self.engine.send_weights()
