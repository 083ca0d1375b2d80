"""vLLM's own server on loopback: the contract over HTTP, a server that is killed, and what is told of wrong ones."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import requests
import torch

import rl.run.loop
import rollout.weight_files
from rewards.errors import UserError
from rewards.math_answer import MathVerifier
from rl.policy.policy import Policy
from rl.run.loop import train
from rl.run.tiny import tiny_tokenizer
from rl.settings.config import RunConfig
from rl.update.delivery import Delivery
from rollout.sampler import Sampler, SamplingParams
from rollout.torch_sampler import stop_token_ids
from rollout.vllm_server import VLLMServerSampler
from tests.rl.test_loop import final_weights, odd_lengths, options
from tests.rollout.sampler_contract import Engine, SamplerContract, tokens
from tests.rollout.sampler_contract import requests as asked_for
from tests.rollout.tiny import tokenizer
from tests.vllm.conftest import MAX_LENGTH, model_of, saved

PLUMBLINE = [sys.executable, "-c", "from rl.cli import main; main()"]


class Server:
    """`plumbline serve-vllm`, or vLLM's own server with other options, on a port of its own."""

    def __init__(self, folder: Path, plain: Sequence[str] | None = None, **environment: str) -> None:
        self.folder, self.plain, self.environment = folder, plain, environment
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [*PLUMBLINE, "serve-vllm", "--model", str(self.folder), "--dtype", "float32"]
        command += ["--port", str(self.port), "--max-length", str(MAX_LENGTH), "--max-rows", "96"]
        if self.plain is not None:
            command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.folder)]
            command += ["--port", str(self.port), "--dtype", "float32", "--enforce-eager", *self.plain]
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env={**os.environ, **self.environment}
            )

    def wait(self) -> None:
        for _ in range(300):
            try:
                if requests.get(f"{self.url}/health", timeout=5).ok:
                    return
            except requests.RequestException:
                pass
            if self.process.poll() is not None:
                break
            time.sleep(1)
        pytest.fail((self.folder / "log").read_text()[-3000:])

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(saved(model_of(0), tmp_path_factory.mktemp("served")))
    made.wait()
    yield made
    made.kill()


def client(server: Server, transfer: Path, **options: object) -> VLLMServerSampler:
    ids = stop_token_ids(model_of(0), tokenizer())
    settings = {"max_length": MAX_LENGTH, "timeout": 300.0, **options}
    return VLLMServerSampler([server.url], tokenizer(), ids, transfer=transfer, **settings)  # pyright: ignore


@pytest.fixture
def engine(server: Server, tmp_path: Path) -> Engine:
    model = model_of(0)

    def anew(max_rows: int) -> Sampler:
        sampler = client(server, tmp_path)
        sampler.update_weights(model.named_parameters(remove_duplicate=False), version=0)
        return sampler

    return Engine(
        model=model, other=model_of(1), tokenizer=tokenizer(), sampler=anew, uniform=None, draws=1_500, in_order=False
    )


class TestVLLMServerSampler(SamplerContract):
    pass


def test_a_server_tells_its_rows_and_type_and_takes_weights_in_several_files(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout.weight_files, "FILE", 1 << 14)
    sampler = client(server, tmp_path / "transfer")
    assert (sampler.servers[0].max_rows, sampler.dtype) == (96, torch.float32)
    assert Delivery(Policy.of(model_of(1)), sampler, tolerance=1e-3).deliver(1) < 1e-4
    assert len(list((tmp_path / "transfer").glob("*/*.safetensors"))) > 2


def test_a_killed_server_is_waited_for_and_gets_the_weights_again(server: Server, tmp_path: Path) -> None:
    """In the midst of a call, with weights other than those it starts with: the completions are those of an undisturbed call."""
    said: list[str] = []
    policy = Policy.of(model_of(1))
    sampler = client(server, tmp_path, report=said.append)
    delivery = Delivery(policy, sampler, tolerance=1e-3)
    delivery.deliver(1)
    asked, params = asked_for(40, 8), SamplingParams(max_tokens=40)
    undisturbed = sampler.sample(asked, params)
    found = {}
    for i, j, completion in sampler.stream(asked, params):
        found[i, j] = completion
        if len(found) == 20:
            server.kill()
            threading.Timer(3, server.start).start()
    assert tokens([[found[i, j] for j in range(8)] for i in range(40)]) == tokens(undisturbed)
    assert {c.policy_version for c in found.values()} == {1}
    assert "waiting for" in said[0] and said[-1].endswith("with the weights again")
    with torch.no_grad():
        assert delivery.deliver(2) < 1e-4


