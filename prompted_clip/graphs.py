"""The image tower on CUDA as recorded graphs: one launch per batch instead of some two hundred.

At small batches the time of a forward is that of starting its kernels. A graph is recorded once for each size of batch,
number of prompt positions and depth, where all positions have the same, and one for everything else of that size and
number. All of them read their inputs from the same places. Batches are padded to the next recorded size; what fills the
rest does not matter, since rows do not depend on each other. A recording takes a good part of a second and can be made
before it is needed. Does not know how the tower computes.

Legend: B rows, C/H/W image, D prompt layers, P prompt positions, W tower width, E joint width.
"""

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, Final, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from prompted_clip.backbone import Backbone
from prompted_clip.prompts import PromptGrid

logger = logging.getLogger(__name__)

MAX_GRAPHS: Final = 256
N_WARM_UPS: Final = 2
"""Runs before a recording: libraries choose kernels and take memory in them, which a recording must not see."""
RETRY_FULL_S: Final = 60.0
"""How long a recording that found no memory is not tried again: the attempt costs more than it would gain."""

Tower = Callable[[Tensor, PromptGrid | None], Tensor]
Work = Callable[[], Tensor]


class Shape(NamedTuple):
    """What two batches must have in common to replay one graph; without prompts, 0 positions."""

    n_rows: int
    n_prompts: int
    even_depth: int = 0
    """To which all positions of all rows have their own tokens, which saves work; 0 fits all depths and mixtures."""


class GraphedTower:
    """A tower that replays recorded forwards; several threads may call it, and their replays take turns.

    Args:
        tower: computes the same for each row whatever the others hold, in shapes that depend on its inputs' only.
        backbone: where the inputs lie, and of which size and type they are.
        max_rows: largest recorded batch; what is larger runs as it is.
        max_graphs: most recordings kept; the one that was used least recently goes.
        record: makes a replay of some work; given by tests.
    """

    def __init__(
        self,
        tower: Tower,
        backbone: Backbone,
        *,
        max_rows: int,
        max_graphs: int = MAX_GRAPHS,
        record: Callable[[Work], Work] | None = None,
    ) -> None:
        self._tower = tower
        self._backbone = backbone
        self._sizes = batch_sizes(max_rows)
        self._max_graphs = max_graphs
        self._record = record or CudaRecorder(backbone.device)
        self._graphs: OrderedDict[Shape, _Graph] = OrderedDict()
        self._places: WeakValueDictionary[int, _Places] = WeakValueDictionary()
        self._refused: dict[Shape, float] = {}  # until when, on the monotonic clock
        self._turn = threading.Lock()

    def padded_batch_size(self, n_rows: int) -> int:
        """How many rows really run for so many."""
        return next((size for size in self._sizes if size >= n_rows), n_rows)

    @torch.inference_mode()
    def __call__(self, pixels_BCHW: Tensor, grid: PromptGrid | None = None) -> Tensor:
        """The tower's embeddings [B, E], which the caller may keep."""
        n_rows = len(pixels_BCHW)
        if n_rows > self._sizes[-1]:
            return self._tower(pixels_BCHW, grid)
        with self._turn:
            graph = self._graph(_shape(self.padded_batch_size(n_rows), grid))
            if graph is not None:
                return graph.replay(pixels_BCHW, grid)
        return self._tower(pixels_BCHW, grid)

    def capture_steps(self, grid: PromptGrid | None) -> list[Callable[[], None]]:
        """What batches of such prompts, alone and beside others, would have to wait for: steps of one recording each.

        Args:
            grid: one stack's prompts, or None for the plain tower.
        """
        own = _shape(0, grid)
        shapes = {shape._replace(n_rows=size) for size in self._sizes for shape in (own, own._replace(even_depth=0))}
        missing = [shape for shape in sorted(shapes) if shape not in self._graphs and not self._is_refused(shape)]
        return [partial(self._prepare, shape) for shape in missing]

    @torch.inference_mode()
    def _prepare(self, shape: "Shape") -> None:
        with self._turn:
            self._graph(shape)

    def _graph(self, shape: "Shape") -> "_Graph | None":
        if self._is_refused(shape):
            return None
        if shape not in self._graphs:
            while len(self._graphs) >= self._max_graphs:
                self._graphs.popitem(last=False)
            try:
                self._graphs[shape] = _Graph(self._tower, self._places_for(shape.n_prompts), shape, self._record)
            except RuntimeError as error:
                # No memory, or a kernel that cannot be recorded: slower, not wrong. A lost device shows right after.
                logger.warning("graph.not_recorded", extra=shape._asdict(), exc_info=True)
                is_full = isinstance(error, torch.OutOfMemoryError)
                self._refused[shape] = time.monotonic() + RETRY_FULL_S if is_full else math.inf
                return None
        self._graphs.move_to_end(shape)
        return self._graphs[shape]

    def _is_refused(self, shape: "Shape") -> bool:
        return time.monotonic() < self._refused.get(shape, -math.inf)

    def _places_for(self, n_prompts: int) -> "_Places":
        places = self._places.get(n_prompts)
        if places is None:
            places = self._places[n_prompts] = _Places(self._backbone, self._sizes[-1], n_prompts)
        return places


