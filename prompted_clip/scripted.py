"""A frozen module as TorchScript: its steps run one after the other without Python in between.

A step written in Python takes the interpreter's lock to say what comes next; several forwards side by side, and
whatever else the process does, take turns for it. TorchScript runs the same steps without. Does not know what a module
computes.
"""

import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)


def scripted(module: nn.Module) -> Callable[..., Tensor]:
    """The same function without the interpreter, or the module itself where TorchScript does not take it.

    Args:
        module: whose `forward` gives one tensor; frozen, without parameters.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # deprecated by torch: see docs/decisions/0017
            script = torch.jit.script(module)
    except Exception:
        # Slower, not wrong: an activation of a kind that TorchScript does not know, or a torch without it.
        logger.warning("tower.not_scripted", exc_info=True)
        return module

    def run(*args: object) -> Tensor:
        # The optimizing executor is no faster for steps as large as these, and rewrites them during the first forwards.
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            found: Tensor = script(*args)
        return found

    return run
