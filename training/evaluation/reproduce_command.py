"""`caspl reproduce`; torch is imported after the arguments are validated."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from training import options
from training.evaluation.arguments import Arch, Methods, Overrides, Seeds, method_names, numbers
from training.evaluation.terminal_tables import show_report
from training.terminal import exit_on_error

if TYPE_CHECKING:
    from prompted_clip.backbone import Backbone

reproduce_app = typer.Typer(add_completion=False, rich_markup_mode=None)


@reproduce_app.command(epilog="\b\nExample:\n  caspl reproduce dtd --root data/")
def reproduce(
    dataset: Annotated[str, typer.Argument(help="name or path of a data set, such as dtd")],
    root: Annotated[Path | None, typer.Option("--root", "--data", help="folder with the published data sets")] = None,
    backbone: Arch = "ViT-B-16",
    pretrained: options.Pretrained = None,
    teacher: Annotated[str, typer.Option(help="teacher: open_clip architecture")] = "ViT-L-14",
    teacher_pretrained: options.Pretrained = None,
    methods: Methods = "coop,cocoop,maple,promptsrc",
    seeds: Seeds = "1,2,3",
    shots: Annotated[int, typer.Option(min=1, help="labelled images per class")] = 16,
    random_weights: options.RandomWeights = False,
    quick_gelu: options.QuickGelu = False,
    preprocess_of: options.PreprocessOf = None,
    teacher_preprocess_of: options.TeacherPreprocessOf = None,
    interpolate_positions: options.InterpolatePositions = False,
    out: Annotated[
        Path | None, typer.Option(help="folder for the report and finished results; default reproduce-<data set>")
    ] = None,
    set_: Overrides = None,
    boost_set: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="override a boosting recipe value")
    ] = None,
    checkpoint_every: options.CheckpointEvery = 100,
    device: options.Device = "auto",
    json_: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Boost a data set, evaluate methods with and without boosting, and compare with the published numbers."""
    seed_list = numbers(seeds, "--seeds", least=0)
    with exit_on_error("reproduce", quiet=quiet):
        from training.evaluation.runs import ReproduceJob, run_reproduce  # noqa: PLC0415  torch
        from training.hardware import load_backbones  # noqa: PLC0415  torch

        def load() -> "tuple[Backbone, Backbone]":
            return load_backbones(
                backbone,
                pretrained,
                teacher,
                teacher_pretrained,
                is_random=random_weights,
                device=device,
                teacher_preprocess_of=teacher_preprocess_of,
                quick_gelu=quick_gelu,
                preprocess_of=preprocess_of,
                interpolate_positions=interpolate_positions,
            )

        job = ReproduceJob(
            data=dataset,
            root=root,
            methods=method_names(methods),
            seeds=seed_list,
            shots=shots,
            overrides=tuple(set_ or []),
            boost_overrides=tuple(boost_set or []),
            out=out or Path(f"reproduce-{Path(dataset).name}"),
            checkpoint_every=checkpoint_every,
        )
        show_report(run_reproduce(job, load, Console(stderr=True, quiet=quiet)), job.out, as_json=json_)
