"""What every test shares: one thread per operation, GPU tests only where there is a GPU, a directory in memory."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tiny models are slower on many threads

import pytest

MEMORY = Path("/dev/shm")  # noqa: S108 - only used as the parent of a fresh private directory


def pytest_collection_modifyitems(items):
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if torch.cuda.is_available():
        return
    for item in gpu_items:
        item.fixturenames.insert(0, "simulated_gpu")
        for marker in item.iter_markers("gpu"):
            if (reason := marker.kwargs.get("real_only")) is not None:
                item.add_marker(pytest.mark.skip(reason=f"needs CUDA: {reason}"))


@pytest.fixture
def simulated_gpu():
    """The simulated device on which tests marked `gpu` run where there is no GPU; a race fails the test."""
    from tests.fakecuda.simulation import simulated_cuda

    with simulated_cuda(seed=0, eagerness=0.3) as simulated:
        yield simulated
    assert simulated.violations == []


@pytest.fixture
def simulated_or_real(request):
    """The simulated device of a test marked `gpu`; None on a real GPU."""
    return request.getfixturevalue("simulated_gpu") if "simulated_gpu" in request.fixturenames else None


@pytest.fixture
def quick_path(tmp_path):
    """A directory in memory, where fsync is fast."""
    if not (MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and os.statvfs(MEMORY).f_bavail * 4096 > 2**28):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="caspl-test-", dir=MEMORY) as directory:
        yield Path(directory)
