"""`caspl serve` with a device that takes a fixed time per batch and no CPU: HTTP and decoding limit the rate.

The device runs one batch at a time and has a second one queued behind it, as a GPU does.
"""

import stat
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from caspl.__main__ import main as caspl
from prompted_clip.model import PromptedClip
from prompted_clip.scoring import Ranked
from prompted_clip.stack import PromptStack
from service import server
from service.engine.loading import load_model
from service.settings import Settings

BATCH_S = 0.010
BATCH_ROWS = 64
BACKBONE = "ViT-S-32-alt"
"""A small one, for its input of 224 pixels; it runs for smoke tests of bundles only."""


def serve() -> None:
    """Run `caspl serve` with such a device."""

    def load(settings: Settings) -> PromptedClip:
        model = load_model(settings)
        model.num_streams, model.pipeline_depth = 1, 1
        is_free = threading.Lock()

        def rank(_pixels: object, stacks: Sequence[PromptStack], _top_ks: object, **_: object) -> list[Ranked]:
            with is_free:
                time.sleep(BATCH_S)
            return [Ranked([0], [1.0])] * len(stacks)

        model.rank = rank  # type: ignore[method-assign, assignment]
        return model

    setattr(server, "load_model", load)  # noqa: B010  where `run` looks it up
    caspl()


def launcher(folder: Path) -> Path:
    """A command that takes the place of `caspl`."""
    path = folder / "caspl"
    path.write_text(f"#!{sys.executable} -P\nfrom benchmarks.fixed_device import serve\nserve()\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path
