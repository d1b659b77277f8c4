"""Checkpoints of a run in progress: written whole or not at all, and bound to the run that wrote them."""

import io
from pathlib import Path
from typing import Any

import torch

from training.errors import CheckpointError
from training.files import write_atomic


def save_checkpoint(path: Path, identity: dict[str, str], state: dict[str, Any]) -> None:
    """Replace `path` atomically.

    Args:
        path: the checkpoint file.
        identity: what makes the run what it is (digests of recipe, data, backbones).
        state: tensors and plain values.
    """
    buffer = io.BytesIO()
    torch.save({"identity": identity, "state": state}, buffer)
    write_atomic(path, buffer.getvalue())


def load_checkpoint(path: Path, identity: dict[str, str]) -> dict[str, Any] | None:
    """The state saved at `path`, or None when there is none.

    Raises:
        CheckpointError: the file is damaged, or another run wrote it; says what differs.
    """
    if not path.exists():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        found: dict[str, str] = saved["identity"]
        state: dict[str, Any] = saved["state"]
    except Exception as error:
        msg = f"The checkpoint {path} cannot be read; delete it to start over."
        raise CheckpointError(msg) from error
    changed = sorted(key for key in identity.keys() | found.keys() if found.get(key) != identity.get(key))
    if changed:
        msg = f"The checkpoint {path} was written by another run: {', '.join(changed)} differ. Delete it to start over."
        raise CheckpointError(msg)
    return state
