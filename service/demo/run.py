"""`make demo`: start the service, classify, swap in a new version under load, stop.

Runs `caspl serve --demo` in a separate process, classifies the sample images, uploads and activates a new version of
one domain while requests run, prints the results and stops the process. Exits with 0 if every step succeeded.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from service.demo.files import ASSETS, SampleBundle, SampleImage, read_bundles, read_images
from service.errors import ServiceError, SettingsError

READY_WITHIN_S: Final = 180.0
STOP_WITHIN_S: Final = 30.0
AROUND_SWAP_S: Final = 1.0
N_BACKGROUND: Final = 2
TOP_K: Final = 3
PLAIN_WIDTH: Final = 120
"""Width of the tables when the output is not a terminal."""


class DemoError(ServiceError, code="demo_failed"):
    """A step of the demo failed."""


@dataclass(frozen=True)
class Answer:
    """The response for one image, and the duration of the request."""

    image: SampleImage
    took_ms: float
    body: dict[str, Any]


def classify(client: httpx.Client, image: SampleImage) -> Answer:
    """Classify one image.

    Raises:
        DemoError: the request failed.
    """
    started_s = time.perf_counter()
    reply = client.post(f"/classify/{image.domain}", params={"top_k": TOP_K}, content=image.path.read_bytes())
    took_ms = (time.perf_counter() - started_s) * 1000
    if not reply.is_success:
        raise DemoError(f"Classifying {image.path.name} failed: {reply.text}")
    return Answer(image, took_ms, reply.json())


@contextmanager
def running(assets: Path, extra: Sequence[str]) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """Run the demo service in a separate process, with a client for it; the process is killed on exit.

    Raises:
        DemoError: the service does not become ready.
    """
    with tempfile.TemporaryDirectory(prefix="caspl-demo-") as folder:
        log = Path(folder) / "log"
        port = free_port()
        arguments = ["serve", "--demo", "--port", str(port), "--store", f"{folder}/store", "--demo-assets", str(assets)]
        command = [sys.executable, "-P", "-m", "caspl", *arguments, *extra]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CASPL_")}
        environment |= {"CASPL_DRAIN_DELAY_S": "0.2", "CASPL_LOG_LEVEL": "warning"}
        with log.open("wb") as file:
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)  # noqa: S603  our own command
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
                wait_until_ready(process, client, log)
                yield process, client
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def free_port() -> int:
    """A free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_until_ready(
    process: subprocess.Popen[bytes], client: httpx.Client, log: Path, *, within_s: float = READY_WITHIN_S
) -> None:
    """Wait until `/readyz` succeeds.

    Raises:
        DemoError: the process exited, or the timeout passed; contains the end of its log.
    """
    give_up_s = time.monotonic() + within_s
    while process.poll() is None and time.monotonic() < give_up_s:
        try:
            if client.get("/readyz").is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    end = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
    raise DemoError(f"The service did not become ready. End of its log:\n{end}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop the process with SIGTERM.

    Raises:
        DemoError: the timeout passed, or the exit status is not 0.
    """
    process.send_signal(signal.SIGTERM)
    try:
        status = process.wait(STOP_WITHIN_S)
    except subprocess.TimeoutExpired as error:
        raise DemoError(f"The service did not stop within {STOP_WITHIN_S:g} s.") from error
    if status != 0:
        raise DemoError(f"The service stopped with status {status}, expected 0.")


def swap_under_traffic(client: httpx.Client, images: Sequence[SampleImage], bundle: SampleBundle) -> tuple[int, int]:
    """Upload and activate a bundle while requests run; returns the new version and the number of requests.

    Raises:
        DemoError, httpx.HTTPError: a step or a request failed, or no request used the old version.
    """
    is_over = threading.Event()

    def send_requests() -> list[tuple[str, int]]:
        seen: list[tuple[str, int]] = []
        with httpx.Client(base_url=client.base_url, timeout=30, trust_env=False) as own:
            while not is_over.is_set():
                bodies = [classify(own, image).body for image in images]
                seen += [(body["domain"], body["version"]) for body in bodies]
        return seen

    with ThreadPoolExecutor(N_BACKGROUND) as threads:
        sending = [threads.submit(send_requests) for _ in range(N_BACKGROUND)]
        try:
            time.sleep(AROUND_SWAP_S)
            version = upload_and_activate(client, bundle)
            time.sleep(AROUND_SWAP_S)
        finally:
            is_over.set()
    seen = [answer for sent in sending for answer in sent.result()]
    if {old for domain, old in seen if domain == bundle.domain} <= {version}:
        raise DemoError("No request used the old version: there was no traffic before the swap.")
    return version, len(seen)


def upload_and_activate(client: httpx.Client, bundle: SampleBundle) -> int:
    """Upload and activate a version; `If-Match` guards against concurrent changes.

    Raises:
        DemoError: a request failed, or the version is not live afterwards.
    """
    live = client.get(f"/domains/{bundle.domain}")
    uploaded = client.post(f"/domains/{bundle.domain}/versions", content=bundle.data)
    if not uploaded.is_success:
        raise DemoError(f"Uploading {bundle.path.name} failed: {uploaded.text}")
    version = int(uploaded.json()["version"])
    answer = client.put(
        f"/domains/{bundle.domain}/live", json={"version": version}, headers={"If-Match": live.headers.get("etag", "*")}
    )
    if not answer.is_success or client.get(f"/domains/{bundle.domain}").json()["version"] != version:
        raise DemoError(f"Version {version} of {bundle.domain} did not go live: {answer.text}")
    return version


def show(console: Console, title: str, answers: Sequence[Answer]) -> None:
    """Print the predictions as a table, most probable first, with a check mark if it is correct."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("image", no_wrap=True)
    for column in ("domain", "version", "first", "second", "third"):
        table.add_column(column)
    table.add_column("ms", justify="right")
    n_right = 0
    for answer in answers:
        found = answer.body["results"][0]["predictions"]
        cells = [Text(f"{one['label']} {one['probability']:.0%}") for one in found]
        cells += [Text("")] * (TOP_K - len(cells))
        is_right = answer.image.is_of(found[0]["label"])
        n_right += is_right
        cells[0].stylize("green" if is_right else "yellow")
        image = Text(f"{answer.image.path.name} {'✓' if is_right else ' '}")
        table.add_row(image, answer.image.domain, str(answer.body["version"]), *cells, f"{answer.took_ms:.0f}")
    console.print(table)
    console.print(f"{n_right} of {len(answers)} images classified correctly.\n")


def run(console: Console, assets: Path, extra: Sequence[str]) -> None:
    """Run all steps of the demo.

    Raises:
        SettingsError: the demo files are missing.
        DemoError: a step failed.
    """
    read_bundles(assets / "bundles")
    images = read_images(assets / "images")
    bundle = read_bundles(assets / "upload")[0]
    console.print("[bold]1. caspl serve --demo[/bold]")
    with running(assets, extra) as (process, client):
        for domain in client.get("/domains").json()["domains"]:
            console.print(f"   {domain['domain']}: version {domain['version']}, {domain['n_classes']} classes")
        show(console, "2. POST /classify/{domain}", [classify(client, image) for image in images])
        console.print(f"[bold]3. A new version of {bundle.domain} goes live while requests run[/bold]")
        version, n_requests = swap_under_traffic(client, images, bundle)
        console.print(f"   version {version} is live; {n_requests} requests ran during the swap, 0 failed.\n")
        again = [classify(client, image) for image in images if image.domain == bundle.domain]
        if any(answer.body["version"] != version for answer in again):
            raise DemoError(f"{bundle.domain} does not use version {version}.")
        show(console, "4. The same images with the new version", again)
        stop(process)
    console.print("[bold]5. SIGTERM:[/bold] the service finished open requests and exited with 0.")


def main(
    assets: Annotated[Path, typer.Option(help="folder with bundles, images and upload")] = ASSETS,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="use random weights")] = False,
) -> None:
    """Start the service, classify, swap in a new version under load, stop."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    extra = ["--random-weights"] if random_weights else []
    try:
        run(console, assets, extra)
    except (DemoError, SettingsError, httpx.HTTPError) as error:
        console.print(Text.assemble(("The demo failed:", "red"), f" {error}"), soft_wrap=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
