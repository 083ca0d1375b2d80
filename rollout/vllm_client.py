"""The HTTP client of one vLLM server: requests wait while it is down, and it gets the weights again when it is back."""

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
from rollout.vllm_worker import FLOAT32_HEAD
from rollout.weight_files import NamedTensors

RESPONSE_TIMEOUT = 1800.0  # seconds for one completion
ATTEMPTS = 3  # at a request that the server fails on
SAMPLE_TEXT = "What is 12 + 30? \\boxed{42}"


@dataclass(frozen=True)
class FileWeights:
    """Weights in a folder that the server reads."""

    name: str
    folder: Path

    def send(self, server: Server, *, waits: bool) -> None:
        kwargs = {"weights_path": str(self.folder)}
        server.post("/collective_rpc", {"method": "reload_weights", "kwargs": kwargs}, waits=waits)


@dataclass(frozen=True)
class TensorWeights:
    """Weights that are sent by NCCL, tensor by tensor: the policy's own, which must not change until the next delivery.

    tensors: can be iterated again for each server. shapes: the name, dtype and shape of each of them.
    """

    name: str
    tensors: NamedTensors
    shapes: list[tuple[str, torch.dtype, torch.Size]]

    def send(self, server: Server, *, waits: bool) -> None:
        if server.channel is None:
            from rollout.vllm_nccl import Channel  # needs vllm, which is optional

            server.channel = Channel(server.url)
        server.channel.send(self.tensors, self.shapes)


@dataclass(frozen=True)
class SentWeights:
    """Weights that the first process has sent by NCCL, or all processes together: this process cannot send them again by itself."""

    name: str

    def send(self, server: Server, *, waits: bool) -> None:
        raise UserError(
            f"vllm_urls: {server.url} has died, and this process cannot send it the weights by NCCL on its own; resume the run, or "
            "use --vllm-transfer file"
        )


Weights = FileWeights | TensorWeights | SentWeights


