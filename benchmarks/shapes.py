"""The shapes of a training step at which this trainer and TRL's are compared, and what both are given at each."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.models import (
    HALF_BILLION,
    LARGE,
    SMALL,
    HashVerifier,
    InOrder,
    ModelSize,
    end_probability,
    random_model,
    random_problems,
    word_tokenizer,
)
from benchmarks.real_model import make
from rewards.score import Verifier
from rewards.verifiers import VerifierOptions, Verifiers
from rl.policy.load import load_pretrained
from rl.processes.runtime import Runtime
from rl.run.setup import tiny_base
from rl.settings.defaults import TINY_KL_WEIGHT
from rl.settings.resolve import model_defaults
from rl.view.progress import Progress
from rollout.problem_stream import ProblemStream
from rollout.problems import load_problems, split_held_out
from rollout.prompts import PromptRenderer
from rollout.records import Problem


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One step: `problems` prompts of `prompt_length` tokens, `group_size` completions of each, at most `max_tokens` long.

    size: None is the tiny default, the warm-started base on the arithmetic task; "real" is SmolLM2-135M-Instruct.
    mean_tokens: mean length of the completions; None is all of max_tokens.
    share_without_signal: of the prompts; all completions of such a one have the same reward.
    trl_rows, trl_cache: TRL's micro-batch and key-value cache, the fastest of those that `vs_trl --sweep` tries.
    token_budget: our micro-batch; but for the tiny default, whose own it is, one that holds about as many completions as
    TRL's, so that memory is compared at the same cut.
    """

    what: str
    size: ModelSize | Literal["real"] | None
    problems: int
    group_size: int
    prompt_length: int
    max_tokens: int
    mean_tokens: int | None = None
    share_without_signal: float = 0.0
    kl_weight: float = 0.0
    lora_rank: int = 0
    learning_rate: float = 1e-6  # so small that the lengths stay what they are
    token_budget: int = 2048
    trl_rows: int
    trl_cache: str | None = None
    target_speed: float = 2.0
    target_memory: float | None = None

    @property
    def rows(self) -> int:
        return self.problems * self.group_size

    @property
    def lora_alpha(self) -> int:
        return 2 * self.lora_rank


TINY = model_defaults("tiny", "arithmetic")
A = Shape(
    what="the tiny default: 0.7 M parameters, arithmetic",
    size=None,
    problems=TINY["problems_per_step"],
    group_size=TINY["group_size"],
    prompt_length=9,
    max_tokens=TINY["max_tokens"],
    kl_weight=TINY_KL_WEIGHT,
    learning_rate=TINY["learning_rate"],
    token_budget=4096,
    trl_rows=96,
)
B = Shape(
    what="3 M parameters, p = 128, lengths skewed",
    size=SMALL,
    problems=16,
    group_size=8,
    prompt_length=128,
    max_tokens=128,
    mean_tokens=64,
    share_without_signal=0.3,
    token_budget=1536,
    trl_rows=16,
    target_speed=4.0,
    target_memory=0.5,
)
C = Shape(
    what="3 M parameters, p = 512, c = 64, all rows full",
    size=SMALL,
    problems=8,
    group_size=8,
    prompt_length=512,
    max_tokens=64,
    trl_rows=16,
    target_speed=4.0,
    target_memory=0.5,
)
D = Shape(
    what="3 M parameters, p = 32, c = 128, all rows full",
    size=SMALL,
    problems=16,
    group_size=8,
    prompt_length=32,
    max_tokens=128,
    trl_rows=8,
)
E = Shape(
    what="28 M parameters, V = 32 k, lengths skewed",
    size=LARGE,
    problems=4,
    group_size=8,
    prompt_length=64,
    max_tokens=64,
    mean_tokens=32,
    share_without_signal=0.3,
    trl_rows=16,
)
F = replace(B, what="as b, G = 32", problems=4, group_size=32, target_speed=2.0, target_memory=None)
G = replace(E, what="as e, LoRA of rank 16", lora_rank=16, learning_rate=1e-5)
REAL = Shape(
    what="SmolLM2-135M-Instruct, p = 113, c = 32",
    size="real",
    problems=4,  # of 16 a step of TRL takes three minutes on two cores
    group_size=8,
    prompt_length=113,
    max_tokens=32,
    trl_rows=16,
    target_speed=4.0,
)
GPU = Shape(
    what="half a billion parameters, p = 512, completions skewed, 30 % of groups without signal",
    size=HALF_BILLION,
    problems=32,
    group_size=8,
    prompt_length=512,
    max_tokens=512,
    mean_tokens=256,
    share_without_signal=0.3,
    token_budget=32_768,
    trl_rows=32,
)
COMPARED: Mapping[str, Shape] = {"a": A, "b": B, "c": C, "d": D, "e": E, "f": F, "g": G, "real": REAL}
SHAPES: Mapping[str, Shape] = {**COMPARED, "gpu": GPU}


