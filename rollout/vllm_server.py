"""vLLM as one or several servers, asked over HTTP. A server that dies is waited for, and gets the weights again.

The servers must run with the routes that change weights and with log-probs of what is sampled from: `plumbline serve-vllm`.
New weights go through a folder that the trainer and the servers see, or by NCCL from GPU to GPU.
"""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from requests import RequestException, Session
from requests.adapters import HTTPAdapter
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rewards.errors import UserError
from rollout.processes import Alone, Processes
from rollout.records import Completion, FinishReason
from rollout.sampler import SampleRequest, SamplingParams, gathered
from rollout.vllm_worker import request_options

CONNECTIONS = 64  # to each server
ANSWER_WITHIN = 1800.0  # seconds, of one completion
ATTEMPTS = 3  # of a request that the server fails on
SAMPLE_TEXT = "What is 12 + 30? \\boxed{42}"


class VLLMServerSampler:
    """urls: of servers of one model. transfer: the folder for weights; None sends them by NCCL. patience: seconds that a dead
    server is waited for. max_length: of a prompt and its completion. report: is told when a server is waited for.
    processes: the first one sends the weights.
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
    ) -> None:
        self.tokenizer, self.stop_ids, self.policy_version = tokenizer, sorted(stop_ids), 0
        self.transfer = transfer.absolute() if transfer else None
        self.processes = processes or Alone()
        self.is_first = self.processes.rank == 0
        self._drop_files()  # what a run that was killed has left
        self.own, self.num_deliveries = (
            self.processes.gather([secrets.token_hex(4)])[0],
            0,
        )  # no other run names its weights so
        self.servers = [Server(url.rstrip("/"), patience, report) for url in urls]
        for server in self.servers:
            server.check(tokenizer, max_length)

    def sample(self, requests: Sequence[SampleRequest], params: SamplingParams) -> list[list[Completion]]:
        return gathered(requests, self.stream(requests, params))

    def stream(
        self, requests: Sequence[SampleRequest], params: SamplingParams
    ) -> Iterator[tuple[int, int, Completion]]:
        """A group goes to one server, whose prefix cache then keeps the prompt for all of it."""
        for server in self.servers:
            server.ensure_weights()

        finished: SimpleQueue[tuple[int, int, Completion] | Exception] = SimpleQueue()

        def ask(i: int, j: int, seed: int) -> None:
            body = {"prompt": list(requests[i].prompt_ids), **request_options(params, seed, self.stop_ids)}
            try:
                answer = self.servers[i % len(self.servers)].post("/v1/completions", {**body, "return_token_ids": True})
                finished.put((i, j, self._completion(answer["choices"][0], seed)))
            except Exception as error:  # noqa: BLE001  raised where it is waited for
                finished.put(error)

        threads = ThreadPoolExecutor(CONNECTIONS * len(self.servers))
        places = [(i, j, seed) for i, request in enumerate(requests) for j, seed in enumerate(request.seeds)]
        num_left = len(places)
        try:
            for place in places:
                threads.submit(ask, *place)
            while num_left:
                done = finished.get()
                if isinstance(done, Exception):
                    raise done
                num_left -= 1
                yield done
        finally:
            if num_left:
                for server in self.servers:
                    server.abort()
            threads.shutdown(cancel_futures=True)

    def _completion(self, choice: dict[str, Any], seed: int) -> Completion:
        token_ids = tuple(choice["token_ids"])
        return Completion(
            token_ids=token_ids,
            sampler_logprobs=tuple(choice["logprobs"]["token_logprobs"]),
            finish_reason=FinishReason.STOP if choice["finish_reason"] == "stop" else FinishReason.LENGTH,
            policy_version=self.policy_version,
            seed=seed,
            text=self.tokenizer.batch_decode([list(token_ids)], skip_special_tokens=True)[0],
        )

    def score(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        """Of the server that agrees least with the first: what is proved of these is true of all."""
        found = torch.tensor([server.score(prompt_ids, completion_ids) for server in self.servers])
        return found[(found - found[0]).abs().amax(1).argmax()].tolist()

    @torch.no_grad()
    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Every tensor under every name: where those with tied embeddings have one alone, vLLM leaves the old output head in place."""
        self.num_deliveries += 1
        name = f"weights-{self.own}-{self.num_deliveries}"
        weights: Weights
        if self.transfer is None:
            weights = TensorWeights(name, list(named_tensors), is_sender=self.is_first)
        else:
            self._drop_files()
            weights = FileWeights(name, self.transfer / name)
            tensors = {name: t.detach().cpu().clone() for name, t in named_tensors if self.is_first}
            if self.is_first:
                weights.folder.mkdir(parents=True)
                save_file(tensors, weights.folder / "model.safetensors")
        for server in self.servers:
            server.weights = weights
            if self.is_first:
                server.load()
        self.processes.gather([None])  # nobody samples before they are there
        self.policy_version = version

    def images(self) -> dict[str, Tensor]:
        """Of the first server, if its workers have rollout.vllm_worker.Extension."""
        try:
            (found,) = self.servers[0].post("/collective_rpc", {"method": "images"})["results"]
        except (UserError, ValueError):
            return {}
        return {name: torch.tensor(numbers) for name, numbers in found.items()}

    def rest(self) -> None:
        """Nothing: the servers' memory is their own."""

    def close(self) -> None:
        self._drop_files()

    def _drop_files(self) -> None:
        if self.transfer is not None and self.is_first:
            shutil.rmtree(self.transfer, ignore_errors=True)


