"""`caspl reproduce`; torch is imported after the arguments are validated."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console

from training import options
from training.evaluation import arguments
from training.evaluation.terminal_tables import show_report
from training.terminal import exit_on_error, print_notes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from prompted_clip.backbone import Backbone
    from training.evaluation.summary import Report
    from training.reproduction.preflight import DatasetCheck
    from training.reproduction.run import ReproductionJob
    from training.reproduction.tables import PaperTable

    Load = Callable[[], tuple[Backbone, Backbone]]

_USED_BY_CHECK: Final = {"check", "tolerance", "json_", "quiet"}
DEFAULT_TABLES: Final = "base-to-new,domain-generalisation"

reproduce_app = typer.Typer(add_completion=False, rich_markup_mode=None)


@reproduce_app.command(
    epilog="\b\nExample:\n"
    "  caspl reproduce --all --root data/ --pretrained openai --teacher-pretrained openai --dry-run"
)
def reproduce(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(help="name or path of a data set, such as dtd; or --all or --check")] = "",
    all_: Annotated[bool, typer.Option("--all", help="the paper's tables on all of its data sets")] = False,
    check: Annotated[
        Path | None, typer.Option(help="compare this results file with the paper's tables, and stop")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="largest difference from the paper in points that counts as agreement")
    ] = 1.0,
    tables: Annotated[
        str,
        typer.Option(
            help="with --all: comma-separated: base-to-new, domain-generalisation, few-shot; default: the first two"
        ),
    ] = "",
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="with --all: leave out data sets that are missing or invalid")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check every file, estimate hours and disk space, and stop")
    ] = False,
    images_per_second: arguments.ImagesPerSecond = None,
    root: Annotated[Path | None, typer.Option("--root", "--data", help="folder with the published data sets")] = None,
    backbone: arguments.Arch = "ViT-B-16",
    pretrained: options.Pretrained = None,
    teacher: arguments.Teacher = "ViT-L-14",
    teacher_pretrained: options.Pretrained = None,
    methods: arguments.Methods = "coop,cocoop,maple,promptsrc",
    seeds: arguments.Seeds = "1,2,3",
    shots: Annotated[
        int | None, typer.Option(min=1, help="labelled images per class of one data set; default 16")
    ] = None,
    random_weights: options.RandomWeights = False,
    quick_gelu: options.QuickGelu = False,
    preprocess_of: options.PreprocessOf = None,
    teacher_preprocess_of: options.TeacherPreprocessOf = None,
    interpolate_positions: options.InterpolatePositions = False,
    out: Annotated[
        Path | None,
        typer.Option(help="folder for results, report and finished rows; default reproduce-<data set> or -all"),
    ] = None,
    set_: arguments.Overrides = None,
    boost_set: arguments.BoostOverrides = None,
    checkpoint_every: options.CheckpointEvery = 100,
    device: options.Device = "auto",
    json_: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Boost, evaluate methods with and without boosting, and compare with the published numbers."""
    if sum([bool(dataset), all_, check is not None]) != 1:
        raise typer.BadParameter("expected one of: a data set, --all, --check FILE")
    given = options.given(context)
    _check_comparison(given, is_check=check is not None, has_tables=not dataset)
    if not all_ and (tables or skip_missing):
        raise typer.BadParameter("--tables and --skip-missing require --all")
    if all_ and shots is not None:
        raise typer.BadParameter("--all uses the paper's numbers of images; --shots is for one data set")
    if images_per_second is not None and not dry_run:
        raise typer.BadParameter("--images-per-second requires --dry-run")
    seed_list = arguments.numbers(seeds, "--seeds", least=0)
    with exit_on_error("reproduce", quiet=quiet):
        if check is not None:
            _compare(check, tolerance, as_json=json_)
            return
        from training.hardware import BackboneSource, load_backbones  # noqa: PLC0415  torch
        from training.reproduction.run import ReproductionJob  # noqa: PLC0415  torch
        from training.reproduction.tables import PaperTable  # noqa: PLC0415

        def load() -> "tuple[Backbone, Backbone]":
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
            return student, large

        console, names = Console(stderr=True, quiet=quiet), arguments.method_names(methods)
        chosen = (
            _chosen_tables(tables or DEFAULT_TABLES, names)
            if all_
            else (PaperTable("base-to-new", (dataset,), names, (shots or 16,), "table 1"),)
        )
        job = ReproductionJob(
            tables=chosen,
            seeds=seed_list,
            overrides=tuple(set_ or []),
            boost_overrides=tuple(boost_set or []),
            out=out or Path(f"reproduce-{'all' if all_ else Path(dataset).name}"),
            checkpoint_every=checkpoint_every,
        )
        if dry_run:
            _show_plan(job, root, load, images_per_second, console, as_json=json_)
        elif all_:
            _run_all(job, root, load, console, tolerance=tolerance, skip_missing=skip_missing, as_json=json_)
        else:
            _run_one(job, root, load, console, as_json=json_)


def _check_comparison(given: set[str], *, is_check: bool, has_tables: bool) -> None:
    """Raise `typer.BadParameter` for options that do not fit with or without `--check`."""
    if is_check and (unused := sorted(given - _USED_BY_CHECK)):
        raise typer.BadParameter(f"--check does not use --{unused[0].strip('_').replace('_', '-')}")
    if "tolerance" in given and not has_tables:
        raise typer.BadParameter("--tolerance requires --all or --check")


