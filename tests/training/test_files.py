"""Atomic writes, concurrent writers, and reads within the size limit."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from training.errors import BoostBundleError
from training.files import digest_of, read_bundle_file, write_atomic

WRITER = """
import sys
from pathlib import Path
from training.files import write_atomic
for _ in range(200):
    write_atomic(Path(sys.argv[1]), sys.argv[2].encode() * 5000)
"""


def test_concurrent_writers_never_expose_a_partial_file(tmp_path):
    path = tmp_path / "report.json"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), mark]) for mark in "ab"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            seen.add(path.read_bytes())
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen | {path.read_bytes()} <= {b"a" * 5000, b"b" * 5000}
    assert [left.name for left in tmp_path.iterdir()] == ["report.json"]


def test_a_failed_write_keeps_the_old_file_and_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "taken"
    (path / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="taken"):
        write_atomic(path, b"new")
    assert [left.name for left in tmp_path.iterdir()] == ["taken"]


def test_the_names_of_a_file_and_its_new_folders_are_synced_after_the_rename(tmp_path, monkeypatch):
    synced = []
    sync = os.fsync

    def note(fd):
        synced.append((Path(f"/proc/self/fd/{fd}").readlink(), path.exists()))
        sync(fd)

    path = tmp_path / "new" / "folder" / "report.json"
    monkeypatch.setattr(os, "fsync", note)
    write_atomic(path, b"new")
    folders = [found for found, is_there in synced if is_there]
    assert folders == [path.parent, tmp_path / "new", tmp_path]


def test_a_file_system_that_cannot_sync_a_folder_is_no_failure(tmp_path, monkeypatch):
    def refuse(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    write_atomic(tmp_path / "report.json", b"new")
    assert (tmp_path / "report.json").read_bytes() == b"new"


def test_a_missing_bundle_is_named(tmp_path):
    with pytest.raises(BoostBundleError, match=r"none\.safetensors"):
        read_bundle_file(tmp_path / "none.safetensors")


def test_a_digest_names_its_algorithm():
    assert digest_of(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
