"""config.json in a run's folder, as runs of this and of earlier versions wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rewards.errors import UserError, first_line


def read_config(run_dir: Path) -> dict[str, Any]:
    """A run's config.json: its options, versions and what was found out at set-up."""
    try:
        written = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise unreadable(run_dir, error) from None
    if not isinstance(written, dict):
        raise unreadable(run_dir, TypeError("it is not a JSON object"))
    return with_list_of_datasets(written)


def with_list_of_datasets(written: dict[str, Any]) -> dict[str, Any]:
    """A config.json as it is written today: earlier runs had one data set, as text."""
    one = isinstance(written.get("dataset"), str)
    return {**written, "dataset": [written["dataset"]]} if one else written


def unreadable(run_dir: Path, error: Exception) -> UserError:
    return UserError(
        f"run_dir is {str(run_dir)!r}: its config.json cannot be read ({first_line(error)}); restore it from a copy, or start a new run"
    )


def holds_run(folder: Path) -> bool:
    return (folder / "config.json").exists()