def _chosen_tables(names: str, methods: tuple[str, ...]) -> "tuple[PaperTable, ...]":
    """The paper's tables, with the selected ones of their methods."""
    from training.reproduction.tables import TABLES  # noqa: PLC0415

    chosen = tuple(dict.fromkeys(part.strip() for part in names.split(",") if part.strip()))
    if not chosen or set(chosen) - set(TABLES):
        msg = f"expected some of {', '.join(TABLES)}, found {names!r}"
        raise typer.BadParameter(msg, param_hint="--tables")
    for table in (TABLES[name] for name in chosen):
        if methods and not set(methods) & set(table.methods):
            msg = f"the paper's {table.where} ({table.protocol}) has only {', '.join(table.methods)}"
            raise typer.BadParameter(msg, param_hint="--methods")
    in_tables = {method for name in chosen for method in TABLES[name].methods}
    if other := [method for method in methods if method not in in_tables]:
        msg = f"{other[0]} is not in the paper's tables; run it with `caspl reproduce` on one data set"
        raise typer.BadParameter(msg, param_hint="--methods")
    return tuple(
        replace(TABLES[name], methods=tuple(each for each in TABLES[name].methods if each in methods))
        for name in chosen
    )


def _run_one(job: "ReproductionJob", root: Path | None, load: "Load", console: Console, *, as_json: bool) -> None:
    """Run one data set, and print its report."""
    from training.errors import DatasetError  # noqa: PLC0415
    from training.evaluation.output import write_report  # noqa: PLC0415  torch
    from training.evaluation.rows import Results  # noqa: PLC0415
    from training.reproduction.preflight import check_datasets  # noqa: PLC0415

    checks = check_datasets(job.names, root)
    if checks[0].problem:
        raise DatasetError(checks[0].problem)
    (report,) = _reports(job, checks, load, console)
    show_report(write_report(report, Results(job.out), job.out, console), job.out, as_json=as_json)


def _run_all(
    job: "ReproductionJob",
    root: Path | None,
    load: "Load",
    console: Console,
    *,
    tolerance: float,
    skip_missing: bool,
    as_json: bool,
) -> None:
    """Run the tables with a report of each, and compare with the paper."""
    from training.errors import DatasetError  # noqa: PLC0415
    from training.evaluation.output import write_report  # noqa: PLC0415  torch
    from training.evaluation.rows import Results  # noqa: PLC0415
    from training.reproduction.comparison import compare  # noqa: PLC0415
    from training.reproduction.preflight import check_datasets, report_problems  # noqa: PLC0415
    from training.reproduction.results_file import RESULTS_NAME, read_results  # noqa: PLC0415
    from training.reproduction.terminal import show_comparison  # noqa: PLC0415

    checks = check_datasets(job.names, root)
    problems = [check for check in checks if check.problem]
    if problems and not skip_missing:
        raise DatasetError(report_problems(problems) + "\n--skip-missing runs the others.")
    print_notes((f"skipped {check.name}: {check.problem}" for check in problems), console)
    job = job.usable(checks)
    if not job.tables:
        raise DatasetError(report_problems(problems))
    for report in _reports(job, checks, load, console):
        write_report(report, Results(job.out), job.out / report.protocol, console)
    results = read_results(job.out / RESULTS_NAME)
    if as_json:
        typer.echo(results.model_dump_json())
    else:
        show_comparison(results, compare(results, tolerance), tolerance)


def _reports(
    job: "ReproductionJob", checks: "Sequence[DatasetCheck]", load: "Load", console: Console
) -> "Iterator[Report]":
    """Validate, load the backbones, and run the tables."""
    from training.reproduction.run import run_tables  # noqa: PLC0415  torch

    print_notes((note for check in checks for note in check.notes), console)
    job.validate(checks)
    return run_tables(job, checks, *load(), console)


def _compare(path: Path, tolerance: float, *, as_json: bool) -> None:
    """Compare a results file with the paper; exit code 1 if a row differs."""
    from training.reproduction.comparison import compare  # noqa: PLC0415
    from training.reproduction.results_file import read_results  # noqa: PLC0415
    from training.reproduction.terminal import comparison_json, show_comparison  # noqa: PLC0415

    results = read_results(path)
    compared = compare(results, tolerance)
    if as_json:
        typer.echo(json.dumps(comparison_json(results, compared, tolerance)))
    else:
        show_comparison(results, compared, tolerance)
    if any(each.agrees is False for each in compared):
        raise typer.Exit(1)


def _show_plan(
    job: "ReproductionJob",
    root: Path | None,
    load: "Load",
    images_per_second: float | None,
    console: Console,
    *,
    as_json: bool,
) -> None:
    """Check data sets and weights, print every problem, and estimate the rest; exit code 1 with a problem."""
    from training.reproduction.dry_run import plan_of  # noqa: PLC0415  torch
    from training.reproduction.terminal import show_plan  # noqa: PLC0415

    plan = plan_of(job, root, load, images_per_second, console)
    if as_json:
        typer.echo(json.dumps(plan))
    else:
        show_plan(plan)
    if plan["problems"]:
        raise typer.Exit(1)
