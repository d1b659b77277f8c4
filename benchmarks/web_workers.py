"""Rate of a server with and without web processes, in front of a device that takes a fixed time per batch and no CPU.

    python -m benchmarks.web_workers --workers 0,1,2 --rounds 5 --seconds 4

HTTP and decoding limit the rate. One server per number of web processes runs, and they are measured in turn.
"""

import json
import stat
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.photographs import write_photographs
from benchmarks.ratios import Spread, ratio
from benchmarks.server import FORM, Server, ServerOptions, backbone_of, fill_store, multipart, serving
from caspl.__main__ import main as caspl
from prompted_clip.model import PromptedClip
from prompted_clip.scoring import Ranked
from prompted_clip.stack import PromptStack
from service import server
from service.engine.loading import load_model
from service.settings import Settings

BACKBONE = "ViT-S-32-alt"
SIDE = 224
BATCH_S = 0.010
LIMITS = (("max_batch_rows", "64"), ("max_queued_rows", "1024"), ("max_decoding_images", "1024"))
CASES = {"1 image a request": (64, 1), "8 images a request": (8, 8)}
"""Clients of a closed loop, and images in each request."""

app = typer.Typer(add_completion=False)


def serve() -> None:
    """Run `caspl serve` with a device that sleeps."""

    def load(settings: Settings) -> PromptedClip:
        model = load_model(settings)

        def rank(_pixels: object, stacks: Sequence[PromptStack], _top_ks: object, **_: object) -> list[Ranked]:
            time.sleep(BATCH_S)
            return [Ranked([0], [1.0])] * len(stacks)

        model.rank = rank  # type: ignore[method-assign, assignment]
        return model

    setattr(server, "load_model", load)  # noqa: B010  where `run` looks it up
    caspl()


def launcher(folder: Path) -> Path:
    """A command that takes the place of `caspl`."""
    path = folder / "caspl"
    path.write_text(f"#!{sys.executable} -P\nfrom benchmarks.web_workers import serve\nserve()\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def measure(
    servers: dict[int, Server], folder: Path, *, rounds: int, seconds: float
) -> dict[str, dict[int, list[float]]]:
    """Images per second by case and number of web processes, in rounds."""
    found: dict[str, dict[int, list[float]]] = {case: {n: [] for n in servers} for case in CASES}
    body = multipart(next(iter(servers.values())).photographs, ["images"] * 8, folder / "eight")
    for _ in range(rounds):
        for case, (n_clients, n_images) in CASES.items():
            form = {} if n_images == 1 else {"bodies": [body], "content_type": FORM, "n_images": n_images}
            for n_workers, one in servers.items():
                found[case][n_workers].append(one.closed_rate(n_clients, seconds, **form))
    return found


@app.command()
def main(
    workers: Annotated[str, typer.Option(help="numbers of web processes, separated by commas")] = "0,1,2",
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    seconds: Annotated[float, typer.Option(min=1, help="length of each measurement")] = 4.0,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Measure all servers in turn and print images per second, and ratios to the first one."""
    numbers = [int(word) for word in workers.split(",")]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        photographs = write_photographs(folder / "photographs", side=SIDE)
        servers = {}
        for n_workers in numbers:
            options = ServerOptions(BACKBONE, "cpu", "float32", web_workers=n_workers, extra=LIMITS)
            store = folder / f"store-{n_workers}"
            digests = fill_store(store, backbone_of(options), n_domains=2)
            running = serving(options, store, digests, photographs, caspl=launcher(folder))
            servers[n_workers] = stack.enter_context(running)
        found = measure(servers, folder, rounds=rounds, seconds=seconds)
    rates = {case: {n: Spread.of(values) for n, values in one.items()} for case, one in found.items()}
    ratios = {case: {n: ratio(values, one[numbers[0]]) for n, values in one.items()} for case, one in found.items()}
    if as_json:
        sys.stdout.write(json.dumps({"images_per_s": _plain(rates), "ratio": _plain(ratios)}, indent=1) + "\n")
        return
    table = Table("case", "web processes", "images/s", "quartiles", f"ratio to {numbers[0]}", "quartiles")
    for case, one in rates.items():
        for n, rate in one.items():
            times = ratios[case][n]
            table.add_row(case, str(n), f"{rate.value:.0f}", f"{rate.low:.0f}-{rate.high:.0f}", f"{times.value:.2f}",
                          f"{times.low:.2f}-{times.high:.2f}")  # fmt: skip
    Console().print(table)


def _plain(spreads: dict[str, dict[int, Spread]]) -> dict[str, dict[int, dict[str, float]]]:
    return {case: {n: asdict(spread) for n, spread in one.items()} for case, one in spreads.items()}


if __name__ == "__main__":
    app()
