"""The image tower on CUDA as recorded graphs: one launch per batch instead of some two hundred.

At small batches the time of a forward is that of starting its kernels. A graph is recorded once for each size of batch,
number of prompt positions and depth (for even depths and for mixtures), and replayed over inputs that lie in fixed
places. Batches are padded to the next recorded size; what fills the rest does not matter, since rows do not depend on
each other. Does not know how the tower computes.

Legend: B rows, C/H/W image, D prompt layers, P prompt positions, W tower width, E joint width.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from prompted_clip.backbone import Backbone
from prompted_clip.prompts import PromptGrid

logger = logging.getLogger(__name__)

MAX_GRAPHS: Final = 64
N_WARM_UPS: Final = 2
"""Runs before a recording: libraries choose kernels and take memory in them, which a recording must not see."""

Tower = Callable[[Tensor, PromptGrid | None], Tensor]
Work = Callable[[], Tensor]


class Shape(NamedTuple):
    """What two batches must have in common to replay one graph; without prompts, 0 positions and layers."""

    n_rows: int
    n_prompts: int
    depth: int
    is_even: bool = False
    """Whether all positions of all rows have their own tokens to the same depth, which saves work."""


class GraphedTower:
    """A tower that replays recorded forwards.

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
        self._record = record or CudaRecorder()
        self._graphs: OrderedDict[Shape, _Graph] = OrderedDict()
        self._refused: set[Shape] = set()

    def n_padded(self, n_rows: int) -> int:
        """How many rows really run for so many."""
        return next((size for size in self._sizes if size >= n_rows), n_rows)

    @torch.inference_mode()
    def __call__(self, pixels_BCHW: Tensor, grid: PromptGrid | None = None) -> Tensor:
        """The tower's embeddings [B, E], which the caller may keep."""
        n_rows = len(pixels_BCHW)
        if n_rows > self._sizes[-1]:
            return self._tower(pixels_BCHW, grid)
        shape = Shape(self.n_padded(n_rows), 0, 0)
        if grid is not None:
            shape = Shape(shape.n_rows, grid.n_tokens, grid.max_depth, grid.min_depth == grid.max_depth)
        graph = self._graph(shape)
        return graph.replay(pixels_BCHW, grid) if graph is not None else self._tower(pixels_BCHW, grid)

    def _graph(self, shape: Shape) -> "_Graph | None":
        if shape in self._refused:
            return None
        if shape not in self._graphs:
            while len(self._graphs) >= self._max_graphs:
                self._graphs.popitem(last=False)
            try:
                self._graphs[shape] = _Graph(self._tower, self._backbone, shape, self._record)
            except RuntimeError:
                # No memory, or a kernel that cannot be recorded: slower, not wrong. A lost device shows right after.
                logger.warning("graph.not_recorded", extra=shape._asdict(), exc_info=True)
                self._refused.add(shape)
                return None
        self._graphs.move_to_end(shape)
        return self._graphs[shape]


def batch_sizes(max_rows: int) -> tuple[int, ...]:
    """Sizes that batches are padded to: powers of two, from 8 on with one between each pair, and `max_rows`."""
    powers = [2**exponent for exponent in range(max_rows.bit_length())]
    between = [power + power // 2 for power in powers if power >= 8]
    return tuple(sorted({size for size in (*powers, *between) if size < max_rows} | {max_rows}))


class _Graph:
    """One recorded forward and the places its inputs are read from."""

    def __init__(self, tower: Tower, backbone: Backbone, shape: Shape, record: Callable[[Work], Work]) -> None:
        n_rows, n_prompts, depth, is_even = shape
        side, device = backbone.image_size, backbone.device
        self._pixels = torch.zeros(n_rows, 3, side, side, dtype=torch.uint8, device=device)
        self._grid: PromptGrid | None = None
        if n_prompts:
            tokens = torch.zeros(n_rows, depth, n_prompts, backbone.vision_width, dtype=backbone.dtype, device=device)
            depths = torch.full((n_rows, n_prompts), depth, dtype=torch.int64, device=device)
            # Unless depths are even, the recording asks each row for its own from layer 1 on: it fits every mixture.
            self._grid = PromptGrid(tokens, depths, min_depth=depth if is_even else 1, max_depth=depth)
        self._run = record(lambda: tower(self._pixels, self._grid))

    def replay(self, pixels_BCHW: Tensor, grid: PromptGrid | None) -> Tensor:
        """Run over these rows."""
        n_rows = len(pixels_BCHW)
        self._pixels[:n_rows].copy_(pixels_BCHW, non_blocking=True)
        if self._grid is not None and grid is not None:
            self._grid.tokens[:n_rows].copy_(grid.tokens)
            self._grid.depths[:n_rows].copy_(grid.depths)
        # The next replay of any graph may write over the output.
        return self._run()[:n_rows].clone()


class CudaRecorder:
    """Records work of the calling thread's stream as CUDA graphs; they share one pool of memory.

    Replays must not overlap, and each output must be copied before the next replay: graphs write over each other's.
    """

    def __init__(self) -> None:
        self._pool: Any = None  # torch's handle has no public type

    def __call__(self, work: Work) -> Work:
        """Record `work`, whose inputs stay in their places.

        Returns:
            What replays it and gives the output, in the same place each time.

        Raises:
            RuntimeError: no memory for it, or it does what a graph cannot hold.
        """
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(N_WARM_UPS):
                work()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on copying to the device meanwhile: only this one's work is recorded.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = work()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay
