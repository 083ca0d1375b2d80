"""A stand-in for real weights: a small model that was trained, so that rounding moves its log-probs as a real model's.

Random models are flat and hide what bfloat16 does: their log-probs move by 0.001 nats where those of SmolLM2-135M move by 0.024.

    python -m tests.rl.stand_in

makes it: 0.2 M parameters taught worked arithmetic until it is sure of it, kept in bfloat16 as real weights are.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

FOLDER = Path(__file__).parent


def stand_in() -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    return model.eval()
