"""The demo world's commands: `python -P -m training.demo --help`."""

import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import torch
import typer
from rich.console import Console
from rich.table import Table

from training.adapting.methods import METHODS
from training.demo import ablate_domain, adapt_domains, label_free_domains, variant_command
from training.demo.arguments import Domain, Domains
from training.demo.boost_domains import boost_all, markdown_table, show_table
from training.demo.crowding import crowding
from training.demo.default_recipes import markdown_table as defaults_table
from training.demo.default_recipes import run_defaults
from training.demo.domain_pool import default_jobs
from training.demo.evaluate import measure_all
from training.demo.fit_domains import fit_domains
from training.demo.fit_tables import adapt_lines, checks_table, unlabelled_table
from training.demo.fit_tables import markdown_table as fit_table
from training.demo.folders import DRAWN, write_folders
from training.demo.int8_domains import N_TEST, int8_table, measure_int8, write_results
from training.demo.models import CONFIG_DIR
from training.demo.pages import fill_page
from training.demo.picture import write_overview
from training.demo.plans import STUDENT_PLAN, TEACHER_PLAN
from training.demo.pretrain_commands import (
    WORK_DIR,
    OutDir,
    Threads,
    WorkDir,
    pretrain_second_teacher,
    pretrain_student,
    pretrain_teacher,
)
from training.demo.samples import write_samples, write_upload
from training.demo.shared_command import shared_boost
from training.demo.shifts import SHIFTED
from training.demo.teachers_command import teachers
from training.evaluation.arguments import numbers

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Images, models and bundles of the demo world.")
console = Console(stderr=True)

RESULTS: Final = Path("docs/results/demo-backbones.json")
BOOST_RESULTS: Final = Path("docs/results/demo-boost.json")
ADAPT_RESULTS: Final = Path("docs/results/demo.json")
FIT_RESULTS: Final = Path("docs/results/demo-fit.json")
LABEL_FREE_RESULTS: Final = Path("docs/results/demo-label-free.json")
ADAPTING_PAGE: Final = Path("docs/adapting.md")
FIT_PAGE: Final = Path("docs/few-shot.md")
ABLATE_RESULTS: Final = Path("docs/results/demo-ablate.json")
ABLATE_PAGE: Final = Path("docs/evaluation.md")
DEFAULT_RESULTS: Final = Path("docs/results/demo-defaults.json")
INT8_RESULTS: Final = Path("docs/results/demo-int8.json")
DEMO_PAGE: Final = Path("docs/demo-world.md")
SERVICE_DEMO: Final = Path("service/demo")
OVERVIEW: Final = Path("docs/images/demo-world.png")
README: Final = Path("README.md")

Jobs = Annotated[int | None, typer.Option(min=1, help="Domains to process in parallel; default: number of cores.")]


app.command()(pretrain_student)
app.command()(pretrain_teacher)
app.command()(pretrain_second_teacher)


@app.command()
def evaluate(
    weights_dir: OutDir = CONFIG_DIR,
    n_pictures: Annotated[int, typer.Option(min=1, help="Images per domain.")] = 2000,
    out: Annotated[Path | None, typer.Option(help="JSON file for the results.")] = None,
    threads: Threads = 2,
) -> None:
    """Evaluate zero-shot accuracy of student and teacher on clean images and in every domain."""
    torch.set_num_threads(threads)
    weights = {plan.arch: weights_dir / f"{plan.arch}.safetensors" for plan in (STUDENT_PLAN, TEACHER_PLAN)}
    rates = measure_all({arch: path for arch, path in weights.items() if path.is_file()}, n_pictures)
    table = Table("backbone", "domain", "all 80", "held out", "base", "new")
    for arch, domains in rates.items():
        for domain, accuracy in domains.items():
            table.add_row(arch, domain, *(f"{100 * value:.1f}" for value in accuracy.values()))
    Console().print(table)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"n_pictures_per_domain": n_pictures, "zero_shot": rates}, indent=2) + "\n")


