"""The prompted image tower.

Sequence (CasPL, arXiv 2409.17805, section 3.2): [CLS, patches, boosting prompts, adapting prompts]. Prompts get no
positional embedding; `ln_pre` runs over them too, as in PromptSRC's VisionTransformer.

Legend: B rows, C/H/W image, P prompt positions, E joint width.
"""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from prompted_clip import internals
from prompted_clip.backbone import Backbone
from prompted_clip.preprocess import normalize_pixels
from prompted_clip.prompts import PromptGrid, run_blocks

CLASS_TOKEN: Final = 0
"""Its position in the sequence."""


def encode_image(backbone: Backbone, images_BCHW: Tensor, grid: PromptGrid | None = None) -> Tensor:
    """f(x), the image features: `embed_image`, normalised, [B, E] float32."""
    return internals.unit_norm(embed_image(backbone, images_BCHW, grid))


def embed_image(backbone: Backbone, images_BCHW: Tensor, grid: PromptGrid | None = None) -> Tensor:
    """The image tower's output before normalisation, [B, E] in the backbone's dtype; without prompts open_clip's own.

    Images are normalised and of the backbone's size. Prompts are boosting before adapting, shared or one grid per row.
    """
    clip = backbone.clip
    x = internals.embed_patches(clip, images_BCHW.to(backbone.dtype))
    start = x.shape[1]
    if grid is not None:
        prompts = internals.norm_image_prompts(clip, grid.layer(0, x.shape[0]).to(x.dtype))
        x = torch.cat([x, prompts], dim=1)
    x = run_blocks(internals.vision_blocks(clip), x, grid, start=start, read=CLASS_TOKEN)
    return internals.project_image(clip, x)


class ImageTower:
    """Image embeddings from uint8 pixels with open_clip's own modules; base class of the faster towers.

    Attributes:
        backend: the library that runs the tower, `torch` or `openvino`.
        dtype: the type that it computes in.
    """

    backend = "torch"

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self.dtype = str(backbone.dtype).removeprefix("torch.")

    def __call__(self, pixels_BCHW: Tensor, grid: PromptGrid | None = None) -> Tensor:
        """Embeddings before normalisation, [B, E] in the backbone's dtype or float32; rows are independent.

        Args:
            pixels_BCHW: uint8 from `to_pixels`, on the backbone's device.
            grid: image prompts, boosting before adapting, shared or one per row; None for the plain tower.
        """
        return embed_image(self._backbone, normalize_pixels(pixels_BCHW, self._backbone.preprocess), grid)

    def capture_steps(self, grid: PromptGrid | None) -> list[Callable[[], object]]:  # noqa: ARG002
        """Captures of the missing CUDA graphs for this number of prompt positions, one call each."""
        return []

    def padded_batch_size(self, n_rows: int) -> int:
        """Rows computed for a batch of `n_rows`."""
        return n_rows

    def max_microbatch(self, n_prompts: int, n_threads: int) -> int | None:  # noqa: ARG002
        """Maximum microbatch size on a CPU for this number of prompt positions; None without a limit."""
        return None
