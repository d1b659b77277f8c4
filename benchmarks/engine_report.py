"""From the engine's timed turns to ratios, bars, tables and pictures."""

import statistics
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import torch
from rich.console import Console

from benchmarks.engine import (
    LONGEST_S,
    MIXED,
    OPEN_CLIP_SIZES,
    EngineBench,
    EngineOptions,
    best,
    sweep,
)
from benchmarks.interleaved import Ratio, in_turn, rates, ratio
from benchmarks.machine import versions
from benchmarks.matmuls import Products
from benchmarks.report import Bar, Measured, Plot, Report, Table

WAYS = ("single", "mixed_64", "mixed_1000", "paged", "plain", "quick_gelu")
Turns = dict[str, list[float]]


def measure(options: EngineOptions, console: Console) -> Report:
    """Load, find the best batch sizes, time everything in turn, and write down what it means."""
    bench = EngineBench(options, console)
    try:
        return _measure(bench, console)
    finally:
        bench.close()


def _measure(bench: EngineBench, console: Console) -> Report:
    options = bench.options
    sizes = options.sizes
    console.print(f"batch sizes of the engine: {', '.join(map(str, sizes))}")
    by_way: dict[str, dict[int, float]] = {}

    def ours(name: str) -> dict[int, float]:
        return sweep(bench, partial(bench.engine_way, name), sizes, longest_s=LONGEST_S)

    if bench.n_runners > 1:  # first, while no other thread of this process computes in parallel: decisions/0011
        by_way["all cores at one batch"] = ours("together")
    by_way["engine, one domain"] = ours("single")
    n_rows = best(by_way["engine, one domain"])
    console.print(f"best: {n_rows}; batch sizes of open_clip")
    precise = partial(bench.open_clip_way, bench.precise)
    by_way["open_clip float32 eager"] = sweep(bench, precise, OPEN_CLIP_SIZES[bench.device])
    n_library = best(by_way["open_clip float32 eager"])
    n_batches = bench.batches_per_turn(n_rows, by_way["engine, one domain"][n_rows])
    n_library_batches = bench.batches_per_turn(n_library, by_way["open_clip float32 eager"][n_library])
    ways: dict[str, Callable[[], object]] = {name: bench.engine_way(name, n_rows, n_batches) for name in WAYS}
    ways["open_clip_fp32"] = precise(n_library, n_library_batches)
    ways["open_clip_same_dtype"] = bench.open_clip_way(bench.backbone, n_rows, n_batches)
    products = {
        "matrix_products": bench.products_way(n_rows, n_batches),
        "sliced_products": bench.products_way(n_rows, n_batches, in_slices=True),
        "square_product": bench.square_way(n_batches),
    }
    ways |= {name: product.run for name, product in products.items()}
    for way in ways.values():
        way()
    console.print(f"{len(ways)} ways in turn, {options.budget_s:g} s")
    turns = in_turn(ways, budget_s=options.budget_s, on_round=lambda n: console.print(f"round {n}"))
    images = dict.fromkeys(ways, n_rows * n_batches) | {"open_clip_fp32": n_library * n_library_batches}
    report = Report(
        "engine",
        asdict(options) | {"batch_rows": n_rows, "open_clip_batch_rows": n_library, "threads": torch.get_num_threads()},
        device=str(bench.backbone.device),
        versions=versions(),
    )
    report.settings |= {"dtype": str(bench.backbone.dtype).removeprefix("torch."), "rounds": len(turns["single"])}
    report.samples = {"seconds_per_turn": turns, "images_per_turn": images, "images_per_s_by_batch": by_way}
    _add_numbers(report, bench, turns, images, products)
    _add_tables(report, turns, images, by_way)
    report.samples["shares_of_time"] = parts = bench.breakdown(n_rows)
    report.tables["A forward's time by operators"] = Table(
        ("operators", "share"), [(kind, f"{share:.1%}") for kind, share in parts.items()]
    )
    return report


