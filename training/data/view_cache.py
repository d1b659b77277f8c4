"""Cache of a frozen model's outputs for fixed views; random views are computed each time.

A fixed set is always computed in the same blocks and order, so that a resumed run gets bit-identical values.
"""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from prompted_clip.transfers import to_device
from training.data.views import Views

BLOCK_ROWS: Final = 64


class ViewCache:
    """Outputs of a frozen model per image and view.

    Args:
        views: the images.
        compute: maps uint8 views [B, 3, H, W] to rows [B, …]; called without gradients.
    """

    def __init__(self, views: Views, compute: Callable[[Tensor], Tensor]) -> None:
        self._views = views
        self._compute = compute
        self._known: dict[int, Tensor] = {}

    def get(self, indices: Tensor, epoch: int, pixels_BCHW: Tensor | None = None) -> Tensor:
        """Outputs for some images, with the views of an epoch.

        Args:
            indices: image indices.
            epoch: selects the views.
            pixels_BCHW: the views, if already loaded.

        Returns:
            [B, …].
        """
        which = self._views.view_set(epoch)
        if which is None:
            pixels_BCHW = self._views.load(indices.tolist(), epoch) if pixels_BCHW is None else pixels_BCHW
            with torch.no_grad():
                return self._compute(pixels_BCHW)
        self.fill(epoch)
        rows = self._known[which]
        return rows[to_device(indices, rows.device)]

    def fill(self, epoch: int, on_progress: Callable[[int], None] = lambda _: None) -> None:
        """Compute the fixed set of an epoch, unless it is cached or random.

        Args:
            epoch: selects the views.
            on_progress: called with the number of images just computed.
        """
        which = self._views.view_set(epoch)
        if which is None or which in self._known:
            return
        blocks = []
        with torch.no_grad():
            for start in range(0, len(self._views), BLOCK_ROWS):
                indices = range(start, min(start + BLOCK_ROWS, len(self._views)))
                blocks.append(self._compute(self._views.load(indices, epoch)))
                on_progress(len(indices))
        self._known[which] = torch.cat(blocks)
