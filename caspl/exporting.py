"""Writes a domain as a model file for devices without CasPL: `caspl export` as a function."""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch

from prompt_store.bundle import Bundle, read_bundle
from prompt_store.durable import sync_folder
from prompt_store.store import Store
from prompted_clip.backbone import Backbone
from prompted_clip.errors import ExportError
from prompted_clip.folded import EMBEDDING, PIXELS, PROBABILITIES, FoldedClassifier, InputType, trace
from prompted_clip.model import PromptedClip
from prompted_clip.model_files import DEFAULT_OPSET, run_model, to_onnx, to_openvino
from prompted_clip.stack import PromptStack

ModelFormat = Literal["onnx", "openvino"]
LABELS: Final = ".labels.txt"
METADATA: Final = ".json"
SUFFIXES: Final[Mapping[ModelFormat, Sequence[str]]] = {"onnx": (".onnx",), "openvino": (".bin", ".xml")}
"""Of the model's files; the last one is the file that a runtime opens."""
MAX_DIFFERENCE: Final = 1e-4
"""Of outputs in the runtime from those in torch; rounding gives about 1e-6."""
MAX_RATIO: Final = 1.01
"""Of a probability in the runtime to that in torch, for small ones; rounding gives about 1.00002."""
MIN_PROBABILITY: Final = 1e-30
"""Ratios of smaller ones are not compared: float32 has few digits there."""


@dataclass(frozen=True)
class ExportOptions:
    """Options of an exported model.

    Attributes:
        model_format: file format.
        input_type: of the pixels, 0 to 255 in both.
        batch: images per run, None for any number.
        opset: version of ONNX's standard operators.
        with_embedding: second output with the image features.
    """

    model_format: ModelFormat = "onnx"
    input_type: InputType = "uint8"
    batch: int | None = None
    opset: int = DEFAULT_OPSET
    with_embedding: bool = False


@dataclass(frozen=True)
class StoredBundle:
    """A version of a domain."""

    version: int
    bundle: Bundle


def read_version(store: Store, domain: str, number: int | None) -> StoredBundle:
    """A version of a domain; None for the live one.

    Raises:
        ExportError: no version is live.
        DomainNotFoundError, VersionNotFoundError, StoreCorruptError: see `Store.read`.
    """
    if number is None:
        live = store.live(domain)
        if live is None:
            found = ", ".join(str(one.version) for one in store.versions(domain)) or "none"
            raise ExportError(f"Domain {domain!r} has no live version; pass --version (versions: {found}).")
        number = live.version
    return StoredBundle(number, read_bundle(store.read(domain, number)))


def output_files(out: Path, model_format: ModelFormat) -> list[Path]:
    """The files of an export in the order in which they appear, the model last.

    Raises:
        ExportError: `out` has another suffix than the model's.
    """
    *others, opened = SUFFIXES[model_format]
    if out.suffix != opened:
        raise ExportError(f"--out must end in {opened} for --format {model_format}, found {out.name!r}.")
    return [out.with_suffix(suffix) for suffix in (LABELS, METADATA, *others, opened)]


def check_free(files: Sequence[Path]) -> None:
    """Check that no file exists.

    Raises:
        ExportError: some do.
    """
    if existing := [str(path) for path in files if path.exists()]:
        raise ExportError(
            f"Exists already: {', '.join(existing)}. Choose another --out, or pass --force to replace it."
        )