@dataclass(frozen=True)
class FileWeights:
    """By a file that the server reads."""

    name: str
    folder: Path

    def send(self, server: Server, *, waits: bool) -> None:
        kwargs = {"weights_path": str(self.folder)}
        server.post("/collective_rpc", {"method": "reload_weights", "kwargs": kwargs}, waits=waits)


@dataclass(frozen=True)
class TensorWeights:
    """By NCCL: the policy's own tensors, which must stay as they are until the next ones are sent."""

    name: str
    tensors: list[tuple[str, Tensor]]
    is_sender: bool

    def send(self, server: Server, *, waits: bool) -> None:
        if not self.is_sender:
            raise UserError(
                f"vllm_urls: {server.url} has died, and only the first process can send it weights by NCCL; resume the run, or use "
                "--vllm-transfer file"
            )
        if server.channel is None:
            from rollout.vllm_nccl import Channel  # vllm is not everywhere

            server.channel = Channel(server.url)
        server.channel.send(self.tensors)


Weights = FileWeights | TensorWeights


class Server:
    """One server. Requests wait while it is down, until it is back and has the weights again."""

    def __init__(self, url: str, patience: float, report: Callable[[str], None]) -> None:
        self.url, self.patience, self.report = url, patience, report
        self.session = Session()
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(pool_maxsize=CONNECTIONS + 1))
        self.weights: Weights | None = None
        self.channel: Any = None  # rollout.vllm_nccl.Channel, once it is asked for
        self.recovering = threading.Lock()
        self.num_recoveries = 0
        self.given_up: UserError | None = None
        self.is_up = threading.Event()
        self.is_up.set()

    def check(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        """It is there, of the same tokens, long enough, and can be given weights."""
        try:
            (model,) = self.session.get(f"{self.url}/v1/models", timeout=10).json()["data"][:1]
        except (RequestException, ValueError, KeyError) as error:
            raise UserError(
                f"vllm_urls: no vLLM answers at {self.url} ({type(error).__name__}); start one with plumbline serve-vllm, or mend "
                "the address"
            ) from None
        if model["max_model_len"] < max_length:
            raise UserError(
                f"vllm_urls: {self.url} takes at most {model['max_model_len']} tokens, and a prompt with max_tokens is {max_length}; "
                f"serve it with --max-length {max_length} or lower max_tokens"
            )
        body = {"prompt": SAMPLE_TEXT, "add_special_tokens": False}
        theirs, ours = self.post("/tokenize", body)["tokens"], tokenizer.encode(SAMPLE_TEXT, add_special_tokens=False)
        if theirs != ours:
            raise UserError(
                f"vllm_urls: {self.url} serves {model['root']!r}, which has other tokens than the policy; serve the policy's model there"
            )
        if self.session.get(f"{self.url}/weight_info", timeout=10).status_code != 200:
            raise UserError(
                f"vllm_urls: {self.url} has no routes to change its weights; start it with plumbline serve-vllm, or with "
                "VLLM_SERVER_DEV_MODE=1"
            )
        warm, hot = (self.score(ours[:4], ours[4:6], temperature=t) for t in (1.0, 2.0))
        if warm == hot:
            raise UserError(
                f"vllm_urls: {self.url} reports log-probs of another distribution than it samples from; start it with "
                "plumbline serve-vllm, or with --logprobs-mode processed_logprobs"
            )

    def score(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], *, temperature: float = 1.0
    ) -> list[float]:
        """Each token as the first that is drawn after those before it."""
        text, found = [*prompt_ids, *completion_ids], []
        for n, token in enumerate(completion_ids, start=len(prompt_ids)):
            body = {"prompt": text[:n], "max_tokens": 1, "temperature": temperature, "seed": 0, "ignore_eos": True}
            body |= {"logprobs": 1, "logprob_token_ids": [token], "return_tokens_as_token_ids": True}
            (top,) = self.post("/v1/completions", body)["choices"][0]["logprobs"]["top_logprobs"]
            found.append(top[f"token_id:{token}"])
        return found

    def load(self, *, waits: bool = True) -> None:
        assert self.weights is not None
        self.weights.send(self, waits=waits)
        self.post("/reset_prefix_cache", {}, waits=waits)  # keys and values of the old weights
        self.post("/update_weight_version", {"new_version": self.weights.name}, waits=waits)

    def ensure_weights(self) -> None:
        """One that was started anew between two calls has its first weights."""
        self.is_up.wait()
        try:
            held = self.session.get(f"{self.url}/weight_info", timeout=10).json()["weight_version"]
        except (RequestException, ValueError, KeyError):
            self._recover(self.num_recoveries, "it does not answer")
            return
        if self.weights is not None and held != self.weights.name:
            self.channel = None  # it was started anew
            self.load()

    def post(self, path: str, body: dict[str, Any], *, waits: bool = True) -> Any:
        """The answer. Unless it `waits`, a server that is down is an error."""
        failures = 0
        while True:
            if waits:
                self.is_up.wait()
            seen = self.num_recoveries
            try:
                answer = self.session.post(self.url + path, json=body, timeout=ANSWER_WITHIN)
            except RequestException as error:
                if not waits:
                    raise
                self._recover(seen, type(error).__name__)
                continue
            if answer.ok:
                return answer.json() if answer.content else None
            failures += 1
            if answer.status_code < 500 or failures == ATTEMPTS or not waits:
                raise UserError(f"vllm_urls: {self.url}{path} answers {answer.status_code}: {answer.text[:300]}")
            self._recover(seen, f"status {answer.status_code}")

    def _recover(self, seen: int, why: str) -> None:
        """Waits until the server is healthy and gives it the weights; once for all threads that saw it fail."""
        with self.recovering:
            if self.given_up is not None:
                raise self.given_up
            if self.num_recoveries != seen:
                return
            self.is_up.clear()
            self.channel = None
            self.report(f"waiting for {self.url} ({why})")
            deadline = time.monotonic() + self.patience
            while not self._is_back():
                if time.monotonic() > deadline:
                    self.given_up = UserError(
                        f"vllm_urls: {self.url} has not answered for {self.patience:g} s ({why}); start it again and resume the run"
                    )
                    self.is_up.set()  # who waits meets the same error
                    raise self.given_up
                time.sleep(0.5)
            self.report(f"{self.url} is back" + (", with the weights again" if self.weights else ""))
            self.num_recoveries += 1
            self.is_up.set()

    def _is_back(self) -> bool:
        try:
            if self.session.get(f"{self.url}/health", timeout=5).status_code != 200:
                return False
            if self.weights is not None:
                self.load(waits=False)
        except (RequestException, UserError):
            return False
        return True

    def abort(self) -> None:
        """Whatever is still sampled there is not wanted."""
        with suppress(RequestException):
            self.session.post(f"{self.url}/abort_requests", json={}, timeout=10)
