"""The whole way under full load, against the slower one of its halves alone: decoding, and the engine.

What is missing to 1 is what joining them costs: HTTP, queues, shared memory, and that they share the processor's cores.
"""

import asyncio
import statistics
from typing import Literal

from benchmarks.decoders_alone import DecodersAlone, Work
from benchmarks.engine_alone import SLICE_S, EngineAlone, best, slice_s
from benchmarks.forms import as_form
from benchmarks.interleaved import Ratio
from benchmarks.report import Bar, Measured, Report, Table
from benchmarks.stage import Stage
from prompted_clip.model import PromptedClip
from service.engine.engine import Engine
from service.images.preprocessing import decode_threads

N_SLICES = 5
IMAGES_PER_REQUEST = 8


def pipeline(on: Stage, model: PromptedClip, report: Report) -> None:
    """Many clients with several images per request, and both halves, slice by slice in turn."""
    options, settings = on.options, on.options.settings()
    n_clients = max(options.clients, options.n_ceiling_clients // IMAGES_PER_REQUEST)
    n_processes = max(1, options.web_workers)
    n_threads = settings.n_decode_threads or decode_threads(n_processes)
    # A GPU that decodes is measured with the service alone: what it spends on that is not there for the engine.
    way: Literal["exact", "fast"] = "exact" if settings.preprocess == "exact" else "fast"
    paths = [str(path) for path in on.photographs]
    work = Work(way, model.backbone.image_size, model.backbone.preprocess, paths, n_threads)
    many = as_form(on.photographs, IMAGES_PER_REQUEST)
    engine = Engine(model)
    with asyncio.Runner() as loop, DecodersAlone(work, n_processes) as decoders:
        alone = EngineAlone(
            loop, engine, model, on.service.domains, max_rows=settings.max_batch_rows, seed=options.seed
        )
        on.console.print(f"{n_clients} clients, the engine alone and decoding alone, in turn")
        served: list[float] = []
        decoded: list[float] = []
        by_size: dict[int, list[float]] = {n_rows: [] for n_rows in alone.sizes}
        first = [alone.rate(n_rows, SLICE_S / 2) for n_rows in alone.sizes]
        served_s = 2 * slice_s(first, n_clients * IMAGES_PER_REQUEST)
        for _ in range(N_SLICES):
            served.append(on.closed_rate(n_clients, served_s, **many))
            decoded.append(decoders.rate(SLICE_S))
            for n_rows, rates in by_size.items():
                rates.append(alone.rate(n_rows, SLICE_S / 2))
    engine.close()
    slower = [min(pair) for pair in zip(best(by_size), decoded, strict=True)]
    report.numbers.append(
        Measured(
            "http_vs_engine_or_decoder",
            Ratio.of([one / other for one, other in zip(served, slower, strict=True)]),
            f"images/s of {n_clients} clients with requests of {IMAGES_PER_REQUEST} images each / of the engine at its "
            f"best batch size or of decoding alone, whichever is slower; {options.web_workers} web workers",
            Bar(">=", 0.85),
        )
    )
    columns = {"HTTP": served, "decoding": decoded} | {f"engine, batch {n}": found for n, found in by_size.items()}
    report.tables["The whole way and its halves, images/s"] = Table(
        tuple(columns), [tuple(f"{statistics.median(values):.1f}" for values in columns.values())]
    )
    report.samples["pipeline_per_s"] = columns
