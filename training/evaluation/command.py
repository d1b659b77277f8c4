"""`caspl evaluate`; torch is imported after the arguments are validated."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from training import options
from training.evaluation.arguments import Arch, DataSets, Methods, Out, Overrides, Root, Seeds, method_names, numbers
from training.evaluation.terminal_tables import show_report
from training.terminal import exit_on_error

if TYPE_CHECKING:
    from prompted_clip.backbone import Backbone

evaluate_app = typer.Typer(add_completion=False, rich_markup_mode=None)


class ProtocolName(StrEnum):
    """Evaluation protocol."""

    BASE_TO_NEW = "base-to-new"
    FEW_SHOT = "few-shot"
    CROSS_DATASET = "cross-dataset"
    DOMAIN_GENERALISATION = "domain-generalisation"


class SplitName(StrEnum):
    """Split of a data set."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


@evaluate_app.command(
    epilog="\b\nExample:\n  caspl evaluate --data test-images/ --pretrained openai --bundle shelf.safetensors"
)
def evaluate(
    data: DataSets,
    root: Root = None,
    protocol: Annotated[ProtocolName | None, typer.Option(help="run a protocol of the papers")] = None,
    methods: Methods = "",
    boost: Annotated[
        list[Path] | None, typer.Option(help="boosting bundle; one for all data sets, or one each in the same order")
    ] = None,
    also_plain: Annotated[
        bool, typer.Option("--also-plain", help="with --boost: also measure without boosting")
    ] = False,
    seeds: Seeds = "1,2,3",
    shots: Annotated[str, typer.Option(help="labelled images per class; default 16, for few-shot 1,2,4,8,16")] = "",
    bundle: Annotated[Path | None, typer.Option(help="evaluate this bundle instead of the plain backbone")] = None,
    split: Annotated[SplitName, typer.Option(help="without --protocol: the split to evaluate")] = SplitName.TEST,
    template: Annotated[
        str | None, typer.Option(help="text of the plain backbone, {} for the class name; default: the data set's")
    ] = None,
    backbone: Arch = "ViT-B-16",
    pretrained: options.Pretrained = None,
    random_weights: options.RandomWeights = False,
    quick_gelu: options.QuickGelu = False,
    preprocess_of: options.PreprocessOf = None,
    interpolate_positions: options.InterpolatePositions = False,
    out: Out = Path("evaluation"),
    set_: Overrides = None,
    checkpoint_every: options.CheckpointEvery = 100,
    device: options.Device = "auto",
    json_: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure the accuracy of a backbone or of a bundle on labelled images, or run a protocol of the papers."""
    if protocol is not None and (bundle is not None or template is not None):
        raise typer.BadParameter("--bundle and --template cannot be combined with --protocol")
    if bundle is not None and template is not None:
        raise typer.BadParameter("--template is for the plain backbone; a bundle has its own text")
    if protocol is None and len(data) != 1:
        raise typer.BadParameter("without --protocol exactly one data set is required", param_hint="--data")
    if protocol is None and (methods or boost or set_):
        raise typer.BadParameter("--methods, --boost and --set require --protocol")
    usual_shots = "1,2,4,8,16" if protocol is ProtocolName.FEW_SHOT else "16"
    seed_list, shot_list = numbers(seeds, "--seeds", least=0), numbers(shots or usual_shots, "--shots", least=1)
    with exit_on_error("evaluate", quiet=quiet):
        from training.evaluation.runs import EvaluateJob, run_bundle, run_evaluate  # noqa: PLC0415  torch
        from training.prompted_backbone import load_prompted_backbone  # noqa: PLC0415  torch

        def load() -> "Backbone":
            base_model = load_prompted_backbone(
                backbone,
                pretrained,
                None,
                is_random=random_weights,
                device=device,
                quick_gelu=quick_gelu,
                preprocess_of=preprocess_of,
                interpolate_positions=interpolate_positions,
            )
            return base_model.backbone

        console = Console(stderr=True, quiet=quiet)
        if protocol is None:
            show_report(
                run_bundle(bundle, data[0], root, split.value, template, load, out, console), out, as_json=json_
            )
        else:
            job = EvaluateJob(
                protocol=protocol.value,
                data=tuple(data),
                root=root,
                methods=method_names(methods),
                boost=tuple(boost or []),
                has_plain=also_plain or not boost,
                seeds=seed_list,
                shots=shot_list,
                overrides=tuple(set_ or []),
                out=out,
                checkpoint_every=checkpoint_every,
            )
            show_report(run_evaluate(job, load, console), out, as_json=json_)
