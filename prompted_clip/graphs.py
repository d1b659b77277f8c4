"""The image tower as CUDA graphs: one launch per batch instead of some two hundred.

A graph is captured per padded batch size and number of prompt positions. Graphs read static input buffers; a batch's
pixels, prompts and depths are copied there before the replay. A capture takes up to a second and can run before the
first request that needs it; other threads replay graphs meanwhile. Rows are independent, so the content of padding rows
does not matter.

Legend: B rows, C/H/W image, P prompt positions, E joint width.
"""

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from prompted_clip.backbone import Backbone
from prompted_clip.device_errors import is_out_of_memory
from prompted_clip.prompts import PromptGrid
from prompted_clip.vision import ImageTower

logger = logging.getLogger(__name__)

MAX_GRAPHS: Final = 256
N_WARM_UPS: Final = 2
"""Runs before a capture, in which libraries choose kernels and allocate workspaces."""
RETRY_S: Final = 60.0
"""A capture that ran out of memory is not tried again for this long."""

FIXED_IN: Final = "2.13"
"""The first torch whose allocator ends an invalidated capture (pytorch pull request 180395). Before it, memory is no
longer freed after one, and `empty_cache` fails."""

Work = Callable[[], Tensor]


def can_capture() -> bool:
    """Whether captures can fail safely with the installed torch."""
    return bool(torch.__version__ >= FIXED_IN)


class Shape(NamedTuple):
    """The key of a graph; 0 prompts for the plain tower."""

    n_rows: int
    n_prompts: int


class GraphedTower(ImageTower):
    """A tower that replays CUDA graphs; thread-safe, replays are serialised.

    All graphs share one memory pool, so an output must be copied before the next replay. During a capture batches of
    other shapes are replayed, and a batch whose graph is missing runs without one.

    Args:
        tower: independent per row; its shapes depend on its inputs' shapes only.
        backbone: device, sizes and dtype of the inputs.
        max_rows: the largest captured batch; larger ones run without a graph.
    """

    def __init__(self, tower: ImageTower, backbone: Backbone, *, max_rows: int) -> None:
        super().__init__(backbone)
        self._tower = tower
        self._sizes = batch_sizes(max_rows)
        self._graphs: OrderedDict[Shape, _Graph] = OrderedDict()  # least recently used first
        self._inputs: WeakValueDictionary[int, _StaticInputs] = WeakValueDictionary()
        self._retry_at_s: dict[Shape, float] = {}  # failed captures
        self._lock = threading.RLock()  # the graphs, and writes to their inputs
        self._capturing = threading.Lock()
        self._pool: Any = None  # torch has no public type for it
        self._stream: torch.cuda.Stream | None = None  # one for all captures: libraries keep a workspace per stream

    def padded_batch_size(self, n_rows: int) -> int:
        """See `ImageTower`."""
        return next((size for size in self._sizes if size >= n_rows), n_rows)

    @torch.inference_mode()
    def __call__(self, pixels_BCHW: Tensor, grid: PromptGrid | None = None) -> Tensor:
        """The tower's embeddings, [B, E]; not overwritten by later calls."""
        shape = Shape(self.padded_batch_size(len(pixels_BCHW)), grid.n_tokens if grid is not None else 0)
        self._add_graph(shape, waits=False)
        with self._lock:
            graph = self._graphs.get(shape)
            if graph is not None:
                self._graphs.move_to_end(shape)
                return graph.replay(pixels_BCHW, grid)
        return self._tower(pixels_BCHW, grid)

    def capture_steps(self, grid: PromptGrid | None) -> list[Callable[[], object]]:
        """See `ImageTower`; for batches of all sizes."""
        shapes = [Shape(size, grid.n_tokens if grid is not None else 0) for size in self._sizes]
        return [partial(self._add_graph, shape) for shape in shapes if self._is_missing(shape)]

    def _is_missing(self, shape: Shape) -> bool:
        is_due = time.monotonic() >= self._retry_at_s.get(shape, -math.inf)
        return shape.n_rows <= self._sizes[-1] and shape not in self._graphs and is_due

    @torch.inference_mode()
    def _add_graph(self, shape: Shape, *, waits: bool = True) -> None:
        """Capture a graph if it is missing; while another thread captures, wait for it or do nothing."""
        if not self._is_missing(shape) or not self._capturing.acquire(blocking=waits):
            return
        try:
            if self._is_missing(shape):
                self._capture_graph(shape)
        finally:
            self._capturing.release()

    def _capture_graph(self, shape: Shape) -> None:
        with self._lock:
            while len(self._graphs) >= MAX_GRAPHS:
                self._graphs.popitem(last=False)
        try:
            inputs = self._inputs.get(shape.n_prompts)
            if inputs is None:
                inputs = _StaticInputs(self._backbone, self._sizes[-1], shape.n_prompts)
                self._inputs[shape.n_prompts] = inputs
            graph = _Graph(self._tower, inputs, shape, self.capture)
            with self._lock:
                self._graphs[shape] = graph
        except RuntimeError as error:  # slower, not wrong; a lost device fails again in the tower
            logger.warning("graph.not_captured", extra=shape._asdict(), exc_info=True)
            # Out of memory during a capture also makes its end fail, with another error.
            is_full = is_out_of_memory(error) or (error.__context__ is not None and is_out_of_memory(error.__context__))
            self._retry_at_s[shape] = time.monotonic() + RETRY_S if is_full else math.inf

    def capture(self, work: Work) -> Work:
        """Capture `work`, whose inputs are static buffers; the replay's output is in the same memory each time.

        Raises:
            RuntimeError: out of memory, or an operation that cannot be captured.
        """
        with torch.cuda.device(self._backbone.device):
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            stream = self._stream = self._stream or torch.cuda.Stream(self._backbone.device)  # type: ignore[no-untyped-call]
            with self._lock:  # between replays, which write the inputs
                stream.wait_stream(torch.cuda.current_stream())
                try:
                    with torch.cuda.stream(stream):
                        for _ in range(N_WARM_UPS):
                            work()
                finally:  # kernels of a failed warm-up still read the inputs
                    torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # `torch.cuda.graph` would wait for the device and free all cached memory. Other threads may use the device
            # meanwhile: only this thread's work is captured.
            with torch.cuda.stream(stream):
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    output = work()
                finally:
                    graph.capture_end()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