def test_a_server_that_was_started_anew_between_two_calls_gets_the_weights_again(
    server: Server, tmp_path: Path
) -> None:
    sampler, asked, params = client(server, tmp_path), asked_for(4, 2), SamplingParams(max_tokens=20)
    sampler.update_weights(model_of(1).named_parameters(remove_duplicate=False), version=1)
    before = tokens(sampler.sample(asked, params))
    server.kill()
    server.start()
    server.wait()
    assert tokens(sampler.sample(asked, params)) == before


def test_a_server_that_stays_away_ends_the_run_with_a_message(server: Server, tmp_path: Path) -> None:
    sampler = client(server, tmp_path, timeout=2.0)
    sampler.update_weights(model_of(1).named_parameters(remove_duplicate=False), version=1)
    server.kill()
    try:
        with pytest.raises(UserError, match=r"has not answered for 2 s .*start it again and resume"):
            sampler.sample(asked_for(4, 2), SamplingParams(max_tokens=20))
    finally:
        server.start()
        server.wait()


def test_wrong_servers_are_told(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"takes at most 64 tokens, and a prompt with max_tokens is 65; serve it with"):
        client(server, tmp_path, max_length=65)
    with pytest.raises(UserError, match=r"has other tokens than the policy"):
        VLLMServerSampler([server.url], tiny_tokenizer(), {1}, max_length=8, transfer=tmp_path)
    with pytest.raises(UserError, match=r"no vLLM answers at http://127.0.0.1:9"):
        VLLMServerSampler(["http://127.0.0.1:9"], tokenizer(), {1}, max_length=8, transfer=tmp_path)


def test_servers_that_were_started_otherwise_are_told(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """vLLM's own defaults: no routes that change weights, and log-probs from before the temperature."""
    folders = [saved(model_of(0), tmp_path_factory.mktemp("plain")) for _ in range(2)]
    small = {"VLLM_CPU_KVCACHE_SPACE": "1"}
    closed = Server(folders[0], plain=[], **small)
    raw = Server(folders[1], plain=["--logprobs-mode", "raw_logprobs"], **small, VLLM_SERVER_DEV_MODE="1")
    try:
        for server, message in (
            (closed, "has no routes to change its weights; start it with plumbline serve-vllm"),
            (raw, "reports log-probs of another distribution than it samples from; start it with"),
        ):
            server.wait()
            with pytest.raises(UserError, match=message):
                client(server, tmp_path)
    finally:
        closed.kill()
        raw.kill()


def test_a_port_that_is_taken_is_told(server: Server, tmp_path: Path) -> None:
    command = [*PLUMBLINE, "serve-vllm", "--model", "x", "--port", str(server.port)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2 and f"port is {server.port}: it is in use or not permitted" in done.stderr


def test_a_resumed_run_equals_one_that_was_not_interrupted(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same completions. The engine's log-probs depend in the last bits on what is decoded beside, and so do the weights."""
    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)
    data = sums(tmp_path)
    usual = {"sampler": "vllm-server", "vllm_urls": (server.url,), "schedule": "constant", "eval_every": 1}
    whole = options(server.folder, data, tmp_path / "whole", **usual)
    train(whole)
    parted = {**vars(whole), "run_dir": tmp_path / "parted"}
    train(RunConfig(**{**parted, "num_steps": 1}))
    train(RunConfig(**{**parted, "resume": True}))
    texts = [(tmp_path / name / "completions.jsonl").read_text() for name in ("whole", "parted")]
    assert texts[0] == texts[1]
    ours, theirs = (final_weights(tmp_path / name, 3) for name in ("whole", "parted"))
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-6) for key in theirs)


def sums(folder: Path) -> Path:
    data = folder / "sums.jsonl"
    data.write_text("".join(json.dumps({"question": f"{i}+{i}=", "answer": f"{2 * i}"}) + "\n" for i in range(60)))
    return data


def test_a_run_goes_on_when_its_server_was_killed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In its second step of three: what was sampled and the weights in the end are those of an undisturbed run."""
    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)  # an untaught model is never right
    data = sums(tmp_path)
    urls = {"sampler": "vllm-server", "vllm_urls": (server.url,), "vllm_patience": 300.0}
    train(options(server.folder, data, tmp_path / "whole", **urls))
    train_step = rl.run.loop.train_step

    def killed(*args: object, **named: object) -> object:
        if named["step"] == 2:
            server.kill()
            server.start()
        return train_step(*args, **named)  # pyright: ignore

    monkeypatch.setattr(rl.run.loop, "train_step", killed)
    train(options(server.folder, data, tmp_path / "killed", **urls))
    assert "with the weights again" in " ".join(capsys.readouterr().out.split())
    texts = [(tmp_path / name / "completions.jsonl").read_text() for name in ("whole", "killed")]
    assert texts[0] == texts[1]
    ours, theirs = (final_weights(tmp_path / name, 3) for name in ("whole", "killed"))
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-6) for key in theirs)  # the engine's log-probs round
    assert not (tmp_path / "killed" / "transfer").exists()
