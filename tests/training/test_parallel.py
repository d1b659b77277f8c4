"""Two processes under torchrun learn what one process learns."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from prompt_store.bundle import read_bundle
from training.parallel import World

TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


@pytest.fixture
def workplace(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(9):
        Image.fromarray(rng.integers(0, 255, (70, 66, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{index}.png")
    (tmp_path / "classes.txt").write_text("striped circle\ndotted star\nplain heart\n")
    return tmp_path


def start_boost(folder, out, *launcher):
    settings = ["image_tokens=2", "text_tokens=4", "epochs=2", "batch_size=4", "augmentation=crop-flip"]
    settings += ["warmup_epochs=0", "optimizer=sgd", "learning_rate=0.05", "loss_weight=1.0"]
    command = [sys.executable, *launcher, "-m", "prompt_store.caspl", "boost", "--domain", "demo", "--device", "cpu"]
    command += ["--images", str(folder / "images"), "--classes", str(folder / "classes.txt"), "--out", str(out)]
    command += ["--backbone", "demo-student", "--teacher", "demo-teacher"]
    for setting in settings:
        command += ["--set", setting]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_two_processes_end_with_the_prompts_of_one(workplace):
    runs = {
        "one": start_boost(workplace, workplace / "one.safetensors"),
        "two": start_boost(workplace, workplace / "two.safetensors", *TWO_PROCESSES),
    }
    for run in runs.values():
        output, _ = run.communicate(timeout=120)
        assert run.returncode == 0, output
    one, two = (read_bundle((workplace / f"{name}.safetensors").read_bytes()) for name in runs)
    for name in ("image.boost", "text.boost", "text.features"):
        np.testing.assert_allclose(two.tensors[name], one.tensors[name], atol=1e-5)
    assert one.manifest.provenance.metrics["steps"] == two.manifest.provenance.metrics["steps"] == 6


def test_the_parts_of_a_batch_are_disjoint_and_complete():
    indices = torch.arange(10, 17)
    parts = [World(rank, 3).part(indices) for rank in range(3)]
    assert sorted(torch.cat(parts).tolist()) == indices.tolist()
    assert {len(part) for part in parts} == {2, 3}
    assert len(World(2, 3).part(indices[:2])) == 0
