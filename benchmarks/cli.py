"""The command `caspl bench`: measures this machine's own speed, and writes every number beside what it was measured on.

Only reads options; torch is loaded when a measurement runs. Every subcommand writes `bench-<name>.json`, `.md` and
`.png` into `--out`, and prints its table, or with `--json` one object on standard output and nothing else.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer
from rich.console import Console
from rich.markdown import Markdown

from service.cores import spin_between_steps

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.report import Report

bench_app: Final = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)

FAILURE: Final = 1
RESULTS: Final = Path("build/bench")

Out = Annotated[Path, typer.Option(help="folder for the JSON, Markdown and PNG files")]
Page = Annotated[Path | None, typer.Option(help="page whose marks to fill, such as docs/performance.md")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")]
BackboneName = Annotated[str, typer.Option(help="open_clip architecture with random weights, or demo-student")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16")]
Threads = Annotated[int, typer.Option(min=0, help="torch threads; 0 leaves torch's choice")]
Extra = Annotated[
    list[str] | None, typer.Option("--set", help="NAME=VALUE, a further setting of the service; may be repeated")
]
Seed = Annotated[int, typer.Option(help="of weights, prompts, pictures and schedules")]


@bench_app.callback()
def bench() -> None:
    """Measure this machine: the engine, the service under load, decoding, swapping, and other servers beside it."""


@bench_app.command()
def engine(
    backbone: BackboneName = "ViT-B-16",
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = 0,
    batch_rows: Annotated[int, typer.Option(min=0, help="rows of a batch; 0 finds the best of a few")] = 0,
    registered: Annotated[int, typer.Option(min=64, help="domains registered")] = 1000,
    slots: Annotated[int, typer.Option(min=1, help="slots of the bank they page through")] = 64,
    alpha: Annotated[float, typer.Option(min=0, help="popularity is rank ** -alpha")] = 0.6,
    tokens: Annotated[int, typer.Option(min=1, help="image prompt tokens of every domain")] = 12,
    budget_s: Annotated[float, typer.Option(min=1, help="seconds for the rounds themselves")] = 100.0,
    seed: Seed = 0,
    out: Out = RESULTS,
    page: Page = None,
    as_json: AsJson = False,
) -> None:
    """The engine without HTTP: mixed domains, paging, prompts, against open_clip and bare matrix products."""

    def measure(console: Console) -> Report:
        spin_between_steps()
        from benchmarks.engine import EngineOptions
        from benchmarks.engine_report import measure

        options = EngineOptions(
            backbone=backbone,
            device=device,
            dtype=dtype,
            threads=threads,
            batch_rows=batch_rows,
            n_registered=registered,
            n_slots=slots,
            alpha=alpha,
            tokens=tokens,
            budget_s=budget_s,
            seed=seed,
        )
        return measure(options, console)

    _run(measure, out, page, as_json)


@bench_app.command()
def serve(
    backbone: BackboneName = "ViT-B-16",
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = 0,
    web_workers: Annotated[int, typer.Option(min=0, help="of the service; 0 is one process")] = 0,
    domains: Annotated[int, typer.Option(min=1, help="domains of the service")] = 64,
    alpha: Annotated[float, typer.Option(min=0, help="popularity is rank ** -alpha")] = 1.0,
    cv: Annotated[float, typer.Option(min=0, help="variation of the gaps: 1 is Poisson, 4 comes in bursts")] = 1.0,
    side: Annotated[int, typer.Option(min=0, help="pixels of the photographs' sides; 0 sends them as they are")] = 224,
    clients: Annotated[int, typer.Option(min=1, help="of the comparison with the engine")] = 4,
    seconds: Annotated[float, typer.Option(min=1, help="of every rate; of the storm in all")] = 20.0,
    rates: Annotated[str, typer.Option(help="requests per second, separated by commas; fractions of the ceiling")] = "",
    slo_ms: Annotated[float, typer.Option(min=1, help="an answer that takes longer is no good")] = 100.0,
    swap_storm: Annotated[float, typer.Option(min=0, help="activations per second on the hottest domain")] = 0.0,
    overload: Annotated[float, typer.Option(min=0, help="times the capacity to offer")] = 0.0,
    only: Annotated[
        str, typer.Option(help="parts, separated by commas: start, idle, engine, pipeline, sweep, storm, overload")
    ] = "",
    label: Annotated[str, typer.Option(help="behind the name of the files and the page's marks")] = "",
    url: Annotated[
        str, typer.Option(help="a running service instead of one of our own; only its load is measured")
    ] = "",
    extra: Extra = None,
    seed: Seed = 0,
    out: Out = RESULTS,
    page: Page = None,
    as_json: AsJson = False,
) -> None:
    """The whole service over HTTP: open-loop load, a swap storm, overload, and what HTTP adds to the engine."""

    def measure(console: Console) -> Report:
        spin_between_steps()
        from benchmarks.serve import measure
        from benchmarks.stage import ServeOptions

        options = ServeOptions(
            backbone=backbone,
            device=device,
            dtype=dtype,
            threads=threads,
            web_workers=web_workers,
            n_domains=domains,
            alpha=alpha,
            cv=cv,
            side=side,
            clients=clients,
            seconds=seconds,
            rates=_numbers(rates),
            slo_ms=slo_ms,
            swap_storm=swap_storm,
            overload=overload,
            only=_words(only),
            label=label,
            url=url,
            extra=_pairs(extra or []),
            seed=seed,
        )
        return measure(options, console)

    _run(measure, out, page, as_json)


@bench_app.command()
def decode(
    side: Annotated[int, typer.Option(min=1, help="of the backbone's input, in pixels")] = 224,
    budget_s: Annotated[float, typer.Option(min=1, help="seconds for each size of picture")] = 15.0,
    out: Out = RESULTS,
    page: Page = None,
    as_json: AsJson = False,
) -> None:
    """JPEG files to pixels on one thread: the service's ways on a CPU beside other decoders that are installed."""

    def measure(console: Console) -> Report:
        from benchmarks.decode import DecodeOptions, measure

        return measure(DecodeOptions(side=side, budget_s=budget_s), console)

    _run(measure, out, page, as_json)


