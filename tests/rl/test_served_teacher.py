"""A teacher behind a server: a simulated one here, vLLM's own in tests/vllm/test_teacher.py."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

import rl.policy.served_teacher
from rewards.errors import UserError
from rl.run.checkpoint import checkpoints
from rl.run.loop import train
from rl.run.tiny import tiny_tokenizer
from rl.settings.config import RunConfig
from rl.view.metrics import read_metrics
from tests.rl.test_teacher import config, teacher, weights
from tests.rollout.test_vllm_server import Handler as JsonHandler

__all__ = ["teacher"]  # a fixture


class Simulated(ThreadingHTTPServer):
    """Answers like vLLM's server of a model in a folder. dies_at: the number of requests from which on it breaks them off. changed: what
    becomes of each log-prob."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, folder: Path, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
        self.context, self.dies_at = 4096, 1 << 30
        self.answered = self.now = self.most = 0
        self.counting, self.gate = threading.Lock(), threading.Barrier(1)
        self.changed: Callable[[float], float] = lambda logprob: logprob
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    @torch.no_grad()
    def prompt_logprobs(self, ids: list[int]) -> list[Any]:
        logprobs = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        found = logprobs[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
        pairs = zip(ids[1:], found, strict=True)
        return [None, *({str(i): {"logprob": self.changed(x), "rank": 1, "decoded_token": ""}} for i, x in pairs)]


class Handler(JsonHandler):
    server: Simulated  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        if self.server.answered >= self.server.dies_at:
            self.close_connection = True
            return
        self.answer({"data": [{"max_model_len": self.server.context, "root": "taught"}]})

    def do_POST(self) -> None:
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            self.answer({"tokens": server.tokenizer.encode(body["prompt"], add_special_tokens=False)})
            return
        with server.counting:
            server.answered, server.now = server.answered + 1, server.now + 1
            server.most = max(server.most, server.now)
        if server.answered >= server.dies_at:
            self.close_connection = True
            return
        server.gate.wait(timeout=20)
        found = server.prompt_logprobs(body["prompt"]) if body["prompt_logprobs"] == 0 and body["max_tokens"] else None
        with server.counting:
            server.now -= 1
        self.answer({"choices": [{"text": "", "prompt_logprobs": found}]})


@contextmanager
def served(folder: Path, port: int = 0) -> Iterator[Simulated]:
    server = Simulated(folder, port)
    try:
        yield server
    finally:
        server.stop()


def test_behind_a_server_it_teaches_what_it_teaches_here(
    model: Path, teacher: Path, digits: Path, tmp_path: Path
) -> None:
    """Float32 sums in another order: log-probs differ by 1e-6. AdamW's steps are 1e-3 however small a gradient is, so that a weight
    whose gradient is mostly rounding may differ by a part of one."""
    train(config(model, digits, tmp_path / "here", teacher=str(teacher)))
    with served(teacher) as server:
        train(config(model, digits, tmp_path / "there", teacher=f"{server.url}/"))
        assert server.answered == 1 + 2 * 8  # a trial, and each completion of two steps
    here, there = (
        [row["kl/teacher"] for row in read_metrics(tmp_path / name) if row["step"]] for name in ("here", "there")
    )
    assert there == pytest.approx(here, abs=1e-5)
    ours, theirs = weights(tmp_path / "there"), weights(tmp_path / "here")
    assert max((ours[name] - theirs[name]).abs().max().item() for name in theirs) < 1e-4


def test_requests_are_in_flight_together_and_not_more_than_so_many(
    model: Path, teacher: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server answers four of a step's eight at once or, after 20 seconds, none."""
    monkeypatch.setattr(rl.policy.served_teacher, "IN_FLIGHT", 4)
    with served(teacher) as server:
        server.gate = TogetherAfterTheTrial(4)
        train(config(model, digits, tmp_path / "run", teacher=server.url, num_steps=1))
        assert server.most == 4


class TogetherAfterTheTrial(threading.Barrier):
    def __init__(self, parties: int) -> None:
        super().__init__(parties)
        self.tried = False

    def wait(self, timeout: float | None = None) -> int:
        if self.tried:
            return super().wait(timeout)
        self.tried = True
        return 0


def short(server: Simulated) -> None:
    server.context = 8


def other_tokens(server: Simulated) -> None:
    server.tokenizer = tiny_tokenizer(("What", "12"))


def silent(server: Simulated) -> None:
    server.prompt_logprobs = lambda ids: None  # pyright: ignore[reportAttributeAccessIssue]


def raw(server: Simulated) -> None:
    server.changed = lambda logprob: logprob + 20


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (short, r"teacher: http://\S+ takes at most 8 tokens, and a prompt with max_tokens is \d+"),
        (other_tokens, r"teacher: http://\S+ serves 'taught', which has other tokens than the policy"),
        (silent, r"teacher: http://\S+ reports no log-probs of a prompt's tokens; serve the model with vLLM"),
        (raw, r"teacher: http://\S+ reports \d+.\d+ as a log-prob; start it without --logprobs-mode"),
    ],
)
def test_a_server_that_cannot_teach_is_refused_before_training(
    change: Callable[[Simulated], None], said: str, model: Path, teacher: Path, digits: Path, tmp_path: Path
) -> None:
    with served(teacher) as server:
        change(server)
        with pytest.raises(UserError, match=said):
            train(config(model, digits, tmp_path / "run", teacher=server.url))


def test_an_address_at_which_nobody_answers_is_named(model: Path, digits: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"teacher: no vLLM answers at http://127.0.0.1:9 "):
        train(config(model, digits, tmp_path / "run", teacher="http://127.0.0.1:9"))


def test_a_server_reports_at_temperature_1() -> None:
    with pytest.raises(UserError, match=r"temperature is 0.7: a teacher behind a server reports log-probs at temp"):
        RunConfig(model="m", algorithm="distill", teacher="http://127.0.0.1:9", temperature=0.7)


def test_a_server_that_stays_away_ends_the_run_and_what_was_saved_goes_on(
    model: Path, teacher: Path, digits: Path, tmp_path: Path
) -> None:
    """It dies in the second step. The resumed run ends as one that was not interrupted, but for what float32 sums round."""
    usual = {"save_every": 1, "schedule": "constant", "vllm_patience": 1.0}
    with served(teacher) as server:
        train(config(model, digits, tmp_path / "whole", teacher=server.url, **usual))
    with served(teacher) as server:
        server.dies_at = 12
        with pytest.raises(UserError, match=r"teacher: http://\S+ has not answered for 1 s .* resume the run"):
            train(config(model, digits, tmp_path / "run", teacher=server.url, **usual))
    assert [folder.name for folder in checkpoints(tmp_path / "run")] == ["step-000001"]
    with served(teacher) as server:
        train(config(model, digits, tmp_path / "run", teacher=server.url, **usual, resume=True))
    ours, theirs = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert max((ours[name] - theirs[name]).abs().max().item() for name in theirs) < 1e-4
