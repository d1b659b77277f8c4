"""The command that measures a GPU, tried on a CPU with the demo model, and its count of operations."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks.gpu import image_operations, matrix_rate, prompts_of
from prompted_clip.model import PromptedClip
from tests.tiny import tiny_backbone


def test_operations_of_an_image_are_those_of_its_matrix_products():
    model = PromptedClip(tiny_backbone())
    grid = prompts_of(model)
    visual, width = model.backbone.clip.visual, model.backbone.vision_width
    n_layers, n_plain = model.backbone.n_vision_layers, len(visual.positional_embedding)
    n_tokens = n_plain + grid.n_tokens
    hidden = visual.transformer.resblocks[0].mlp.c_fc.out_features

    def block(n_queries):
        projections = n_tokens * 2 * width**2 + n_queries * 2 * width**2
        return projections + 2 * n_queries * n_tokens * width + n_queries * 2 * width * hidden

    products = (n_layers - 1) * block(n_tokens) + block(1)  # the last block computes one token
    products += (n_plain - 1) * visual.conv1.weight[0].numel() * width + width * model.backbone.embed_dim
    assert image_operations(model, grid) == 2 * products


def test_the_rate_of_matrix_products_is_positive_and_finite():
    assert 0 < matrix_rate(torch.device("cpu"), torch.float32) < float("inf")


def command(*words):
    return subprocess.run(
        [sys.executable, "-P", "-m", "benchmarks.gpu", *words], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_the_command_names_the_trial_on_a_cpu():
    done = command()
    assert done.returncode == 2
    assert "--device cpu" in done.stderr


@pytest.mark.slow
def test_a_trial_on_a_cpu_writes_every_measurement(tmp_path):
    options = [
        "--device",
        "cpu",
        "--backbone",
        "demo-student",
        "--seconds",
        "1",
        "--domains",
        "64",
        "--web-workers",
        "0",
    ]
    done = command(*options, "--skip", "tests", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    numbers = {
        name: json.loads((tmp_path / f"{name}-gpu.json").read_text())["numbers"]
        for name in ("model", "engine", "serve")
    }
    assert 0 < numbers["model"]["matrix_share"]["value"] < 2
    assert numbers["engine"]["mixed_64"]["value"] > 0
    assert 0 < numbers["serve"]["device_busy"]["value"] <= 1
    assert numbers["serve"]["swap_stale"]["value"] == numbers["serve"]["swap_mixed"]["value"] == 0
