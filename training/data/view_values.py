"""What a frozen model says about views: computed once where views are fixed, each time where they are fresh.

Fixed sets are computed in blocks of the same images in the same order, so the numbers do not depend on when a run asked
first, and a resumed run finds the same bits.
"""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from training.data.views import Views

BLOCK_ROWS: Final = 64


class ViewValues:
    """One row of numbers per image and view.

    Args:
        views: the images.
        compute: from uint8 views [B, 3, H, W] to rows [B, …]; called without gradients.
    """

    def __init__(self, views: Views, compute: Callable[[Tensor], Tensor]) -> None:
        self._views = views
        self._compute = compute
        self._known: dict[int, Tensor] = {}

    def get(self, indices: Tensor, epoch: int, pixels_BCHW: Tensor | None = None) -> Tensor:
        """Rows of some images under their views of an epoch.

        Args:
            indices: which images.
            epoch: whose views.
            pixels_BCHW: these very views, where the caller has them already; decoded anew otherwise.

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
        return rows[indices.to(rows.device)]

    def fill(self, epoch: int, on_progress: Callable[[int], None] = lambda _: None) -> None:
        """Compute the fixed set of an epoch now, unless it is known or fresh.

        Args:
            epoch: whose views.
            on_progress: called with the number of images just done.
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
