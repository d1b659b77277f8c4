"""Two processes under torchrun give the same result as one."""

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
SETTINGS = ("image_tokens=2", "text_tokens=4", "epochs=2", "batch_size=4", "warmup_epochs=0", "learning_rate=0.05")
CLASSES = ("striped circle", "dotted star", "plain heart")


@pytest.fixture
def workplace(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(9):
        folder = tmp_path / "images" / CLASSES[index % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (70, 66, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    return tmp_path


def boost(folder):
    images = ["--images", str(folder / "images"), "--classes", str(folder / "classes.txt")]
    return ["boost", *images, "--teacher", "demo-teacher", "--set", "loss_weight=1.0"]


def adapt(folder):
    return ["adapt", "--method", "promptsrc", "--data", str(folder / "images"), "--shots", "0"]


def start(arguments, out, *launcher):
    command = [sys.executable, *launcher, "-m", "caspl", *arguments, "--backbone", "demo-student"]
    command += ["--domain", "demo", "--device", "cpu", "--out", str(out)]
    for setting in SETTINGS:
        command += ["--set", setting]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [boost, adapt])
def test_two_processes_give_the_same_prompts_as_one(workplace, arguments):
    runs = {
        "one": start(arguments(workplace), workplace / "one.safetensors"),
        "two": start(arguments(workplace), workplace / "two.safetensors", *TWO_PROCESSES),
    }
    for run in runs.values():
        output, _ = run.communicate(timeout=150)
        assert run.returncode == 0, output
    one, two = (read_bundle((workplace / f"{name}.safetensors").read_bytes()) for name in runs)
    assert one.tensors.keys() == two.tensors.keys()
    for name, tensor in one.tensors.items():
        np.testing.assert_allclose(two.tensors[name], tensor, atol=1e-5)
    assert one.manifest.provenance.metrics["steps"] == two.manifest.provenance.metrics["steps"] == 4


def test_the_shards_of_a_batch_are_disjoint_and_complete():
    indices = torch.arange(10, 17)
    shards = [World(rank, 3).shard(indices) for rank in range(3)]
    assert sorted(torch.cat(shards).tolist()) == indices.tolist()
    assert {len(shard) for shard in shards} == {2, 3}
    assert len(World(2, 3).shard(indices[:2])) == 0
