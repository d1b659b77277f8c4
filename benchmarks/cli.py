"""`caspl bench`: measures this machine and writes every number with its command, commit, hardware and date.

torch is imported when a measurement runs. Every measurement writes `<name>.json` and `<name>.md` to `--out`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from benchmarks.command import (
    RESULTS,
    AsJson,
    Backbone,
    Backend,
    Clients,
    Device,
    Dtype,
    Label,
    Out,
    Seconds,
    Settings,
    Side,
    WebWorkers,
    comma_separated,
    integers,
    name_value_pairs,
    numbers,
    run,
)
from training.options import Quiet

if TYPE_CHECKING:
    from rich.console import Console

    from benchmarks.report import Report

bench_app: Final = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)


@bench_app.callback(epilog="\b\nExample:\n  caspl bench engine --seconds 30")
def bench() -> None:
    """Measure the engine, the server under load, fits, HTTP alone, other servers on the same work, and training."""


@bench_app.command(epilog="\b\nExample:\n  caspl bench engine --seconds 30")
def engine(
    backbone: Backbone = "ViT-B-16",
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "auto",
    domains: Annotated[int, typer.Option(min=64, help="loaded domains")] = 1000,
    seconds: Annotated[float, typer.Option(min=1, help="time for all rounds")] = 60.0,
    extra: Settings = None,
    out: Out = RESULTS,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure the engine without HTTP: one domain, many domains, in OpenVINO, against open_clip in the same dtype."""

    def measure(console: Console) -> Report:
        from benchmarks.engine import EngineOptions, measure

        options = EngineOptions(
            backbone=backbone,
            device=device,
            dtype=dtype,
            backend=backend,
            n_domains=domains,
            budget_s=seconds,
            extra=name_value_pairs(extra),
        )
        return measure(options, console)

    run(measure, out, as_json, quiet)