def batch_sizes(max_rows: int) -> tuple[int, ...]:
    """Padded batch sizes: 1, 2, 4, 8, 12, multiples of 8 from 16 on, and `max_rows`.

    Padding adds at most 5 % to equally frequent batches of 1 to 128 rows (`tests/prompted_clip/test_graphs.py`).
    """
    return (*(size for size in (1, 2, 4, 8, 12, *range(16, max_rows, 8)) if size < max_rows), max_rows)


class _StaticInputs:
    """Input buffers for a number of prompt positions, shared by graphs of all batch sizes."""

    def __init__(self, backbone: Backbone, max_rows: int, n_prompts: int) -> None:
        side, device = backbone.image_size, backbone.device
        self.pixels = torch.zeros(max_rows, 3, side, side, dtype=torch.uint8, device=device)
        shape = (max_rows, backbone.n_vision_layers, n_prompts, backbone.vision_width)
        self.tokens = torch.zeros(shape, dtype=backbone.dtype, device=device)
        self.depths = torch.zeros(max_rows, n_prompts, dtype=torch.int64, device=device)


class _Graph:
    """One captured forward over the first rows of the static inputs."""

    def __init__(self, tower: ImageTower, inputs: _StaticInputs, shape: Shape, capture: Callable[[Work], Work]) -> None:
        self._inputs = inputs  # the graph reads them: keep them alive
        pixels, grid = inputs.pixels[: shape.n_rows], None
        if shape.n_prompts:
            # Depths differ from batch to batch: the graph selects each row's own tokens from layer 1 on.
            grid = PromptGrid(inputs.tokens[: shape.n_rows], inputs.depths[: shape.n_rows], min_depth=1)
        self._replay = capture(lambda: tower(pixels, grid))

    def replay(self, pixels_BCHW: Tensor, grid: PromptGrid | None) -> Tensor:
        """[B, E] for a batch of at most the captured size."""
        n_rows, inputs = len(pixels_BCHW), self._inputs
        inputs.pixels[:n_rows].copy_(pixels_BCHW, non_blocking=True)
        if grid is not None:
            # Deeper layers keep another batch's tokens, which no row's depth selects.
            inputs.tokens[:n_rows, : grid.max_depth].copy_(grid.tokens)
            inputs.depths[:n_rows].copy_(grid.depths)
        # The next replay of any graph may overwrite the output.
        return self._replay()[:n_rows].clone()
