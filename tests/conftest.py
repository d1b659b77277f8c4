"""What every test shares: one thread per operation, and GPU tests only where there is a GPU."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tiny models are slower on many threads

import pytest


def pytest_collection_modifyitems(items):
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))
