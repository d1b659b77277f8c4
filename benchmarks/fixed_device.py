"""`caspl serve` with a simulated device: a fixed time per batch, and per image, and no CPU.

The device runs one batch at a time, with the next one queued, as a GPU does.
"""

import stat
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
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


def serve(batch_s: float = BATCH_S, row_s: float = 0.0) -> None:
    """Run the `caspl` command with the simulated device, also in the replicas of `caspl serve --ray`."""
    load = partial(load_simulated, batch_s=batch_s, row_s=row_s)
    setattr(server, "load_model", load)  # noqa: B010  `server.run` calls it by this name
    if "--ray" in sys.argv:
        application = import_module("service.ray.application")  # needs the extra
        setattr(application, "_build", partial(build_replica, load))  # noqa: B010  Ray sends it to the replicas
    caspl()


def load_simulated(settings: Settings, *, batch_s: float, row_s: float) -> PromptedClip:
    """The model with the simulated device: every image gets its first class."""
    model = load_model(settings)
    model.num_streams, model.pipeline_depth = 1, 1
    is_free = threading.Lock()

    def rank(_pixels: object, stacks: Sequence[PromptStack], _top_ks: object, **_: object) -> list[Ranked]:
        with is_free:
            time.sleep(batch_s + row_s * len(stacks))
        return [Ranked([0], [1.0])] * len(stacks)

    model.rank = rank  # type: ignore[method-assign, assignment]
    return model


def build_replica(load: Callable[[Settings], PromptedClip], settings: Settings) -> object:
    """In a replica of Ray: the service with another model."""
    setattr(import_module("service.engine.loading"), "load_model", load)  # noqa: B010  as above
    return import_module("service.ray.application")._build(settings)


def launcher(folder: Path, python: str = sys.executable, *, batch_s: float = BATCH_S, row_s: float = 0.0) -> Path:
    """Write a `caspl` command with the simulated device, for an interpreter with this project; returns its path."""
    path = folder / "caspl"
    path.write_text(
        f"#!{python} -P\nfrom benchmarks.fixed_device import serve\nserve({batch_s}, {row_s})\n", encoding="utf-8"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path
