"""vLLM as one or several servers, asked over HTTP. A server that dies is waited for, and gets the weights again.

The servers must run with the routes that change weights and with log-probs of what is sampled from: `plumbline serve-vllm`.
New weights go through a folder that the trainer and the servers see, or by NCCL from GPU to GPU.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rollout.processes import Alone, Processes
from rollout.records import Completion, FinishReason
from rollout.sampler import RequestQueue, Requests, SamplerBase, SampleRequest, SamplingParams, Stream, Text
from rollout.turn import TurnReader
from rollout.vllm_client import FileWeights, SentWeights, Server, TensorWeights
from rollout.vllm_worker import request_options
from rollout.weight_files import InType, NamedTensors, exhaust, write_files


class VLLMServerSampler(SamplerBase):
    """urls: of servers of one model. transfer: the folder for weights; None sends them by NCCL. patience: seconds that a dead
    server is waited for. max_length: of a prompt and its completion. report: is told when a server is waited for.
    processes: the first one sends the weights. sharded: no process holds all of them by itself.
    """

    takes_adapters = False

    def __init__(
        self,
        urls: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: Set[int],
        *,
        max_length: int,
        transfer: Path | None,
        patience: float = 600.0,
        report: Callable[[str], None] = print,
        processes: Processes | None = None,
        sharded: bool = False,
    ) -> None:
        self.stop_ids, self.turns, self.policy_version = sorted(stop_ids), TurnReader.of(tokenizer, stop_ids), 0
        self.path = f"vLLM at {', '.join(urls)}"
        self.transfer = transfer.absolute() if transfer else None
        self.processes = processes or Alone()
        self.is_first, self.sharded = self.processes.rank == 0, sharded
        self.shapes: list[tuple[str, torch.dtype, torch.Size]] = []
        self._drop_files()  # what a run that was killed has left
        self.num_deliveries = 0
        self.run_id = self.processes.gather([secrets.token_hex(4)])[0]  # no other run names its weights so
        self.servers = [Server(url.rstrip("/"), patience, report) for url in urls]
        for server in self.servers:
            server.check(tokenizer, max_length)
        # One file serves all of them.
        self.dtype = max((server.dtype for server in self.servers), key=lambda dtype: dtype.itemsize)

    def stream(self, requests: Requests, params: SamplingParams) -> Stream:
        """A group goes to one server, whose prefix cache then keeps the prompt for all of it. Each is asked for as many completions
        at once as it decodes at once."""
        for server in self.servers:
            server.ensure_weights()
        queue, finished = RequestQueue.of(requests), SimpleQueue[tuple[int, int, Completion] | int | Exception]()

        def ask(i: int, j: int, request: SampleRequest) -> None:
            options = request_options(params, request.limit(params), request.seeds[j], self.stop_ids)
            body = {"prompt": list(request.prompt_ids), **options, "return_token_ids": True}
            try:
                answer = self.servers[i % len(self.servers)].post("/v1/completions", body)
                finished.put((i, j, self._completion(answer["choices"][0], request.seeds[j], params)))
            except Exception as error:  # noqa: BLE001  raised where it is waited for
                finished.put(error)

        def submit_all() -> None:
            """As requests are put; in the end their number."""
            num_submitted = 0
            while taken := queue.take(wait=True):
                for i, request in taken:
                    for j in range(len(request.seeds)):
                        threads.submit(ask, i, j, request)
                        num_submitted += 1
            finished.put(num_submitted)

        threads = ThreadPoolExecutor(sum(server.max_rows for server in self.servers))
        submitter = Thread(target=submit_all, daemon=True)
        num_done, num_submitted = 0, None
        try:
            submitter.start()
            while num_done != num_submitted:
                found = finished.get()
                if isinstance(found, Exception):
                    raise found
                if isinstance(found, int):
                    num_submitted = found
                    continue
                num_done += 1
                yield found
        finally:
            queue.close()
            submitter.join()
            if num_done != num_submitted:
                for server in self.servers:
                    server.abort()
            threads.shutdown(cancel_futures=True)

    def _completion(self, choice: dict[str, Any], seed: int, params: SamplingParams) -> Completion:
        token_ids = tuple(choice["token_ids"])
        return Completion(
            token_ids=token_ids,
            sampler_logprobs=tuple(choice["logprobs"]["token_logprobs"]),
            finish_reason=FinishReason.STOP if choice["finish_reason"] == "stop" else FinishReason.LENGTH,
            policy_version=self.policy_version,
            seed=seed,
            text=self.turns.texts([token_ids], params.stop_strings)[0],
        )

    def probe(self, texts: Sequence[Text]) -> dict[str, list[list[float]]]:
        return {server.url: server.probe(texts) for server in self.servers}

    @torch.no_grad()
    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Every tensor under every name: where those with tied embeddings have one alone, vLLM leaves the old output head in place."""
        self.num_deliveries += 1
        name, tensors = f"weights-{self.run_id}-{self.num_deliveries}", InType(named_tensors, self.dtype)
        if self.transfer is None:
            self._send(name, tensors)
        else:
            weights = FileWeights(name, self._write_files(self.transfer / name, tensors))
            for server in self.servers:
                server.weights = weights
                if self.is_first:
                    server.load()
        self.processes.gather([None])  # nobody samples before they are there
        self.policy_version = version

    def _send(self, name: str, tensors: NamedTensors) -> None:
        """By NCCL. All processes go through the tensors once for each server: they may be put together from parts of each."""
        self.shapes = self.shapes or [(name, tensor.dtype, tensor.shape) for name, tensor in tensors]
        for server in self.servers:
            if self.is_first:
                server.weights = TensorWeights(name, tensors, self.shapes)
                server.load()
            else:
                exhaust(tensors)
            if self.sharded or not self.is_first:
                server.weights = SentWeights(name)

    def images(self) -> dict[str, dict[str, Tensor]]:
        """Of the servers whose workers have rollout.vllm_worker.Extension."""
        return {server.url: found for server in self.servers if (found := server.images())}

    def rest(self) -> None:
        """Nothing: the servers' memory is their own."""

    def close(self) -> None:
        self._drop_files()

    def _write_files(self, folder: Path, tensors: NamedTensors) -> Path:
        """In place of the last. All processes go through the tensors: they may be put together from parts of each."""
        self._drop_files()
        if self.is_first:
            write_files(tensors, folder)
        else:
            exhaust(tensors)
        return folder

    def _drop_files(self) -> None:
        if self.transfer is not None and self.is_first:
            shutil.rmtree(self.transfer, ignore_errors=True)