@bench_app.command(epilog="\b\nExample:\n  caspl bench serve")
def serve(
    backbone: Backbone = "ViT-B-16",
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "auto",
    web_workers: WebWorkers = 0,
    domains: Annotated[int, typer.Option(min=1, help="live domains")] = 64,
    side: Side = 224,
    seconds: Seconds = 20.0,
    slo_ms: Annotated[float, typer.Option(min=1, help="latency objective under overload")] = 2000.0,
    only: Annotated[
        str,
        typer.Option(
            help="parts, separated by commas: start, idle, closed, open, overload, swaps, fits, rollouts, attacks"
        ),
    ] = "start,idle,closed,open,overload",
    label: Label = "",
    extra: Settings = None,
    out: Out = RESULTS,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure the server over HTTP: start, idle latency, closed and open loops, overload, swap load."""

    def measure(console: Console) -> Report:
        from benchmarks.serve import ServeOptions, measure

        options = ServeOptions(
            backbone=backbone,
            device=device,
            dtype=dtype,
            backend=backend,
            web_workers=web_workers,
            n_domains=domains,
            side=side,
            seconds=seconds,
            slo_ms=slo_ms,
            only=comma_separated(only),
            label=label,
            extra=name_value_pairs(extra),
        )
        return measure(options, console)

    run(measure, out, as_json, quiet)


@bench_app.command(epilog="\b\nExample:\n  caspl bench fit --examples 1280")
def fit(
    examples: Annotated[str, typer.Option(help="numbers of examples, separated by commas")] = "1280,10000",
    classes: Annotated[int, typer.Option(min=2, help="classes")] = 80,
    width: Annotated[int, typer.Option(min=1, help="width of the features")] = 512,
    rounds: Annotated[int, typer.Option(min=2, help="labels that change, one after the other")] = 20,
    out: Out = RESULTS,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure a few-shot fit with its report, and the report after one label has changed, on one core."""

    def measure(console: Console) -> Report:
        from benchmarks.fit_time import FitTimeOptions, measure

        return measure(FitTimeOptions(integers(examples, "--examples"), classes, width, rounds), console)

    run(measure, out, as_json, quiet)


@bench_app.command(epilog="\b\nExample:\n  caspl bench cliff --slots 64")
def cliff(
    backbone: Backbone = "ViT-B-16",
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "auto",
    web_workers: WebWorkers = 0,
    slots: Annotated[int, typer.Option(min=1, help="slots of the prompt bank")] = 16,
    over: Annotated[str, typer.Option(help="domains over slots, separated by commas; 1 is the reference")] = "1,2,4,16",
    zipf: Annotated[str, typer.Option(help="exponents of the domains' popularity; 0 is uniform")] = "0,1",
    updates: Annotated[str, typer.Option(help="new versions per second, separated by commas")] = "0,5",
    clients: Clients = 16,
    side: Side = 224,
    seconds: Annotated[float, typer.Option(min=1, help="length of each point, in three turns")] = 10.0,
    extra: Settings = None,
    out: Out = RESULTS,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure working sets larger than the prompt bank; draws cliff.svg."""

    def measure(console: Console) -> Report:
        from benchmarks.cliff import CliffOptions, measure
        from benchmarks.cliff_chart import draw

        options = CliffOptions(
            backbone=backbone,
            device=device,
            dtype=dtype,
            backend=backend,
            web_workers=web_workers,
            slots=slots,
            over=integers(over, "--over"),
            alphas=numbers(zipf, "--zipf"),
            updates_per_s=numbers(updates, "--updates"),
            clients=clients,
            side=side,
            seconds=seconds,
            extra=name_value_pairs(extra),
        )
        report = measure(options, console)
        console.print(f"wrote {draw(report, out)}", markup=False, soft_wrap=True)
        return report

    run(measure, out, as_json, quiet)


@bench_app.command(epilog="\b\nExample:\n  caspl bench http --rounds 5 --seconds 5")
def http(
    workers: Annotated[str, typer.Option(help="numbers of web processes, separated by commas")] = "0,1,2",
    images: Annotated[str, typer.Option(help="images per request, separated by commas")] = "1,8,16",
    sides: Annotated[
        str, typer.Option(help="JPEGs' sides in pixels, of 224 and 1024, separated by commas")
    ] = "224,1024",
    preprocess: Annotated[str, typer.Option(help="exact or fast")] = "exact",
    rounds: Annotated[int, typer.Option(min=1, help="rounds of all measurements")] = 5,
    seconds: Annotated[int, typer.Option(min=1, help="length of each measurement")] = 5,
    profile: Annotated[int, typer.Option(min=0, help="seconds of py-spy on the first case; 0 for none")] = 10,
    label: Label = "",
    out: Out = RESULTS,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure HTTP and decoding with a simulated device: a fixed time per batch, no CPU. Requires wrk."""

    def measure(console: Console) -> Report:
        from benchmarks.http_capacity import HttpOptions, measure

        options = HttpOptions(
            workers=integers(workers, "--workers"),
            images=integers(images, "--images"),
            sides=integers(sides, "--sides"),
            preprocess=preprocess,
            rounds=rounds,
            seconds=seconds,
            profile_s=profile,
            label=label,
        )
        return measure(options, console)

    run(measure, out, as_json, quiet)


@bench_app.command(epilog="\b\nExample:\n  caspl bench plan --requests 500")
def plan(
    backbone: Backbone = "ViT-B-32",
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "auto",
    loads: Annotated[str, typer.Option(help="shares of the capacity, separated by commas")] = "0.3,0.6,0.8",
    requests: Annotated[int, typer.Option(min=10, help="requests of each load")] = 1500,
    replicas: Annotated[int, typer.Option(min=2, help="replicas of Ray")] = 2,
    only: Annotated[str, typer.Option(help="servers, separated by commas: model, fixed, ray")] = "model,fixed",
    side: Side = 0,
    extra: Settings = None,
    out: Out = RESULTS,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure how well `caspl plan` predicts the latencies of real servers at several loads."""

    def measure(console: Console) -> Report:
        from benchmarks.plan import PlanOptions, measure

        options = PlanOptions(
            backbone=backbone,
            device=device,
            dtype=dtype,
            backend=backend,
            loads=numbers(loads, "--loads"),
            n_requests=requests,
            n_replicas=replicas,
            only=comma_separated(only),
            side=side,
            extra=name_value_pairs(extra),
        )
        return measure(options, out, console)

    run(measure, out, as_json, quiet)


@bench_app.command(epilog="\b\nExample:\n  caspl bench peers")
def peers(
    names: Annotated[str, typer.Option("--peers", help="separated by commas; all by default")] = "",
    dtypes: Annotated[str, typer.Option(help="bfloat16, float32 or int8, separated by commas")] = "bfloat16,float32",
    backbone: Annotated[str, typer.Option(help="open_clip architecture")] = "ViT-B-16",
    threads: Annotated[int, typer.Option(min=1, help="threads in all, for every server")] = 2,
    clients: Clients = 4,
    seconds: Annotated[float, typer.Option(min=1, help="length of each of three turns")] = 10.0,
    side: Side = 0,
    extra: Settings = None,
    folder: Annotated[Path, typer.Option(help="virtual environments of the peers")] = Path("build/peers"),
    add: Annotated[bool, typer.Option("--add", help="keep the other rows of the result in --out")] = False,
    out: Out = RESULTS,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure other servers with the same photographs, clients and threads, one at a time."""

    def measure(console: Console) -> Report:
        from benchmarks.peers.compare import PeerOptions, measure

        options = PeerOptions(
            names=comma_separated(names),
            dtypes=comma_separated(dtypes),
            backbone=backbone,
            threads=threads,
            clients=clients,
            seconds=seconds,
            side=side,
            extra=name_value_pairs(extra),
            folder=folder,
            add_to=out / "peers.json" if add else None,
        )
        return measure(options, console)

    run(measure, out, as_json, quiet)


@bench_app.command(epilog="\b\nExample:\n  caspl bench ray --replicas 2")
def ray(
    backbone: Backbone = "demo-student",
    device: Device = "auto",
    dtype: Dtype = "auto",
    replicas: Annotated[int, typer.Option(min=1, help="replicas on Ray")] = 2,
    slots: Annotated[int, typer.Option(min=1, help="slots of the prompt bank of each replica")] = 16,
    over: Annotated[str, typer.Option(help="domains over slots, separated by commas")] = "1,2",
    zipf: Annotated[float, typer.Option(min=0, help="exponent of the domains' popularity; 0 is uniform")] = 0.0,
    clients: Clients = 16,
    side: Side = 64,
    seconds: Seconds = 5.0,
    rounds: Annotated[int, typer.Option(min=3, help="rounds of all measurements")] = 5,
    extra: Settings = None,
    out: Out = RESULTS,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure Ray Serve's routing by load and by domain, and one plain server. Requires the extra ray."""

    def measure(console: Console) -> Report:
        from benchmarks.ray_routing import RayOptions, measure

        options = RayOptions(
            backbone=backbone,
            device=device,
            dtype=dtype,
            replicas=replicas,
            slots=slots,
            over=integers(over, "--over"),
            alpha=zipf,
            clients=clients,
            side=side,
            seconds=seconds,
            rounds=rounds,
            extra=name_value_pairs(extra),
        )
        return measure(options, console)

    run(measure, out, as_json, quiet)


@bench_app.command(epilog="\b\nExample:\n  caspl bench train")
def train(
    backbone: Backbone = "ViT-B-16",
    teacher: Annotated[str, typer.Option(help="open_clip architecture")] = "ViT-L-14",
    images: Annotated[int, typer.Option(min=1, help="images per epoch")] = 16,
    classes: Annotated[int, typer.Option(min=2, help="classes of the domain; DTD has 47")] = 47,
    epochs: Annotated[int, typer.Option(min=2, help="epochs of each run; the first one fills the caches")] = 2,
    methods: Annotated[str, typer.Option(help="separated by commas; all by default")] = "",
    threads: Annotated[int, typer.Option(min=1, help="torch threads")] = 2,
    out: Out = RESULTS,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure training speed against a transcription of the reference recipe, with equal losses."""

    def measure(console: Console) -> Report:
        from benchmarks.training_speed import TrainOptions, measure

        names = comma_separated(methods)
        return measure(TrainOptions(backbone, teacher, images, classes, epochs, names, threads), console)

    run(measure, out, as_json, quiet)


@bench_app.command(epilog="\b\nExample:\n  caspl bench table docs/results")
def table(
    results: Annotated[Path, typer.Argument(help="folder of the JSON files")] = Path("docs/results"),
    pages: Annotated[list[Path] | None, typer.Option("--page", help="page whose tables to fill; repeatable")] = None,
) -> None:
    """Generate the Markdown tables of results from their JSON, and fill the tables of pages."""
    from benchmarks.tables import fill_tables, write_tables

    for path in write_tables(results):
        typer.echo(f"wrote {path}")
    for page in pages or []:
        fill_tables(page, results)
        typer.echo(f"filled {page}")
