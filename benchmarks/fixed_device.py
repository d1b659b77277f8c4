"""`caspl serve` with a simulated device: a fixed time per batch and no CPU, so that HTTP and decoding limit the rate.

The device runs one batch at a time, with the next one queued, as a GPU does.
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
"""A small model with inputs of 224 pixels. It only runs in the smoke tests of bundles."""


def serve() -> None:
    """Run the `caspl` command with the simulated device."""

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

    setattr(server, "load_model", load)  # noqa: B010  `server.run` calls it by this name
    caspl()


def launcher(folder: Path, python: str = sys.executable) -> Path:
    """Write a `caspl` command with the simulated device, for an interpreter with this project; returns its path."""
    path = folder / "caspl"
    path.write_text(f"#!{python} -P\nfrom benchmarks.fixed_device import serve\nserve()\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path
