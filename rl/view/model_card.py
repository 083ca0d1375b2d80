"""The model card (README.md) of a saved model: where it comes from, how it did before and after, and the options that repeat it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from rl.view.metrics import Row, read_metrics, series, start_and_end
from rollout.dataset_names import DatasetName
from rollout.problems import HUB_NAMES, is_on_hub

CARD = "README.md"


def model_card(run_dir: Path, step: int) -> str:
    """The card of the model after a run's newest step, from what stands in its folder: config.json, config.yaml and metrics.jsonl."""
    config = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    adapters = f", as LoRA adapters of rank {config['lora_rank']}" if config["lora_rank"] else ""
    rewards = f" Rewards: {', '.join(f'`{reward}`' for reward in config['reward'])}." if config.get("reward") else ""
    return f"""---
{metadata(config).to_yaml()}
---

# {Path(config["model"]).name}, trained by {config["algorithm"]}

Trained from `{config["model"]}` on {", ".join(f"`{name}`" for name in datasets(config))} with Plumbline{adapters}.
This is step {step} of {config["num_steps"]}. A step has {config["problems_per_step"]} problems with {config["group_size"]} completions each.{rewards}

{figures(config, read_metrics(run_dir))}

Hardware: {hardware(config)}. Versions: {", ".join(f"{name} {version}" for name, version in config["versions"].items())}.

To repeat the run, save these options as `config.yaml`:

```yaml
{(run_dir / "config.yaml").read_text(encoding="utf-8").strip()}
```

```
accelerate launch recipes/grpo_math.py --config config.yaml --run-dir runs/again
```
"""


def metadata(config: Mapping[str, Any]) -> ModelCardData:
    """What the hub reads. Models and data sets are named only if the hub has them."""
    adapters = bool(config["lora_rank"])
    named = [HUB_NAMES.get(name, (name,))[0] for name in datasets(config) if is_on_hub(name)]
    return ModelCardData(
        base_model=config["model"] if config["model"] != "tiny" and could_be_on_hub(config["model"]) else None,
        library_name="peft" if adapters else "transformers",
        pipeline_tag="text-generation",
        tags=["plumbline", config["algorithm"], *(["lora"] if adapters else [])],
        datasets=[name for name in named if could_be_on_hub(name)] or None,
    )


def datasets(config: Mapping[str, Any]) -> list[str]:
    """The names of the training data, without a weight (name=0.7) and without a configuration of the hub (name:config/split)."""
    given = config["dataset"]
    names = [DatasetName.read(name).name for name in ([given] if isinstance(given, str) else given)]
    return [name.partition(":")[0] if is_on_hub(name) else name for name in names]


def could_be_on_hub(name: str) -> bool:
    """Whether the name is neither a path that exists here nor one that the hub would refuse."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()


def figures(config: Mapping[str, Any], rows: list[Row]) -> str:
    """A table of the held-out accuracy and the mean reward, at the start and now."""
    lines = ["| | at the start | now |", "| --- | --- | --- |"]
    measured_at, accuracy = series(rows, "eval/accuracy")
    if accuracy:
        problems = f"held-out accuracy, greedy, of {config['eval_size']} problems"
        lines.append(f"| {problems} | {accuracy[0]:.1%} | {accuracy[-1]:.1%} (step {measured_at[-1]:g}) |")
    if reward := start_and_end(rows, "reward/mean"):
        lines.append(f"| mean reward of the samples | {reward[0]:.3f} | {reward[1]:.3f} |")
    return "\n".join(lines)


def hardware(config: Mapping[str, Any]) -> str:
    found = config["hardware"]
    gpu = "no GPU" if found["gpu"] == "none" else found["gpu"]
    return f"{gpu}, {found['cpu_cores']} CPU cores ({found['machine']})"
