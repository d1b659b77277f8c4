"""Everything that has to be measured on a GPU, in one command.

    python -P -m benchmarks.gpu
    python -P -m benchmarks.gpu --device cpu --backbone demo-student --seconds 2 --skip tests --out build/gpu

Parts: `tests`, the tests marked gpu; `model`, the image tower against the measured rate of matrix products; `engine`,
the engine without HTTP; `serve`, a server under load. Each part writes `<part>-gpu.json` and `<part>-gpu.md` to `--out`
as soon as it is done. A part that fails does not stop the others; the exit code is then 1.
"""

import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import engine
from benchmarks.answers import closed_loop_rate
from benchmarks.bundles import BundleShape, random_bundle
from benchmarks.load import send
from benchmarks.phases import LOAD
from benchmarks.photographs import write_photographs
from benchmarks.ratios import Spread
from benchmarks.report import Report, Table, Target
from benchmarks.server import Server, ServerOptions, backbone_of, fill_store, serving
from benchmarks.swaps import n_versions, swap_load
from prompt_store.bundle import read_bundle
from prompted_clip.model import PromptedClip
from prompted_clip.prompts import PromptGrid
from prompted_clip.vision import ImageTower
from service.configuration.environment import load_settings
from service.engine.loading import load_model, with_gpu_limits

PARTS = ("tests", "model", "engine", "serve")
TESTS_WITHIN_S = 240.0
N_CALLERS, N_SERVED = 128, 64
MIN_ROUND_S = 4.0
N_TRIALS = 5
SIDES = {"cpu": 512, "cuda": 8192}
SIZES = {"cpu": (1, 2, 4), "cuda": (1, 8, 16, 32, 64, 96, 128, 192, 256)}


def main(
    device: Annotated[str, typer.Option(help="cuda, cuda:N, or cpu for a trial")] = "cuda",
    backbone: Annotated[
        str, typer.Option(help="open_clip architecture with random weights, or demo-student")
    ] = "ViT-B-16",
    domains: Annotated[int, typer.Option(min=64, help="loaded domains of the engine")] = 1000,
    seconds: Annotated[float, typer.Option(min=1, help="length of each measurement")] = 60.0,
    web_workers: Annotated[int, typer.Option(min=0, help="web processes of the server")] = 8,
    skip: Annotated[str, typer.Option(help=f"parts, separated by commas: {', '.join(PARTS)}")] = "",
    out: Annotated[Path, typer.Option(help="folder of the JSON and Markdown files")] = Path("docs/results"),
) -> None:
    """Run the GPU's tests and measurements."""
    console = Console(stderr=True)
    if unknown := set(filter(None, skip.split(","))) - set(PARTS):
        raise typer.BadParameter(f"unknown parts: {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise typer.BadParameter("torch finds no CUDA device; pass --device cpu for a trial")
    options = engine.EngineOptions(
        backbone=backbone, device=device, n_domains=domains, budget_s=seconds, web_workers=web_workers
    )
    parts: dict[str, Callable[[], Report]] = {
        "tests": lambda: run_tests(device),
        "model": lambda: measure_model(options),
        "engine": lambda: engine.measure(options, console),
        "serve": lambda: measure_server(options, seconds, console),
    }
    failed = []
    for name in (part for part in PARTS if part not in skip.split(",")):
        began_s = time.monotonic()
        console.rule(name)
        try:
            report = parts[name]()
        except Exception:  # noqa: BLE001 - the other parts still count
            traceback.print_exc()
            failed.append(name)
            continue
        report.name, report.device = f"{name}-gpu", device
        report.write(out)
        console.print(f"{name}: {time.monotonic() - began_s:.0f} s, {out / report.name}.md")
        failed += [name] if name == "tests" and report.numbers["failed"]["value"] else []
    if failed:
        console.print(f"failed: {', '.join(failed)}")
        raise typer.Exit(1)


def run_tests(device: str) -> Report:
    """The tests marked gpu, in a process of their own; on a CPU they run on the simulated device."""
    words = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "--timeout=120",
        "-p",
        "no:cacheprovider",
        "tests",
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=TESTS_WITHIN_S, check=False)  # noqa: S603
    sys.stderr.write(done.stdout[-4000:])
    report = Report("tests", {"device": device})
    for outcome in ("passed", "failed", "error", "skipped"):
        found = re.search(rf"(\d+) {outcome}", done.stdout)
        report.add(outcome, int(found[1]) if found else 0, f"tests marked gpu: {outcome}")
    if not report.numbers["passed"]["value"]:
        msg = f"no test passed: {done.stdout[-500:]}{done.stderr[-500:]}"
        raise RuntimeError(msg)
    report.numbers["failed"]["value"] += report.numbers["error"]["value"]
    return report


