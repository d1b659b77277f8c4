"""The image tower in OpenVINO, for CPUs; the optional package `openvino`.

The graph is the fused tower's, exported from torch with the loaded weights. Pixels, prompt tokens and depths are its
inputs, with a free number of rows and of prompt positions, so one compiled model serves all domains and mixed batches.

Legend: B rows, C/H/W image, P prompt positions, D prompt layers, L layers of the tower, N tokens of a row, W tower
width, E joint width.
"""

import importlib
import sys
import threading
from functools import partial
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prompted_clip.backbone import Backbone
from prompted_clip.errors import BackendError
from prompted_clip.frozen_linear import make_linear
from prompted_clip.fused_tower import ImageSteps
from prompted_clip.prompts import PromptGrid
from prompted_clip.vision import ImageTower

FLOAT_TYPES: Final = {"float32": "f32", "bfloat16": "bf16"}
"""OpenVINO's names of the types that it computes in."""
INSTALL: Final = "pip install 'caspl-serve[openvino]'"
N_EXAMPLE_ROWS: Final = 2
N_EXAMPLE_PROMPTS: Final = 3

OpenVinoType = Literal["float32", "bfloat16"]


class OpenVinoTower(ImageTower):
    """The image tower as a compiled OpenVINO model; thread-safe, at most `n_streams` calls run at once.

    Args:
        backbone: in float32 on the CPU; its weights are copied.
        dtype: the type that OpenVINO computes in.
        n_threads: CPU threads of all streams together.
        n_streams: concurrent calls, each on its share of the threads.

    Raises:
        BackendError: OpenVINO is not installed, or it or this processor does not support the arguments.
    """

    backend = "openvino"

    def __init__(
        self, backbone: Backbone, *, dtype: OpenVinoType = "float32", n_threads: int = 1, n_streams: int = 1
    ) -> None:
        super().__init__(backbone)
        core = openvino().Core()
        if dtype == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise BackendError("This processor has no bfloat16 for OpenVINO. Use --dtype float32 or int8.")
        self.dtype = dtype
        self._n_layers, self._width = backbone.n_vision_layers, backbone.vision_width
        options = {
            "INFERENCE_PRECISION_HINT": FLOAT_TYPES[dtype],
            "INFERENCE_NUM_THREADS": n_threads,
            "NUM_STREAMS": n_streams,
            "ENABLE_CPU_PINNING": False,
        }
        self._compiled = core.compile_model(convert_tower(backbone), "CPU", options)
        self._of_thread = threading.local()

    @torch.inference_mode()
    def __call__(self, pixels_BCHW: Tensor, grid: PromptGrid | None = None) -> Tensor:
        """See `ImageTower`; [B, E] float32."""
        tokens, depths = self._prompts(len(pixels_BCHW), grid)
        inputs = (pixels_BCHW.contiguous().numpy(), tokens, depths)
        return torch.from_numpy(self._request().infer(inputs, share_inputs=True)[0].copy())

    def _request(self) -> Any:  # noqa: ANN401  the library has no types
        """This thread's inference request: one request does not run twice at once."""
        if not hasattr(self._of_thread, "request"):
            self._of_thread.request = self._compiled.create_infer_request()
        return self._of_thread.request

    def _prompts(self, n_rows: int, grid: PromptGrid | None) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """One set of prompts per row, [B, L, P, W], and the depths [B, P]; no positions without a grid."""
        n_prompts = grid.n_tokens if grid is not None else 0
        tokens = torch.zeros(n_rows, self._n_layers, n_prompts, self._width)
        depths = torch.zeros(n_rows, n_prompts, dtype=torch.int64)
        if grid is not None:
            tokens[:, : grid.max_depth] = grid.tokens
            depths[:] = grid.depths
        return tokens.numpy(), depths.numpy()


class _Steps(ImageSteps):
    """The fused tower's steps without writes in place, which OpenVINO would copy whole tensors for."""

    def forward(self, pixels_BCHW: Tensor, tokens_BLPW: Tensor, depths_BP: Tensor) -> Tensor:  # type: ignore[override]
        """Embeddings [B, E]."""
        return super().forward(pixels_BCHW, tokens_BLPW, depths_BP, 1)

    def _with_prompts(self, x_BNW: Tensor, tokens: Tensor, depths: Tensor, index: int) -> Tensor:
        n_plain, own_BPW = len(self._positions_NW), tokens[:, index]
        if index == 0:
            return torch.cat([x_BNW, own_BPW if self._ln_pre is None else self._ln_pre(own_BPW)], dim=1)
        kept_BPW = torch.where((depths > index).unsqueeze(-1), own_BPW, x_BNW[:, n_plain:])
        return torch.cat([x_BNW[:, :n_plain], kept_BPW], dim=1)

    def _image_tokens(self, pixels_BCHW: Tensor) -> Tensor:
        n_rows, side, patch = pixels_BCHW.shape[0], self._side, self._patch
        whole = pixels_BCHW[..., : side * patch, : side * patch].to(self._like.dtype)
        strips = whole.reshape(n_rows, -1, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5)
        patches = self._embed(strips.reshape(n_rows, side * side, -1)) + self._positions_NW[1:]
        class_token = self._positions_NW[:1].expand(n_rows, 1, -1)
        x_BNW = torch.cat([class_token, patches], dim=1)
        return x_BNW if self._ln_pre is None else self._ln_pre(x_BNW)


def convert_tower(backbone: Backbone) -> Any:  # noqa: ANN401  the library has no types
    """The image tower as an OpenVINO model of pixels [B, C, H, W], tokens [B, L, P, W] and depths [B, P] -> [B, E].

    Raises:
        BackendError: OpenVINO is not installed, or the backbone is not in float32 on the CPU.
    """
    if backbone.device.type != "cpu" or backbone.dtype != torch.float32:
        found = f"{str(backbone.dtype).removeprefix('torch.')} on {backbone.device}"
        raise BackendError(f"OpenVINO converts float32 weights on the CPU; found {found}.")
    n_layers, width, side = backbone.n_vision_layers, backbone.vision_width, backbone.image_size
    with torch.no_grad():
        steps = _Steps(backbone, partial(make_linear, dtype=torch.float32, packed=False), sys.maxsize)
    example = (
        torch.zeros(N_EXAMPLE_ROWS, 3, side, side, dtype=torch.uint8),
        torch.zeros(N_EXAMPLE_ROWS, n_layers, N_EXAMPLE_PROMPTS, width),
        torch.zeros(N_EXAMPLE_ROWS, N_EXAMPLE_PROMPTS, dtype=torch.int64),
    )
    rows, prompts = torch.export.Dim("rows"), torch.export.Dim("prompts")
    sizes = ({0: rows}, {0: rows, 2: prompts}, {0: rows, 1: prompts})
    with torch.no_grad():
        exported = torch.export.export(steps.eval(), example, dynamic_shapes=sizes)
    model = openvino().convert_model(exported)
    model.reshape({0: [-1, 3, side, side], 1: [-1, n_layers, -1, width], 2: [-1, -1]})
    return model


def openvino() -> Any:  # noqa: ANN401  the library has no types
    """The module `openvino`.

    Raises:
        BackendError: it is not installed.
    """
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise BackendError(f"The OpenVINO backend is not installed ({error}): {INSTALL}.") from error
