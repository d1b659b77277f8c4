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


def scripted(module: nn.Module, *given: object) -> Callable[..., Tensor]:
    """The same function without the interpreter, or the module itself where TorchScript does not take it.

    Args:
        module: whose `forward` gives one tensor; frozen, without parameters.
        given: arguments to try it with.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated by torch: see docs/decisions/0017
            script = torch.jit.script(module)

        def run(*args: object) -> Tensor:
            # The optimizing executor would rewrite the steps during the first forwards.
            with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
                found: Tensor = script(*args)
            return found

        with torch.inference_mode():
            run(*given)
    except Exception:
        # Slower, not wrong: an activation of a kind that TorchScript does not know, or a torch without it.
        logger.warning("module.not_scripted", exc_info=True)
        return module
    return run
