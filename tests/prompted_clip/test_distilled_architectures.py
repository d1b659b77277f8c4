"""Distilled CLIPs that open_clip lacks: their sizes, their checkpoints, and their use as student and teacher."""

import json
import re

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from prompted_clip.backbone import load_backbone
from prompted_clip.errors import WeightsError
from prompted_clip.sources import ARCHITECTURES, check_architecture
from training.cli import boost_app

CLIP_KD, TINYCLIP = "ViT-T-16", "TinyCLIP-ViT-8M-16-Text-3M"
NAMES = sorted(path.stem for path in ARCHITECTURES.glob("*.json"))


@pytest.fixture(scope="module")
def backbones():
    """Both small ones with random weights."""
    return {name: load_backbone(name, random_seed=0) for name in (CLIP_KD, TINYCLIP)}


def millions(tensors):
    return sum(tensor.numel() for tensor in tensors.values()) / 1e6


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("TinyCLIP")])
def test_the_towers_of_tinyclip_have_the_sizes_in_their_names(name):
    image_size, text_size = map(int, re.fullmatch(r"TinyCLIP-ViT-(\d+)M-\d+-Text-(\d+)M", name).groups())
    check_architecture(name)
    with torch.device("meta"):
        state = open_clip.create_model(name, device="meta").state_dict()
    image = {key: value for key, value in state.items() if key.startswith("visual.")}
    text = {key: value for key, value in state.items() if key.startswith(("transformer.", "ln_final", "text_proj"))}
    assert image_size - 0.6 < millions(image) < image_size + 0.6
    assert text_size - 0.6 < millions(text) < text_size + 0.6


def test_the_architecture_of_clip_kd_is_a_vit_tiny_with_a_text_tower_of_width_384(backbones):
    student = backbones[CLIP_KD]
    assert (student.vision_width, student.n_vision_layers, student.image_size) == (192, 12, 224)
    assert (student.text_width, student.n_text_layers, student.embed_dim) == (384, 12, 512)


def tinyclip_names(state, *, prefix="_", suffix="", inner=""):
    """The names of TinyCLIP's repository: each part is a module, with `inner` between it and open_clip's names."""
    found = {}
    for name, tensor in state.items():
        part = "image_encoder" if name.startswith("visual.") else "text_encoder"
        whole = "_logit_scale" if name == "logit_scale" else f"{prefix}{part}{suffix}"
        found[f"{whole}.{inner}{name}"] = tensor
    return found


@pytest.mark.parametrize(
    "naming",
    [{}, {"inner": "module."}, {"prefix": "", "suffix": "_without_ddp"}],
    ids=["one process", "several processes", "without DDP"],
)
def test_a_checkpoint_of_tinyclip_loads_and_computes_the_same(backbones, tmp_path, naming):
    clip = backbones[TINYCLIP].clip
    path = tmp_path / "TinyCLIP-ViT-8M-16-Text-3M-YFCC15M.pt"
    checkpoint = {"epoch": 25, "name": "run", "state_dict": tinyclip_names(clip.state_dict(), **naming)}
    torch.save(checkpoint, path)

    loaded = load_backbone(TINYCLIP, pretrained=str(path))

    assert loaded.fingerprint == backbones[TINYCLIP].fingerprint
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(loaded.clip.encode_image(images), clip.encode_image(images))


def test_a_checkpoint_of_clip_kd_loads(backbones, tmp_path):
    state = {f"module.{name}": tensor for name, tensor in backbones[CLIP_KD].clip.state_dict().items()}
    torch.save({"epoch": 32, "name": "run", "state_dict": state, "optimizer": {"state": {}}}, tmp_path / "epoch_32.pt")
    loaded = load_backbone(CLIP_KD, pretrained=str(tmp_path / "epoch_32.pt"))
    assert loaded.fingerprint == backbones[CLIP_KD].fingerprint


def test_a_checkpoint_with_another_architecture_names_the_one_that_fits(backbones, tmp_path):
    torch.save(tinyclip_names(backbones[TINYCLIP].clip.state_dict()), tmp_path / "tiny.pt")
    with pytest.raises(WeightsError, match=f"It has the size of {TINYCLIP}: pass that as --backbone"):
        load_backbone(CLIP_KD, pretrained=str(tmp_path / "tiny.pt"))


@pytest.mark.parametrize("has_missing_layer", [False, True])
def test_pruned_heads_of_automatic_weight_inheritance_are_an_error_with_the_models_that_load(
    backbones, tmp_path, has_missing_layer
):
    state = dict(backbones[TINYCLIP].clip.state_dict())
    layer = "visual.transformer.resblocks.3"
    state[f"{layer}.attn.in_proj_weight"] = state[f"{layer}.attn.in_proj_weight"][: 3 * 64]
    if has_missing_layer:
        state = {name: value for name, value in state.items() if "transformer.resblocks.2.attn" not in name}
    torch.save(tinyclip_names(state), tmp_path / "TinyCLIP-auto.pt")
    with pytest.raises(
        WeightsError, match=rf"fewer attention heads in {layer} .* automatic weight inheritance"
    ) as failed:
        load_backbone(TINYCLIP, pretrained=str(tmp_path / "TinyCLIP-auto.pt"))
    assert "manual inheritance, such as TinyCLIP-ViT-39M-16-Text-19M" in str(failed.value)


@pytest.mark.slow
@pytest.mark.parametrize(("student", "teacher"), [(TINYCLIP, CLIP_KD), (CLIP_KD, TINYCLIP)])
def test_each_can_be_student_or_teacher_of_boosting(tmp_path, student, teacher):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(4):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{index}.png")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    options = ["--images", tmp_path / "images", "--classes", tmp_path / "classes.txt", "--domain", "pets"]
    options += ["--backbone", student, "--teacher", teacher, "--random-weights", "--device", "cpu", "--json"]
    options += ["--out", tmp_path / "pets.safetensors", "--holdout", "0", "--set", "epochs=1", "--set", "batch_size=2"]
    result = CliRunner().invoke(boost_app, [str(option) for option in options])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["steps"] == 2
