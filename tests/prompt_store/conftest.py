"""A directory in memory for tests that create many stores, where fsync is fast."""

import os
import tempfile
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")  # noqa: S108 - only used as the parent of a fresh private directory


@pytest.fixture
def quick_path(tmp_path):
    if not (MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and os.statvfs(MEMORY).f_bavail * 4096 > 2**28):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="caspl-test-", dir=MEMORY) as directory:
        yield Path(directory)
