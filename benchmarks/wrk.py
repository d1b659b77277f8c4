"""Closed loops from wrk, a load generator in C, which leaves more of the cores to the server than `benchmarks.load`."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import BenchError

TIMEOUT_S = 60
SCRIPT = """
local file = assert(io.open(os.getenv("BODY"), "rb"))
wrk.method, wrk.body = "POST", file:read("*a")
wrk.headers["Content-Type"] = os.getenv("CONTENT_TYPE")
file:close()
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("n=%d us=%d status=%d errors=%d\\n", summary.requests, summary.duration, e.status,
    e.connect + e.read + e.write + e.timeout))
end
"""
RESULT = re.compile(r"n=(\d+) us=(\d+) status=(\d+) errors=(\d+)")


@dataclass(frozen=True)
class Loop:
    """One closed loop: answered requests, duration, and CPU time of the client."""

    n_requests: int
    seconds: float
    client_cpu_s: float


def require_wrk() -> None:
    """Check that wrk is installed.

    Raises:
        BenchError: it is not.
    """
    if shutil.which("wrk") is None:
        raise BenchError("wrk, the load generator, is not installed: apt-get install wrk")


def closed_loop(url: str, body: Path, content_type: str, *, n_clients: int, seconds: int) -> Loop:
    """Post a body repeatedly over `n_clients` connections.

    Raises:
        BenchError: wrk failed, or the server did not answer every request with success.
    """
    script = body.with_suffix(".lua")
    script.write_text(SCRIPT, encoding="utf-8")
    command = ["wrk", "-t1", f"-c{n_clients}", f"-d{seconds}s", f"--timeout={TIMEOUT_S}s", "-s", str(script), url]
    variables = os.environ | {"BODY": str(body), "CONTENT_TYPE": content_type}
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:  # noqa: S603
        output = process.stdout.read().decode() if process.stdout else ""
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    found = RESULT.search(output)
    if process.returncode or found is None:
        raise BenchError(f"wrk failed: {output[-500:]}")
    n_requests, took_us, n_refused, n_errors = map(int, found.groups())
    if n_refused or n_errors or not n_requests:
        raise BenchError(f"of {n_requests} requests, {n_refused} were not answered with success; {n_errors} failed")
    return Loop(n_requests, took_us / 1e6, used.ru_utime + used.ru_stime)
