"""vLLM as one or several servers over HTTP. If a server dies, requests wait until it is back, and it gets the weights again.

The servers must run with the routes that change weights and report log-probs of the distribution that is sampled from:
`plumbline serve-vllm`. New weights go through a folder that trainer and servers share, or by NCCL from GPU to GPU.
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

from rollout.processes import Processes, SingleProcess
from rollout.records import Completion, FinishReason
from rollout.sampler import RequestQueue, Requests, SamplerBase, SampleRequest, SamplingParams, Stream, Text
from rollout.turn import TurnReader
from rollout.vllm_client import FileWeights, SentWeights, Server, TensorWeights
from rollout.vllm_worker import request_options
from rollout.weight_files import InType, NamedTensors, exhaust, write_files


class VLLMServerSampler(SamplerBase):
    """Samples with vLLM servers.

    urls: servers of one model. max_length: tokens of a prompt with its completion. transfer: the folder for weights; None sends them by
    NCCL. timeout: seconds to wait for a dead server. report: called with a message while a server is waited for. processes: the first
    one sends the weights. sharded: no process holds all weights by itself.
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
        timeout: float = 600.0,
        report: Callable[[str], None] = print,
        processes: Processes | None = None,
        sharded: bool = False,
    ) -> None:
        self.stop_ids, self.turns, self.policy_version = sorted(stop_ids), TurnReader.of(tokenizer, stop_ids), 0
        self.path = f"vLLM at {', '.join(urls)}"
        self.transfer = transfer.absolute() if transfer else None
        self.processes = processes or SingleProcess()
        self.is_first, self.sharded = self.processes.rank == 0, sharded
        self.shapes: list[tuple[str, torch.dtype, torch.Size]] = []
        self._drop_files()  # of a killed run
        self.num_deliveries = 0
        self.run_id = self.processes.gather([secrets.token_hex(4)])[0]  # makes the names of this run's weights unique
        self.servers = [Server(url.rstrip("/"), timeout, report) for url in urls]
        for server in self.servers:
            server.check(tokenizer, max_length)
        # All servers read the same files.
        self.dtype = max((server.dtype for server in self.servers), key=lambda dtype: dtype.itemsize)

    def stream(self, requests: Requests, params: SamplingParams) -> Stream:
        """Sends a whole group to one server, whose prefix cache then shares its prompt, and so a rollout's later turns. Each server gets as
        many requests at once as it decodes at once."""
        for server in self.servers:
            server.ensure_weights()
        queue, finished = RequestQueue.of(requests), SimpleQueue[tuple[int, int, Completion] | int | Exception]()

        server_of = dict[int, Server]()  # of each request, by its number

        def ask(server: Server, i: int, j: int, request: SampleRequest) -> None:
            options = request_options(params, request.limit(params), request.seeds[j], self.stop_ids)
            body = {"prompt": list(request.prompt_ids), **options, "return_token_ids": True}
            try:
                answer = server.post("/v1/completions", body)
                finished.put((i, j, self._completion(answer["choices"][0], request.seeds[j], params)))
            except Exception as error:  # noqa: BLE001  raised again in the consumer's thread
                finished.put(error)

        def submit_all() -> None:
            """Submits requests as they are put; finally reports the number of completions."""
            num_submitted = 0
            while taken := queue.take(wait=True):
                for i, request in taken:
                    before = request.continues
                    server_of[i] = server_of[before[0]] if before else self.servers[i % len(self.servers)]
                    for j in range(len(request.seeds)):
                        threads.submit(ask, server_of[i], i, j, request)
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
        """named_tensors: every tensor under every name: without a tied output head vLLM would keep its old one."""
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
        self.processes.gather([None])  # no process samples before the delivery
        self.policy_version = version

    def _send(self, name: str, tensors: NamedTensors) -> None:
        """Sends weights by NCCL. All processes iterate over the tensors once for each server: gathering sharded ones needs all."""
        self.shapes = self.shapes or [(name, tensor.dtype, tensor.shape) for name, tensor in tensors]
        for server in self.servers:
            if self.is_first:
                server.weights = TensorWeights(name, tensors, self.shapes)
                server.load()
            else:
                exhaust(tensors)
            if self.sharded or not self.is_first:
                server.weights = SentWeights(name)

    def fingerprints(self) -> dict[str, dict[str, Tensor]]:
        """Only of servers whose workers have rollout.vllm_worker.Extension."""
        return {server.url: found for server in self.servers if (found := server.fingerprints())}

    def sleep(self) -> None:
        """Does nothing: the servers have memory of their own."""

    def close(self) -> None:
        self._drop_files()

    def _write_files(self, folder: Path, tensors: NamedTensors) -> Path:
        """Replaces the last delivery's files. All processes iterate over the tensors: gathering sharded ones needs all."""
        self._drop_files()
        if self.is_first:
            write_files(tensors, folder)
        else:
            exhaust(tensors)
        return folder

    def _drop_files(self) -> None:
        if self.transfer is not None and self.is_first:
            shutil.rmtree(self.transfer, ignore_errors=True)