@app.command()
def write_folder(
    domain: Annotated[str, typer.Argument(help=", ".join(DRAWN))],
    out_dir: Annotated[Path, typer.Argument(help="An empty or missing folder.")],
    n_train: Annotated[int, typer.Option(min=0, help="Unlabelled images in train/.")] = 4000,
    n_test: Annotated[int, typer.Option(min=0, help="Labelled images in test/<class>/.")] = 1600,
    suffix: Annotated[Literal["png", "jpg"], typer.Option(help="Image format.")] = "png",
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
) -> None:
    """Write a domain's images as image folders."""
    try:
        write_folders(domain, out_dir, n_train=n_train, n_test=n_test, suffix=suffix, seed=seed)
    except (ValueError, FileExistsError) as error:
        console.print(f"[red]{error}[/red]")
        raise typer.Exit(1) from error
    console.print(f"wrote {n_train} train and {n_test} test images to {out_dir}", soft_wrap=True)


@app.command()
def picture(out: Annotated[Path, typer.Argument()] = OVERVIEW) -> None:
    """Draw an overview of classes and domains."""
    write_overview(out)


@app.command()
def int8(
    domains: Domains = None,
    n_pictures: Annotated[int, typer.Option(min=1, help="Images per domain.")] = N_TEST,
    work_dir: WorkDir = WORK_DIR,
    threads: Threads = 2,
) -> None:
    """Compare the accuracy of int8 in OpenVINO with float32; a run with all domains updates the documentation."""
    torch.set_num_threads(threads)
    names, out, rows = domains or tuple(SHIFTED), INT8_RESULTS if not domains else work_dir / "int8.json", []
    for found in measure_int8(SERVICE_DEMO / "bundles", names, n_test=n_pictures, console=console):
        rows += found
        write_results(rows, out, n_test=n_pictures)
    if not domains:
        fill_page(DEMO_PAGE, "demo-int8", int8_table(json.loads(out.read_text(encoding="utf-8"))))


@app.command()
def boost(
    domains: Domains = None,
    work_dir: WorkDir = WORK_DIR,
    jobs: Jobs = None,
) -> None:
    """Boost domains, unless they have a bundle, and evaluate them; a run with all domains updates the documentation."""
    names, results = domains or tuple(SHIFTED), BOOST_RESULTS if not domains else work_dir / "boost.json"
    n_jobs = jobs or default_jobs()
    rows = boost_all(SERVICE_DEMO / "bundles", results, work_dir, names, jobs=n_jobs, console=console)
    if not domains:
        fill_page(DEMO_PAGE, "demo-table", markdown_table(rows))
    show_table(rows, Console())


app.command()(shared_boost)


@app.command()
def adapt(
    domains: Domains = None,
    work_dir: WorkDir = WORK_DIR,
    jobs: Jobs = None,
) -> None:
    """Adapt domains with and without boosting over three seeds; a run with all domains updates the documentation."""
    bundles, names = SERVICE_DEMO / "bundles", domains or tuple(SHIFTED)
    n_jobs = jobs or default_jobs()
    rows = adapt_domains.adapt_all(bundles, work_dir / "adapted", names, jobs=n_jobs, console=console)
    if not domains:
        adapt_domains.report(rows, ADAPT_RESULTS)
        _fill_readme()
        fill_page(DEMO_PAGE, "demo-adapt", adapt_domains.domain_table(rows))
    adapt_domains.show_table(rows, Console())


@app.command()
def ablate(
    domain: Domain = "thermal",
    seeds: Annotated[str, typer.Option(help="Comma-separated seeds of phase 2.")] = "1,2,3",
    work_dir: WorkDir = WORK_DIR,
) -> None:
    """Run the paper's ablations in one domain with 20 classes, and update the tables in the documentation."""
    torch.set_num_threads(1)
    report = ablate_domain.ablate_domain(domain, work_dir / "ablated", numbers(seeds, "--seeds", least=0), console)
    ablate_domain.write_results(report, ABLATE_RESULTS)
    fill_page(ABLATE_PAGE, "demo-ablate", report.to_markdown())


@app.command()
def fit(jobs: Jobs = None) -> None:
    """Fit few-shot heads in all domains with and without boosting, and update the tables in the documentation."""
    fit_domains(SERVICE_DEMO / "bundles", FIT_RESULTS, tuple(SHIFTED), jobs=jobs or default_jobs(), console=console)
    results = _read(FIT_RESULTS)
    fill_page(FIT_PAGE, "demo-fit", fit_table(results["rows"]))
    fill_page(FIT_PAGE, "demo-fit-unlabelled", unlabelled_table(results["rows"]))
    fill_page(FIT_PAGE, "demo-fit-checks", checks_table(results["checks"]))
    _fill_readme()
    console.print(f"wrote {FIT_RESULTS} and the tables in {FIT_PAGE} and {README}", soft_wrap=True)