@bench_app.command()
def swap(
    backbone: BackboneName = "demo-student",
    device: Device = "auto",
    swaps: Annotated[int, typer.Option(min=1, help="activations after the warm-up")] = 10_000,
    warm_up: Annotated[int, typer.Option(min=0, help="activations before the first look at the memory")] = 500,
    budget_s: Annotated[float, typer.Option(min=0, help="stop after so many seconds; 0 goes to the end")] = 0.0,
    seed: Seed = 0,
    out: Out = RESULTS,
    page: Page = None,
    as_json: AsJson = False,
) -> None:
    """Thousands of activations in one process: how long one takes, and that memory does not grow."""

    def measure(console: Console) -> Report:
        spin_between_steps()
        from benchmarks.swap import SwapOptions, measure

        options = SwapOptions(
            backbone=backbone, device=device, n_swaps=swaps, n_warm_up=warm_up, budget_s=budget_s, seed=seed
        )
        return measure(options, console)

    _run(measure, out, page, as_json)


@bench_app.command()
def peers(
    names: Annotated[str, typer.Option("--peers", help="which, separated by commas; all by default")] = "",
    dtypes: Annotated[str, typer.Option(help="of the peers, separated by commas")] = "float32,bfloat16",
    backbone: Annotated[str, typer.Option(help="open_clip architecture, the same for all")] = "ViT-B-16",
    threads: Annotated[int, typer.Option(min=1, help="torch threads, the same for all")] = 2,
    clients: Annotated[int, typer.Option(min=1, help="of the closed loop")] = 4,
    seconds: Annotated[float, typer.Option(min=1, help="of load on each")] = 15.0,
    side: Annotated[int, typer.Option(min=0, help="pixels of the photographs' sides; 0 sends them as they are")] = 0,
    folder: Annotated[Path, typer.Option(help="where each peer's own environment is made")] = Path("build/peers"),
    add: Annotated[bool, typer.Option("--add", help="keep the peers that the result in --out has already")] = False,
    seed: Seed = 0,
    out: Out = RESULTS,
    page: Page = None,
    as_json: AsJson = False,
) -> None:
    """Other servers on the same photographs, client and threads, one at a time, each in an environment of its own."""

    def measure(console: Console) -> Report:
        from benchmarks.peers.compare import PeerOptions, measure

        options = PeerOptions(
            names=_words(names),
            dtypes=_words(dtypes),
            backbone=backbone,
            threads=threads,
            clients=clients,
            seconds=seconds,
            side=side,
            folder=folder,
            add_to=out / "bench-peers.json" if add else None,
            seed=seed,
        )
        return measure(options, console)

    _run(measure, out, page, as_json)


def _words(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


def _pairs(words: list[str]) -> tuple[tuple[str, str], ...]:
    if wrong := [word for word in words if "=" not in word]:
        msg = f"expected NAME=VALUE, found {wrong[0]!r}"
        raise typer.BadParameter(msg, param_hint="--set")
    return tuple((name, value) for name, _, value in (word.partition("=") for word in words))


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in _words(text))
    except ValueError as error:
        msg = f"expected numbers separated by commas, found {text!r}"
        raise typer.BadParameter(msg, param_hint="--rates") from error


def _run(measure: Callable[[Console], Report], out: Path, page: Path | None, as_json: bool) -> None:
    """Measure, write the files, print the table or the object; what a person can mend is one line and a status."""
    console = Console(stderr=True, highlight=False)
    signal.signal(signal.SIGTERM, _leave)  # with what was started: servers in processes of their own
    try:
        from benchmarks.errors import TOLD

        try:
            report = measure(console)
            told = report.write(out, page)
        except TOLD as error:
            raise _fail(console, str(error)) from error
    except ModuleNotFoundError as error:
        install = 'pip install "caspl-serve[bench]"'
        raise _fail(console, f"this needs the package {error.name}, which is not installed: {install}") from error
    if as_json:
        typer.echo(json.dumps(report.as_object(), indent=1))
    else:
        Console().print(Markdown(report.markdown()))
    for line in told:
        console.print(line, markup=False, soft_wrap=True)


def _leave(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


def _fail(console: Console, text: str) -> typer.Exit:
    console.print(f"error: {text}", markup=False, style="red", soft_wrap=True)
    return typer.Exit(FAILURE)
