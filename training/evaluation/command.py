"""`caspl evaluate` and `caspl reproduce`; torch is imported after the arguments are validated."""

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from training import options
from training.terminal import exit_on_error

if TYPE_CHECKING:
    from prompted_clip.backbone import Backbone

evaluate_app = typer.Typer(add_completion=False, rich_markup_mode=None)
reproduce_app = typer.Typer(add_completion=False, rich_markup_mode=None)


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


Methods = Annotated[str, typer.Option(help="comma-separated adapting methods; empty for the base model only")]
Seeds = Annotated[str, typer.Option(help="comma-separated seeds of sampling and training")]
Arch = Annotated[str, typer.Option(help="open_clip architecture")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override a recipe value: key=value or method.key=value"),
]


@evaluate_app.command(
    epilog="\b\nExample:\n  caspl evaluate --data test-images/ --pretrained openai --bundle shelf.safetensors"
)
def evaluate(
    data: Annotated[
        list[str], typer.Option(help="data set: a name, a folder of class folders, a .csv or .jsonl file; repeatable")
    ],
    root: Annotated[Path | None, typer.Option(help="folder with the published data sets")] = None,
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
    out: Annotated[Path, typer.Option(help="folder for the report and finished results, which are reused")] = Path(
        "evaluation"
    ),
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
    seed_list, shot_list = _numbers(seeds, "--seeds", least=0), _numbers(shots or usual_shots, "--shots", least=1)
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
            _show(run_bundle(bundle, data[0], root, split.value, template, load, out, console), out, as_json=json_)
        else:
            job = EvaluateJob(
                protocol=protocol.value,
                data=tuple(data),
                root=root,
                methods=_methods(methods),
                boost=tuple(boost or []),
                has_plain=also_plain or not boost,
                seeds=seed_list,
                shots=shot_list,
                overrides=tuple(set_ or []),
                out=out,
                checkpoint_every=checkpoint_every,
            )
            _show(run_evaluate(job, load, console), out, as_json=json_)


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
    seed_list = _numbers(seeds, "--seeds", least=0)
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
            methods=_methods(methods),
            seeds=seed_list,
            shots=shots,
            overrides=tuple(set_ or []),
            boost_overrides=tuple(boost_set or []),
            out=out or Path(f"reproduce-{Path(dataset).name}"),
            checkpoint_every=checkpoint_every,
        )
        _show(run_reproduce(job, load, Console(stderr=True, quiet=quiet)), job.out, as_json=json_)


def _numbers(text: str, option: str, *, least: int) -> tuple[int, ...]:
    """Parse `1,2,3`; duplicates are removed."""
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < least:
        msg = f"{text!r} is not a comma-separated list of integers >= {least}, such as 1,2,3"
        raise typer.BadParameter(msg, param_hint=option)
    return numbers


def _methods(text: str) -> tuple[str, ...]:
    """Parse and validate `coop,maple`."""
    from prompted_clip.errors import did_you_mean  # noqa: PLC0415  torch
    from training.label_free.methods import ALL_RECIPES  # noqa: PLC0415  torch

    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if unknown := [name for name in names if name not in ALL_RECIPES]:
        advice = f"{did_you_mean(unknown[0], ALL_RECIPES)} Known methods: {', '.join(ALL_RECIPES)}"
        raise typer.BadParameter(f"unknown method {unknown[0]!r}.{advice}", param_hint="--methods")
    return names


def _show(content: dict[str, Any], out: Path, *, as_json: bool) -> None:
    """Print the report as JSON, or as compact tables without standard deviations."""
    if as_json:
        typer.echo(json.dumps(content))
        return
    console = Console()
    if "summaries" in content:
        console.print(_protocol_table(content))
        if content["published_means"]:
            console.print(_published_table(content))
    else:
        console.print(_bundle_table(content))
    console.print(f"full report: {out / 'report.md'}", markup=False, highlight=False, soft_wrap=True)


def _protocol_table(content: dict[str, Any]) -> Table:
    measures = list(content["summaries"][0]["change"])
    table = Table(title=f"{content['protocol']}: {' / '.join(measures)}, %")
    for column in ("data set", "method", "shots", "without boosting", "with boosting", "change"):
        table.add_column(column)
    has_published = any(each["published"] for each in content["summaries"])
    if has_published:
        table.add_column("published")
    for each in content["summaries"]:
        means = [{name: part["mean"] for name, part in each[side].items()} for side in ("plain", "boosted")]
        cells = [_rates(part, measures, ".1f") for part in means]
        cells.append(_rates(each["change"], measures, "+.1f"))
        if has_published:
            cells.append(_rates(each["published"] or {}, measures, ".1f"))
        table.add_row(each["target"], each["method"], str(each["shots"]), *cells)
    return table


def _published_table(content: dict[str, Any]) -> Table:
    """Published numbers of the measured methods, averaged over eleven data sets."""
    printed = {(each["method"], each["boosted"]): each.get("by_shots", each) for each in content["published_means"]}
    is_by_shots = "by_shots" in content["published_means"][0]
    by_shots = sorted({shots for side in printed.values() for shots in side}) if is_by_shots else []
    measures = by_shots or list(content["summaries"][0]["change"])
    of = f"accuracy with {' / '.join(map(str, measures))} shots" if is_by_shots else " / ".join(measures)
    table = Table(title=f"published for CLIP ViT-B/16 (OpenAI), mean over eleven data sets: {of}, %")
    for column in ("method", "without boosting", "with boosting"):
        table.add_column(column)
    for method in dict.fromkeys(method for method, _ in printed):
        sides = (printed.get((method, boosted), {}) for boosted in (False, True))
        table.add_row(method, *(_rates(side, measures, ".1f") for side in sides))
    return table


def _bundle_table(content: dict[str, Any]) -> Table:
    table = Table(
        "measure",
        "value",
        title=f"{content['domain'] or content['backbone']} on {content['dataset']}, {content['split']}",
    )
    texts = {"own": "its own", "open": "the data set's, not its own", "plain": "the data set's"}
    table.add_row("classes", f"{len(content['classes'])}, {texts[content['labels']]}")
    for name in ("n_images", "n_unreadable", "accuracy", "mean_class_accuracy"):
        value = content[name]
        table.add_row(name.replace("_", " "), f"{value:.2f} %" if isinstance(value, float) else str(value))
    return table


def _rates(rates: Mapping[str, float | None], measures: Sequence[str], style: str) -> str:
    """Format rates separated by slashes; missing ones are dashes."""
    found = [rates.get(name) for name in measures]
    if all(rate is None for rate in found):
        return "-"
    return " / ".join("-" if rate is None else format(rate, style) for rate in found)
