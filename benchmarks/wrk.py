"""Load from wrk, a load generator in C, which leaves more of the cores to the server than `benchmarks.load`.

wrk's own limits: it repeats its requests in order, and reports latencies of all statuses together.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.answers import EXPIRED, OK, REFUSALS
from benchmarks.errors import BenchError

TIMEOUT_S = 60
SCRIPT = """
local function read(path)
  local file = assert(io.open(path, "rb"))
  local content = file:read("*a")
  file:close()
  return content
end
local bodies, paths, headers, statuses, last, threads = {}, {}, {}, {}, 0, {}
local think_ms = tonumber(os.getenv("THINK_MS"))
if think_ms > 0 then
  function delay() return -think_ms * math.log(1 - math.random()) end
end
function setup(thread) table.insert(threads, thread) end
function init()
  for path in os.getenv("BODIES"):gmatch("[^\\n]+") do table.insert(bodies, read(path)) end
  for path in read(os.getenv("PATHS")):gmatch("[^\\n]+") do table.insert(paths, path) end
  headers = { ["Content-Type"] = os.getenv("CONTENT_TYPE"), ["Host"] = wrk.headers["Host"] }
end
function request()
  last = last + 1
  return wrk.format("POST", paths[last % #paths + 1], headers, bodies[last % #bodies + 1])
end
function response(status)
  statuses[status] = (statuses[status] or 0) + 1
  encoded = ""
  for code, count in pairs(statuses) do encoded = encoded .. string.format(',"%d":%d', code, count) end
end
function done(summary)
  local e, counted = summary.errors, threads[1]:get("encoded") or ""
  io.write(string.format('\\nRESULT {"us":%d,"errors":%d,"statuses":{%s}}\\n', summary.duration,
    e.connect + e.read + e.write + e.timeout, counted:sub(2)))
end
"""
RESULT = re.compile(r"^RESULT (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Loop:
    """Requests of one run: their number by status, duration, failed connections, and CPU time of the client."""

    statuses: dict[int, int]
    seconds: float
    n_errors: int
    client_cpu_s: float

    @property
    def n_requests(self) -> int:
        """Requests that were answered."""
        return sum(self.statuses.values())

    @property
    def n_good(self) -> int:
        """Requests that were answered with success."""
        return self.statuses.get(OK, 0)

    @property
    def n_refused(self) -> int:
        """Requests that the server refused as overloaded."""
        return sum(self.statuses.get(status, 0) for status in REFUSALS)

    @property
    def n_expired(self) -> int:
        """Requests that the server accepted, and did not answer within their timeout."""
        return self.statuses.get(EXPIRED, 0)


def require_wrk() -> None:
    """Check that wrk is installed.

    Raises:
        BenchError: it is not.
    """
    if shutil.which("wrk") is None:
        raise BenchError("wrk, the load generator, is not installed: apt-get install wrk")


def run(
    url: str,
    paths: Sequence[str],
    bodies: Sequence[Path],
    folder: Path,
    *,
    n_clients: int,
    seconds: int,
    content_type: str = "image/jpeg",
    think_s: float = 0.0,
) -> Loop:
    """Post bodies from `n_clients` connections; each sends its next request when its last one is answered.

    Args:
        url: server, without a path.
        paths: paths with queries, one per request, in turn.
        bodies: files, in turn.
        folder: for the script and the paths.
        n_clients: connections, each with at most one request.
        seconds: duration.
        content_type: of the bodies.
        think_s: mean of the random pause (exponential) of a connection before each request. With many connections and
            long pauses arrivals are close to a Poisson process.

    Raises:
        BenchError: wrk failed.
    """
    script, listed = folder / "requests.lua", folder / "paths"
    script.write_text(SCRIPT, encoding="utf-8")
    listed.write_text("\n".join(paths), encoding="utf-8")
    command = ["wrk", "-t1", f"-c{n_clients}", f"-d{seconds}s", f"--timeout={TIMEOUT_S}s", "-s", str(script), url]
    variables = {
        "BODIES": "\n".join(map(str, bodies)),
        "PATHS": str(listed),
        "CONTENT_TYPE": content_type,
        "THINK_MS": f"{1000 * think_s:.3f}",
    }
    with subprocess.Popen(  # noqa: S603  our own command
        command, env=os.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        output = process.stdout.read().decode() if process.stdout else ""
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    found = RESULT.search(output)
    if process.returncode or found is None:
        raise BenchError(f"wrk failed: {output[-500:]}")
    result = json.loads(found[1])
    statuses = {int(code): int(number) for code, number in result["statuses"].items()}
    return Loop(statuses, result["us"] / 1e6, int(result["errors"]), used.ru_utime + used.ru_stime)


def require_success(loop: Loop) -> Loop:
    """Return a run in which every request was answered with success.

    Raises:
        BenchError: it is not such a run.
    """
    n_other = loop.n_requests - loop.n_good
    if n_other or loop.n_errors or not loop.n_requests:
        raise BenchError(
            f"of {loop.n_requests} requests, {n_other} were not answered with success; {loop.n_errors} failed"
        )
    return loop
