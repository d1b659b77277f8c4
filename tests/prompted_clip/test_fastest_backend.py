"""The fastest backend, dtype and form of layers: by capability on GPUs, timed on CPUs, fixed for small towers."""

import itertools
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from prompted_clip import fastest_backend as module
from prompted_clip.errors import BackendError
from prompted_clip.fastest_backend import (
    MIN_BFLOAT16_GAIN,
    MIN_OPENVINO_GAIN,
    best_choice,
    fastest_backend,
    gpu_dtype,
    is_heavy,
    is_packed_faster,
    time_block,
)
from tests.openvino_extra import needs_openvino
from tests.tiny import register_tiny_models

CPU = torch.device("cpu")
TORCH, OPENVINO = ("torch", "float32"), ("openvino", "float32")
TORCH_BF16, OPENVINO_BF16 = ("torch", "bfloat16"), ("openvino", "bfloat16")


@pytest.mark.parametrize(
    ("gain", "choice"),
    [(0.5, TORCH), (1.0, TORCH), (0.99 * MIN_OPENVINO_GAIN, TORCH), (1.01 * MIN_OPENVINO_GAIN, OPENVINO)],
)
def test_openvino_is_chosen_if_its_block_is_faster_than_the_least_gain(gain, choice):
    assert best_choice({TORCH: 1.0, OPENVINO: 1 / gain}) == choice


@pytest.mark.parametrize("gain", [0.99 * MIN_OPENVINO_GAIN, 1.01 * MIN_OPENVINO_GAIN])
def test_the_least_gain_holds_in_bfloat16_too(gain):
    times_s = {TORCH: 10.0, OPENVINO: 10.0, TORCH_BF16: 1.0, OPENVINO_BF16: 1 / gain}
    assert best_choice(times_s) == (OPENVINO_BF16 if gain > MIN_OPENVINO_GAIN else TORCH_BF16)


@pytest.mark.parametrize("faster", [TORCH_BF16, OPENVINO_BF16])
def test_bfloat16_needs_its_least_gain_over_the_faster_float32(faster):
    slow = dict.fromkeys((TORCH, OPENVINO, TORCH_BF16, OPENVINO_BF16), 1.0)
    assert best_choice(slow | {faster: 0.99 / MIN_BFLOAT16_GAIN}) == faster
    assert best_choice(slow | {faster: 1.01 / MIN_BFLOAT16_GAIN}) == TORCH
    assert best_choice(slow | {faster: 0.99 / MIN_BFLOAT16_GAIN, OPENVINO: 0.5}) == OPENVINO


@pytest.mark.parametrize("times_s", [{TORCH: 1.0, OPENVINO: 2.0}, {TORCH: 1.0, TORCH_BF16: 2.0}, {OPENVINO: 1.0}])
def test_types_and_backends_that_were_not_timed_are_not_chosen(times_s):
    assert best_choice(times_s) == next(iter(times_s))


@pytest.fixture
def supports(monkeypatch):
    """Sets whether torch and OpenVINO have bfloat16, and whether OpenVINO is installed."""

    def set_support(*, torch_bfloat16=True, openvino_bfloat16=True, is_installed=True):
        monkeypatch.setattr(module, "packs", lambda _, dtype: torch_bfloat16 or dtype == torch.float32)
        monkeypatch.setattr(module, "has_bfloat16", lambda: openvino_bfloat16)
        monkeypatch.setattr(module, "find_spec", lambda _: is_installed or None)

    return set_support


def not_timed(*_, **__):
    pytest.fail("timed")


@pytest.mark.parametrize(
    ("support", "backend", "timed"),
    [
        ({}, "auto", {TORCH, TORCH_BF16, OPENVINO, OPENVINO_BF16}),
        ({"is_installed": False}, "auto", {TORCH, TORCH_BF16}),
        ({"torch_bfloat16": False, "openvino_bfloat16": False}, "auto", {TORCH, OPENVINO}),
        ({}, "torch", {TORCH, TORCH_BF16}),
        ({}, "openvino", {OPENVINO, OPENVINO_BF16}),
    ],
)
def test_a_large_backbone_gets_the_best_of_all_supported_choices(monkeypatch, supports, support, backend, timed):
    supports(**support)
    for fastest in timed:
        found = set()
        monkeypatch.setattr(module, "time_block", lambda _, *choice: found.add(choice) or float(choice != fastest))  # noqa: B023
        assert fastest_backend("ViT-B-16", "cpu", backend) == fastest
        assert found == timed


