"""vLLM as the engine, in the trainer's process. It imports vllm, so import it lazily."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rewards.errors import UserError, first_line
from rollout.records import Completion, FinishReason
from rollout.sampler import (
    LOCAL_ENGINE,
    RequestQueue,
    Requests,
    SamplerBase,
    SampleRequest,
    SamplingParams,
    Stream,
    Text,
)
from rollout.turn import TurnReader
from rollout.vllm_worker import FLOAT32_HEAD, fingerprints_of, request_options, require_vllm
from rollout.weight_files import InType, write_files

CPU_BLOCK = 128  # tokens per block of keys and values that vLLM allocates on a CPU


require_vllm()
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the engine in this process
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # at every delivery it warns of what is intended

from vllm import LLM, TokensPrompt  # noqa: E402  # pyright: ignore[reportMissingImports]
from vllm import SamplingParams as EngineParams  # noqa: E402  # pyright: ignore[reportMissingImports]
from vllm.sampling_params import RequestOutputKind  # noqa: E402  # pyright: ignore[reportMissingImports]


@dataclass(frozen=True, kw_only=True)
class VLLMOptions:
    """Options of the engine.

    max_length: tokens of a prompt with its completion. memory: the share of the GPU's memory that vLLM takes, on a CPU of the free
    memory. max_rows: completions that are decoded at once. tensor_parallel: GPUs of one engine. key_values: the number of elements of a
    token's keys and values in all layers. processes: trainer processes, each with an engine of its own on its own device. float32_head:
    the output layer multiplies in float32; its weights are dtype's.
    """

    dtype: str
    max_length: int
    key_values: int
    memory: float = 0.4
    max_rows: int = 256
    tensor_parallel: int = 1
    processes: int = 1
    float32_head: bool = False


class VLLMSampler(SamplerBase):
    """Samples with a vLLM engine in this process.

    folder: a model in Hugging Face format, whose weights are used until the first delivery. stop_ids: all tokens that end a completion.
    """

    takes_adapters = False

    def __init__(
        self, folder: str | Path, tokenizer: PreTrainedTokenizerBase, stop_ids: Set[int], options: VLLMOptions
    ) -> None:
        self.stop_ids, self.turns, self.policy_version = sorted(stop_ids), TurnReader.of(tokenizer, stop_ids), 0
        self.options, self.dtype = options, getattr(torch, options.dtype)
        self.path = f"vLLM in this process, {options.dtype}"
        self.on_gpu = torch.cuda.is_available()
        self.asleep = self.has_received = False
        self.numbers = count()
        try:
            with _threads_and_processes_kept():
                self.llm = self._start(str(folder), options)
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"sampler is 'vllm': it did not start with {options} ({first_line(error)}); raise vllm_memory where "
                "keys and values do not fit, lower max_tokens or vllm_max_rows, or use --sampler torch"
            ) from None

    def _start(self, folder: str, options: VLLMOptions) -> LLM:
        return LLM(
            folder,
            dtype=options.dtype,  # pyright: ignore[reportArgumentType]
            hf_overrides=FLOAT32_HEAD if options.float32_head else {},
            max_model_len=options.max_length,
            max_num_seqs=options.max_rows,
            gpu_memory_utilization=options.memory,
            kv_cache_memory_bytes=None if self.on_gpu else _cache_bytes(options),
            tensor_parallel_size=options.tensor_parallel,
            # Within the trainer's own process group, which vLLM then divides into groups of one.
            distributed_executor_backend="external_launcher" if options.processes > 1 else None,
            enforce_eager=not self.on_gpu,
            # On a CPU vLLM cannot rewind a seeded request's generator, as it does after a chunk of a prompt.
            enable_chunked_prefill=None if self.on_gpu else False,
            enable_sleep_mode=self.on_gpu,
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",  # of the distribution that is sampled from: after temperature and top-p
            generation_config="vllm",  # ignores the sampling options of the model's own generation config
            disable_log_stats=True,
        )

    def stream(self, requests: Requests, params: SamplingParams) -> Stream:
        """Makes a vLLM request for each completion, as each has a seed of its own; the prefix cache shares a prompt's keys in its group."""
        self._require_awake()
        queue, engine, pending = RequestQueue.of(requests), self.llm.llm_engine, {}
        try:
            while True:
                for i, request in queue.take(wait=not pending):
                    prompt = TokensPrompt(prompt_token_ids=list(request.prompt_ids))
                    for j, seed in enumerate(request.seeds):
                        name = str(next(self.numbers))
                        engine.add_request(name, prompt, self._params(params, request, seed))
                        pending[name] = (i, j, seed)
                if not pending:
                    return
                outputs: list[Any] = engine.step()
                for output in outputs:
                    if output.finished:
                        i, j, seed = pending.pop(output.request_id)
                        yield i, j, self._completion(output.outputs[0], seed, params)
        finally:
            queue.close()
            if pending:
                engine.abort_request(list(pending))

    def _params(self, params: SamplingParams, request: SampleRequest, seed: int) -> EngineParams:
        return EngineParams(
            **request_options(params, request.limit(params), seed, self.stop_ids),
            detokenize=bool(params.stop_strings),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _completion(self, output: Any, seed: int, params: SamplingParams) -> Completion:
        token_ids = tuple(output.token_ids)
        return Completion(
            token_ids=token_ids,
            sampler_logprobs=tuple(row[token].logprob for row, token in zip(output.logprobs, token_ids, strict=True)),
            finish_reason=FinishReason.STOP if output.finish_reason == "stop" else FinishReason.LENGTH,
            policy_version=self.policy_version,
            seed=seed,
            text=self.turns.texts([token_ids], params.stop_strings)[0],
        )

    def probe(self, texts: Sequence[Text]) -> dict[str, list[list[float]]]:
        """Requests each token's log-prob as that of the first token after the tokens before it."""
        self._require_awake()
        positions = [(p + c[:n], token) for p, c in texts for n, token in enumerate(c)]
        params = [
            EngineParams(max_tokens=1, logprob_token_ids=[token], detokenize=False, ignore_eos=True)
            for _, token in positions
        ]
        prompts = [TokensPrompt(prompt_token_ids=list(before)) for before, _ in positions]
        found = self.llm.generate(prompts, params, use_tqdm=False)
        rows = [f.outputs[0].logprobs for f in found]
        logprobs = iter([row[0][token].logprob for row, (_, token) in zip(rows, positions, strict=True) if row])
        return {LOCAL_ENGINE: [[next(logprobs) for _ in completion] for _, completion in texts]}

    @torch.no_grad()
    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """named_tensors: all of a plain model's tensors by name, also an output head that is tied to the embeddings, as vLLM keeps its own.

        A sleeping engine first gets the memory of its weights back, and that of keys and values only after the delivery's memory is free.
        """
        if self.asleep:
            self.llm.wake_up(["weights"])
        if not self.has_received:  # sets all weights to 0, so that a missing one does not stay the folder's
            self.llm.collective_rpc("reset_weights")
            self.has_received = True
        tensors = InType(named_tensors, self.dtype)
        if self.options.tensor_parallel == 1:
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(tensors)})
        else:  # the workers are processes of their own
            with TemporaryDirectory(prefix="plumbline-") as folder:
                write_files(tensors, weights := Path(folder) / "weights")
                self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(weights)})
        if self.asleep:
            self.llm.wake_up(["kv_cache"])
            self.asleep = False
        # Keys and values of the old weights. Without the flag vLLM keeps all of them where any request still has some.
        self.llm.reset_prefix_cache(reset_running_requests=True)
        self.policy_version = version

    @torch.no_grad()
    def fingerprints(self) -> dict[str, dict[str, Tensor]]:
        """Empty with tensor parallelism: no worker holds whole tensors."""
        if self.options.tensor_parallel > 1:
            return {}
        self._require_awake()
        (found,) = self.llm.collective_rpc(fingerprints_of)
        return {LOCAL_ENGINE: found}

    def sleep(self) -> None:
        """Releases the GPU's memory for the update: vLLM drops weights, keys and values until the next delivery brings new weights."""
        if self.on_gpu and not self.asleep:
            self.llm.sleep(level=2)
            self.asleep = True

    def _require_awake(self) -> None:
        if self.asleep:
            raise RuntimeError("vLLM sleeps without weights: it cannot sample before new ones are delivered")

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()


@contextmanager
def _threads_and_processes_kept() -> Iterator[None]:
    """Restores what vLLM changes on a CPU: it replaces torch.set_num_threads by a function without effect, and sets LOCAL_WORLD_SIZE."""
    threads, set_num_threads, environment = torch.get_num_threads(), torch.set_num_threads, dict(os.environ)
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(threads)
        os.environ.pop("LOCAL_WORLD_SIZE", None)
        os.environ |= {k: v for k, v in environment.items() if k == "LOCAL_WORLD_SIZE"}


def _cache_bytes(options: VLLMOptions) -> int:
    """Bytes of the cache for all rows at full length, at most the share of free memory, which the machine's processes divide."""
    width = 4 if options.dtype == "float32" else 2
    a_row = -(-options.max_length // CPU_BLOCK) * CPU_BLOCK * options.key_values * width
    free = psutil.virtual_memory().available / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return int(min(2 * options.max_rows * a_row, options.memory * free))
