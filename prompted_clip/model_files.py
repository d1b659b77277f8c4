"""Writes a folded classifier as an ONNX or OpenVINO file, and runs such a file.

The bytes depend only on the bundle, the backbone, the options and the versions of torch and the converter.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from prompted_clip.errors import ExportError
from prompted_clip.folded import PIXELS
from prompted_clip.openvino_runtime import import_openvino

PROJECT: Final = "caspl-serve"
METADATA_KEY: Final = "caspl"
"""Key of the JSON text in ONNX's `metadata_props`."""
DEFAULT_OPSET: Final = 18
"""torch's lowest; RKNN Toolkit 2 reads 12 to 19."""
MAX_ONNX_BYTES: Final = 2**31 - 2**24
"""Of weights. An ONNX file is one protocol buffer of less than 2 GiB; the rest is left for the graph."""


def to_onnx(program: ExportedProgram, output_names: Sequence[str], metadata: str, *, opset: int) -> bytes:
    """An ONNX file.

    Args:
        program: from `trace`.
        output_names: of the program's outputs.
        metadata: JSON, stored under `METADATA_KEY`.
        opset: version of the standard operators.

    Raises:
        ExportError: the weights are too large for one ONNX file, or torch does not write this opset.
    """
    n_bytes = sum(tensor.nbytes for tensor in [*program.state_dict.values(), *program.constants.values()])
    if n_bytes > MAX_ONNX_BYTES:
        msg = (
            f"The model has {n_bytes / 2**30:.1f} GiB of weights; an ONNX file holds 2 GiB. Export a smaller backbone."
        )
        raise ExportError(msg)
    dynamic = any(isinstance(size, torch.SymInt) for size in _input_shape(program))
    with _quiet():
        written: Any = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=[PIXELS],
            output_names=list(output_names),
            dynamic_shapes=({0: "batch"},) if dynamic else None,
            verbose=False,
        )
    proto: Any = written.model_proto
    found = {one.domain: one.version for one in proto.opset_import}[""]
    if found != opset:
        raise ExportError(
            f"torch {torch.__version__} cannot write opset {opset}; it wrote {found}. Use --opset {found}."
        )
    _drop_debug_info(proto)
    proto.producer_name, proto.producer_version = PROJECT, version(PROJECT)
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, metadata
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def to_openvino(onnx_file: bytes) -> dict[str, bytes]:
    """An ONNX file as OpenVINO's graph (.xml) and weights (.bin), in float32; its metadata is below `framework`."""
    openvino = import_openvino()
    model = openvino.Core().read_model(onnx_file)
    for index, operation in enumerate(model.get_ordered_ops()):
        if operation.get_friendly_name() == operation.get_name():  # counts the operations of this process
            operation.set_friendly_name(f"{operation.get_type_name()}_{index}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        openvino.save_model(model, path, compress_to_fp16=False)
        return {suffix: path.with_suffix(suffix).read_bytes() for suffix in (".bin", ".xml")}


def run_model(files: Mapping[str, bytes], pixels: NDArray[Any]) -> list[NDArray[np.float32]]:
    """The outputs of a converted classifier in its runtime, in float32 on the CPU."""
    if ".onnx" in files:
        import onnxruntime  # noqa: PLC0415  an extra

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(files[".onnx"], options, providers=["CPUExecutionProvider"])
        outputs: list[NDArray[np.float32]] = session.run(None, {PIXELS: pixels})
        return outputs
    openvino = import_openvino()
    core = openvino.Core()
    weights = openvino.Tensor(np.frombuffer(files[".bin"], np.uint8))
    model = core.read_model(files[".xml"], weights)
    # On processors with bfloat16, OpenVINO would compute in it.
    compiled = core.compile_model(
        model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    )
    results = compiled(pixels)
    return [results[index].copy() for index in range(len(compiled.outputs))]


def _input_shape(program: ExportedProgram) -> Sequence[int | torch.SymInt]:
    (name,) = program.graph_signature.user_inputs
    node = next(node for node in program.graph.nodes if node.name == name)
    shape: Sequence[int | torch.SymInt] = node.meta["val"].shape
    return shape


def _drop_debug_info(proto: Any) -> None:  # noqa: ANN401  onnx is an extra
    """Remove torch's debug information: file names, stack traces, shapes of intermediate results."""
    graph = proto.graph
    graph.ClearField("value_info")
    graph.ClearField("metadata_props")
    proto.ClearField("metadata_props")
    for item in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the converter's optimizer, which logs every operator that it does not change."""
    log = logging.getLogger("onnxscript")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
