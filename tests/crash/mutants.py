"""Removes or misplaces one safeguard at a time in a copy of the sources, and shows which test fails then.

make mutants
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import Report, Table, Target
from tests.results import publish

ROOT = Path(__file__).parents[2]
COPIED = ("benchmarks", "caspl", "docs", "prompt_store", "prompted_clip", "service", "tests", "training")
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+::[^\s\[]+)(\[\S+\])?", re.MULTILINE)
TIMEOUT_S = 1800

STORE = tuple(f"tests/prompt_store/test_{name}.py" for name in ("crashes", "history", "store"))
MATRIX = "tests/crash/test_matrix.py::test_a"
POWER = MATRIX + "_power_failure_loses_nothing_confirmed[{}-all]"
KILLED = MATRIX + "_process_that_is_killed_at_a_system_call_loses_nothing_confirmed[training-all]"
CREATED = MATRIX + "_database_that_could_not_be_written_as_a_whole_gets_no_name"


@dataclass(frozen=True)
class Mutant:
    """One fault: `edits` are (file, old text, new text), `tests` those of which one should fail."""

    name: str
    edits: tuple[tuple[str, str, str], ...]
    tests: tuple[str, ...]


def mutant(name, path, old, new, *tests):
    return Mutant(name, ((path, old, new),), tests)


CHECKSUMS = "tests/service/examples/test_checksums.py"
DURABLE, LOGS, BLOBS = "prompt_store/durable.py", "prompt_store/logs.py", "prompt_store/blobs.py"
SQLITE, KEYS, FILES = "prompt_store/sqlite_files.py", "service/access/key_file.py", "training/files.py"
SYNC = "        disk.sync_file(fd)  # never retried"
AGAIN = "        try:\n            disk.sync_file(fd)\n        except OSError:\n            disk.sync_file(fd)  # "
WRITTEN = "        _write_temporary(disk, temporary, data)\n        disk.link(temporary, target)\n"
COMMIT = "            state, is_created = self._logs.commit(domain, decide, actor=actor)\n"
PUT = "        put_blob(layout, disk, data, digest)\n"
PUT_AFTERWARDS = "put_blob(self._layout, self._disk, data, bundle.digest)\n"
ACTIVATE = (
    "                try:\n                    info = await asyncio.to_thread(activate, expected_live=expected_live)\n"
)

MUTANTS = (
    mutant("a new file is not synced", DURABLE, SYNC, "        # ", *STORE),
    mutant("the name of a new file is not synced", DURABLE, "        disk.sync_dir(target.parent)\n", "", *STORE),
    mutant("a new directory is not synced", DURABLE, "        disk.sync_dir(path.parent)\n", "", *STORE),
    Mutant(
        "a file gets its name before it is synced",
        (
            (DURABLE, SYNC, "        # "),
            (DURABLE, WRITTEN, WRITTEN + "        fd = os.open(target, os.O_RDONLY)\n        disk.sync_file(fd)\n"),
        ),
        STORE,
    ),
    Mutant(
        "a file is written under its final name",
        (
            (DURABLE, WRITTEN, "        _write_temporary(disk, target, data)\n"),
            (DURABLE, "        disk.unlink(temporary)\n        disk.sync_dir", "        disk.sync_dir"),
        ),
        STORE,
    ),
    Mutant(
        "a version is recorded before its bundle is written",
        (
            ("prompt_store/changes.py", PUT + "        _sign", "        _sign"),
            ("prompt_store/store.py", COMMIT, COMMIT + "            changes." + PUT_AFTERWARDS),
        ),
        STORE,
    ),
    mutant("another writer's record is not synced", LOGS, "            sync_directory(self._disk, log_dir)\n",
    "", *STORE),
    mutant("another writer's bundle is not synced", BLOBS, "            sync_directory(disk, path.parent)\n",
    "", *STORE),
    mutant("a failed sync is repeated", DURABLE, SYNC,
           AGAIN, *STORE),
    mutant("a store goes on writing after an error of the disk", "prompt_store/store.py",
           "            self._has_failed |= error.code in _FATAL_CODES and is_device_failure(error.__cause__)\n",
           "", *STORE),
    mutant("a bundle is read without its digest", BLOBS,
           "    if data is None or digest_bytes(data) != digest:\n        problem",
           "    if data is None:\n        problem", *STORE),
    mutant("a record is read without its checksum", "prompt_store/records.py",
           '    elif not checksum_matches(data, record.checksum):',
           "    elif False:", *STORE),
    mutant("a damaged bundle goes live", "prompt_store/changes.py",
           "        read_blob(layout, published.digest)\n        if completes is None:",
           "        if completes is None:", *STORE),
    mutant("files are collected while others write", "prompt_store/store.py", "self._write_lock(exclusive=True)",
           "self._write_lock()", *STORE),
    mutant("commits of examples are not synced", SQLITE, "PRAGMA synchronous=FULL",
    "PRAGMA synchronous=NORMAL", POWER.format("examples")),
    mutant("a new database gets its name before it is written", SQLITE,
           '            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()\n        with suppress',
           "        with suppress", CREATED),
    mutant("examples are read without their checksums", "service/examples/tables.py",
           "        _verify(connection, domain, feature_key, rows)\n", "", CHECKSUMS),
    mutant("a label changes without its checksum", "service/examples/database.py",
           "            put_row_checksums(connection, json.dumps(list(ids)))\n", "", CHECKSUMS),
    mutant("a version is shown before it is live in the store", "service/domains/publisher.py", ACTIVATE,
           '                self.go_live(loaded, "", started_s)\n' + ACTIVATE,
           "tests/service/domains/test_publisher.py"),
    mutant("a checkpoint is not synced", FILES, "            os.fsync(file.fileno())\n", "", POWER.format("training")),
    Mutant(
        "a checkpoint is overwritten in place",
        (
            (FILES, '        with temporary.open("wb") as file:', '        with path.open("wb") as file:'),
            (FILES, "        temporary.replace(path)\n", ""),
        ),
        (KILLED, "tests/training/test_files.py"),
    ),
    mutant("the name of a checkpoint is not synced", FILES, "            sync_folder(folder)\n",
    "            pass\n", POWER.format("training")),
    mutant("a file of keys is not synced", KEYS, "            os.fsync(file.fileno())\n", "", POWER.format("keys")),
    mutant("the name of a file of keys is not synced", KEYS, "            os.fsync(folder)\n",
    "", POWER.format("keys")),
)  # fmt: skip


def copy_sources(folder):
    """Copy what the tests need, without links into the original."""
    ignored = shutil.ignore_patterns("__pycache__", "results")
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)


def run_tests(folder, tests):
    """The first test that fails in a copy, and the seconds it took; None if all pass."""
    command = [sys.executable, "-P", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    began_s = time.monotonic()
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    took_s = time.monotonic() - began_s
    if done.returncode == 0:
        return None, took_s
    match = FAILED.search(done.stdout)
    if done.returncode != 1 or match is None:
        sys.exit(f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return match[1] + (match[2] or ""), took_s


def apply(folder, edits):
    """Edit a copy; each old text must be there once."""
    for path, old, new in edits:
        text = (folder / path).read_text(encoding="utf-8")
        if text.count(old) != 1:
            sys.exit(f"{path} has {text.count(old)} times, expected once: {old!r}")
        (folder / path).write_text(text.replace(old, new), encoding="utf-8")


def try_mutant(folder, one):
    """Run the tests of a mutant in a copy, which is left as it was."""
    kept = {path: (folder / path).read_text(encoding="utf-8") for path, _, _ in one.edits}
    try:
        apply(folder, one.edits)
        return run_tests(folder, one.tests)
    finally:
        for path, text in kept.items():
            (folder / path).write_text(text, encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="mutants whose name has this text")
    parser.add_argument("--out", type=Path, default=Path("build/mutants"))
    words = parser.parse_args()
    chosen = [one for one in MUTANTS if words.only in one.name]
    report, rows = Report("mutants", {"only": words.only}), []
    with tempfile.TemporaryDirectory(prefix="caspl-mutants-") as name:
        folder = Path(name)
        copy_sources(folder)
        failed, _ = run_tests(folder, sorted({test for one in chosen for test in one.tests}))
        if failed:
            sys.exit(f"{failed} fails without any mutant.")
        for one in chosen:
            failed, took_s = try_mutant(folder, one)
            files = ", ".join(sorted({path for path, _, _ in one.edits}))
            rows.append((one.name, files, failed or "**none**", f"{took_s:.0f}"))
            sys.stderr.write(f"{one.name}: {failed or 'SURVIVED'} ({took_s:.0f} s)\n")
    survived = sum(row[2] == "**none**" for row in rows)
    report.add("mutants_survived", survived, f"of {len(rows)} mutants: all tests passed", Target("<=", 0))
    report.tables["Mutants"] = Table(("fault", "in", "first test that fails", "seconds"), rows)
    return publish(report, words.out, "make mutants")


if __name__ == "__main__":
    sys.exit(main())