@torch.inference_mode()
def measure_model(options: engine.EngineOptions) -> Report:
    """The tower with 12 prompt tokens per batch size, against the rate of a large matrix product in the same dtype."""
    settings = with_gpu_limits(
        load_settings(backbone=options.backbone, random_weights=options.random_seed, device=options.device)
    )
    model = load_model(settings)
    backbone = model.backbone
    report = Report("model", {"backbone": options.backbone, "dtype": str(backbone.dtype).removeprefix("torch.")})
    grid = prompts_of(model)
    before_bytes = reserved_bytes(backbone.device)
    began_s = time.perf_counter()
    steps = model.image_tower.capture_steps(grid)
    for step in steps:
        step()
    if steps:
        report.add("graphs", len(steps), "CUDA graphs for 12 prompt tokens")
        report.add("capture_ms", 1000 * (time.perf_counter() - began_s) / len(steps), "time per capture, ms")
        per_graph = (reserved_bytes(backbone.device) - before_bytes) / 2**20 / len(steps)
        report.add("graph_mib", per_graph, "growth of reserved GPU memory per graph, with static inputs, MiB")
    rate = matrix_rate(backbone.device, backbone.dtype)
    report.add("matrix_tflops", rate / 1e12, "matrix product, 10^12 operations/s")
    per_image = image_operations(model, grid)
    report.add("image_gflop", per_image / 1e9, "operations of an image, 10^9")
    rows, shares = [], []
    for n_rows in (size for size in SIZES[backbone.device.type] if size <= settings.max_batch_rows):
        pixels = torch.randint(0, 256, (n_rows, 3, *[backbone.image_size] * 2), dtype=torch.uint8).to(backbone.device)
        batch = PromptGrid(grid.tokens.expand(n_rows, -1, -1, -1), grid.depths.expand(n_rows, -1), grid.min_depth)
        times_s = timed(backbone.device, lambda: model.image_tower(pixels, batch))  # noqa: B023 - called here
        spread = Spread.of(times_s)
        shares.append(n_rows * per_image / spread.value / rate)
        rows.append((n_rows, f"{1000 * spread.value:.3f}", f"{n_rows / spread.value:,.0f}", f"{shares[-1]:.2f}"))
        if n_rows == 1:
            in_ms = Spread.of([1000 * one for one in times_s])
            report.add("batch_1_ms", in_ms, "device time of one image, ms", Target("<=", 1.0))
    report.add("matrix_share", max(shares), "operations/s of the best batch / of the matrix product", Target(">=", 0.6))
    report.tables["Image tower"] = Table(("batch", "ms", "images/s", "share of the matrix rate"), rows)
    return report


def measure_server(options: engine.EngineOptions, seconds: float, console: Console) -> Report:
    """A closed loop of many callers with the device's busy share, then swaps under load."""
    served = ServerOptions(backbone=options.backbone, device=options.device, web_workers=options.web_workers)
    report = Report("serve", {"web_workers": options.web_workers, "clients": N_CALLERS, "domains": N_SERVED})
    with tempfile.TemporaryDirectory(prefix="caspl-bench-") as name:
        folder = Path(name)
        photographs = write_photographs(folder / "photographs", side=224)
        backbone = backbone_of(served)
        digests = fill_store(folder / "store", backbone, n_domains=N_SERVED, n_versions=n_versions(seconds))
        console.print("starting caspl serve")
        with serving(served, folder / "store", digests, photographs) as server:
            server.closed(N_CALLERS, min(5.0, seconds))
            rates, busy, round_s = [], [], max(MIN_ROUND_S, seconds / 6)
            for _ in range(3):
                load = server.load(n_connections=N_CALLERS, duration_s=round_s)
                answers = send(load, meanwhile=lambda: busy.append(busy_share(server, 0.4 * round_s)))
                rates.append(closed_loop_rate(answers))
            report.add("closed_128_per_s", Spread.of(rates), f"images/s over HTTP, closed loop, clients: {N_CALLERS}")
            meaning = "share of the time with work on the device"
            report.add("device_busy", Spread.of(busy), meaning, Target(">=", 0.95))
            swap_load(server, report, rate_per_s=LOAD * min(rates), seconds=seconds)
    return report


def busy_share(server: Server, duration_s: float) -> float:
    """Share of the second of two periods of a length in which the device had work."""
    name, found = "caspl_device_busy_seconds_total", []
    for _ in range(2):
        time.sleep(duration_s)
        found.append((server.metrics()[name], time.monotonic()))
    (busy_s, began_s), (busy_later_s, ended_s) = found
    return (busy_later_s - busy_s) / (ended_s - began_s)


def prompts_of(model: PromptedClip) -> PromptGrid:
    """Image prompts of a random bundle, on the device."""
    stack = model.load_stack(read_bundle(random_bundle(model.backbone, "bench", 1, BundleShape())))
    (there,) = model.bank.get([stack])
    if there.image is None:
        raise RuntimeError("the bundle has no image prompts")
    return there.image


def image_operations(model: PromptedClip, grid: PromptGrid) -> int:
    """Operations of one image's forward with prompts: products and sums of matrix products and attention."""
    backbone = model.backbone
    pixels = torch.zeros(1, 3, backbone.image_size, backbone.image_size, dtype=torch.uint8, device=backbone.device)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(value=False)  # whose operators are not counted
    try:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            ImageTower(backbone)(pixels, grid)
    finally:
        torch.backends.mha.set_fastpath_enabled(value=fast)
    return int(counter.get_total_flops())


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of the product of two large square matrices."""
    side = SIDES[device.type]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / min(timed(device, lambda: left @ right))


def timed(device: torch.device, work: Callable[[], object]) -> list[float]:
    """Seconds of one call, in trials of as many calls as take about 0.2 s; on CUDA by events."""

    def trial(n_calls: int) -> float:
        if device.type != "cuda":
            began_s = time.perf_counter()
            for _ in range(n_calls):
                work()
            return (time.perf_counter() - began_s) / n_calls
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        for _ in range(n_calls):
            work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000 / n_calls

    trial(2)
    n_calls = max(1, min(1000, round(0.2 / trial(2))))
    return [trial(n_calls) for _ in range(N_TRIALS)]


def reserved_bytes(device: torch.device) -> int:
    """GPU memory reserved by this process."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0


if __name__ == "__main__":
    typer.run(main)
