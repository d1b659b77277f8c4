"""Options that several training commands share."""

import re
from pathlib import Path
from typing import Annotated

import typer


def check_device(name: str) -> str:
    """Return `name` if it is a valid device name.

    Raises:
        BadParameter: it is not.
    """
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", name) is None:
        raise typer.BadParameter(f"expected auto, cpu, cuda or cuda:<n>, found {name!r}")
    return name


def given(context: typer.Context) -> set[str]:
    """Names of the parameters that are not left at their default."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name != "DEFAULT"}


LabelledData = Annotated[
    str, typer.Option(help="labelled images: a folder per class, a .csv or .jsonl file, or a data set's name")
]
Root = Annotated[Path | None, typer.Option(help="folder that contains the data sets, if --data is a name")]
Shots = Annotated[int, typer.Option(min=0, help="labelled images per class; 0 uses all")]
Strict = Annotated[bool, typer.Option("--strict", help="fail on unreadable images instead of skipping them")]
Pretrained = Annotated[str | None, typer.Option(help="its weights: an open_clip tag or a local file")]
RandomWeights = Annotated[bool, typer.Option("--random-weights", help="random weights, for testing a pipeline")]
CheckpointEvery = Annotated[int, typer.Option(min=1, help="steps between checkpoints")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<n>", callback=check_device)]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as one JSON object")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="print no progress and no notes, only errors")]
QuickGelu = Annotated[
    bool,
    typer.Option("--quick-gelu", help="use QuickGELU, for local files of OpenAI's weights"),
]
PreprocessOf = Annotated[
    str | None, typer.Option(help="the open_clip tag whose preprocessing and activation a local weights file needs")
]
TeacherPreprocessOf = Annotated[str | None, typer.Option(help="the same for the teacher's weights file")]
InterpolatePositions = Annotated[
    bool,
    typer.Option(
        "--interpolate-positions", help="resize a file's positional embeddings of another image grid or text length"
    ),
]
Sources = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]FOLDER", help="unlabelled images of the domain; repeat with names for several domains"
    ),
]
ClassLists = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]FILE", help="text file, one class name per line; without a name it is for all --images"
    ),
]
DataSources = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]DATA", help="instead of --images and --classes: a data set; its train labels are ignored"
    ),
]
