"""Names of choices that the command line shows; importing them must not import torch."""

from __future__ import annotations

from typing import Literal

CriticSource = Literal["none", "shared", "separate"]
