"""The example database: several processes, kills, a full disk, and read-only media."""

import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prompt_store.errors import StorageFullError, StoreReadOnlyError
from prompt_store.sqlite_files import database_problem, reclaim_space
from service.examples import connections
from tests.service.examples.pictures import KEY, add, new_example, open_database

ROOT = Path(__file__).parents[3]
NAME = "examples.sqlite3"

WRITE = """
def write(database, first, count):
    for n in range(first, first + count, 2):
        added = add(database, new_example(n, "rose"), new_example(n + 1, None, picture=b"x" * 30_000))
        print("add", n, *(one.id for one in added), flush=True)
        database.relabel("flowers", [added[1].id], "tulip")
        print("label", n, flush=True)
        if n % 8 == 0:
            database.remove("flowers", [added[0].id])
            print("remove", n, flush=True)
"""
WRITER = """
import sys
from pathlib import Path
from tests.service.examples.pictures import add, new_example, open_database
print("ready", flush=True)
sys.stdin.readline()
write(open_database(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]))
"""


def start(directory, first, count):
    command = [sys.executable, "-c", WRITE + WRITER, str(directory), str(first), str(count)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def go(process):
    process.stdin.write("go\n")
    process.stdin.flush()


def acknowledged(output):
    """Number -> set of acknowledged actions; a line that was cut off acknowledges nothing."""
    actions = {}
    for line in output.split("\n")[:-1]:
        action, n, *_ = line.split()
        actions.setdefault(int(n), set()).add(action)
    return actions


def check_whole(database, directory):
    """The file is sound, and pages, counts and features agree."""
    assert database_problem(directory / NAME) is None
    page = database.page("flowers", limit=100_000)
    counts = database.counts("flowers")
    named = [one.label for one in page if one.label is not None]
    assert counts.by_label == {label: named.count(label) for label in sorted(set(named))}
    assert (counts.labelled, counts.unlabelled) == (len(named), len(page) - len(named))
    assert counts.n_bytes == sum(one.n_bytes for one in page)
    labelled, unlabelled = database.labelled("flowers", KEY), database.unlabelled("flowers", KEY)
    assert sorted(labelled.ids_N + unlabelled.ids_N) == [one.id for one in page]
    assert labelled.stale_ids == unlabelled.stale_ids == []
    return {one.sha256: one for one in page}


def test_two_processes_that_start_at_once_lose_nothing(quick_path):
    processes = [start(quick_path, first, 80) for first in (0, 1000)]
    for process in processes:
        go(process)
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert all(len(acknowledged(output)) == 40 for output in outputs)

    database = open_database(quick_path)
    seen = check_whole(database, quick_path)
    expected = {n: "tulip" if n % 2 else "rose" for first in (0, 1000) for n in range(first, first + 80) if n % 8}
    assert {digest: one.label for digest, one in seen.items()} == {
        new_example(n).sha256: label for n, label in expected.items()
    }
    database.close()
    assert sorted(path.name for path in quick_path.iterdir()) == [NAME]


def test_changes_by_another_process_are_visible(quick_path):
    reader = open_database(quick_path)
    writer = open_database(quick_path)
    assert reader.revision("flowers") == 0
    add(writer, new_example(1, "rose"))
    first = reader.revision("flowers")
    assert [one.label for one in reader.page("flowers")] == ["rose"]
    writer.relabel("flowers", [1], "tulip")

    assert [one.label for one in reader.page("flowers")] == ["tulip"]
    assert reader.revision("flowers") > first > 0
    reader.close()
    writer.close()


FORKER = """
import os, sys
from pathlib import Path
from tests.service.examples.pictures import add, new_example, open_database
for line in sys.stdin:
    if line.startswith("wait "):
        print(os.waitstatus_to_exitcode(os.waitpid(int(line.split()[1]), 0)[1]), flush=True)
        continue
    directory, output, first = line.split()
    if pid := os.fork():
        print(pid, flush=True)
        continue
    with open(output, "w", buffering=1) as sys.stdout:
        write(open_database(Path(directory)), int(first), 100_000)
    os._exit(0)
"""


class KilledWriters:
    """Writers that are forked from one process, so that starting one takes no time."""

    def __init__(self, directory):
        self.directory = directory

    def __enter__(self):
        command = [sys.executable, "-c", WRITE + FORKER]
        self.forker = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_):
        self.forker.communicate(timeout=20)

    def send(self, line):
        self.forker.stdin.write(f"{line}\n")
        self.forker.stdin.flush()
        return int(self.forker.stdout.readline())

    def run(self, numbers, n_lines, seconds):
        """Start a writer per number; when one has written `n_lines`, wait that long and kill all.

        Returns their output and their exit codes.
        """
        outputs = [self.directory.parent / f"output-{first}" for first in numbers]
        pids = [self.send(f"{self.directory} {output} {first}") for first, output in zip(numbers, outputs, strict=True)]
        deadline_s = time.monotonic() + 30
        while max(read(output).count("\n") for output in outputs) < n_lines and time.monotonic() < deadline_s:
            time.sleep(0.001)
        time.sleep(seconds)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        codes = [self.send(f"wait {pid}") for pid in pids]
        return [read(output) for output in outputs], codes