def _add_numbers(
    report: Report, bench: EngineBench, turns: Turns, images: dict[str, int], products: dict[str, Products]
) -> None:
    is_cuda = bench.device == "cuda"
    single, plain = turns["single"], turns["plain"]
    counted = bench.operations_per_image()
    report.samples["operations_per_image"] = counted

    def share_of(name: str) -> Ratio:
        """Operations per second of the engine's single-domain images against those of a product."""
        done = counted["prompted"] * images["single"]
        return ratio([done / taken for taken in single], [products[name].operations / taken for taken in turns[name]])

    same = ratio([n * images["open_clip_same_dtype"] / images["single"] for n in single], turns["open_clip_same_dtype"])
    speedup = ratio(
        rates(single, images["single"]),
        rates(turns["open_clip_fp32"], images["open_clip_fp32"]),
    )
    report.numbers = [
        Measured(
            "mixed_64_vs_single",
            ratio(single, turns["mixed_64"]),
            f"images/s, every row of another one of {MIXED} domains / all rows of one domain",
            Bar(">=", 0.95),
        ),
        Measured(
            "mixed_1000_vs_single",
            ratio(single, turns["mixed_1000"]),
            f"the same with {bench.options.n_registered:,} domains, all resident",
            Bar(">=", 0.97) if is_cuda else None,
        ),
        Measured(
            "paged_1000_of_64_vs_single",
            ratio(single, turns["paged"]),
            f"{bench.options.n_registered:,} domains registered, a bank of {bench.options.n_slots} slots, popularity "
            f"rank^-{bench.options.alpha:g} / one domain",
            None if is_cuda else Bar(">=", 0.85),  # a GPU's batch alone has more domains than that
        ),
        Measured(
            "vs_open_clip_fp32_eager",
            speedup,
            "images/s of the engine, prompts included / of open_clip's plain forward, product and softmax in float32, "
            "each at its best batch size",
            Bar(">=", 2.0) if bench.backbone.dtype is torch.bfloat16 and not is_cuda else None,
        ),
        Measured(
            "fraction_of_matmul_rate",
            ratio(turns["matrix_products"], single),
            "images/s of the engine / at which the model's matrix products alone are done, same dtype, same threads",
            None if is_cuda else Bar(">=", 0.80),
        ),
        Measured(
            "fraction_of_sliced_matmul_rate",
            ratio(turns["sliced_products"], single),
            "the same with wide layers cut as the engine cuts them, which makes bare products faster too",
        ),
        Measured(
            "operations_vs_matrix_products",
            share_of("sliced_products"),
            "the same in operations/s: only what the engine really works out counts for it",
        ),
        Measured(
            "prompt_overhead",
            ratio(single, plain).map(lambda value: value - 1),
            f"time with {bench.options.tokens} image tokens / our plain forward - 1",
            Bar("<=", 0.08),
        ),
        Measured(
            "prompt_overhead_vs_open_clip_same_dtype",
            same.map(lambda value: value - 1),
            "time with prompts in the engine / open_clip's own plain forward in the engine's dtype - 1",
        ),
    ]
    report.numbers.append(
        Measured(
            "quick_gelu_vs_gelu",
            ratio(plain, turns["quick_gelu"]),
            "images/s of our plain forward with QuickGELU, as OpenAI's weights want it / with GELU",
        )
    )
    report.numbers.append(
        Measured(
            "fraction_of_square_product_rate",
            share_of("square_product"),
            "operations/s of the engine / of one large square product, same dtype",
            Bar(">=", 0.55) if is_cuda else None,
        )
    )
    if is_cuda:
        report.numbers.append(
            Measured(
                "batch_1_device_ms",
                Ratio.of(bench.device_ms()),
                "device time of one row by CUDA events, ms",
                Bar("<=", 1.5),
            )
        )
    fewer = counted["plain"] < counted["open_clip"]
    report.notes.append(
        f"Counted operations per image: {counted['prompted'] / 1e9:.2f}e9 with prompts, {counted['plain'] / 1e9:.2f}e9 "
        f"in our plain forward, {counted['open_clip'] / 1e9:.2f}e9 in open_clip's. Our plain forward "
        + ("leaves out" if fewer else "works out")
        + " the last block's tokens that nobody reads, as the prompted one does"
        + (
            "."
            if fewer
            else " not: the overhead against it is too kind, so the one against open_clip stands beside it."
        )
    )


def _add_tables(report: Report, turns: Turns, images: dict[str, int], by_way: dict[str, dict[int, float]]) -> None:
    found = {name: rates(taken, images[name]) for name, taken in turns.items() if name in images}
    products = {"matrix_products", "sliced_products", "square_product"}
    rows = []
    for name in (name for name in found if name not in products):
        spread = Ratio.of(found[name])
        rows.append((name, f"{spread.value:.2f}", f"{spread.low:.2f} .. {spread.high:.2f}"))
    report.tables["Images per second (absolute, this machine only)"] = Table(("way", "median", "quartiles"), rows)
    sizes = sorted(set().union(*by_way.values()))
    report.tables["Images per second by batch size (short sweep)"] = Table(
        ("batch", *by_way),
        [(n, *(f"{per_s[n]:.2f}" if n in per_s else "" for per_s in by_way.values())) for n in sizes],
    )
    report.plots["Images per second, median of all rounds"] = Plot(
        "images/s",
        "",
        {"": ([row[0] for row in rows], [statistics.median(found[row[0]]) for row in rows])},
    )
