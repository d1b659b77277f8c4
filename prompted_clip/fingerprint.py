"""The backbone's fingerprint: one SHA-256 over its weights and architecture."""

import hashlib
import json
from typing import Any

import torch
from torch import Tensor


def fingerprint_weights(state: dict[str, Tensor], facts: dict[str, Any]) -> str:
    """Hash a state dict and architecture facts, independently of the order and the dtype (as float32).

    Args:
        state: parameters and persistent buffers by name.
        facts: JSON values such as the activation and the number of heads.

    Returns:
        `sha256:` and 64 hexadecimal digits.
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(state):
        weights = state[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(json.dumps([name, list(weights.shape)]).encode())
        digest.update(weights.numpy().data)
    return f"sha256:{digest.hexdigest()}"
