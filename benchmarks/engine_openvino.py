"""Rows of `caspl bench engine` in OpenVINO: the engine with this backend, and the runtime alone."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.ratios import Spread, ratio
from benchmarks.report import Report, Target
from prompted_clip.backbone import Backbone
from prompted_clip.openvino_tower import INSTALL, compile_model, convert_tower, has_bfloat16, openvino

if TYPE_CHECKING:
    from benchmarks.engine import EngineOptions

ALONE: Final = "OpenVINO alone, int8"
MISSING: Final = f"No rows of OpenVINO, which is not installed: {INSTALL}."


def is_installed() -> bool:
    """Whether the extra `openvino` is installed."""
    return find_spec("openvino") is not None


def variants(options: "EngineOptions") -> dict[str, "EngineOptions"]:
    """Options of the engine in OpenVINO with one domain, by alternative, for every dtype of this processor."""
    dtypes = ("float32", "bfloat16", "int8") if has_bfloat16() else ("float32", "int8")
    extra = tuple((name, value) for name, value in options.extra if name not in {"backend", "dtype"})
    return {
        f"OpenVINO, {dtype}": replace(options, backend="openvino", dtype=dtype, n_domains=1, extra=extra)
        for dtype in dtypes
    }


class OpenVinoAlone:
    """The image tower in int8 in OpenVINO's own queue of requests: no prompts, no classes, no engine.

    Args:
        backbone: in float32 on the CPU.
        images_NCHW: uint8 pixels.
        n_threads: streams of one thread each.
    """

    def __init__(self, backbone: Backbone, images_NCHW: NDArray[np.uint8], n_threads: int) -> None:
        model = convert_tower(backbone, int8=True)
        compiled = compile_model(
            model, "int8", n_threads=n_threads, n_streams=n_threads, row_size=backbone.vision_width
        )
        self._queue = openvino().AsyncInferQueue(compiled, 2 * n_threads)
        self._images = images_NCHW
        self._no_prompts = (backbone.n_vision_layers, 0, backbone.vision_width)

    def run(self, n_rows: int, n_batches: int) -> None:
        """Encode batches."""
        tokens = np.zeros((n_rows, *self._no_prompts), np.float32)
        inputs = (self._images[:n_rows], tokens, np.zeros((n_rows, 0), np.int64))
        for _ in range(n_batches):
            self._queue.start_async(inputs)
        self._queue.wait_all()


def add_openvino_numbers(report: Report, rates: Mapping[str, Sequence[float]]) -> None:
    """Add the ratios of int8 to a report, from images per second by alternative and round."""
    report.add(
        "int8_vs_open_clip_float32",
        ratio(rates["OpenVINO, int8"], rates["open_clip, float32"]),
        "images/s of the engine in OpenVINO int8 with 12 prompt tokens / open_clip in float32 without prompts",
        Target(">=", 2.5),
    )
    engines = ["one domain", *(name for name in rates if name.startswith("OpenVINO, "))]
    best = max(engines, key=lambda name: Spread.of(rates[name]).value)
    report.add(
        "best_vs_openvino_int8",
        ratio(rates[best], rates[ALONE]),
        f"images/s of the engine at its fastest ({best}) with 12 prompt tokens / OpenVINO int8 alone without prompts",
        Target(">=", 1.0),
    )
