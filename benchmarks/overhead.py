"""What HTTP costs: an idle request beside decoding and the bare forward, and a busy service beside its own engine."""

import asyncio
import gc
import http.client
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import torch
from PIL import Image

from benchmarks import callers
from benchmarks.engine_alone import SLICE_S, EngineAlone, best, load, slice_s
from benchmarks.forms import as_form
from benchmarks.interleaved import Ratio
from benchmarks.report import Bar, Measured, Report, Table
from benchmarks.stage import Stage
from prompt_store.store import Store
from prompted_clip.model import PromptedClip
from prompted_clip.stack import PromptStack
from service.images.preprocessing import Exact, Pixels
from service.interpreter import prepare_interpreter

N_ROUNDS = 12
PER_ROUND = 20
N_SLICES = 5
IMAGES_PER_REQUEST = 8


def idle(on: Stage, model: PromptedClip, report: Report) -> None:
    """One client, one request at a time: how much longer it takes than decoding and a forward of one row.

    Blocks of requests and blocks of bare work alternate; a round's overhead is the difference of their medians.
    """
    data = on.photographs[0].read_bytes()
    stack = load(model, on.service.domains[0])
    parts = urlsplit(on.service.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    decode = decoder(model)
    pixels = decode(data)

    def ask() -> None:
        connection.request("POST", f"/classify/{on.service.domains[0]}", data, {"Content-Type": "image/jpeg"})
        reply = connection.getresponse()
        reply.read()
        if reply.status != http.client.OK:
            msg = f"An idle service answered with status {reply.status}."
            raise RuntimeError(msg)

    ways: dict[str, Callable[[], object]] = {
        "request": ask,
        "decode": lambda: decode(data),
        "forward": lambda: forward(model, pixels, stack),
    }
    medians: dict[str, list[float]] = {name: [] for name in ways}
    on.console.print("one request at a time")
    for _ in range(N_ROUNDS):
        for name, way in ways.items():
            medians[name].append(statistics.median(milliseconds(way) for _ in range(PER_ROUND)))
    connection.close()
    added = [asked - rest - run for asked, rest, run in zip(*(medians[name] for name in ways), strict=True)]
    report.numbers.append(
        Measured(
            "idle_overhead_ms",
            Ratio.of(added),
            "a single request through HTTP - decoding - bare forward of one row, medians, ms",
            Bar("<=", 3.0) if on.options.backbone.startswith("demo") else None,
        )
    )
    report.tables["One request at a time, ms"] = Table(
        tuple(medians), [tuple(f"{statistics.median(values):.2f}" for values in medians.values())]
    )
    report.samples["idle_ms"] = medians


def against_engine(on: Stage, model: PromptedClip, store: Store, report: Report) -> None:
    """A few clients in a closed loop against the engine alone on the same threads, slice by slice in turn.

    Once the engine is handed batches of each size, back to back; and once as many callers as there are clients hand it
    the same JPEGs, through the service's own decoder and queue: beside those, what is missing is what HTTP takes, the
    clients' process included.
    """
    n_clients, plan = on.options.clients, on.plan([])
    files = [Path(path).read_bytes() for path in plan.bodies]
    many = as_form(on.photographs, IMAGES_PER_REQUEST)
    with asyncio.Runner() as loop, as_in_a_service():
        runtime = loop.run(callers.start(on.options.settings(), model, store))
        alone = EngineAlone(
            loop,
            runtime.engine,
            model,
            on.service.domains,
            max_rows=runtime.settings.max_batch_rows,
            seed=on.options.seed,
        )

        by_size: dict[int, list[float]] = {n_rows: [] for n_rows in alone.sizes}
        found: dict[str, list[float]] = {"callers": [], "one image": [], "several": []}
        on.console.print(f"{n_clients} clients and the engine alone, in turn")
        first = [alone.rate(n_rows, SLICE_S / 2) for n_rows in alone.sizes]
        one_s, many_s = slice_s(first, n_clients), 2 * slice_s(first, n_clients * IMAGES_PER_REQUEST)

        def callers_rate() -> float:
            return loop.run(callers.closed_rate(runtime, files, plan.domains, n_callers=n_clients, duration_s=one_s))

        callers_rate()
        for _ in range(N_SLICES):
            found["one image"].append(on.closed_rate(n_clients, one_s))
            found["callers"].append(callers_rate())
            found["several"].append(on.closed_rate(n_clients, many_s, **many))
            for n_rows, rates in by_size.items():
                rates.append(alone.rate(n_rows, SLICE_S / 2))
        loop.run(runtime.stop())
    engine_per_s = best(by_size)
    at_best = "the engine at its best batch size"
    same = f"one image each / of the engine with {n_clients} callers and the same JPEGs, without HTTP"
    for name, key, other_per_s, text in (
        ("http_vs_engine", "one image", engine_per_s, f"one image each / of {at_best}"),
        (
            "http_vs_engine_by_twos",
            "one image",
            by_size.get(2) or by_size[1],
            "one image each / of the engine in batches of two",
        ),
        ("http_vs_engine_same_callers", "one image", found["callers"], same),
        ("http_of_8_vs_engine", "several", engine_per_s, f"{IMAGES_PER_REQUEST} images each / of {at_best}"),
    ):
        values = [one / other for one, other in zip(found[key], other_per_s, strict=True)]
        meaning = f"images/s of {n_clients} clients with requests of {text}"
        report.numbers.append(Measured(name, Ratio.of(values), meaning, Bar(">=", 0.9)))
    columns = {f"engine, batch {n_rows}": rates for n_rows, rates in by_size.items()} | found
    report.tables[f"{n_clients} clients and the engine alone, images/s"] = Table(
        tuple(columns), [tuple(f"{statistics.median(values):.1f}" for values in columns.values())]
    )
    report.samples["http_and_engine_per_s"] = columns


@contextmanager
def as_in_a_service() -> Iterator[None]:
    """Python runs as it does in a service."""
    before_s = sys.getswitchinterval()
    prepare_interpreter()
    try:
        yield
    finally:
        sys.setswitchinterval(before_s)
        gc.unfreeze()


def decoder(model: PromptedClip) -> Callable[[bytes], Pixels]:
    """Decoding and resizing as the service does it, without its checks, queues and threads."""
    exact = Exact(model.backbone.image_size, model.backbone.preprocess)

    def decode(data: bytes) -> Pixels:
        with Image.open(BytesIO(data)) as image:
            return exact.to_pixels(exact.read(image, data))

    return decode


def forward(model: PromptedClip, pixels: Pixels, stack: PromptStack) -> object:
    """One row through the model and back to the host: nothing else."""
    return model.rank(torch.from_numpy(pixels).unsqueeze(0), [stack], [1])


def milliseconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    started_s = time.perf_counter()
    work()
    return (time.perf_counter() - started_s) * 1000
