"""Training checkpoints: written atomically, tied to the run that wrote them, and verified before they are loaded."""

import io
from pathlib import Path
from typing import Any, Final

import torch

from training.errors import CheckpointError
from training.files import digest_of, write_atomic

_DIGEST_CHARS: Final = len(digest_of(b""))
_ZIP: Final = b"PK"
"""The first bytes of a file of an earlier release, which has no digest."""


def save_checkpoint(path: Path, identity: dict[str, str], state: dict[str, Any]) -> None:
    """Replace `path` atomically. The file is the digest of the rest, and what `torch.save` writes.

    Args:
        path: the checkpoint file.
        identity: digests of recipe, data and backbones; a run with other digests cannot load the checkpoint.
        state: tensors and plain values.
    """
    buffer = io.BytesIO()
    torch.save({"identity": identity, "state": state}, buffer)
    data = buffer.getvalue()
    write_atomic(path, digest_of(data).encode() + data)


def load_checkpoint(path: Path, identity: dict[str, str]) -> dict[str, Any] | None:
    """Return the state saved at `path`, or None if there is no file.

    Raises:
        CheckpointError: the file is damaged, or another run wrote it; names the differing digests.
    """
    if not path.exists():
        return None
    try:
        saved = torch.load(io.BytesIO(_verified(path.read_bytes())), map_location="cpu", weights_only=True)
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


def _verified(data: bytes) -> bytes:
    """What `torch.load` reads of a file; torch itself does not verify the checksums of its format.

    Raises:
        ValueError: the digest does not match.
    """
    if data.startswith(_ZIP):
        return data
    rest = data[_DIGEST_CHARS:]
    if data[:_DIGEST_CHARS] != digest_of(rest).encode():
        raise ValueError("the digest of the checkpoint does not match")
    return rest
