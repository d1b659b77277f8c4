"""`caspl fit`. Imports torch only after validating the arguments."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from training import options
from training.fit_table import print_report
from training.terminal import exit_on_error, print_notes

if TYPE_CHECKING:
    from training.data.dataset import Dataset, Split
    from training.prompted_backbone import PromptedBackbone

fit_app = typer.Typer(add_completion=False, rich_markup_mode=None)


@fit_app.command(
    epilog="\b\nExample:\n  caspl fit --data labelled/ --bundle shelf.safetensors --out shelf-fit.safetensors"
)
def fit(
    data: options.LabelledData,
    bundle: Annotated[Path, typer.Option(help="bundle whose prompts and text features to use")],
    out: Annotated[Path, typer.Option(help="bundle to write")],
    method: Annotated[str, typer.Option(help="auto, gda, ridge or tip-adapter")] = "auto",
    unlabelled: Annotated[
        Path | None, typer.Option(help="folder of unlabelled images, used if they improve the fit (auto and gda)")
    ] = None,
    root: options.Root = None,
    shots: options.Shots = 0,
    seed: Annotated[int, typer.Option(min=0, help="random seed of the sample, with --shots")] = 1,
    strict: options.Strict = False,
    backbone: Annotated[str, typer.Option(help="model, open_clip name (default: the bundle's)")] = "",
    pretrained: Annotated[
        str | None, typer.Option(help="its weights: an open_clip tag or a local file (default: the bundle's tag)")
    ] = None,
    quick_gelu: options.QuickGelu = False,
    preprocess_of: options.PreprocessOf = None,
    interpolate_positions: options.InterpolatePositions = False,
    random_weights: options.RandomWeights = False,
    device: options.Device = "auto",
    json_: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Fit a few-shot head to labelled images in closed form, without training, and report its accuracy."""
    with exit_on_error("fit", quiet=quiet):
        from prompted_clip.backbone import load_backbone
        from prompted_clip.errors import did_you_mean
        from prompted_clip.few_shot import FEW_SHOT_METHODS
        from prompted_clip.fit_report import AUTO
        from prompted_clip.fitted_bundle import check_replaceable
        from prompted_clip.model import PromptedClip
        from prompted_clip.sources import known_tag
        from training.data.catalog import open_dataset
        from training.data.few_shot import few_shot
        from training.files import read_bundle_file
        from training.fit_run import FitJob, run_fit
        from training.hardware import resolve_device
        from training.unlabelled import read_further_images

        methods = [AUTO, *FEW_SHOT_METHODS]
        if method not in methods:
            raise typer.BadParameter(
                f"unknown method {method!r}.{did_you_mean(method, methods)} Known methods: {', '.join(methods)}",
                param_hint="--method",
            )
        if unlabelled is not None and method not in {AUTO, "gda"}:
            raise typer.BadParameter(
                f"only auto and gda can use unlabelled images, not {method}; leave out --unlabelled or --method",
                param_hint="--unlabelled",
            )
        if out.resolve() == bundle.resolve():
            raise typer.BadParameter("would overwrite the given bundle; choose another file", param_hint="--out")
        base = read_bundle_file(bundle)
        check_replaceable(base)
        console, made_for = Console(stderr=True, quiet=quiet), base.manifest.backbone
        dataset = open_dataset(data, root)
        print_notes(dataset.notes, console)
        if shots:
            dataset = few_shot(dataset, shots, seed=seed)
        if not backbone and pretrained is None and not random_weights:
            pretrained = known_tag(made_for.arch, made_for.pretrained)
        loaded = load_backbone(
            backbone or made_for.arch,
            pretrained=pretrained,
            random_seed=0 if random_weights else None,
            quick_gelu=quick_gelu,
            preprocess_of=preprocess_of,
            interpolate_positions=interpolate_positions,
            device=resolve_device(device),
        )
        dataset = drop_and_report(dataset, ("train",), console, strict=strict)
        further = None
        if unlabelled is not None:
            labelled = [image.path for image in dataset.split("train")]
            further = read_further_images(unlabelled, labelled, console, strict=strict)
        result = run_fit(FitJob(base, dataset, out, method, further), PromptedClip(loaded), console)
        if json_:
            typer.echo(json.dumps(result))
        else:
            print_report(result, {name: result[name] for name in ("bundle", "digest")})


def fit_base_model(
    method: str,
    dataset: "Dataset",
    domain: str,
    out: Path,
    base_model: "PromptedBackbone",
    console: Console,
    *,
    as_json: bool,
) -> None:
    """Fit a few-shot head on a base model and print the report."""
    from prompted_clip.model import PromptedClip
    from training.fit_run import FitJob, run_fit, zero_shot_bundle

    base = zero_shot_bundle(base_model, dataset, domain)
    result = run_fit(FitJob(base, dataset, out, method), PromptedClip(base_model.backbone), console)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        print_report(result, {name: result[name] for name in ("bundle", "digest")})


def drop_and_report(dataset: "Dataset", splits: Sequence["Split"], console: Console, *, strict: bool) -> "Dataset":
    """Drop unreadable images and print which, or fail on them if `strict`; see `drop_unreadable`."""
    from training.data.dataset import shorten
    from training.data.readable import drop_unreadable

    dataset = drop_unreadable(dataset, splits, strict=strict)
    if dataset.unreadable:
        message = f"Skipped unreadable images ({len(dataset.unreadable)}): {shorten(dataset.unreadable)}"
        console.print(message, style="yellow", markup=False, soft_wrap=True)
    return dataset