def read(output):
    return output.read_text() if output.exists() else ""


def test_writers_killed_at_random_moments_lose_nothing_acknowledged(quick_path):
    dice = random.Random(7)  # noqa: S311 - moments, not secrets
    directory = quick_path / "store"
    directory.mkdir()
    codes, actions = [], {}
    database = open_database(directory)
    with KilledWriters(directory) as writers:
        for batch in range(25):
            numbers = [1_000_000 * (2 * batch + index) for index in range(2)]
            outputs, ended = writers.run(numbers, dice.randrange(20), dice.uniform(0, 0.01))
            codes += ended
            for output in outputs:
                actions |= acknowledged(output)
            if batch % 2:  # a process that was connected all the time, and one that recovers the file
                database.close()
            seen = check_whole(database, directory)
            for n, done in actions.items():
                first, second = seen.get(new_example(n).sha256), seen[new_example(n + 1).sha256]
                assert second.has_picture
                assert second.label == "tulip" or "label" not in done
                assert (first is None) if "remove" in done else (first is not None or n % 8 == 0)
            # Each writer was in the middle of at most one call, of two pictures.
            known = {new_example(n + offset).sha256 for n in actions for offset in (0, 1)}
            assert len(seen.keys() - known) <= 4 * (batch + 1)

    assert set(codes) == {-signal.SIGKILL}
    assert len(codes) == 50
    assert len(actions) > 50
    assert add(database, new_example(10**9, "rose"))[0].status == "added"
    database.close()


def fill(database, picture):
    for n in range(100, 400):
        add(database, new_example(n, "rose", picture=picture), new_example(1000 + n, "tulip"))


def check_full(database, directory, picture):
    """A full disk refuses the whole call and keeps everything before it."""
    add(database, *(new_example(n, "rose") for n in range(5)))
    with pytest.raises(StorageFullError):
        fill(database, picture)
    seen = check_whole(database, directory)
    assert all(new_example(n).sha256 in seen for n in range(5))
    stored = [n for n in range(100, 400) if new_example(n).sha256 in seen]
    assert stored == list(range(100, 100 + len(stored)))
    assert all(new_example(1000 + n).sha256 in seen for n in stored)
    assert len(stored) > 1
    return [one.id for one in seen.values() if one.has_picture]


def test_a_full_database_refuses_the_whole_call_and_examples_can_be_removed(quick_path, monkeypatch):
    def open_small(path):
        connection, is_kept = open_database_file(path)
        connection.execute("PRAGMA max_page_count = 60")
        return connection, is_kept

    open_database_file = connections.open_database
    monkeypatch.setattr(connections, "open_database", open_small)
    database = open_database(quick_path)
    ids = check_full(database, quick_path, b"x" * 50_000)
    assert database.remove("flowers", ids) == len(ids)
    assert add(database, new_example(9999, "rose"))[0].status == "added"
    database.close()


