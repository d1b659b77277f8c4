"""CPU profile of a running process: each thread's CPU time from the kernel, divided among its py-spy samples.

Samples alone would also count waiting threads.
"""

import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.errors import BenchError

RATE_HZ = 100
"""Samples per second. py-spy does not pause the process, so that its threads run in parallel."""
MARGIN_S = 2
"""Time for py-spy to start, so that it ends before the load."""
PARTS = (
    ("decoding", ("PIL/", "simplejpeg", "service/images/headers", "service/images/decoder", "service/images/prepro",
                  "prompted_clip/preprocess")),
    ("decoding threads: queue, wake-up, GIL", ("service/images/pool", "concurrent/futures/", "queue.py")),
    ("device threads", ("service/engine/", "benchmarks/fixed_device", "numpy/")),
    ("queue and batches", ("service/scheduler/batcher", "service/scheduler/queue", "service/scheduler/admission",
                           "service/domains/")),
    ("socket and HTTP/1.1", ("uvicorn/", "h11/", "httptools/", "service/http/connections", "asyncio/selector_events")),
    ("routes", ("service/http/routes/", "service/inference")),
    ("access, limits, request log", ("service/http/", "service/access/", "service/scheduler/budget")),
    ("FastAPI, Starlette, pydantic", ("fastapi/", "starlette/", "pydantic", "anyio/", "opentelemetry/")),
    ("metrics and logs", ("prometheus_client/", "service/observability/", "logging/")),
    ("web workers", ("service/workers/",)),
    ("event loop", ("asyncio/", "selectors.py")),
)  # fmt: skip
"""Parts and their path prefixes. A sample counts for the part of the innermost frame that belongs to one."""
OTHER = "other"
WITHOUT_PYTHON = "threads without Python"
THREAD = re.compile(r"thread \((?P<id>\d+)\)")
FRAME = re.compile(r"(?P<function>.*) \((?P<file>[^()]*?)(?::\d+)?\)$")


@dataclass
class Profile:
    """CPU seconds of a process.

    Attributes:
        by_part: as in `PARTS`, `OTHER` or `WITHOUT_PYTHON`.
        by_function: without the functions that it calls.
        n_samples: of all threads.
    """

    by_part: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    by_function: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    n_samples: int = 0

    def fill(self, lines: Iterable[str], cpu_s: Mapping[int, float]) -> None:
        """Add samples.

        Args:
            lines: py-spy's raw format: thread and frames, outermost first, separated by semicolons; then the number of
                samples.
            cpu_s: CPU time by thread.
        """
        stacks: dict[int, list[tuple[list[re.Match[str]], int]]] = defaultdict(list)
        for line in lines:
            stack, _, number = line.rpartition(" ")
            thread, *others = stack.split(";")
            frames = [found for frame in others if (found := FRAME.match(frame))]
            if frames and (found := THREAD.match(thread)):
                stacks[int(found["id"])].append((frames, int(number)))
        for thread_id, taken_s in cpu_s.items():
            of_thread = stacks.get(thread_id)
            if of_thread is None:
                self.by_part[WITHOUT_PYTHON] += taken_s
                continue
            n_samples = sum(n for _, n in of_thread)
            self.n_samples += n_samples
            for frames, n in of_thread:
                share_s = taken_s * n / n_samples
                self.by_part[part_of([frame["file"] for frame in frames])] += share_s
                self.by_function[f"`{frames[-1]['function']}` ({frames[-1]['file']})"] += share_s


def part_of(files: list[str]) -> str:
    """The part of a stack, given the files of its frames, outermost first."""
    for file in reversed(files):
        for part, prefixes in PARTS:
            if file.startswith(prefixes):
                return part
    return OTHER


@contextmanager
def profile(pid: int, seconds: int, folder: Path) -> Iterator[Profile]:
    """Sample a process during the block, which must take `seconds`; the profile is filled at its end.

    Raises:
        BenchError: py-spy is missing, or may not read the process.
    """
    beside = Path(sys.executable).with_name("py-spy")
    py_spy = str(beside) if beside.exists() else shutil.which("py-spy")
    if py_spy is None:
        raise BenchError('py-spy is not installed: pip install "caspl-serve[bench]"')
    output, found = folder / "py-spy.txt", Profile()
    command = [
        py_spy,
        "record",
        "--pid",
        str(pid),
        "--threads",
        "--nonblocking",
        "--format",
        "raw",
        "--output",
        str(output),
    ]
    command += ["--rate", str(RATE_HZ), "--duration", str(max(1, seconds - MARGIN_S))]
    before_s = thread_cpu_s(pid)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:  # noqa: S603
        yield found
        after_s = thread_cpu_s(pid)
        text = process.stdout.read().decode(errors="replace") if process.stdout else ""
    if process.returncode or not output.is_file():
        raise BenchError(f"py-spy failed, it needs the permission to trace the process (ptrace): {text[-500:]}")
    taken_s = {thread: cpu_s - before_s.get(thread, 0.0) for thread, cpu_s in after_s.items()}
    found.fill(output.read_text(encoding="utf-8").splitlines(), taken_s)


def thread_cpu_s(pid: int) -> dict[int, float]:
    """CPU time of each thread of a process so far, user and system."""
    return {one.id: one.user_time + one.system_time for one in psutil.Process(pid).threads()}
