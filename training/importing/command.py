"""`caspl import`. Imports torch only after validating the arguments."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prompt_store.manifest import check_domain
from training import options
from training.data.class_list import read_classes
from training.data.dataset import normalize_names
from training.terminal import exit_on_error

import_app = typer.Typer(add_completion=False, rich_markup_mode=None)


class Method(StrEnum):
    """The method that wrote the checkpoint."""

    COOP = "coop"
    COCOOP = "cocoop"
    MAPLE = "maple"
    PROMPTSRC = "promptsrc"
    IVLP = "ivlp"
    PROMPTKD = "promptkd"


class NamePosition(StrEnum):
    """Position of the class name in CoOp's context."""

    END = "end"
    MIDDLE = "middle"
    FRONT = "front"


@import_app.command(
    epilog="\b\nExample:\n"
    "  caspl import model.pth.tar-50 --method coop --domain shelf --classes classes.txt --pretrained openai"
)
def import_checkpoint(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            exists=True, help="model.pth.tar-<epoch>, a state dict (.pt, .safetensors), or the folder of a Dassl run"
        ),
    ],
    method: Annotated[Method, typer.Option(help="method that wrote the checkpoint")],
    domain: Annotated[str, typer.Option(help="domain name")],
    classes: Annotated[Path | None, typer.Option(help="text file, one class name per line")] = None,
    class_: Annotated[list[str] | None, typer.Option("--class", help="class name; repeat the option for each")] = None,
    out: Annotated[Path | None, typer.Option(help="bundle to write (default: <domain>.safetensors)")] = None,
    backbone: Annotated[str, typer.Option(help="model it was trained on, open_clip name")] = "ViT-B-16",
    pretrained: options.Pretrained = None,
    random_weights: options.RandomWeights = False,
    quick_gelu: options.QuickGelu = False,
    preprocess_of: options.PreprocessOf = None,
    interpolate_positions: options.InterpolatePositions = False,
    boost: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="boosting bundle the prompts were trained on")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="text after the prompts, with one {} (default: the method's own)")
    ] = None,
    position: Annotated[NamePosition, typer.Option(help="CoOp: position of the class name")] = NamePosition.END,
    text_features: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="PromptKD: the teacher's text features, from a bundle or a file with one tensor",
        ),
    ] = None,
    device: options.Device = "auto",
    json_: options.AsJson = False,
) -> None:
    """Convert a checkpoint of CoOp, CoCoOp, MaPLe, PromptSRC, IVLP or PromptKD to a bundle."""
    if (classes is None) == (class_ is None):
        raise typer.BadParameter("pass class names with either --classes FILE or --class")
    if text is not None and (text.count("{}") != 1 or text.count("{") != 1 or text.count("}") != 1):
        raise typer.BadParameter("expected exactly one {} and no other braces", param_hint="--text")
    if position is not NamePosition.END and method is not Method.COOP:
        raise typer.BadParameter("only CoOp supports other positions than the end", param_hint="--position")
    if text_features is not None and method is not Method.PROMPTKD:
        raise typer.BadParameter("only PromptKD uses the teacher's text features", param_hint="--text-features")
    with exit_on_error("import"):
        check_domain(domain)
        names = read_classes(classes) if classes is not None else normalize_names(class_ or [], of="--class")
        from training.importing.import_run import ImportJob, run_import  # noqa: PLC0415 - torch
        from training.prompted_backbone import load_prompted_backbone  # noqa: PLC0415 - torch

        base_model = load_prompted_backbone(
            backbone,
            pretrained,
            boost,
            is_random=random_weights,
            device=device,
            quick_gelu=quick_gelu,
            preprocess_of=preprocess_of,
            interpolate_positions=interpolate_positions,
        )
        bundle = out or Path(f"{domain}.safetensors")
        job = ImportJob(checkpoint, method.value, domain, tuple(names), bundle, text, position.value, text_features)
        _print_result(run_import(job, base_model), as_json=json_)


def _print_result(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result))
        return
    table = Table("field", "value", title="imported")
    for key, value in result.items():
        if key != "notes":
            table.add_row(key.replace("_", " "), Text("-" if value is None else str(value)))
    Console().print(table)
    for note in result["notes"]:
        Console(stderr=True, highlight=False).print(f"note: {note}", markup=False, soft_wrap=True)
