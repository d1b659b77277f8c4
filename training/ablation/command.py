"""`caspl ablate`; torch is imported after the arguments are validated."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from training import options
from training.evaluation.arguments import Arch, Overrides, Seeds, numbers
from training.terminal import exit_on_error, print_notes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prompted_clip.backbone import Backbone
    from training.ablation.run import AblationJob, Measured
    from training.ablation.settings import Grid, Setting

ablate_app = typer.Typer(add_completion=False, rich_markup_mode=None)


@ablate_app.command(epilog="\b\nExample:\n  caspl ablate --data dtd --data eurosat --root data/ --dry-run")
def ablate(
    data: Annotated[
        list[str], typer.Option(help="data set: a name, a folder of class folders, a .csv or .jsonl file; repeatable")
    ],
    root: Annotated[Path | None, typer.Option(help="folder with the published data sets")] = None,
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
    seeds: Seeds = "1,2,3",
    shots: Annotated[int, typer.Option(min=1, help="labelled images per base class")] = 16,
    backbone: Arch = "ViT-B-16",
    pretrained: options.Pretrained = None,
    teacher: Annotated[str, typer.Option(help="teacher: open_clip architecture")] = "ViT-L-14",
    teacher_pretrained: options.Pretrained = None,
    random_weights: options.RandomWeights = False,
    quick_gelu: options.QuickGelu = False,
    preprocess_of: options.PreprocessOf = None,
    teacher_preprocess_of: options.TeacherPreprocessOf = None,
    interpolate_positions: options.InterpolatePositions = False,
    out: Annotated[Path, typer.Option(help="folder for the report and finished results, which are reused")] = Path(
        "ablation"
    ),
    set_: Overrides = None,
    boost_set: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="override a boosting recipe value")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="list the runs with an estimate of their duration, and stop")
    ] = False,
    images_per_second: Annotated[
        float | None, typer.Option(min=0.001, help="rate for the estimate; default: time a few steps")
    ] = None,
    checkpoint_every: options.CheckpointEvery = 100,
    device: options.Device = "auto",
    json_: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Run the CasPL paper's ablations: depth and number of prompts of each phase, frozen or learnable boosting."""
    seed_list = numbers(seeds, "--seeds", least=0)
    depth_list = numbers(depths, "--depths", least=1) if depths else ()
    token_list, budget_list = numbers(tokens, "--tokens", least=1), numbers(budgets, "--budgets", least=2)
    with exit_on_error("ablate", quiet=quiet):
        from training.ablation.run import AblationJob  # noqa: PLC0415  torch
        from training.ablation.settings import ABLATED_METHODS, STUDIES, Grid  # noqa: PLC0415  torch
        from training.data.catalog import open_dataset  # noqa: PLC0415
        from training.hardware import load_backbones  # noqa: PLC0415  torch

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
            method=method,
            seeds=seed_list,
            shots=shots,
            out=out,
            depths=depth_list,
            tokens=token_list,
            default_tokens=default_tokens,
            budgets=budget_list,
            overrides=tuple(set_ or []),
            boost_overrides=tuple(boost_set or []),
            checkpoint_every=checkpoint_every,
        )
        job.check(Grid(depth_list or (1,), token_list, default_tokens, budget_list))
        student, large = load_backbones(
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
        grid = job.grid(student)
        settings = grid.settings(chosen)
        if dry_run:
            _show_plan(job, settings, student, large, images_per_second, as_json=json_)
        else:
            _run(job, grid, settings, student, large, console, as_json=json_)


def _run(
    job: "AblationJob",
    grid: "Grid",
    settings: "Sequence[Setting]",
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
        content = AblationReport(job, grid, measured, facts).to_json()
        write_atomic(job.out / JSON_NAME, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())

    measured = run_ablation(job, settings, student, teacher, console, on_setting=save)
    content = write_ablation(AblationReport(job, grid, measured, facts), job.out, console)
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
    settings: "Sequence[Setting]",
    student: "Backbone",
    teacher: "Backbone",
    images_per_second: float | None,
    *,
    as_json: bool,
) -> None:
    """Print the runs of every setting, and the estimate."""
    from training.ablation.workload import plan_of  # noqa: PLC0415  torch

    plan: dict[str, Any] = plan_of(job, settings, student, teacher, images_per_second)
    if as_json:
        typer.echo(json.dumps(plan))
        return
    shown = Console()
    table = Table("setting", "boosting runs", "adapting runs", title=f"{job.method}: {len(settings)} settings")
    for each in plan["settings"]:
        table.add_row(each["setting"], str(each["boosting_runs"]), str(each["adapting_runs"]))
    shown.print(table)
    shown.print(plan["summary"], markup=False, highlight=False, soft_wrap=True)
