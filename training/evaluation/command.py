"""`caspl evaluate` and `caspl reproduce`. Imports torch only once the arguments are known to be sound."""

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from training.terminal import check_device, exit_on_error

if TYPE_CHECKING:
    from prompted_clip.backbone import Backbone

evaluate_app = typer.Typer(add_completion=False)
reproduce_app = typer.Typer(add_completion=False)


class ProtocolName(StrEnum):
    """How to measure."""

    BASE_TO_NEW = "base-to-new"
    FEW_SHOT = "few-shot"
    CROSS_DATASET = "cross-dataset"
    DOMAIN_GENERALISATION = "domain-generalisation"


class SplitName(StrEnum):
    """Which part of a data set."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


Methods = Annotated[str, typer.Option(help="adapting methods, with commas between; empty: the base model alone")]
Seeds = Annotated[str, typer.Option(help="seeds of draw and training, with commas between")]
Arch = Annotated[str, typer.Option(help="by open_clip name")]
Pretrained = Annotated[str | None, typer.Option(help="its weights: an open_clip tag or a local file")]
RandomWeights = Annotated[bool, typer.Option("--random-weights", help="random weights, to try a pipeline out")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="recipe value: key=value, or method.key=value")]
CheckpointEvery = Annotated[int, typer.Option(min=1, help="steps between checkpoints")]
QuickGELU = Annotated[bool, typer.Option("--quick-gelu", help="for local files of OpenAI's weights")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<n>", callback=check_device)]
AsJson = Annotated[bool, typer.Option("--json", help="print the report as one JSON object")]


@evaluate_app.command()
def evaluate(
    data: Annotated[
        list[str], typer.Option(help="data set: a name, a folder per class, a .csv or .jsonl file; repeat for more")
    ],
    root: Annotated[Path | None, typer.Option(help="folder of the data sets, for names")] = None,
    protocol: Annotated[ProtocolName | None, typer.Option(help="how to measure methods")] = None,
    methods: Methods = "",
    boost: Annotated[
        list[Path] | None, typer.Option(help="boosting bundle; one for all data sets, or one for each in their order")
    ] = None,
    also_plain: Annotated[
        bool, typer.Option("--also-plain", help="with --boost: measure without boosting too")
    ] = False,
    seeds: Seeds = "1,2,3",
    shots: Annotated[str, typer.Option(help="images per class; default 16, for few-shot 1,2,4,8,16")] = "",
    bundle: Annotated[Path | None, typer.Option(help="measure this bundle as it is, instead of a protocol")] = None,
    split: Annotated[SplitName, typer.Option(help="with --bundle: which images")] = SplitName.TEST,
    backbone: Arch = "ViT-B-16",
    pretrained: Pretrained = None,
    random_weights: RandomWeights = False,
    quick_gelu: QuickGELU = False,
    out: Annotated[Path, typer.Option(help="folder of the report and of finished work, which is found again")] = Path(
        "evaluation"
    ),
    set_: Overrides = None,
    checkpoint_every: CheckpointEvery = 100,
    device: Device = "auto",
    json_: AsJson = False,
) -> None:
    """Measure methods under a protocol of the papers, or one bundle as it is."""
    if (protocol is None) == (bundle is None):
        raise typer.BadParameter("give either --protocol or --bundle")
    if bundle is not None and len(data) != 1:
        raise typer.BadParameter("a bundle is measured on one data set", param_hint="--data")
    if bundle is not None and (methods or boost or set_):
        raise typer.BadParameter("--methods, --boost and --set belong to a protocol; a bundle is measured as it is")
    usual_shots = "1,2,4,8,16" if protocol is ProtocolName.FEW_SHOT else "16"
    seed_list, shot_list = _numbers(seeds, "--seeds", least=0), _numbers(shots or usual_shots, "--shots", least=1)
    with exit_on_error("evaluate"):
        from training.evaluation.runs import EvaluateJob, run_bundle, run_evaluate  # noqa: PLC0415  torch
        from training.prompted_backbone import load_prompted_backbone  # noqa: PLC0415  torch

        def load() -> "Backbone":
            base_model = load_prompted_backbone(
                backbone, pretrained, None, is_random=random_weights, quick_gelu=quick_gelu, device=device
            )
            return base_model.backbone

        console = Console(stderr=True)
        if bundle is not None:
            _show(run_bundle(bundle, data[0], root, split.value, load, out, console), out, as_json=json_)
        elif protocol is not None:
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


@reproduce_app.command()
def reproduce(
    dataset: Annotated[str, typer.Argument(help="a data set's name, such as dtd, or the path of one")],
    root: Annotated[Path | None, typer.Option("--root", "--data", help="folder of the data sets, for a name")] = None,
    backbone: Arch = "ViT-B-16",
    pretrained: Pretrained = None,
    teacher: Annotated[str, typer.Option(help="teacher of the boosting prompts, by open_clip name")] = "ViT-L-14",
    teacher_pretrained: Pretrained = None,
    methods: Methods = "coop,cocoop,maple,promptsrc",
    seeds: Seeds = "1,2,3",
    shots: Annotated[int, typer.Option(min=1, help="labelled images per class")] = 16,
    random_weights: RandomWeights = False,
    quick_gelu: QuickGELU = False,
    out: Annotated[
        Path | None, typer.Option(help="folder of the report and of finished work; default reproduce-<data set>")
    ] = None,
    set_: Overrides = None,
    boost_set: Annotated[list[str] | None, typer.Option(help="override one boosting recipe key: key=value")] = None,
    checkpoint_every: CheckpointEvery = 100,
    device: Device = "auto",
    json_: AsJson = False,
) -> None:
    """Boost a data set, run every method without and with boosting, and set the numbers beside the published ones."""
    seed_list = _numbers(seeds, "--seeds", least=0)
    with exit_on_error("reproduce"):
        from training.evaluation.runs import ReproduceJob, run_reproduce  # noqa: PLC0415  torch
        from training.hardware import load_backbones  # noqa: PLC0415  torch

        def load() -> "tuple[Backbone, Backbone]":
            return load_backbones(
                backbone,
                pretrained,
                teacher,
                teacher_pretrained,
                is_random=random_weights,
                quick_gelu=quick_gelu,
                device=device,
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
        _show(run_reproduce(job, load, Console(stderr=True)), job.out, as_json=json_)


def _numbers(text: str, option: str, *, least: int) -> tuple[int, ...]:
    """`1,2,3` as numbers without repetition."""
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < least:
        msg = f"expected whole numbers from {least} with commas between, such as 1,2,3; found {text!r}"
        raise typer.BadParameter(msg, param_hint=option)
    return numbers


def _methods(text: str) -> tuple[str, ...]:
    """`coop,maple` as names that are known."""
    from training.adapting.methods import METHODS  # noqa: PLC0415  torch

    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if unknown := [name for name in names if name not in METHODS]:
        raise typer.BadParameter(f"no method {unknown[0]!r}; known: {', '.join(METHODS)}", param_hint="--methods")
    return names


def _show(content: dict[str, Any], out: Path, *, as_json: bool) -> None:
    """The report as JSON, or as tables that are narrower than those on disk: no deviations."""
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
    console.print(f"more: {out / 'report.md'}", markup=False, highlight=False, soft_wrap=True)


def _protocol_table(content: dict[str, Any]) -> Table:
    measures = list(content["summaries"][0]["change"])
    table = Table(title=f"{content['protocol']}: {' / '.join(measures)}, per cent")
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
    """What papers print for the measured methods, as means over their eleven data sets."""
    printed = {(each["method"], each["boosted"]): each.get("by_shots", each) for each in content["published_means"]}
    is_by_shots = "by_shots" in content["published_means"][0]
    measures = list(next(iter(printed.values()))) if is_by_shots else list(content["summaries"][0]["change"])
    of = f"accuracy with {' / '.join(map(str, measures))} shots" if is_by_shots else " / ".join(measures)
    table = Table(title=f"published for CLIP ViT-B/16 (OpenAI), means over eleven data sets: {of}, per cent")
    for column in ("method", "without boosting", "with boosting"):
        table.add_column(column)
    for method in dict.fromkeys(method for method, _ in printed):
        sides = (printed.get((method, boosted), {}) for boosted in (False, True))
        table.add_row(method, *(_rates(side, measures, ".1f") for side in sides))
    return table


def _bundle_table(content: dict[str, Any]) -> Table:
    table = Table("measure", "value", title=f"{content['domain']} on {content['dataset']}, {content['split']}")
    for name in ("n_images", "n_unreadable", "accuracy", "mean_class_accuracy"):
        value = content[name]
        table.add_row(name.replace("_", " "), f"{value:.2f} %" if isinstance(value, float) else str(value))
    return table


def _rates(rates: Mapping[str, float | None], measures: Sequence[str], style: str) -> str:
    """Rates with slashes between, dashes for missing ones, and one dash where all are missing."""
    found = [rates.get(name) for name in measures]
    if all(rate is None for rate in found):
        return "-"
    return " / ".join("-" if rate is None else format(rate, style) for rate in found)