@pytest.mark.parametrize("choice", [TORCH, OPENVINO])
def test_a_single_supported_choice_is_not_timed(monkeypatch, supports, choice):
    supports(torch_bfloat16=False, openvino_bfloat16=False)
    monkeypatch.setattr(module, "time_block", not_timed)
    assert fastest_backend("ViT-B-16", "cpu", choice[0]) == choice


@pytest.mark.parametrize(("backend", "choice"), [("auto", TORCH), ("torch", TORCH), ("openvino", OPENVINO)])
@pytest.mark.parametrize("arch", ["demo-student", "demo-teacher", "tiny", "RN50", "no-such-model"])
def test_small_and_unknown_backbones_stay_in_float32_without_a_measurement(monkeypatch, arch, backend, choice):
    register_tiny_models()
    monkeypatch.setattr(module, "time_block", not_timed)
    assert fastest_backend(arch, "cpu", backend) == choice


def test_openvino_that_is_requested_and_not_installed_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match=r"pip install 'caspl-serve\[openvino\]'"):
        fastest_backend("ViT-B-16", "cpu", "openvino")


@pytest.mark.slow
def test_openvino_is_not_imported_for_a_small_backbone_or_without_the_extra():
    code = """
import sys
from prompted_clip import fastest_backend as module
print(module.fastest_backend("demo-student", "cpu"))
module.find_spec, module.packs = lambda _: None, lambda *_: False
print(module.fastest_backend("ViT-B-16", "cpu"), "openvino" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["('torch', 'float32')", "('torch', 'float32') False"]


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((9, 0), "bfloat16"), ((8, 0), "bfloat16"), ((7, 5), "float16"), ((6, 1), "float32")],
)
def test_a_gpu_gets_the_dtype_of_its_matrix_units(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert gpu_dtype("cuda:1") == dtype
    assert fastest_backend("ViT-B-16", "cuda:1") == ("torch", dtype)


@pytest.fixture
def timed_forms(monkeypatch, supports):
    """Sets the seconds of packed and plain layers."""

    def set_times(**seconds):
        supports()
        monkeypatch.setattr(
            module, "time_torch_block", lambda _, dtype, packed: seconds["packed" if packed else "plain"]
        )

    return set_times


@pytest.mark.parametrize(("packed", "plain"), [(1.0, 2.0), (2.0, 1.0)])
def test_float32_layers_take_the_faster_form_and_bfloat16_is_always_packed(timed_forms, packed, plain):
    timed_forms(packed=packed, plain=plain)
    assert is_packed_faster("ViT-B-16", CPU, torch.float32) is (packed < plain)
    assert time_block("ViT-B-16", *TORCH) == min(packed, plain)
    assert is_packed_faster("ViT-B-16", CPU, torch.bfloat16)
    assert time_block("ViT-B-16", *TORCH_BF16) == packed


@pytest.mark.parametrize("arch", ["demo-student", "tiny", "no-such-model"])
def test_small_and_unknown_models_are_packed_where_possible_without_a_measurement(monkeypatch, arch):
    register_tiny_models()
    monkeypatch.setattr(module, "time_torch_block", not_timed)
    assert is_packed_faster(arch, CPU, torch.float32) is module.packs(CPU, torch.float32)


def test_a_torch_without_packed_layers_is_timed_with_plain_ones(monkeypatch):
    monkeypatch.setattr(module, "packs", lambda *_: False)
    monkeypatch.setattr(module, "time_torch_block", lambda _, dtype, packed: pytest.fail("packed") if packed else 1.0)
    assert time_block("ViT-B-16", *TORCH) == 1.0


@needs_openvino
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_every_float_type_of_a_backend_is_timed_by_its_best_trial_after_a_warm_up(monkeypatch, backend):
    register_tiny_models()
    for dtype in module._float_types(backend):
        ends = (0.01, 5.0, 3.0, 4.0, 2.0, 6.0)
        clock = itertools.cycle(itertools.chain.from_iterable((0.0, end) for end in ends))
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda clock=clock: next(clock)))
        assert time_block("tiny", backend, dtype) == 2.0


@pytest.mark.parametrize(("arch", "expected"), [("ViT-B-16", True), ("demo-student", False), ("RN50", False)])
def test_a_full_size_vit_is_heavy_and_small_ones_and_resnets_are_not(arch, expected):
    assert is_heavy(arch) is expected