class Server:
    """A vLLM server. Requests wait while it is down, until it is back and has the weights again. option: the one that names it, for
    messages."""

    def __init__(
        self, url: str, timeout: float, report: Callable[[str], None], *, option: str = "vllm_urls", max_rows: int = 1
    ) -> None:
        self.url, self.timeout, self.report, self.option = url, timeout, report, option
        self.session = Session()
        self.dtype, self.float32_head = torch.float32, False  # until check() reads the server's own
        self.allow(max_rows)
        self.weights: Weights | None = None
        self.channel: Any = None  # a rollout.vllm_nccl.Channel from the first NCCL transfer on
        self.recovering = threading.Lock()
        self.num_recoveries = 0
        self.failure: UserError | None = None
        self.is_up = threading.Event()
        self.is_up.set()

    def allow(self, max_rows: int) -> None:
        """Lets so many requests be in flight at once."""
        self.max_rows = max_rows
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(pool_maxsize=max_rows + 1))

    def check_model(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[int]:
        """Raises UserError unless the server answers, takes that many tokens and has the policy's. -> the tokens of SAMPLE_TEXT."""
        try:
            (model,) = self.session.get(f"{self.url}/v1/models", timeout=10).json()["data"][:1]
            longest, name = model["max_model_len"], model["root"]
        except (RequestException, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.option}: no vLLM answers at {self.url} ({type(error).__name__}); start one with plumbline serve-vllm, or check "
                "the address"
            ) from None
        if longest < max_length:
            raise UserError(
                f"{self.option}: {self.url} takes at most {longest} tokens, and a prompt with max_tokens is {max_length}; "
                f"serve it with --max-length {max_length} or lower max_tokens"
            )
        body = {"prompt": SAMPLE_TEXT, "add_special_tokens": False}
        theirs, ours = self.post("/tokenize", body)["tokens"], tokenizer.encode(SAMPLE_TEXT, add_special_tokens=False)
        if theirs != ours:
            raise UserError(
                f"{self.option}: {self.url} serves {name!r}, which has other tokens than the policy; serve a model with the policy's "
                "tokenizer there"
            )
        return ours

    def check(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        """Raises UserError unless the server answers, has the same tokens, takes prompts of that length, accepts weights and reports
        the log-probs that it samples from. Reads its dtype, that of its output layer, and its number of rows."""
        ours = self.check_model(tokenizer, max_length)
        if not self._read_options():
            raise UserError(
                f"{self.option}: {self.url} has no routes to change its weights; start it with plumbline serve-vllm, or with "
                "VLLM_SERVER_DEV_MODE=1"
            )
        text = tuple(ours[:4]), tuple(ours[4:6])
        warm, hot = (self.probe([text], temperature=t) for t in (1.0, 2.0))
        if warm == hot:
            raise UserError(
                f"{self.option}: {self.url} reports log-probs of another distribution than it samples from; start it with "
                "plumbline serve-vllm, or with --logprobs-mode processed_logprobs"
            )

    def _read_options(self) -> bool:
        """Reads the server's options. -> whether it reports them. The server inspects its machine first, which takes a while."""
        answer = self.session.get(f"{self.url}/server_info", params={"config_format": "json"}, timeout=120)
        if not answer.ok:
            return False
        options = answer.json()["vllm_config"]
        self.allow(options["scheduler_config"]["max_num_seqs"])
        self.dtype = getattr(torch, options["model_config"]["dtype"].removeprefix("torch."))
        self.float32_head = FLOAT32_HEAD.items() <= (options["model_config"].get("hf_overrides") or {}).items()
        return True

    def probe(self, texts: Sequence[Text], *, temperature: float = 1.0) -> list[list[float]]:
        """Requests each token's log-prob as that of the first token after the tokens before it."""

        def ask(before: tuple[int, ...], token: int) -> float:
            body = {"prompt": list(before), "max_tokens": 1, "temperature": temperature, "ignore_eos": True}
            body |= {"logprobs": 1, "logprob_token_ids": [token], "return_tokens_as_token_ids": True}
            (top,) = self.post("/v1/completions", body)["choices"][0]["logprobs"]["top_logprobs"]
            return top[f"token_id:{token}"]

        with ThreadPoolExecutor(self.max_rows) as threads:
            pending = [[threads.submit(ask, p + c[:n], t) for n, t in enumerate(c)] for p, c in texts]
            return [[answer.result() for answer in row] for row in pending]

    def prompt_logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """The log-probs of all tokens but the first, each given those before it, at temperature 1. One token is sampled, and dropped."""
        body = {"prompt": list(token_ids), "max_tokens": 1, "prompt_logprobs": 0}
        found = self.post("/v1/completions", body)["choices"][0].get("prompt_logprobs")
        if found is None:
            raise UserError(
                f"{self.option}: {self.url} reports no log-probs of a prompt's tokens; serve the model with vLLM"
            )
        return [at[str(token)]["logprob"] for token, at in zip(token_ids[1:], found[1:], strict=True)]

    def fingerprints(self) -> dict[str, Tensor]:
        """fingerprint() of the tensors that its workers compute with; empty if they cannot report it."""
        try:
            (found,) = self.post("/collective_rpc", {"method": "fingerprints"})["results"]
        except (UserError, ValueError):
            return {}
        return {name: torch.tensor(numbers) for name, numbers in found.items()}

    def load(self, *, waits: bool = True) -> None:
        assert self.weights is not None
        self.weights.send(self, waits=waits)
        # Keys and values of the old weights. Without the flag vLLM keeps all of them where any request still has some.
        self.post("/reset_prefix_cache?reset_running_requests=true", {}, waits=waits)
        self.post("/update_weight_version", {"new_version": self.weights.name}, waits=waits)

    def ensure_weights(self) -> None:
        """Loads the weights again if the server was restarted between two calls."""
        self.is_up.wait()
        try:
            held = self.session.get(f"{self.url}/weight_info", timeout=10).json()["weight_version"]
        except (RequestException, ValueError, KeyError):
            self._recover(self.num_recoveries, "it does not answer")
            return
        if self.weights is not None and held != self.weights.name:
            self.channel = None  # of the process before the restart
            self.load()

    def post(self, path: str, body: dict[str, Any], *, waits: bool = True) -> Any:
        """Posts a request and returns the answer. waits: wait for a server that is down instead of raising an error."""
        failures = 0
        while True:
            if waits:
                self.is_up.wait()
            seen = self.num_recoveries
            try:
                answer = self.session.post(self.url + path, json=body, timeout=RESPONSE_TIMEOUT)
            except RequestException as error:
                failures += 1
                if not waits:
                    raise
                if failures == ATTEMPTS:  # the server came back each time, so this request is what it fails on
                    raise UserError(
                        f"{self.option}: {self.url}{path} broke off the same request {ATTEMPTS} times, the last with "
                        f"{type(error).__name__}, and was healthy again each time; see its own log, then resume the run"
                    ) from error
                self._recover(seen, type(error).__name__)
                continue
            if answer.ok:
                return answer.json() if answer.content else None
            failures += 1
            if answer.status_code < 500 or failures == ATTEMPTS or not waits:
                raise UserError(f"{self.option}: {self.url}{path} answers {answer.status_code}: {answer.text[:300]}")
            self._recover(seen, f"status {answer.status_code}")

    def _recover(self, seen: int, why: str) -> None:
        """Waits until the server is healthy and sends it the weights, once for all threads that saw it fail. seen: num_recoveries at the
        time of the failed request."""
        with self.recovering:
            if self.failure is not None:
                raise self.failure
            if self.num_recoveries != seen:
                return
            self.is_up.clear()
            self.channel = None
            self.report(f"waiting for {self.url} ({why})")
            deadline = time.monotonic() + self.timeout
            while not self._is_back():
                if time.monotonic() > deadline:
                    self.failure = UserError(
                        f"{self.option}: {self.url} has not answered for {self.timeout:g} s ({why}); start it again and resume the run"
                    )
                    self.is_up.set()  # waiting threads go on and get the same error
                    raise self.failure
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
        """Ends all requests that the server still processes."""
        with suppress(RequestException):
            self.session.post(f"{self.url}/abort_requests", json={}, timeout=10)
