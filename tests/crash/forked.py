"""Starts workloads quickly: a process that has imported everything forks one child per run.

A child waits until it is released, so that a tracer can attach to it first. It appends a line to a file for each step
that is confirmed.
"""

import ctypes
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
FAILED, BROKEN = 3, 4
"""Exit codes: a step failed with an error that callers are prepared for; with any other."""


def run_steps(name, root, log):
    """Run a workload to its end or to its first error."""
    from tests.crash.workloads import WORKLOADS

    workload = WORKLOADS[name]
    try:
        for number, _ in enumerate(workload.steps(root), 1):
            log(f"done {number}")
    except workload.errors as error:
        log(f"failed {type(error).__name__} {getattr(error, 'code', '')}")
        return FAILED
    except BaseException as error:  # noqa: BLE001  the parent reports it
        log(f"broken {error!r}")
        return BROKEN
    return 0


def run_endless(name, root, first, log):
    from tests.crash import workloads

    getattr(workloads, name)(root, first, log)
    return 0


PR_SET_PTRACER, ANY = 0x59616D61, -1
"""Where only ancestors may trace a process (Yama), it may allow others."""


def child(words, go):
    name, root, output, first = words
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_ulong(ANY), 0, 0, 0)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def log(line):
        os.write(file, line.encode() + b"\n")

    os.read(go, 1)
    if name.startswith("endless_"):
        return run_endless(name, Path(root), int(first), log)
    return run_steps(name, Path(root), log)


def serve():
    """Run the commands from stdin; print a number for each."""
    sys.path.insert(0, str(ROOT))
    import torch  # noqa: F401  the children share it

    from tests.crash import workloads  # noqa: F401

    waiting = {}
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        command, *words = line.rstrip("\n").split("\t")
        if command == "fork":
            read_end, write_end = os.pipe()
            pid = os.fork()
            if pid == 0:
                os._exit(child(words, read_end))
            os.close(read_end)
            waiting[pid] = write_end
            answer = pid
        elif command == "go":
            answer = os.write(waiting[int(words[0])], b"x")
        else:
            os.close(waiting.pop(int(words[0])))
            answer = os.waitstatus_to_exitcode(os.waitpid(int(words[0]), 0)[1])
        print(answer, flush=True)  # noqa: T201


class Forker:
    """The process that forks; a context manager."""

    def __enter__(self):
        command = [sys.executable, "-c", "from tests.crash.forked import serve; serve()"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_):
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(20)

    def _send(self, *words):
        self.process.stdin.write("\t".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def fork(self, name, root, output, first=0):
        """Fork a child that waits; returns its process id."""
        return self._send("fork", name, root, output, first)

    def go(self, pid):
        """Release a child."""
        self._send("go", pid)

    def kill(self, pid):
        """Kill a child and wait for it."""
        os.kill(pid, signal.SIGKILL)
        self.wait(pid)

    def wait(self, pid):
        """Wait for a child; returns its exit code, negative for a signal."""
        return self._send("wait", pid)
