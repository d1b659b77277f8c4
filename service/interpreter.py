"""How Python's interpreter is to run while a process serves."""

import gc
import sys
from typing import Final

HAND_OVER_S: Final = 2e-5
"""After so long a thread that computes in Python lets another one have the interpreter: see docs/decisions/0016."""


def prepare_interpreter() -> None:
    """Keep those who wait from waiting long; to be called once all that stays to the end is there.

    Whoever computes in torch from Python takes the interpreter's lock at each step, for a moment. Python leaves it for
    5 ms to a thread that does not rest: beside an event loop with its hands full that would take ten times as long. The
    image tower on a CPU needs it at its ends only; text, scores and what Python runs in its place need it throughout.

    The garbage collector stops everything while it looks at every object there is: torch and its like are 400,000, and
    nobody would be answered for 200 ms. What was made so far is taken out of its sight.
    """
    sys.setswitchinterval(HAND_OVER_S)
    gc.collect()
    gc.freeze()
