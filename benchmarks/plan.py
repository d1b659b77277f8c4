"""`caspl bench plan`: latencies that `caspl plan` predicts, against those of real servers under Poisson arrivals.

Each server is measured idle, as a user would with `caspl plan --measure`, and then gets three loads. Nothing is fitted
to the loads.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console

from benchmarks.answers import percentile_ms
from benchmarks.errors import BenchError
from benchmarks.fixed_device import BACKBONE, launcher
from benchmarks.load import arrival_times
from benchmarks.photographs import write_photographs
from benchmarks.report import Report, Table, Target
from benchmarks.server import Server, ServerOptions, backbone_of, fill_store, serving
from caspl.capacity.measurements import Measurements, write_measurements
from caspl.capacity.measuring import measure as measure_server
from caspl.capacity.queueing import WARM_UP, Balancing, poisson_arrivals, simulate
from caspl.capacity.sizing import Objective, predict
from caspl.client import Client

PARTS: Final = ("model", "fixed", "ray")
BATCH_S: Final = 0.040
ROW_S: Final = 0.020
BATCH_ROWS: Final = 8
"""The simulated device: 200 ms for a full batch, 40 images/s, so that two servers leave most of two cores free."""
TARGET: Final = Target("<=", 0.25)
N_RUNS: Final = 40
"""Simulated runs of the measurement's length, for the spread that chance explains."""


@dataclass(frozen=True, kw_only=True)
class PlanOptions(ServerOptions):
    """Options of the command."""

    loads: tuple[float, ...] = (0.3, 0.6, 0.8)
    n_requests: int = 1500
    n_replicas: int = 2
    side: int = 0
    only: tuple[str, ...] = PARTS


@dataclass(frozen=True)
class Case:
    """A kind of server: its name in words, how many share the load, and how."""

    name: str
    words: str
    n_servers: int = 1
    balancing: Balancing = "random"


@dataclass(frozen=True)
class Point:
    """One load: predicted and measured percentiles in milliseconds."""

    load: float
    rate_per_s: float
    predicted: tuple[float, float]
    by_chance: tuple[float, float]
    measured: tuple[float, float]
    n_requests: int
    n_failed: int
    rows_per_batch: tuple[float, float]