def batch_sizes(max_rows: int) -> tuple[int, ...]:
    """Sizes that batches are padded to: powers of two, from 8 on with one between each pair, and `max_rows`."""
    powers = [2**exponent for exponent in range(max_rows.bit_length())]
    between = [power + power // 2 for power in powers if power >= 8]
    return tuple(sorted({size for size in (*powers, *between) if size < max_rows} | {max_rows}))


def _shape(n_rows: int, grid: PromptGrid | None) -> Shape:
    """The shape of so many rows with prompts like these."""
    if grid is None:
        return Shape(n_rows, 0)
    return Shape(n_rows, grid.n_tokens, grid.max_depth if grid.min_depth == grid.max_depth else 0)


class _Places:
    """Where recordings for a number of prompt positions read their inputs, whatever their sizes and depths."""

    def __init__(self, backbone: Backbone, max_rows: int, n_prompts: int) -> None:
        side, device = backbone.image_size, backbone.device
        self.pixels = torch.zeros(max_rows, 3, side, side, dtype=torch.uint8, device=device)
        shape = (max_rows, backbone.n_vision_layers, n_prompts, backbone.vision_width)
        self.tokens = torch.zeros(shape, dtype=backbone.dtype, device=device)
        self.depths = torch.zeros(max_rows, n_prompts, dtype=torch.int64, device=device)


class _Graph:
    """One recorded forward over the first rows and layers of its places."""

    def __init__(self, tower: Tower, places: _Places, shape: Shape, record: Callable[[Work], Work]) -> None:
        n_rows, n_prompts, even_depth = shape
        self._places = places  # kept alive: the recording reads them
        self._pixels = places.pixels[:n_rows]
        self._grid: PromptGrid | None = None
        if n_prompts:
            depth = even_depth or places.tokens.shape[1]
            # Where depths differ, the recording asks each row for its own from layer 1 on.
            self._grid = PromptGrid(places.tokens[:n_rows, :depth], places.depths[:n_rows], even_depth or 1, depth)
        self._run = record(lambda: tower(self._pixels, self._grid))

    def replay(self, pixels_BCHW: Tensor, grid: PromptGrid | None) -> Tensor:
        """Run over these rows."""
        n_rows = len(pixels_BCHW)
        self._pixels[:n_rows].copy_(pixels_BCHW, non_blocking=True)
        if self._grid is not None and grid is not None:
            # What lies in deeper layers is some other batch's, and no row's depth reaches there.
            self._grid.tokens[:n_rows, : grid.max_depth].copy_(grid.tokens)
            self._grid.depths[:n_rows].copy_(grid.depths)
        # The next replay of any graph may write over the output.
        return self._run()[:n_rows].clone()


class CudaRecorder:
    """Records work of the calling thread's stream as CUDA graphs; they share one pool of memory.

    Replays must not overlap, and each output must be copied before the next replay: graphs write over each other's.

    Args:
        device: whose work it is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None  # torch's handle has no public type

    @cached_property
    def _beside(self) -> torch.cuda.Stream:
        """One for all recordings: libraries keep working memory for every stream that they have seen."""
        return torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def __call__(self, work: Work) -> Work:
        """Record `work`, whose inputs stay in their places.

        Returns:
            What replays it and gives the output, in the same place each time.

        Raises:
            RuntimeError: no memory for it, or it does what a graph cannot hold.
        """
        with torch.cuda.device(self._device):
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            self._beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._beside):
                for _ in range(N_WARM_UPS):
                    work()
            torch.cuda.current_stream().wait_stream(self._beside)
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on copying to the device meanwhile: only this one's work is recorded.
            recording = torch.cuda.graph(graph, pool=self._pool, stream=self._beside, capture_error_mode="thread_local")
            with recording:
                output = work()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay
