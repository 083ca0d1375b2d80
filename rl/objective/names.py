"""Literal types that the command line shows. This file must not import torch, which would make `--help` slow."""

from __future__ import annotations

from typing import Literal

CriticSource = Literal["none", "shared", "separate"]
