"""One vLLM server, asked over HTTP: requests wait while it is down, and it gets the weights again when it is back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from requests import RequestException, Session
from requests.adapters import HTTPAdapter
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rewards.errors import UserError
from rollout.sampler import Text
from rollout.weight_files import NamedTensors

ANSWER_WITHIN = 1800.0  # seconds, of one completion
ATTEMPTS = 3  # of a request that the server fails on
SAMPLE_TEXT = "What is 12 + 30? \\boxed{42}"


@dataclass(frozen=True)
class FileWeights:
    """By a folder that the server reads."""

    name: str
    folder: Path

    def send(self, server: Server, *, waits: bool) -> None:
        kwargs = {"weights_path": str(self.folder)}
        server.post("/collective_rpc", {"method": "reload_weights", "kwargs": kwargs}, waits=waits)


@dataclass(frozen=True)
class TensorWeights:
    """By NCCL, tensor by tensor: the policy's own, which must stay as they are until the next ones are sent.

    tensors: can be gone through again for each server. shapes: what comes out then.
    """

    name: str
    tensors: NamedTensors
    shapes: list[tuple[str, torch.dtype, torch.Size]]

    def send(self, server: Server, *, waits: bool) -> None:
        if server.channel is None:
            from rollout.vllm_nccl import Channel  # vllm is not everywhere

            server.channel = Channel(server.url)
        server.channel.send(self.tensors, self.shapes)


@dataclass(frozen=True)
class SentWeights:
    """Those that went by NCCL from the first process, or from all of them at once: none can send them again by itself."""

    name: str

    def send(self, server: Server, *, waits: bool) -> None:
        raise UserError(
            f"vllm_urls: {server.url} has died, and this process cannot send it the weights by NCCL on its own; resume the run, or "
            "use --vllm-transfer file"
        )


Weights = FileWeights | TensorWeights | SentWeights


class Server:
    """One server. Requests wait while it is down, until it is back and has the weights again."""

    def __init__(self, url: str, patience: float, report: Callable[[str], None]) -> None:
        self.url, self.patience, self.report = url, patience, report
        self.session = Session()
        self.max_rows, self.dtype = 1, torch.float32  # until it is asked
        self.weights: Weights | None = None
        self.channel: Any = None  # rollout.vllm_nccl.Channel, once it is asked for
        self.recovering = threading.Lock()
        self.num_recoveries = 0
        self.given_up: UserError | None = None
        self.is_up = threading.Event()
        self.is_up.set()

    def check(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        """It is there, of the same tokens, long enough, and can be given weights. Its own type and number of rows are learnt."""
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
        if not self._ask_for_its_options():
            raise UserError(
                f"vllm_urls: {self.url} has no routes to change its weights; start it with plumbline serve-vllm, or with "
                "VLLM_SERVER_DEV_MODE=1"
            )
        text = tuple(ours[:4]), tuple(ours[4:6])
        warm, hot = (self.probe([text], temperature=t) for t in (1.0, 2.0))
        if warm == hot:
            raise UserError(
                f"vllm_urls: {self.url} reports log-probs of another distribution than it samples from; start it with "
                "plumbline serve-vllm, or with --logprobs-mode processed_logprobs"
            )

    def _ask_for_its_options(self) -> bool:
        """-> whether it tells. It looks its machine over first, which takes a while."""
        answer = self.session.get(f"{self.url}/server_info", params={"config_format": "json"}, timeout=120)
        if not answer.ok:
            return False
        options = answer.json()["vllm_config"]
        self.max_rows = options["scheduler_config"]["max_num_seqs"]
        self.dtype = getattr(torch, options["model_config"]["dtype"].removeprefix("torch."))
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(pool_maxsize=self.max_rows + 1))
        return True

    def probe(self, texts: Sequence[Text], *, temperature: float = 1.0) -> list[list[float]]:
        """Each token as the first that is drawn after those before it."""

        def ask(before: tuple[int, ...], token: int) -> float:
            body = {"prompt": list(before), "max_tokens": 1, "temperature": temperature, "ignore_eos": True}
            body |= {"logprobs": 1, "logprob_token_ids": [token], "return_tokens_as_token_ids": True}
            (top,) = self.post("/v1/completions", body)["choices"][0]["logprobs"]["top_logprobs"]
            return top[f"token_id:{token}"]

        with ThreadPoolExecutor(self.max_rows) as threads:
            asked = [[threads.submit(ask, p + c[:n], t) for n, t in enumerate(c)] for p, c in texts]
            return [[answer.result() for answer in row] for row in asked]

    def images(self) -> dict[str, Tensor]:
        """Of the tensors that its workers compute with, if they can tell."""
        try:
            (found,) = self.post("/collective_rpc", {"method": "images"})["results"]
        except (UserError, ValueError):
            return {}
        return {name: torch.tensor(numbers) for name, numbers in found.items()}

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
                failures += 1
                if not waits:
                    raise
                if failures == ATTEMPTS:  # it came back each time, so it is this request that it does not survive
                    raise UserError(
                        f"vllm_urls: {self.url}{path} broke off the same request {ATTEMPTS} times, the last with "
                        f"{type(error).__name__}, and was healthy again each time; its own log says why. Then resume the run"
                    ) from error
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
