"""Shapes in signatures are checked while tests run, and only then (jaxtyping and beartype)."""

from __future__ import annotations

from jaxtyping import install_import_hook

install_import_hook(["rl.advantages", "rl.losses", "rl.batch", "rl.forward"], "beartype.beartype")