@pytest.fixture
def small_disk(tmp_path, request):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "none", disk]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system requires root")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("small_disk", ["90m"], indirect=True)
def test_a_disk_that_fills_up_keeps_room_to_remove_examples(small_disk):
    database = open_database(small_disk)
    ids = check_full(database, small_disk, b"x" * 2_000_000)
    assert database.remove("flowers", ids) == len(ids)
    assert database.counts("flowers").labelled == 5 + len(ids)
    database.close()
    reclaim_space(small_disk / NAME)
    assert add(database, new_example(9999, "rose"))[0].status == "added"
    database.close()


@pytest.mark.parametrize("small_disk", ["2m"], indirect=True)
def test_a_disk_that_others_filled_refuses_the_whole_call(small_disk, monkeypatch):
    monkeypatch.setattr(connections, "MIN_FREE_BYTES", 0)
    database = open_database(small_disk)
    check_full(database, small_disk, b"x" * 50_000)
    database.close()


def test_a_disk_without_room_for_a_database_creates_none(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    database = open_database(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "link", full)
        with pytest.raises(StorageFullError):
            add(database, new_example(1, "rose"))
    assert list(tmp_path.iterdir()) == []
    assert add(database, new_example(1, "rose"))[0].status == "added"
    database.close()


READ_ONLY = """
import os, sys
from pathlib import Path
from prompt_store.errors import StoreReadOnlyError
from service.errors import ExampleNotFoundError
from tests.service.examples.pictures import KEY, add, new_example, open_database
database = open_database(Path(sys.argv[1]))
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
print(len(database.page("flowers")), database.counts("flowers").labelled, len(database.labelled("flowers", KEY).ids_N))
for call in (
    lambda: add(database, new_example(5, "rose")),
    lambda: database.relabel("flowers", [1], "tulip"),
    lambda: database.remove("flowers", None),
):
    try:
        call()
    except (StoreReadOnlyError, ExampleNotFoundError) as error:
        print(error.code)
"""


def run_without_write_access(directory):
    directory.parent.chmod(0o755)
    for path in [*directory.iterdir(), directory]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    result = subprocess.run(
        [sys.executable, "-c", READ_ONLY, str(directory)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    for path in [directory, *directory.iterdir()]:
        path.chmod(0o755)
    if os.getuid() == 0 and "PermissionError" in result.stderr:
        pytest.skip("the test's user may not read the interpreter or the sources")
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_examples_on_read_only_media_can_be_read(quick_path):
    directory = quick_path / "store"
    database = open_database(directory)
    add(database, *(new_example(n, "rose") for n in range(3)), new_example(3, None))
    database.close()

    assert run_without_write_access(directory) == ["4", "3", "3", *["store_read_only"] * 3]
    assert sorted(path.name for path in directory.iterdir()) == [NAME]


def test_without_a_database_read_only_media_have_no_examples(quick_path):
    directory = quick_path / "store"
    directory.mkdir()

    assert run_without_write_access(directory) == ["0", "0", "0", "store_read_only", "example_not_found"]
    assert list(directory.iterdir()) == []


def test_a_database_that_another_process_locks_is_busy_and_nothing_is_changed(quick_path, monkeypatch):
    database = open_database(quick_path)
    monkeypatch.setattr("prompt_store.sqlite_files.BUSY_TIMEOUT_S", 0.05)
    add(database, new_example(1, "rose"))
    other = sqlite3.connect(quick_path / NAME, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreReadOnlyError) as caught:
        add(database, new_example(2, "rose"))
    assert caught.value.code == "database_busy"
    assert database.counts("flowers").labelled == 1
    other.close()
    assert add(database, new_example(2, "rose"))[0].status == "added"
    database.close()


def test_only_the_owner_may_read_the_file(quick_path):
    database = open_database(quick_path)
    add(database, new_example(1, "rose"))

    assert {stat.S_IMODE(path.stat().st_mode) for path in quick_path.iterdir()} == {0o600}
    database.close()
