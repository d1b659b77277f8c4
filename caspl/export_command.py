"""The command `caspl export`. Imports torch only after validating the arguments."""

import json
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer
from rich.console import Console

from caspl.terminal import plain
from prompt_store.command_line import DEFAULT_STORE, StoreOption
from prompt_store.stores import open_store
from prompted_clip.errors import ExportError
from training import options
from training.terminal import exit_on_error

PACKAGES: Final = ("onnx", "onnxruntime", "onnxscript", "open_clip", "torch")

export_app: Final = typer.Typer(add_completion=False, rich_markup_mode=None)


@export_app.command(epilog="\b\nExample:\n  caspl export shelf --store store/ --out shelf.onnx")
def export(
    domain: Annotated[str, typer.Argument(help="domain name")],
    store: StoreOption = DEFAULT_STORE,
    version: Annotated[int | None, typer.Option(min=1, help="version to export (default: the live one)")] = None,
    format_: Annotated[Literal["onnx", "openvino"], typer.Option("--format", help="file format")] = "onnx",
    out: Annotated[
        Path | None, typer.Option(help="model file to write (default: <domain>.onnx, or <domain>.xml for OpenVINO)")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="fixed number of images per run (default: any)")] = None,
    input_: Annotated[
        Literal["uint8", "float32"], typer.Option("--input", help="type of the pixels, which are 0 to 255 in both")
    ] = "uint8",
    opset: Annotated[int, typer.Option(min=18, help="version of ONNX's standard operators")] = 18,
    embedding: Annotated[bool, typer.Option("--embedding", help="add the image embedding as a second output")] = False,
    force: Annotated[bool, typer.Option("--force", help="replace existing files")] = False,
    backbone: Annotated[str, typer.Option(help="model, open_clip name (default: the bundle's)")] = "",
    pretrained: Annotated[
        str | None, typer.Option(help="its weights: an open_clip tag or a local file (default: the bundle's tag)")
    ] = None,
    quick_gelu: options.QuickGelu = False,
    preprocess_of: options.PreprocessOf = None,
    interpolate_positions: options.InterpolatePositions = False,
    random_weights: options.RandomWeights = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a domain as one ONNX or OpenVINO model: pixels in, probabilities out, for programs that run nothing else.

    Prompts, class head, temperature and softmax are constants of the model. Beside it are its labels, one per line,
    and a JSON file with the domain, version, classes, preprocessing and abstention thresholds.
    """
    with exit_on_error("export", quiet=quiet):
        check_installed(format_)
        from caspl import exporting  # noqa: PLC0415  loads torch
        from prompted_clip.backbone import load_backbone  # noqa: PLC0415  loads torch
        from prompted_clip.sources import known_tag  # noqa: PLC0415  loads torch

        out = out or Path(f"{domain}{exporting.SUFFIXES[format_][-1]}")
        files = exporting.output_files(out, format_)
        if not force:
            exporting.check_free(files)
        stored = exporting.read_version(open_store(store), domain, version)
        made_for = stored.bundle.manifest.backbone
        if not backbone and pretrained is None and not random_weights:
            pretrained = known_tag(made_for.arch, made_for.pretrained)
        console = Console(stderr=True, highlight=False, quiet=quiet)
        with console.status(plain(f"Converting {domain} ...")) if console.is_terminal else nullcontext():
            loaded = load_backbone(
                backbone or made_for.arch,
                pretrained=pretrained,
                random_seed=0 if random_weights else None,
                quick_gelu=quick_gelu,
                preprocess_of=preprocess_of,
                interpolate_positions=interpolate_positions,
            )
            chosen = exporting.ExportOptions(format_, input_, batch, opset, embedding)
            result = exporting.export(loaded, stored, out, chosen)
        if as_json:
            typer.echo(json.dumps(result, ensure_ascii=False))
        else:
            show(result)


def check_installed(model_format: str) -> None:
    """Check that the packages of a format are installed.

    Raises:
        ExportError: one is missing.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ExportError(f'Exporting needs {", ".join(missing)}: pip install "caspl-serve[export]"')
    if model_format == "openvino" and find_spec("openvino") is None:
        raise ExportError('--format openvino needs openvino: pip install "caspl-serve[export,openvino]"')


def show(result: dict[str, Any]) -> None:
    """Print the files, and what they contain."""
    console = Console(highlight=False)
    sizes = [f"{path} ({Path(path).stat().st_size:,} bytes)" for path in result["files"]]
    shape, outputs = result["input"]["shape"], ", ".join(f"{name} {shape}" for name, shape in result["outputs"].items())
    lines = [
        f"{result['domain']} version {result['version']}, {len(result['classes'])} classes, {result['digest']}",
        f"input   {result['input']['name']} {shape}, {result['input']['type']}, RGB, 0 to 255",
        f"output  {outputs}; at most {result['max_difference']:.1g} from torch's",
        *sizes,
    ]
    for line in lines:
        console.print(plain(line), soft_wrap=True)
