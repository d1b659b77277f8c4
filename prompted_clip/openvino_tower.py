"""The image tower in OpenVINO, for CPUs; the optional package `openvino`.

The graph is the fused tower's, exported from torch with the loaded weights. Pixels, prompt tokens and depths are its
inputs, with a free number of rows and of prompt positions, so one compiled model serves all domains and mixed batches.
int8 scales the activations of each row on its own, so it needs no calibration (decision 0032).

Legend: B rows, C/H/W image, P prompt positions, D prompt layers, L layers of the tower, N tokens of a row, W tower
width, E joint width.
"""

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
from prompted_clip.frozen_linear import Activation, PlainLinear, make_linear
from prompted_clip.fused_tower import ImageSteps
from prompted_clip.openvino_runtime import import_openvino
from prompted_clip.prompts import PromptGrid
from prompted_clip.vision import ImageTower

OpenVinoType = Literal["float32", "bfloat16", "int8"]

INSTALL: Final = "pip install 'caspl-serve[openvino]'"
N_EXAMPLE_ROWS: Final = 2
N_EXAMPLE_PROMPTS: Final = 3
INT8_MAX: Final = 127
MIN_SCALE: Final = 1e-12


class OpenVinoTower(ImageTower):
    """The image tower as a compiled OpenVINO model; thread-safe, at most `n_streams` calls run at once.

    Args:
        backbone: in float32 on the CPU; its weights are copied.
        dtype: the type that OpenVINO computes in; with int8 only linear layers, the rest in bfloat16 where the
            processor has it.
        n_threads: CPU threads of all streams together.
        n_streams: concurrent calls, each on its share of the threads.

    Attributes:
        compiled: OpenVINO's compiled model.

    Raises:
        BackendError: OpenVINO is not installed, or it or this processor does not support the arguments.
    """

    backend = "openvino"

    def __init__(
        self, backbone: Backbone, *, dtype: OpenVinoType = "float32", n_threads: int = 1, n_streams: int = 1
    ) -> None:
        super().__init__(backbone)
        self.dtype = dtype
        self._n_layers, self._width = backbone.n_vision_layers, backbone.vision_width
        model = convert_tower(backbone, int8=dtype == "int8")
        self.compiled = compile_model(model, dtype, n_threads=n_threads, n_streams=n_streams, row_size=self._width)
        self._of_thread = threading.local()

    @torch.inference_mode()
    def __call__(self, pixels_BCHW: Tensor, grid: PromptGrid | None = None) -> Tensor:
        """See `ImageTower`; [B, E] float32."""
        tokens, depths = self._prompts(len(pixels_BCHW), grid)
        inputs = (pixels_BCHW.contiguous().numpy(), tokens, depths)
        return torch.from_numpy(self._request().infer(inputs, share_inputs=True)[0])

    def _request(self) -> Any:  # noqa: ANN401  the library has no types
        """This thread's inference request: one request does not run twice at once."""
        if not hasattr(self._of_thread, "request"):
            self._of_thread.request = self.compiled.create_infer_request()
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


class _Steps(nn.Module):
    """The fused tower's steps for all depths: prompts of every layer are inputs, so none are left out."""

    def __init__(self, steps: ImageSteps) -> None:
        super().__init__()
        self._steps = steps

    def forward(self, pixels_BCHW: Tensor, tokens_BLPW: Tensor, depths_BP: Tensor) -> Tensor:
        """Embeddings [B, E]."""
        output: Tensor = self._steps(pixels_BCHW, tokens_BLPW, depths_BP, 1)
        return output


