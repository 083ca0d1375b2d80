"""The requests to a vLLM server, observed by a simulated server: vLLM is not needed."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Iterator
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import rollout.weight_files
from rewards.errors import UserError
from rollout.processes import SingleProcess
from rollout.sampler import RequestQueue, SampleRequest, SamplingParams, Tensors
from rollout.vllm_server import VLLMServerSampler
from rollout.weight_files import NamedTensors
from tests.rollout.tiny import tokenizer


class MadeUp(ThreadingHTTPServer):
    """Answers like vLLM's server. Completions end together, as many as the server decodes at once."""

    request_queue_size = 1024
    daemon_threads = True

    def __init__(self, max_rows: int = 1, dtype: str = "torch.bfloat16", **hf_overrides: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.max_rows, self.dtype, self.version, self.hf_overrides = max_rows, dtype, "default", hf_overrides
        self.calls, self.limits = list[tuple[str, Any]](), list[int]()  # the limits of sampled completions
        self.drops, self.num_dropped = "", 0  # a path whose requests it breaks off
        self.now = self.most = 0
        self.counting, self.together = threading.Lock(), threading.Barrier(max_rows)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def completion(self) -> dict[str, Any]:
        with self.counting:
            self.now += 1
            self.most = max(self.most, self.now)
        with suppress(threading.BrokenBarrierError):  # too few requests: `most` shows it
            self.together.wait(timeout=2)
        with self.counting:
            self.now -= 1
        return {"token_ids": [5], "logprobs": {"token_logprobs": [-1.0]}, "finish_reason": "stop"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        server: Any = self.server
        model = {"dtype": server.dtype, "hf_overrides": server.hf_overrides}
        options = {"scheduler_config": {"max_num_seqs": server.max_rows}, "model_config": model}
        self.answer(
            {
                "/v1/models": {"data": [{"max_model_len": 4096, "root": "made up"}]},
                "/server_info": {"vllm_config": options},
                "/weight_info": {"weight_version": server.version},
                "/health": {},
            }[self.path.partition("?")[0]]
        )

    def do_POST(self) -> None:
        server: Any = self.server
        if self.path == server.drops:
            server.num_dropped += 1
            self.close_connection = True
            return
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        match self.path:
            case "/tokenize":
                self.answer({"tokens": tokenizer().encode(body["prompt"], add_special_tokens=False)})
            case "/v1/completions" if "logprob_token_ids" in body:
                (token,) = body["logprob_token_ids"]
                self.answer({"choices": [{"logprobs": {"top_logprobs": [{f"token_id:{token}": body["temperature"]}]}}]})
            case "/v1/completions":
                server.limits.append(body["max_tokens"])
                self.answer({"choices": [server.completion()]})
            case "/update_weight_version":
                server.version = body["new_version"]
                self.answer({})
            case _:
                server.calls.append((self.path, body))
                self.answer({})


def client(*servers: MadeUp, transfer: Path | None, **options: Any) -> VLLMServerSampler:
    urls = [server.url for server in servers]
    return VLLMServerSampler(urls, tokenizer(), {1}, max_length=64, transfer=transfer, timeout=1.0, **options)


def test_a_server_gets_as_many_requests_at_once_as_it_decodes(tmp_path: Path) -> None:
    server = MadeUp(max_rows=200)
    asked = [SampleRequest((3, 4), tuple(range(i * 8, i * 8 + 8))) for i in range(50)]
    found = client(server, transfer=tmp_path / "transfer").sample(asked, SamplingParams(max_tokens=4))
    assert [len(group) for group in found] == [8] * 50
    assert server.most == 200


def test_a_requests_own_limit_reaches_the_server(tmp_path: Path) -> None:
    server = MadeUp()
    params, limits = SamplingParams(max_tokens=4), (None, 2, 9)
    client(server, transfer=tmp_path / "transfer").sample([SampleRequest((3,), (0,), n) for n in limits], params)
    assert sorted(server.limits) == [2, 4, 9]


def test_a_healthy_server_that_keeps_breaking_off_a_request_ends_the_run_with_a_message(tmp_path: Path) -> None:
    server = MadeUp()
    sampler = client(server, transfer=tmp_path / "transfer")
    server.drops = "/v1/completions"
    with pytest.raises(UserError, match="broke off the same request 3 times, the last with ConnectionError"):
        sampler.sample([SampleRequest((3, 4), (0,))], SamplingParams(max_tokens=4))
    assert server.num_dropped == 3


def named(count: int = 6) -> Iterator[tuple[str, Tensor]]:
    for i in range(count):
        yield f"layers.{i}.weight", torch.full((4, 8), i + 0.1)
        yield f"layers.{i}.norm", torch.full((8,), i + 0.1)


def test_a_file_has_matrices_in_the_server_s_type_and_vectors_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In files of two layers each, so that no full copy exists in memory. Two names of one tensor are two tensors."""
    monkeypatch.setattr(rollout.weight_files, "FILE", 2 * (4 * 8 * 2 + 8 * 4))
    sampler, tied = client(MadeUp(), transfer=tmp_path / "transfer"), torch.ones(3)
    sampler.update_weights([*named(), ("a", tied), ("b", tied)], version=1)
    files = sorted((tmp_path / "transfer").glob("*/*.safetensors"))
    assert [len(load_file(file)) for file in files] == [4, 4, 4, 2]
    found = {name: t for file in files for name, t in load_file(file).items()}
    for name, tensor in named():
        assert torch.equal(found[name], tensor.bfloat16() if tensor.dim() == 2 else tensor)
        assert found[name].dtype == (torch.bfloat16 if tensor.dim() == 2 else torch.float32)


class CountedChannel:
    """Replaces the NCCL channel. Counts how many of the policy's tensors are alive while one is sent."""

    def __init__(self) -> None:
        self.alive, self.most, self.sent = 0, 0, list[tuple[str, Tensor]]()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in named():
            self.alive += 1
            weakref.finalize(tensor, self.one_less)
            yield name, tensor
            del tensor

    def one_less(self) -> None:
        self.alive -= 1

    def send(self, tensors: NamedTensors, shapes: list[tuple[str, torch.dtype, torch.Size]]) -> None:
        self.sent = []
        for (name, tensor), (expected, dtype, shape) in zip(tensors, shapes, strict=True):
            assert (name, tensor.dtype, tensor.shape) == (expected, dtype, shape)
            self.most = max(self.most, self.alive)
            self.sent.append((name, tensor.clone()))


def test_nccl_sends_tensor_by_tensor_and_again_to_a_server_that_comes_back() -> None:
    """At most two of them are alive: the one that was sent last and the one that is being made."""
    server = MadeUp()
    sampler, channel = client(server, transfer=None), CountedChannel()
    sampler.servers[0].channel = channel
    sampler.update_weights(Tensors(channel.tensors), version=1)
    first = channel.sent
    assert channel.most <= 2 and [name for name, _ in first] == [name for name, _ in named()]
    assert channel.alive == 0
    sampler.servers[0].load()
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(first, channel.sent, strict=True))


class Second(SingleProcess):
    rank, count = 1, 2


@pytest.mark.parametrize(("processes", "sharded"), [(SingleProcess(), True), (Second(), False)])
def test_weights_that_one_process_cannot_send_alone_are_not_sent_again(processes: SingleProcess, sharded: bool) -> None:
    """Neither by the second process nor with sharded weights. Each process iterates over all tensors: others may need its shards."""
    server = MadeUp()
    sampler, channel = client(server, transfer=None, processes=processes, sharded=sharded), CountedChannel()
    sampler.servers[0].channel, made = channel, []
    sampler.update_weights(Tensors(lambda: (made.append(name) or (name, t) for name, t in named())), version=1)
    assert len(made) == 2 * 12  # once more for their shapes
    server.version = "default"  # as after a restart
    with pytest.raises(UserError, match=r"has died, and this process cannot send it the weights by NCCL on its own"):
        sampler.sample([SampleRequest((3,), (1,))], SamplingParams(max_tokens=4))


def test_a_later_turn_goes_to_the_server_that_has_the_earlier_ones(tmp_path: Path) -> None:
    servers, queue = [MadeUp(), MadeUp()], RequestQueue()
    for limit in (1, 2):
        queue.put(SampleRequest((5, 6), (limit,), limit))
    with closing(client(*servers, transfer=tmp_path / "weights").stream(queue, SamplingParams(max_tokens=9))) as stream:
        assert {next(stream)[0], next(stream)[0]} == {0, 1}
        for before in (1, 0):
            queue.put(SampleRequest((5, 6, 5, 7), (3,), 11 + before, continues=(before, 0)))
            next(stream)
    assert [server.limits for server in servers] == [[1, 11], [2, 12]]


def test_a_delivery_empties_the_prefix_cache_whatever_is_running(tmp_path: Path) -> None:
    server = MadeUp()
    client(server, transfer=tmp_path / "weights").update_weights([("w", torch.zeros(2))], version=1)
    assert "/reset_prefix_cache?reset_running_requests=true" in [path for path, _ in server.calls]
