"""The fastest backend and dtype of a CPU: OpenVINO must be installed and win clearly, and int8 is never a choice."""

import subprocess
import sys

import pytest

from prompted_clip import fastest_backend as module
from prompted_clip.fastest_backend import MIN_OPENVINO_GAIN, best_choice, fastest_backend, time_blocks
from prompted_clip.openvino_tower import has_bfloat16
from prompted_clip.precision import MIN_GAIN
from tests.openvino_extra import needs_openvino
from tests.tiny import register_tiny_models

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
def test_bfloat16_must_be_worth_its_digits_against_the_faster_float32(faster):
    slow = dict.fromkeys((TORCH, OPENVINO, TORCH_BF16, OPENVINO_BF16), 1.0)
    assert best_choice(slow | {faster: 0.99 / MIN_GAIN}) == faster
    assert best_choice(slow | {faster: 1.01 / MIN_GAIN}) == TORCH
    assert best_choice(slow | {faster: 0.99 / MIN_GAIN, OPENVINO: 0.5}) == OPENVINO


@pytest.mark.parametrize("times_s", [{TORCH: 1.0}, {TORCH: 1.0, OPENVINO: 2.0}, {TORCH: 1.0, TORCH_BF16: 2.0}])
def test_types_that_the_processor_lacks_are_not_chosen(times_s):
    assert best_choice(times_s) == TORCH


@needs_openvino
@pytest.mark.slow
def test_every_float_type_of_both_backends_is_timed_and_int8_is_not():
    register_tiny_models()
    times_s = time_blocks("tiny")
    assert {TORCH, OPENVINO} <= set(times_s) <= {TORCH, OPENVINO, TORCH_BF16, OPENVINO_BF16}
    assert (OPENVINO_BF16 in times_s) == has_bfloat16()
    assert all(time_s > 0 for time_s in times_s.values())


@needs_openvino
@pytest.mark.parametrize("choice", [TORCH, OPENVINO, TORCH_BF16, OPENVINO_BF16])
def test_a_large_backbone_gets_the_choice_of_the_timed_blocks(monkeypatch, choice):
    times_s = dict.fromkeys((TORCH, OPENVINO, TORCH_BF16, OPENVINO_BF16), 1.0) | {choice: 0.1}
    monkeypatch.setattr(module, "time_blocks", lambda _: times_s)
    assert fastest_backend("ViT-B-16", "cpu") == choice


@pytest.mark.parametrize("arch", ["demo-student", "RN50", "no-such-model"])
def test_small_and_unknown_backbones_stay_in_torch_without_a_measurement(monkeypatch, arch):
    monkeypatch.setattr(module, "time_blocks", lambda _: pytest.fail("timed"))
    assert fastest_backend(arch, "cpu") == TORCH


def test_without_the_extra_torch_serves_in_its_fastest_dtype(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(module, "time_blocks", lambda _: pytest.fail("timed"))
    monkeypatch.setattr(module, "fastest_dtype", lambda arch, device: f"torch.bfloat16 of {arch} on {device}")
    assert fastest_backend("ViT-B-16", "cpu") == ("torch", "bfloat16 of ViT-B-16 on cpu")


@pytest.mark.slow
def test_openvino_is_not_imported_for_a_small_backbone_or_without_the_extra():
    code = """
import sys
from prompted_clip import fastest_backend as module
print(module.fastest_backend("demo-student", "cpu"))
module.find_spec, module.fastest_dtype = lambda _: None, lambda *_: "torch.bfloat16"
print(module.fastest_backend("ViT-B-16", "cpu"), "openvino" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["('torch', 'float32')", "('torch', 'bfloat16') False"]