class _Int8Linear(nn.Module):
    """A linear layer with int8 weights, scaled symmetrically per output channel; OpenVINO multiplies in int8.

    Activations become int8 in OpenVINO, with one scale per row and group of inputs.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor, activation: Activation = "none") -> None:
        super().__init__()
        scale_O1 = weight_OI.detach().abs().amax(dim=1, keepdim=True).clamp(min=MIN_SCALE) / INT8_MAX
        self._weight_OI = (weight_OI.detach() / scale_O1).round().to(torch.int8)
        self._scale_O1, self._bias_O, self._activation = scale_O1, bias_O.detach(), activation

    def forward(self, x_MI: Tensor, residual_MO: Tensor | None = None) -> Tensor:
        """[M, O] float32; see `PlainLinear`."""
        linear = PlainLinear(self._weight_OI.float() * self._scale_O1, self._bias_O, self._activation)
        return linear.forward(x_MI, residual_MO)


def convert_tower(backbone: Backbone, *, int8: bool = False) -> Any:  # noqa: ANN401  the library has no types
    """The image tower as an OpenVINO model of pixels [B, C, H, W], tokens [B, L, P, W] and depths [B, P] -> [B, E].

    With `int8`, the weights of its linear layers are int8.

    Raises:
        BackendError: OpenVINO is not installed, or the backbone is not in float32 on the CPU.
    """
    if backbone.device.type != "cpu" or backbone.dtype != torch.float32:
        found = f"{str(backbone.dtype).removeprefix('torch.')} on {backbone.device}"
        raise BackendError(f"OpenVINO converts float32 weights on the CPU; found {found}.")
    convert_model = openvino().convert_model  # before the export, which takes seconds
    n_layers, width, side = backbone.n_vision_layers, backbone.vision_width, backbone.image_size
    linear = _Int8Linear if int8 else partial(make_linear, dtype=torch.float32, packed=False)
    example = (
        torch.zeros(N_EXAMPLE_ROWS, 3, side, side, dtype=torch.uint8),
        torch.zeros(N_EXAMPLE_ROWS, n_layers, N_EXAMPLE_PROMPTS, width),
        torch.zeros(N_EXAMPLE_ROWS, N_EXAMPLE_PROMPTS, dtype=torch.int64),
    )
    rows, prompts = torch.export.Dim("rows"), torch.export.Dim("prompts")
    sizes = ({0: rows}, {0: rows, 2: prompts}, {0: rows, 1: prompts})
    with torch.no_grad():
        steps = _Steps(ImageSteps(backbone, linear, sys.maxsize))
        exported = torch.export.export(steps.eval(), example, dynamic_shapes=sizes)
    model = convert_model(exported)
    model.reshape({0: [-1, 3, side, side], 1: [-1, n_layers, -1, width], 2: [-1, -1]})
    return model


def compile_model(model: Any, dtype: str, *, n_threads: int, n_streams: int = 1, row_size: int = 0) -> Any:  # noqa: ANN401
    """Compile an OpenVINO model for this CPU.

    Args:
        model: as `openvino.convert_model` returns it.
        dtype: the type that it computes in.
        n_threads: CPU threads of all streams together.
        n_streams: inference requests that run at the same time.
        row_size: inputs of a linear layer that share one scale in int8.

    Raises:
        BackendError: OpenVINO is not installed, or finds no bfloat16 on this processor.
    """
    if dtype == "bfloat16" and not has_bfloat16():
        raise BackendError("OpenVINO finds no bfloat16 on this processor. Use dtype float32 or int8.")
    options = {
        "INFERENCE_PRECISION_HINT": "f32" if dtype == "float32" or not has_bfloat16() else "bf16",
        "INFERENCE_NUM_THREADS": n_threads,
        "NUM_STREAMS": n_streams,
        "ENABLE_CPU_PINNING": False,  # other threads decode images
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": row_size if dtype == "int8" else 0,
    }
    return openvino().Core().compile_model(model, "CPU", options)


def has_bfloat16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this processor.

    Raises:
        BackendError: OpenVINO is not installed.
    """
    return "BF16" in openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def openvino() -> Any:  # noqa: ANN401  the library has no types
    """The module `openvino`.

    Raises:
        BackendError: it is not installed.
    """
    try:
        return import_openvino()
    except ImportError as error:
        raise BackendError(f"The OpenVINO backend is not installed ({error}): {INSTALL}.") from error
