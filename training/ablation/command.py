"""`caspl ablate`; torch is imported after the arguments are validated."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from training import options
from training.evaluation import arguments
from training.terminal import exit_on_error, print_notes

if TYPE_CHECKING:
    from prompted_clip.backbone import Backbone
    from training.ablation.run import AblationJob, Measured

ablate_app = typer.Typer(add_completion=False, rich_markup_mode=None)


@ablate_app.command(epilog="\b\nExample:\n  caspl ablate --data dtd --data eurosat --root data/ --dry-run")
def ablate(
    data: arguments.DataSets,
    root: arguments.Root = None,
    studies: Annotated[
        str, typer.Option(help="comma-separated: depth (table 5), tokens (figure 4), budget (table 6)")
    ] = "depth,tokens,budget",
    method: Annotated[str, typer.Option(help="adapting method: promptsrc, maple or ivlp")] = "promptsrc",
    depths: Annotated[
        str, typer.Option(help="depths of each phase; default: one layer and each quarter of the image tower")
    ] = "",
    tokens: Annotated[str, typer.Option(help="numbers of prompts of each phase, for tokens")] = "4,8,16",
    default_tokens: Annotated[int, typer.Option(min=1, help="number of prompts of each phase, for depth")] = 8,
    budgets: Annotated[str, typer.Option(help="total numbers of prompts, for budget; even")] = "8,16",
    seeds: arguments.Seeds = "1,2,3",
    shots: Annotated[int, typer.Option(min=1, help="labelled images per base class")] = 16,
    backbone: arguments.Arch = "ViT-B-16",
    pretrained: options.Pretrained = None,
    teacher: arguments.Teacher = "ViT-L-14",
    teacher_pretrained: options.Pretrained = None,
    random_weights: options.RandomWeights = False,
    quick_gelu: options.QuickGelu = False,
    preprocess_of: options.PreprocessOf = None,
    teacher_preprocess_of: options.TeacherPreprocessOf = None,
    interpolate_positions: options.InterpolatePositions = False,
    out: arguments.Out = Path("ablation"),
    set_: arguments.Overrides = None,
    boost_set: arguments.BoostOverrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="list the runs with an estimate of their duration, and stop")
    ] = False,
    images_per_second: arguments.ImagesPerSecond = None,
    checkpoint_every: options.CheckpointEvery = 100,
    device: options.Device = "auto",
    json_: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Run the CasPL paper's ablations: depth and number of prompts of each phase, frozen or learnable boosting."""
    if images_per_second is not None and not dry_run:
        raise typer.BadParameter("--images-per-second requires --dry-run")
    seed_list = arguments.numbers(seeds, "--seeds", least=0)
    depth_list = arguments.numbers(depths, "--depths", least=1) if depths else ()
    token_list = arguments.numbers(tokens, "--tokens", least=1)
    budget_list = arguments.numbers(budgets, "--budgets", least=2)
    with exit_on_error("ablate", quiet=quiet):
        from training.ablation.run import AblationJob  # noqa: PLC0415  torch
        from training.ablation.settings import ABLATED_METHODS, STUDIES, Grid, quarter_depths  # noqa: PLC0415  torch
        from training.data.catalog import open_dataset  # noqa: PLC0415
        from training.hardware import BackboneSource, load_backbones  # noqa: PLC0415  torch

        chosen = tuple(dict.fromkeys(part.strip() for part in studies.split(",") if part.strip()))
        if not chosen or set(chosen) - set(STUDIES):
            msg = f"expected some of {', '.join(STUDIES)}, found {studies!r}"
            raise typer.BadParameter(msg, param_hint="--studies")
        if method not in ABLATED_METHODS:
            msg = f"expected one of {', '.join(ABLATED_METHODS)}, found {method!r}"
            raise typer.BadParameter(msg, param_hint="--method")
        console = Console(stderr=True, quiet=quiet)
        datasets = tuple(open_dataset(name, root) for name in data)
        for dataset in datasets:
            print_notes(dataset.notes, console)
        job = AblationJob(
            datasets=datasets,
            studies=chosen,
            grid=Grid(depth_list or (1,), token_list, default_tokens, budget_list),
            method=method,
            seeds=seed_list,
            shots=shots,
            out=out,
            overrides=tuple(set_ or []),
            boost_overrides=tuple(boost_set or []),
            checkpoint_every=checkpoint_every,
        )
        job.check()
        student, large = load_backbones(
            [
                BackboneSource(backbone, pretrained, preprocess_of),
                BackboneSource(teacher, teacher_pretrained, teacher_preprocess_of),
            ],
            is_random=random_weights,
            device=device,
            quick_gelu=quick_gelu,
            interpolate_positions=interpolate_positions,
        )
        if not depth_list:
            job = replace(job, grid=replace(job.grid, depths=quarter_depths(student.n_vision_layers)))
        job.grid.check_depths(student.n_vision_layers, student.arch)
        if dry_run:
            _show_plan(job, student, large, images_per_second, as_json=json_)
        else:
            _run(job, student, large, console, as_json=json_)


def _run(
    job: "AblationJob",
    student: "Backbone",
    teacher: "Backbone",
    console: Console,
    *,
    as_json: bool,
) -> None:
    """Measure, write the report, and print it."""
    from training.ablation.output import JSON_NAME, MARKDOWN_NAME, write_ablation  # noqa: PLC0415
    from training.ablation.report import AblationReport  # noqa: PLC0415
    from training.ablation.run import run_ablation  # noqa: PLC0415  torch
    from training.files import write_atomic  # noqa: PLC0415

    facts = {"student": student.identity, "teacher": teacher.identity}

    def save(measured: "Measured") -> None:
        content = AblationReport(job, measured, facts).to_json()
        write_atomic(job.out / JSON_NAME, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())

    measured = run_ablation(job, student, teacher, console, on_setting=save)
    content = write_ablation(AblationReport(job, measured, facts), job.out, console)
    if as_json:
        typer.echo(json.dumps(content))
        return
    shown = Console()
    table = Table("setting", "base", "new", "H", title=f"{job.method}: base-to-new, %")
    for setting, each in zip(measured, content["settings"], strict=True):
        table.add_row(str(setting), *(f"{each[name]['mean']:.1f}" for name in ("base", "new", "h")))
    shown.print(table)
    findings = Table("finding", "paper", "here", "holds", title="the paper's findings")
    for each in content["findings"]:
        findings.add_row(each["claim"], each["paper"], each["measured"], "yes" if each["holds"] else "no")
    shown.print(findings)
    shown.print(f"full report: {job.out / MARKDOWN_NAME}", markup=False, highlight=False, soft_wrap=True)


def _show_plan(
    job: "AblationJob",
    student: "Backbone",
    teacher: "Backbone",
    images_per_second: float | None,
    *,
    as_json: bool,
) -> None:
    """Print the runs of every setting, and the estimate."""
    from training.ablation.workload import plan_of  # noqa: PLC0415  torch

    plan: dict[str, Any] = plan_of(job, student, teacher, images_per_second)
    if as_json:
        typer.echo(json.dumps(plan))
        return
    shown = Console()
    table = Table("setting", "boosting runs", "adapting runs", title=f"{job.method}: {len(plan['settings'])} settings")
    for each in plan["settings"]:
        table.add_row(each["setting"], str(each["boosting_runs"]), str(each["adapting_runs"]))
    shown.print(table)
    shown.print(plan["summary"], markup=False, highlight=False, soft_wrap=True)