def _fill_readme() -> None:
    """README's table of adapting methods and few-shot heads, from the results of `adapt` and `fit`."""
    adapted, fitted = (_read(path)["rows"] for path in (ADAPT_RESULTS, FIT_RESULTS))
    fill_page(README, "demo-adapt", f"{adapt_domains.markdown_table(adapted)}\n{adapt_lines(fitted)}")


def _read(results: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(results.read_text(encoding="utf-8"))
    return found


@app.command()
def label_free(
    domains: Domains = None,
    recipes: Annotated[
        str, typer.Option(help="Comma-separated tables of training/demo/label_free.toml; default: all.")
    ] = ",".join(label_free_domains.recipe_names()),
    work_dir: WorkDir = WORK_DIR,
    jobs: Jobs = None,
) -> None:
    """Learn without labels with and without boosting; a run with all domains updates the documentation."""
    chosen = recipes.split(",")
    if unknown := set(chosen) - set(label_free_domains.recipe_names()):
        msg = f"expected some of {', '.join(label_free_domains.recipe_names())}, found {', '.join(sorted(unknown))}"
        raise typer.BadParameter(msg, param_hint="--recipes")
    bundles, results = SERVICE_DEMO / "bundles", LABEL_FREE_RESULTS if not domains else work_dir / "label-free.json"
    names, n_jobs = domains or tuple(SHIFTED), jobs or default_jobs()
    rows = label_free_domains.learn_domains(bundles, results, work_dir / "label-free", names, chosen, jobs=n_jobs)
    tables = {
        "demo-label-free": label_free_domains.markdown_table(rows),
        "demo-label-free-domains": label_free_domains.domain_table(rows),
    }
    for name, table in tables.items():
        if not domains:
            fill_page(ADAPTING_PAGE, name, table)
        Console().print(table, markup=False, soft_wrap=True)


@app.command()
def defaults(
    methods: Annotated[str, typer.Option(help="Comma-separated methods of `caspl adapt`.")] = "coop",
) -> None:
    """Measure the default recipes before and after training, and update the table in the documentation."""
    chosen = methods.split(",")
    if unknown := [method for method in chosen if method not in METHODS]:
        raise typer.BadParameter(f"expected some of {', '.join(METHODS)}, found {unknown[0]!r}", param_hint="--methods")
    torch.set_num_threads(1)
    for rows in run_defaults(chosen, console):
        DEFAULT_RESULTS.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
        fill_page(DEMO_PAGE, "demo-defaults", defaults_table(rows))


app.command(name="boost-variants")(variant_command.run)
app.command()(teachers)


@app.command()
def crowd(
    domain: Domain = "negative",
    counts: Annotated[str, typer.Option(help="Comma-separated numbers of tokens.")] = "0,1,2,4,8",
) -> None:
    """Evaluate a boosted student with random text tokens before its boosting tokens."""
    table = Table("tokens", "base", "new", title=f"boosted student, {domain}, per cent")
    for count, found in crowding(domain, SERVICE_DEMO / "bundles", numbers(counts, "--counts", least=0)).items():
        table.add_row(str(count), f"{found['base']:.1f}", f"{found['new']:.1f}")
    Console().print(table)


@app.command()
def samples(work_dir: WorkDir = WORK_DIR, threads: Threads = 2) -> None:
    """Write the sample images and the upload bundle of the service's demo."""
    torch.set_num_threads(threads)
    upload = write_upload(SERVICE_DEMO / "upload", SERVICE_DEMO / "bundles", work_dir, console)
    paths = [*write_samples(SERVICE_DEMO / "images"), upload]
    for path in paths:
        console.print(f"wrote {path}", soft_wrap=True)


@app.command(name="all")
def train_all(work_dir: WorkDir = WORK_DIR, out_dir: OutDir = CONFIG_DIR, threads: Threads = 2) -> None:
    """Train and evaluate student and teacher, boost and adapt every domain, and write the demo files."""
    pretrain_student(work_dir, out_dir, threads)
    pretrain_teacher(work_dir, out_dir, threads)
    evaluate(out_dir, out=RESULTS, threads=threads)
    boost(None, work_dir)
    adapt(None, work_dir)
    samples(work_dir, threads)
    picture(OVERVIEW)


if __name__ == "__main__":
    app()
