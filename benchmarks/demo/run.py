"""`make demo`: the plain student, boosting, and a few-shot fit in two domains, measured on the running service.

Draws labelled images at random and runs `caspl serve --demo` in a separate process. Measures the accuracy of three
versions per domain over HTTP: the plain student, the packaged boosting prompts, and a head fitted with `caspl fit`.
The last one goes live while requests run. Exits with 0 if every step succeeded.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import typer
from rich.console import Console
from rich.text import Text

from benchmarks.demo.accuracy import LabelledImage, Measured, measure, read_labelled
from benchmarks.demo.screen import Step, show_accuracy, show_first_images, show_next_commands
from benchmarks.demo.swap import swap_under_traffic
from caspl import CasplError, Client
from prompt_store.bundle import read_bundle
from service.demo.files import ASSETS, read_bundles
from service.demo.process import DemoError, running, stop
from service.errors import SettingsError

DOMAINS: Final = ("sketch", "satellite")
N_LOAD_IMAGES: Final = 8
"""Images per domain that are sent during the swap."""
ONE_THREAD: Final = {"OMP_NUM_THREADS": "1"}
"""Two commands run at a time, and more threads than cores make both slow."""
PLAIN_WIDTH: Final = 120
"""Width of the output when it is not a terminal."""


def own_client(url: str) -> Client:
    """A client without retries that ignores the environment's proxy."""
    return Client(url, retry_for_s=0, transport=httpx.HTTPTransport())


def packaged(domain: str) -> Path:
    """The packaged bundle of a domain."""
    return ASSETS / "bundles" / f"{domain}.safetensors"


def start_command(*arguments: str) -> subprocess.Popen[str]:
    """Start a Python module of this project with one torch thread; its output is captured."""
    command = [sys.executable, "-P", "-m", *arguments]
    return subprocess.Popen(  # noqa: S603  our own command
        command, env=os.environ | ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str], action: str) -> None:
    """Wait for a command.

    Raises:
        DemoError: it failed; contains the end of its output.
    """
    try:
        output, _ = process.communicate()
    finally:
        process.kill()
    if process.returncode != 0:
        raise DemoError(f"{action} failed:\n{output[-2000:]}")


def fit(domain: str, folder: Path) -> float:
    """Run `caspl fit` for a domain, writing `<domain>-fit.safetensors`; returns the seconds it took.

    Raises:
        DemoError: the command failed.
    """
    started_s = time.perf_counter()
    out = folder / f"{domain}-fit.safetensors"
    arguments = ("--data", str(folder / domain), "--bundle", str(packaged(domain)), "--out", str(out), "--json")
    finish(start_command("caspl", "fit", *arguments), f"caspl fit for {domain}")
    return time.perf_counter() - started_s


def boosting_training(metrics: Sequence[Mapping[str, Any]]) -> str:
    """The training of packaged boosting prompts, from the metrics in their bundles."""
    n_images, n_steps = (max(one[name] for one in metrics) for name in ("n_images", "steps"))
    return f"{n_images:,} unlabelled images, {n_steps:,} steps, packaged"


class Demo:
    """The steps of the demo, on a running service."""

    def __init__(self, client: Client, console: Console, folder: Path) -> None:
        """Read the images that `training.demo.labelled` wrote to `folder`."""
        self._client, self._console, self._folder = client, console, folder
        self._images: dict[str, list[LabelledImage]] = {name: read_labelled(folder / name / "test") for name in DOMAINS}
        self._manifests = [read_bundle(packaged(name).read_bytes()).manifest for name in DOMAINS]

    def run(self, shots: int) -> None:
        """Measure, fit, swap and print.

        Raises:
            DemoError, CasplError: a step failed.
        """
        show = self._console.print
        live = {domain.name: domain.version or 0 for domain in self._client.domains()}
        versions = {name: self._client.publish(self._folder / f"{name}-plain.safetensors").version for name in DOMAINS}
        plain = Step("plain student", "none", self._measure("plain student", versions))
        training = boosting_training([manifest.provenance.metrics for manifest in self._manifests])
        boosted = Step("+ boosting prompts", training, self._measure("boosted student", live))
        show(f"caspl fit: {shots} labelled images per class ...")
        with ThreadPoolExecutor(len(DOMAINS)) as threads:
            fit_s = list(threads.map(lambda name: fit(name, self._folder), DOMAINS))
        show("uploading the fitted bundles with ?activate=true while requests run ...")
        bundles = {name: self._folder / f"{name}-fit.safetensors" for name in DOMAINS}
        load = {name: images[:N_LOAD_IMAGES] for name, images in self._images.items()}
        fitted_versions, n_requests = swap_under_traffic(self._client, bundles, load)
        seconds = f"{shots} labelled images per class, {max(fit_s):.0f} seconds"
        fitted = Step("+ caspl fit", seconds, self._measure("fitted student", fitted_versions))
        n_images, n_classes = len(self._images[DOMAINS[0]]), len(self._manifests[0].classes)
        show_accuracy(self._console, [plain, boosted, fitted], n_images=n_images, n_classes=n_classes)
        show_first_images(self._console, [plain, boosted, fitted], {name: self._images[name][0] for name in DOMAINS})
        changes = ", ".join(f"{name} version {version}" for name, version in fitted_versions.items())
        show(f"Swap under load: {changes} went live; {n_requests} requests ran meanwhile, 0 failed.")

    def _measure(self, name: str, versions: dict[str, int]) -> list[Measured]:
        n_images = sum(map(len, self._images.values()))
        self._console.print(f"classifying {n_images} test images with the {name} ...")
        return [measure(self._client, domain, self._images[domain], versions[domain]) for domain in DOMAINS]


def run(console: Console, *, shots: int, n_test: int, seed: int, keep: bool) -> None:
    """Draw the images, start the service, run all steps, and stop it; with `keep`, on Ctrl-C.

    Raises:
        SettingsError: the demo files are missing.
        DemoError, CasplError: a step failed.
    """
    read_bundles(ASSETS / "bundles")
    with tempfile.TemporaryDirectory(prefix="caspl-demo-images-") as name:
        folder = Path(name)
        console.print(f"drawing images of {' and '.join(DOMAINS)} (seed {seed}), and starting caspl serve --demo ...")
        options = ("--shots", str(shots), "--n-test", str(n_test), "--seed", str(seed))
        drawing = start_command("training.demo.labelled", name, *DOMAINS, *options)
        try:
            with running(ASSETS, []) as (process, http), own_client(str(http.base_url)) as client:
                finish(drawing, "Drawing images")
                Demo(client, console, folder).run(shots)
                if keep:
                    console.print(f"The service keeps running at {http.base_url}/ (Ctrl-C stops it).")
                    with suppress(KeyboardInterrupt):
                        process.wait()
                else:
                    stop(process)
        finally:
            drawing.kill()
    show_next_commands(console)


def main(
    shots: Annotated[int, typer.Option(min=1, help="labelled images per class for the fit")] = 8,
    n_test: Annotated[int, typer.Option(min=1, help="test images per domain")] = 600,
    seed: Annotated[int, typer.Option(min=0, help="seed of the test images")] = 600,
    keep: Annotated[bool, typer.Option("--keep", help="keep the service running until Ctrl-C")] = False,
) -> None:
    """Measure plain, boosted and fitted versions of two domains over HTTP; the last goes live under load."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    try:
        run(console, shots=shots, n_test=n_test, seed=seed, keep=keep)
    except (DemoError, SettingsError, CasplError) as error:
        console.print(Text.assemble(("The demo failed:", "red"), f" {error}"), soft_wrap=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
