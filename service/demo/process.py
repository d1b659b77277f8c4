"""The demo service as a separate process: start, wait until ready, stop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx

from service.errors import ServiceError

READY_WITHIN_S: Final = 180.0
STOP_WITHIN_S: Final = 30.0


class DemoError(ServiceError, code="demo_failed"):
    """A step of the demo failed."""


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
