"""Runs a workload under strace: every system call that changes files, or a fault injected into one of them."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CHANGES = (
    "openat", "close", "write", "pwrite64", "fsync", "fdatasync", "ftruncate", "fallocate", "rename", "renameat",
    "renameat2",
    "link", "linkat", "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat", "fchmod",
)  # fmt: skip
LINE = re.compile(r"(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)")
TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
MAX_TEXT = 2**24


@dataclass(frozen=True)
class Call:
    """One system call that succeeded.

    Attributes:
        name: of the call.
        nth: it is the n-th call of this name in the process, from 1; as strace counts.
        paths: the files that it names or has open, absolute.
        data: what it writes.
        offset: where; None for a file's position.
        size: of `ftruncate` and `fallocate`.
        creates: whether it is an `openat` that may create a file.
        truncates: whether it is an `openat` that empties a file.
        fd: what `openat` returned.
    """

    name: str
    nth: int
    paths: tuple[str, ...] = ()
    data: bytes = b""
    offset: int | None = None
    size: int = 0
    creates: bool = False
    truncates: bool = False
    fd: int = -1


def tracing_problem():
    """Why workloads cannot be traced here; an empty string if they can."""
    if shutil.which("strace") is None:
        return "strace is not installed (Debian: apt install strace)"
    tried = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"strace may not trace here: {tried.stderr.strip()[:200]}"


@dataclass(frozen=True)
class Run:
    """How a workload ended: its exit code, the lines that it logged, and the calls of a trace."""

    code: int
    lines: tuple[str, ...]
    calls: tuple[Call, ...] = ()

    @property
    def n_done(self):
        """Confirmed steps."""
        return sum(line.startswith("done") for line in self.lines)


def run(forker, name, root, *, inject=None):
    """Run a workload in `root`, which is created.

    Args:
        forker: forks it.
        name: of the workload.
        root: its directory.
        inject: a call's name and strace's expression for the fault, such as `fsync`, `signal=KILL:when=3`; without it
            the calls are recorded.
    """
    root.mkdir()
    output, trace = root.with_suffix(".lines"), root.with_suffix(".trace")
    pid = forker.fork(name, root, output)
    options = ["-xx", "-s", str(MAX_TEXT), "-o", str(trace), "-e", f"trace={','.join(CHANGES)}"]
    if inject is not None:
        options = ["-o", "/dev/null", "-e", f"trace={inject[0]}", "-e", f"inject={inject[0]}:{inject[1]}"]
    with subprocess.Popen(["strace", "-f", "-p", str(pid), *options], stderr=subprocess.PIPE, text=True) as tracer:
        assert "attached" in (said := tracer.stderr.readline()), said
        forker.go(pid)
        code = forker.wait(pid)
        tracer.communicate(timeout=30)
    text = output.read_text() if output.exists() else ""
    lines = tuple(text.split("\n")[:-1])
    calls = tuple(parse(trace.read_text())) if inject is None else ()
    for path in (output, trace):
        path.unlink(missing_ok=True)
    return Run(code, lines, calls)


def parse(trace):
    """The calls of a trace that succeeded, with the paths of their descriptors."""
    counts, open_files = {}, {}
    for line in trace.splitlines():
        if (match := LINE.match(line)) is None:
            continue
        name, arguments, result = match[1], match[2], int(match[3])
        counts[name] = counts.get(name, 0) + 1
        if result < 0:
            continue
        texts = [bytes.fromhex(text.replace("\\x", "")) for text in TEXT.findall(arguments)]
        rest = [word.strip() for word in TEXT.sub('""', arguments).split(",")]
        call = _call(name, counts[name], texts, rest, result, open_files)
        if name == "openat":
            open_files[result] = call.paths[0]
        elif name == "close":
            open_files.pop(int(rest[0]), None)
        yield call


def _call(name, nth, texts, rest, result, open_files):
    def absolute(word, text):
        folder = "" if word == "AT_FDCWD" or text.startswith(b"/") else open_files.get(int(word), "?")
        return str(Path(folder) / text.decode())

    if name == "openat":
        path = absolute(rest[0], texts[0])
        return Call(name, nth, (path,), creates="O_CREAT" in rest[2], truncates="O_TRUNC" in rest[2], fd=result)
    if name in {"linkat", "renameat", "renameat2"}:
        return Call(name, nth, (absolute(rest[0], texts[0]), absolute(rest[2], texts[1])))
    if name in {"unlinkat", "mkdirat"}:
        return Call(name, nth, (absolute(rest[0], texts[0]),))
    if name in {"link", "rename", "unlink", "mkdir", "rmdir"}:
        return Call(name, nth, tuple(absolute("AT_FDCWD", text) for text in texts))
    paths = (open_files.get(int(rest[0]), "?"),)
    if name in {"write", "pwrite64"}:
        return Call(name, nth, paths, texts[0][:result], int(rest[3]) if name == "pwrite64" else None)
    size = {"ftruncate": lambda: int(rest[1]), "fallocate": lambda: int(rest[2]) + int(rest[3])}.get(name, lambda: 0)
    return Call(name, nth, paths, size=size())
