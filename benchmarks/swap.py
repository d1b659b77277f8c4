"""`caspl bench swap`: ten thousand activations through the real table and engine, in one process.

More versions of one domain take turns than stay loaded. Each activation is the whole way but for the trial, which a
content has once: read from the store, checked, made a stack, written to the store, swapped in. Resident memory must
not grow.
"""

import asyncio
import gc
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.bundles import BundleShape, random_bundle
from benchmarks.interleaved import Ratio
from benchmarks.machine import MIB, resident_bytes
from benchmarks.report import Bar, Measured, Plot, Report, Table
from benchmarks.served_model import ServedModel
from benchmarks.tags import domain_name
from prompt_store.store import Store
from service.domains.live_stacks import LiveStacks
from service.domains.publisher import Domains
from service.engine.engine import Engine
from service.observability.metrics import Metrics
from service.server import load_model

N_LOOKS = 50
"""Readings of the memory over the run."""
WARM_UP = 500
MAX_OLD = 8
N_VERSIONS = MAX_OLD + 2
"""So many that the one whose turn it is has always been let go."""


@dataclass(frozen=True, kw_only=True)
class SwapOptions(ServedModel):
    """What to measure; see the command's help."""

    backbone: str = "demo-student"
    n_swaps: int = 10_000
    n_warm_up: int = WARM_UP
    budget_s: float = 0.0


def measure(options: SwapOptions, console: Console) -> Report:
    """Swap and look at the memory."""
    model = load_model(options.settings())
    engine, metrics = Engine(model), Metrics()
    with tempfile.TemporaryDirectory(prefix="caspl-bench-") as folder:
        store = Store.open(Path(folder))
        live = LiveStacks(
            store,
            fingerprint=model.backbone.fingerprint,
            load=engine.load,
            try_out=engine.try_out,
            prepare=engine.prepare,
            metrics=metrics,
            max_old=MAX_OLD,
            max_waiting=MAX_OLD,
        )
        bundles = [random_bundle(model.backbone, domain_name(0), 1 + n, BundleShape()) for n in range(N_VERSIONS)]
        try:
            taken_s, looks = asyncio.run(_swap(live, bundles, options, console))
        finally:
            engine.close()
    return _report(options, str(model.backbone.device), taken_s, looks)


async def _swap(
    live: LiveStacks, bundles: list[bytes], options: SwapOptions, console: Console
) -> tuple[list[float], dict[int, int]]:
    """Seconds of every activation, and resident bytes by the number of activations before."""
    domain, domains = domain_name(0), Domains(live)
    for data in bundles:
        await domains.publish(domain, data, activate=True, actor="benchmark")

    async def activate(number: int) -> float:
        started_s = time.perf_counter()
        version = number % N_VERSIONS + 1
        served = await domains.activate(domain, version, expected=None, actor="benchmark")
        if live.pin(domain) is not served or served.version != version:
            msg = f"Activation {number} did not go live."
            raise RuntimeError(msg)
        return time.perf_counter() - started_s

    console.print(f"{options.n_warm_up} swaps to warm up")
    for number in range(options.n_warm_up):
        await activate(number)
    every = max(1, options.n_swaps // N_LOOKS)
    taken_s: list[float] = []
    looks = {0: _look()}
    console.print(f"{options.n_swaps} swaps")
    began_s = time.perf_counter()
    for number in range(options.n_swaps):
        taken_s.append(await activate(number))
        if (number + 1) % every == 0:
            looks[number + 1] = _look()
            if options.budget_s and time.perf_counter() - began_s > options.budget_s:
                console.print(f"time is up after {number + 1} swaps")
                break
    return taken_s, looks


def _look() -> int:
    """Resident bytes, after Python has let go of what nobody holds."""
    gc.collect()
    return resident_bytes()


def _report(options: SwapOptions, device: str, taken_s: list[float], looks: dict[int, int]) -> Report:
    counts, mib = list(looks), [value / MIB for value in looks.values()]
    n_end = max(1, len(mib) // 10)
    growth = statistics.median(mib[-n_end:]) / statistics.median(mib[:n_end]) - 1
    milliseconds = [1000 * taken for taken in taken_s]
    report = Report("swap", asdict(options) | {"threads": torch.get_num_threads()}, device=device)
    report.numbers = [
        Measured(
            "memory_growth",
            Ratio.of([abs(growth)]),
            f"resident memory over {len(taken_s):,} activations: last tenth of the readings / first tenth - 1",
            Bar("<=", 0.01),
        ),
        Measured("activation_ms", Ratio.of(milliseconds), "one activation, from the store to the table, ms"),
    ]
    report.tables["Memory"] = Table(
        ("activations", "resident MiB before", "after", "largest"),
        [(len(taken_s), f"{mib[0]:.1f}", f"{mib[-1]:.1f}", f"{max(mib):.1f}")],
    )
    report.samples = {"resident_bytes": looks, "activation_ms": [round(value, 2) for value in milliseconds]}
    report.plots["Resident memory"] = Plot("activations", "MiB", {"resident": (counts, mib)})
    return report