@dataclass(frozen=True, kw_only=True)
class Given:
    """What both sides are given. make_model: the same weights each time, on the device.

    stream: makes the one that deals the problems, in the same order to both. held_out: of the tiny default only.
    """

    make_model: Callable[[], PreTrainedModel]
    tokenizer: PreTrainedTokenizerBase
    renderer: PromptRenderer
    stream: Callable[[], ProblemStream]
    held_out: list[Problem]
    verifiers: Mapping[str, Verifier]
    seed: int = 0

    def close(self) -> None:
        for verifier in self.verifiers.values():
            verifier.close()


def given(shape: Shape, runtime: Runtime, *, num_problems: int, seed: int = 0) -> Given:
    """num_problems: as many different ones as the steps to come take."""
    if shape.size is None:
        return _tiny(runtime, seed)
    if shape.size == "real":
        return _real(shape, runtime, num_problems, seed)
    tokenizer = word_tokenizer(shape.size.vocab_size)
    words = [f"w{i}" for i in range(2, shape.size.vocab_size)]
    problems = random_problems(
        num_problems, shape.prompt_length, words, share_without_signal=shape.share_without_signal
    )
    hazard = end_probability(shape.mean_tokens or shape.max_tokens, shape.max_tokens)
    model = random_model(shape.size, tokenizer, end_probability=hazard).to(runtime.device)  # pyright: ignore[reportArgumentType]
    weights = model.state_dict()

    def make_model() -> PreTrainedModel:
        fresh = type(model)(model.config).eval()
        fresh.load_state_dict(weights)
        return fresh.to(runtime.device)  # pyright: ignore[reportArgumentType]  the stubs lose `self`

    return Given(
        make_model=make_model,
        tokenizer=tokenizer,
        renderer=PromptRenderer(tokenizer, style="plain"),
        stream=lambda: InOrder.of(problems, seed),
        held_out=[],
        verifiers={"hash": HashVerifier(shape.share_without_signal)},
        seed=seed,
    )


def _tiny(runtime: Runtime, seed: int) -> Given:
    verifiers = Verifiers(VerifierOptions())
    with Progress(0) as progress:
        folder: Path = tiny_base("arithmetic", verifiers, runtime, progress)
    _, tokenizer = load_pretrained(folder, torch.device("cpu"))
    training, held_out = split_held_out(load_problems("arithmetic"), TINY["eval_size"])
    return Given(
        make_model=lambda: load_pretrained(folder, runtime.device)[0],
        tokenizer=tokenizer,
        renderer=PromptRenderer(tokenizer, style="plain"),
        stream=lambda: ProblemStream.of(training, seed),
        held_out=held_out,
        verifiers=verifiers,
        seed=seed,
    )


def _real(shape: Shape, runtime: Runtime, num_problems: int, seed: int) -> Given:
    """Prompts of its chat template and as many words, each of which is one token, as make up the length."""
    folder = os.environ.get("PLUMBLINE_REAL_MODEL") or str(make(Path("runs") / "smollm2"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    after_space = (token[1:] for token in tokenizer.vocab if token[0] == tokenizer.tokenize(" a")[0][0])
    words = sorted(word for word in after_space if word.isascii() and word.isalpha())
    renderer = PromptRenderer(tokenizer, style="plain")
    begin = "Words:"

    def problems_of(count: int, length: int) -> list[Problem]:
        return random_problems(
            count, length, words, begin=begin, share_without_signal=shape.share_without_signal, seed=seed
        )

    (shortest,) = problems_of(1, 1)
    problems = problems_of(num_problems, shape.prompt_length - len(renderer.render(shortest)) + 1)
    assert {len(renderer.render(problem)) for problem in problems} == {shape.prompt_length}
    return Given(
        make_model=lambda: load_pretrained(folder, runtime.device)[0],
        tokenizer=tokenizer,
        renderer=renderer,
        stream=lambda: InOrder.of(problems, seed),
        held_out=[],
        verifiers={"hash": HashVerifier(shape.share_without_signal)},
        seed=seed,
    )