def export(backbone: Backbone, stored: StoredBundle, out: Path, options: ExportOptions) -> dict[str, Any]:
    """Convert a version, check the result in its runtime, and write model, labels and metadata.

    Existing files are replaced. Each file appears whole, the model last.

    Args:
        backbone: the bundle's, in float32 on the CPU.
        stored: the version.
        out: model file to write.
        options: file format, input and outputs.

    Returns:
        The metadata written beside the model, its files, and the largest difference from torch's outputs.

    Raises:
        ExportError: a conditional head, too many weights for one file, an opset that torch does not write, or outputs
            that differ from torch's.
        StackMismatchError: the bundle was made for another backbone.
        OSError: a file cannot be written.
    """
    files = output_files(out, options.model_format)
    stack = PromptedClip(backbone).load_stack(stored.bundle)
    model = FoldedClassifier(backbone, stack, with_embedding=options.with_embedding)
    metadata = describe(backbone, stored, stack, options)
    text = json.dumps(metadata, ensure_ascii=False, indent=1)
    onnx_file = to_onnx(trace(model, options.input_type, options.batch), model.output_names, text, opset=options.opset)
    contents = {".onnx": onnx_file} if options.model_format == "onnx" else to_openvino(onnx_file)
    difference = largest_difference(model, contents, options)
    contents |= {LABELS: "".join(f"{name}\n" for name in stack.class_names).encode(), METADATA: f"{text}\n".encode()}
    by_path = dict(
        zip(files, (contents[suffix] for suffix in (LABELS, METADATA, *SUFFIXES[options.model_format])), strict=True)
    )
    write_all(by_path)
    return metadata | {"files": [str(path) for path in files], "max_difference": difference}


def describe(backbone: Backbone, stored: StoredBundle, stack: PromptStack, options: ExportOptions) -> dict[str, Any]:
    """The metadata: everything that a program needs to run the model and to name its outputs, as JSON values."""
    n_rows, size = options.batch or "batch", backbone.image_size
    outputs = {PROBABILITIES: [n_rows, len(stack.class_names)]}
    if options.with_embedding:
        outputs[EMBEDDING] = [n_rows, backbone.embed_dim]
    preprocess = backbone.preprocess
    return {
        "domain": stack.domain,
        "version": stored.version,
        "digest": stored.bundle.digest,
        "backbone": {name: getattr(backbone, name) for name in ("arch", "pretrained", "fingerprint")},
        "classes": list(stack.class_names),
        "abstain": dict(stack.abstain),
        "input": {
            "name": PIXELS,
            "type": options.input_type,
            "shape": [n_rows, 3, size, size],
            "layout": "NCHW",
            "channels": "RGB",
            "range": [0, 255],
        },
        "outputs": outputs,
        "preprocess": {
            "image_size": size,
            "resize_mode": preprocess["resize_mode"],
            "interpolation": preprocess["interpolation"],
        },
        "folded": {
            "mean": list(preprocess["mean"]),
            "std": list(preprocess["std"]),
            "logit_scale": stack.logit_scale,
            "temperature": stack.temperature,
        },
        "opset": options.opset,
        "caspl": version("caspl-serve"),
    }


@torch.no_grad()
def largest_difference(model: FoldedClassifier, contents: Mapping[str, bytes], options: ExportOptions) -> float:
    """The largest difference of the file's outputs on random pixels from torch's.

    Raises:
        ExportError: it is larger than `MAX_DIFFERENCE` or not a number, or a probability differs by more than
            `MAX_RATIO`.
    """
    pixels = model.example(options.input_type, options.batch or 3)
    expected = [output.numpy() for output in model(pixels)]
    found = run_model(contents, pixels.numpy())
    difference = max(float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True))
    logs = [np.log(np.maximum(outputs[0], MIN_PROBABILITY)) for outputs in (expected, found)]
    ratio = float(np.exp(np.abs(logs[0] - logs[1]).max()))
    if not (difference <= MAX_DIFFERENCE and ratio <= MAX_RATIO):
        msg = (
            f"The {options.model_format} file's outputs differ from torch's by {difference:.2g} and a factor of "
            f"{ratio:.4g}, more than {MAX_DIFFERENCE:g} or {MAX_RATIO:g}; nothing was written. Try another --opset, or "
            "other versions of torch and onnxscript."
        )
        raise ExportError(msg)
    return difference


def write_all(contents: Mapping[Path, bytes]) -> None:
    """Write files into one folder, replacing existing ones; each appears whole, in order, after all were written."""
    folder = next(iter(contents)).parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".caspl-export-", dir=folder) as temporary:
        for path, data in contents.items():
            with (Path(temporary) / path.name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for path in contents:
            (Path(temporary) / path.name).replace(path)
        sync_folder(folder)
