"""Classification of exceptions from the device."""

import pytest
import torch

from service.engine.faults import Fault, fault_of


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: unspecified launch failure",
        "CUDA error: the launch timed out and was terminated",
        "CUDA error: an illegal instruction was encountered",
        "CUDA error: invalid program counter",
        "CUDA error: operation not supported on global/shared address space",
        "CUDA error: misaligned address",
        "CUDA error: hardware stack error",
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: device-side assert triggered",
    ],
)
def test_errors_after_which_the_device_is_unusable(message):
    assert fault_of(RuntimeError(message)) is Fault.LOST


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_errors_that_mean_out_of_memory(error):
    assert fault_of(error) is Fault.OUT_OF_MEMORY


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("device-side assert"), KeyError(1)]
)
def test_other_errors_are_no_device_fault(error):
    assert fault_of(error) is Fault.NONE
