"""Which errors mean out of memory, and which GPUs the installed torch has code for."""

import pytest
import torch

from prompted_clip.device_errors import is_out_of_memory, unsupported_gpu

CUDA_12 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_90a", "sm_120"]


@pytest.fixture
def gpu(monkeypatch):
    def install(capability, architectures):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: architectures)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")
        return unsupported_gpu("cuda")

    return install


@pytest.mark.parametrize(
    ("capability", "architectures"),
    [
        ((7, 5), CUDA_12),
        ((8, 6), CUDA_12),
        ((8, 9), CUDA_12),
        ((9, 0), ["sm_90a"]),
        ((12, 1), CUDA_12),
        ((10, 0), ["sm_80", "compute_90"]),
        ((8, 7), ["sm_87"]),
        ((8, 7), ["compute_80"]),
    ],
)
def test_a_gpu_runs_code_for_its_own_and_earlier_minor_versions_and_ptx(gpu, capability, architectures):
    assert gpu(capability, architectures) is None


@pytest.mark.parametrize(
    ("capability", "architectures"),
    [((7, 0), CUDA_12), ((8, 0), ["sm_86"]), ((8, 7), CUDA_12), ((10, 0), CUDA_12), ((8, 0), ["compute_90"])],
)
def test_other_gpus_are_named_with_what_to_install(gpu, capability, architectures):
    reason = gpu(capability, architectures)
    assert reason.startswith(f"Tesla V100 has compute capability {capability[0]}.{capability[1]}")
    assert f"Install a torch build with sm_{capability[0]}{capability[1]}" in reason
    assert "use device cpu" in reason


def test_other_errors_do_not_mean_out_of_memory():
    assert not is_out_of_memory(RuntimeError("CUDA error: invalid argument"))
    assert not is_out_of_memory(ValueError("out of memory"))
