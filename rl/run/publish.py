"""Uploads the final model of a run to the Hugging Face hub (--push-to-hub)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import huggingface_hub
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  of its client, httpx or httpx2
)
from huggingface_hub.utils import validate_repo_id

from rewards.errors import UserError, first_line
from rl.policy.policy import EXACT_WEIGHTS
from rl.run.checkpoint import CHECKSUMS, CRITIC_FOLDER, REFERENCE_FOLDER, WAITING

# What only a resumed run reads.
NOT_UPLOADED = [
    "optimizer.pt",
    "trainer.json",
    WAITING,
    EXACT_WEIGHTS,
    CHECKSUMS,
    f"{CRITIC_FOLDER}/*",
    f"{REFERENCE_FOLDER}/*",
]


def require_uploadable(name: str) -> None:
    """Raises UserError, before any training, if no repository can have the name, or if the hub does not know who uploads."""
    try:
        validate_repo_id(name)
        if is_offline_mode():
            raise UserError(f"push_to_hub is {name!r}: HF_HUB_OFFLINE is set; unset it, or leave push_to_hub out")
        huggingface_hub.whoami()
    except HFValidationError as error:
        raise UserError(
            f"push_to_hub is {name!r}: it must be the name of a repository, such as me/model ({error})"
        ) from None
    except (OSError, HTTPError) as error:  # no token, a wrong one, or no connection
        raise UserError(
            f"push_to_hub is {name!r}: the hub does not accept this machine's token ({first_line(error)}); run hf auth login, or set HF_TOKEN"
        ) from None


def upload(folder: Path, name: str, report: Callable[[str], None]) -> None:
    """Uploads a saved model, to a private repository if it is a new one. A failure is reported and not raised: the run is complete."""
    try:
        huggingface_hub.create_repo(name, private=True, exist_ok=True)
        huggingface_hub.upload_folder(repo_id=name, folder_path=folder, ignore_patterns=NOT_UPLOADED)
    except (OSError, HTTPError, ValueError, RuntimeError) as error:
        excluded = " ".join(f"--exclude '{pattern}'" for pattern in NOT_UPLOADED)
        report(
            f"push_to_hub is {name!r}: the upload failed ({first_line(error)}); the run is complete, and this uploads its model:\n"
            f"hf upload {name} {folder} . --private {excluded}"
        )
    else:
        report(f"uploaded: {name}")