def measure(options: PlanOptions, out: Path, console: Console) -> Report:
    """Measure every server idle, predict, and compare; writes the measurements to `out`, too.

    Raises:
        BenchError: an unknown part, no Ray, or a server does not become ready.
    """
    if unknown := set(options.only) - set(PARTS):
        raise BenchError(f"unknown parts: {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    if "ray" in options.only and find_spec("ray") is None:
        raise BenchError("Ray is not installed: pip install 'caspl-serve[ray]', or --only model,fixed")
    report = Report("plan", asdict(options), device=options.device if options.device != "auto" else "cpu")
    cases = {
        "model": Case("model", f"{options.backbone} on this processor"),
        "fixed": Case("fixed", "simulated device, one server"),
        "ray": Case(
            "ray", f"simulated device, {options.n_replicas} replicas of Ray", options.n_replicas, "two-choices"
        ),
    }
    rows = []
    with tempfile.TemporaryDirectory(prefix="caspl-bench-") as name:
        folder = Path(name)
        photographs = write_photographs(folder / "photographs", side=options.side or None)
        for part in options.only:
            case = cases[part]
            console.print(f"starting {case.words}")
            with started(case, options, folder, photographs) as server:
                times = idle_times(server, case, photographs)
                out.mkdir(parents=True, exist_ok=True)
                write_measurements(times, out / f"plan-{case.name}.measured.json")
                report.samples[f"measurements_{case.name}"] = times.model_dump()
                for load in options.loads:
                    console.print(f"{case.words}: {load:.0%} of the capacity")
                    point = compare(server, times, case, load, options.n_requests)
                    rows.append(add_point(report, case, point))
    headings = (
        "server", "load", "requests/s", "p50 predicted / measured, ms", "p99 predicted / measured, ms", "error of p99",
        "p99 by chance, ms", "images per batch predicted / measured", "requests", "failed",
    )  # fmt: skip
    report.tables["Predicted and measured latencies"] = Table(headings, rows)
    report.notes += [
        "`p99 by chance`: 5 and 95 % of the p99 of simulated runs with as many requests; a measured value outside "
        "shows what the model leaves out.",
        f"Simulated device: {1000 * BATCH_S:.0f} ms per batch and {1000 * ROW_S:.0f} ms per image, at most "
        f"{BATCH_ROWS} images, no CPU. Servers and client share the cores.",
    ]
    return report


@contextmanager
def started(case: Case, options: PlanOptions, folder: Path, photographs: list[Path]) -> Iterator[Server]:
    """The case's server."""
    given = ServerOptions(**{one.name: getattr(options, one.name) for one in fields(ServerOptions)})
    caspl: Path | None = None
    if case.name != "model":
        given = ServerOptions(BACKBONE, "cpu", "float32", extra=(("max_batch_rows", str(BATCH_ROWS)),))
        (folder / case.name).mkdir()
        caspl = launcher(folder / case.name, batch_s=BATCH_S, row_s=ROW_S)
    words = ("--ray", "--replicas", str(case.n_servers)) if case.name == "ray" else ()
    store = folder / f"store-{case.name}"
    digests = fill_store(store, backbone_of(given), n_domains=4)
    with serving(given, store, digests, photographs, caspl=caspl, words=words) as server:
        server.closed(4, 3.0)
        yield server


def idle_times(server: Server, case: Case, photographs: list[Path]) -> Measurements:
    """What `caspl plan --measure` finds; a simulated device takes no core."""
    with Client(server.url, retry_for_s=0) as client:
        times = measure_server(client, server.domains[0], photographs)
    return times if case.name == "model" else times.model_copy(update={"shares_cores": False})


def compare(server: Server, times: Measurements, case: Case, load: float, n_requests: int) -> Point:
    """Send a load, and predict its latencies without it."""
    rate_per_s = load * case.n_servers * times.capacity_per_s(1)
    objective = Objective(p99_ms=0.0, balancing=case.balancing)
    predicted = predict(times, rate_per_s, case.n_servers, objective)
    run = partial(simulate, times, n_servers=case.n_servers, balancing=case.balancing)
    by_chance = [run(poisson_arrivals(rate_per_s, n_requests, seed=seed), seed=seed).ms(99) for seed in range(N_RUNS)]
    low_ms, high_ms = np.percentile(by_chance, [5, 95]).tolist()
    before = server.metrics()
    due_s = arrival_times(rate_per_s, n_requests / rate_per_s)
    answers = server.open_at(due_s)
    after = server.metrics()
    good_s = [answer.latency_s for answer in answers[int(WARM_UP * len(answers)) :] if answer.is_good]
    rows, batches = (
        after.get(name, 0.0) - before.get(name, 0.0) for name in ("caspl_batch_rows_sum", "caspl_batch_rows_count")
    )
    return Point(
        load,
        rate_per_s,
        (predicted.ms(50), predicted.ms(99)),
        (low_ms, high_ms),
        (percentile_ms(good_s, 50), percentile_ms(good_s, 99)),
        len(answers),
        sum(not answer.is_good for answer in answers),
        (predicted.rows_per_batch, rows / batches if batches else float("nan")),
    )


def add_point(report: Report, case: Case, point: Point) -> tuple[object, ...]:
    """Add a point's error to a report; returns its row of the table."""
    errors = [predicted / measured - 1 for predicted, measured in zip(point.predicted, point.measured, strict=True)]
    at = f"{case.words}, at {point.load:g} of the capacity"
    report.add(
        f"p99_error_{case.name}_{point.load:g}", abs(errors[1]), f"predicted p99 / measured, minus one; {at}", TARGET
    )
    report.samples.setdefault("points", []).append({"case": case.name, **asdict(point)})
    p50, p99 = (f"{one:.0f} / {other:.0f}" for one, other in zip(point.predicted, point.measured, strict=True))
    low_ms, high_ms = point.by_chance
    batches = " / ".join(f"{one:.2f}" for one in point.rows_per_batch)
    chance = f"{low_ms:.0f} .. {high_ms:.0f}"
    return (
        case.words, f"{point.load:g}", f"{point.rate_per_s:.1f}", p50, p99, f"{errors[1]:+.0%}", chance, batches,
        point.n_requests, point.n_failed,
    )  # fmt: skip
