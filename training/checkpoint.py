"""Training checkpoints: written atomically and tied to the run that wrote them."""

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
        identity: digests of recipe, data and backbones; a run with other digests cannot load the checkpoint.
        state: tensors and plain values.
    """
    buffer = io.BytesIO()
    torch.save({"identity": identity, "state": state}, buffer)
    write_atomic(path, buffer.getvalue())


def load_checkpoint(path: Path, identity: dict[str, str]) -> dict[str, Any] | None:
    """Return the state saved at `path`, or None if there is no file.

    Raises:
        CheckpointError: the file is damaged, or another run wrote it; names the differing digests.
    """
    if not path.exists():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        found: dict[str, str] = saved["identity"]
        state: dict[str, Any] = saved["state"]
    except Exception as error:
        msg = f"Cannot read the checkpoint {path}; delete it to start over."
        raise CheckpointError(msg) from error
    changed = sorted(key for key in identity.keys() | found.keys() if found.get(key) != identity.get(key))
    if changed:
        msg = f"The checkpoint {path} belongs to another run: {', '.join(changed)} differ. Delete it to start over."
        raise CheckpointError(msg)
    return state
