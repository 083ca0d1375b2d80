"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to that takes its name at the end: a kill leaves the old file or the new one, and no reader sees half of one."""
    aside = path.with_name(f"{path.name}.tmp")
    yield aside
    os.replace(aside, path)
