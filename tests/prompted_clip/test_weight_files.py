"""Weights files: those that are read, and the errors for others."""

import gzip
import io
import json
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from prompted_clip.backbone import load_backbone
from prompted_clip.errors import WeightsError
from prompted_clip.weight_files import read_weights
from tests.tiny import register_tiny_models, tiny_backbone


@pytest.fixture(autouse=True)
def _tiny_models():
    register_tiny_models()


def tiny_state():
    return {name: tensor.clone().contiguous() for name, tensor in tiny_backbone().clip.state_dict().items()}


def scripted(state):
    """A scripted module with these tensors, in modules nested by their names, and OpenAI's three integers."""
    root = nn.Module()
    for name, tensor in (state | {key: torch.tensor(1) for key in ("input_resolution", "context_length")}).items():
        *modules, last = name.split(".")
        parent = root
        for module in modules:
            if module not in dict(parent.named_children()):
                parent.add_module(module, nn.Module())
            parent = dict(parent.named_children())[module]
        parent.register_buffer(last, tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(root)


def save_scripted(module, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(module, path)


def test_openais_torchscript_archive_loads_with_quick_gelu(tmp_path):
    path = tmp_path / "ViT-tiny.pt"
    save_scripted(scripted(tiny_state()), path)
    loaded = load_backbone("tiny", pretrained=str(path))
    assert loaded.fingerprint == load_backbone("tiny", random_seed=0, quick_gelu=True).fingerprint


def test_half_precision_weights_of_an_archive_are_converted(tmp_path):
    path = tmp_path / "half.pt"
    save_scripted(scripted({name: tensor.half() for name, tensor in tiny_state().items()}), path)
    loaded = load_backbone("tiny", pretrained=str(path))
    assert loaded.clip.visual.proj.dtype == torch.float32
    torch.testing.assert_close(loaded.clip.visual.proj, tiny_backbone().clip.visual.proj, rtol=1e-3, atol=1e-4)


def test_an_archive_with_code_that_runs_on_loading_is_refused(tmp_path):
    path = tmp_path / "attack.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl"):
            archive.writestr(f"attack/{name}", b"\x80\x02}.")
        archive.writestr("attack/code/__torch__.py", "class A(Module):\n  def __setstate__(self, state): ...\n")
    with pytest.raises(WeightsError, match="runs code when it is loaded"):
        read_weights(path)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize("is_checkpoint", [False, True])
def test_state_dicts_of_training_runs_are_read(tmp_path, prefix, is_checkpoint):
    state = {prefix + name: tensor for name, tensor in tiny_state().items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": state} if is_checkpoint else state, tmp_path / "epoch_3.pt")
    assert read_weights(tmp_path / "epoch_3.pt").keys() == tiny_state().keys()


def test_safetensors_are_recognised_under_any_name(tmp_path):
    save_file(tiny_state(), tmp_path / "model.bin")
    assert read_weights(tmp_path / "model.bin").keys() == tiny_state().keys()


def zip_bytes():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("weights.safetensors"), b"x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "a Git LFS pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "an HTML or XML page.*download the file itself"),
        (b'<?xml version="1.0"?><Error/>', "an HTML or XML page"),
        (b'{"metadata": {}, "weight_map": {}}', "part of a sharded checkpoint"),
        (b'{"error": "not found"}', "a JSON file"),
        (b"", "empty; download it again"),
        (gzip.compress(b"x", mtime=0), "a gzip archive; unpack it"),
        (zip_bytes(), "a zip archive but not PyTorch's; unpack it"),
        (b"PK\x03\x04 cut short", "an incomplete archive; download it again"),
        (b"GGUF\x03\x00", "a GGUF model"),
        (b"\x89HDF\r\n\x1a\n", "a Keras or HDF5 file"),
        (b"404: Not Found", "neither a PyTorch nor a safetensors file"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".bin"])
def test_a_file_of_another_kind_is_named_with_the_next_step(tmp_path, content, message, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        load_backbone("tiny", pretrained=str(path))
    assert str(path) in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_a_shard_is_recognised_by_its_name(tmp_path):
    path = tmp_path / "model-00001-of-00002.safetensors"
    save_file(tiny_state(), path)
    with pytest.raises(WeightsError, match="part of a sharded checkpoint; merge the shards"):
        load_backbone("tiny", pretrained=str(path))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("share", [0.3, 0.99])
def test_a_truncated_download_is_named(tmp_path, suffix, share):
    path = tmp_path / f"weights{suffix}"
    save_file(tiny_state(), path) if suffix == ".safetensors" else torch.save(tiny_state(), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(WeightsError, match=r"incomplete|complete PyTorch or safetensors file"):
        load_backbone("tiny", pretrained=str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 1, "model": {}, "optimizer": {}}, "a dict with epoch, model, optimizer; expected tensors by name"),
        ([torch.ones(1)], "contains list; expected tensors by name"),
        ({}, "expected tensors by name"),
        (torch.ones(3), "contains Tensor"),
    ],
)
def test_a_checkpoint_without_tensors_by_name_is_an_error_with_its_content(tmp_path, content, message):
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(WeightsError, match=message):
        read_weights(tmp_path / "file.pt")


def test_a_pickled_model_is_refused_with_advice_to_save_its_tensors(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=r"torch\.nn\.modules\.linear\.Linear.*save only its state_dict") as caught:
        read_weights(tmp_path / "model.pt")
    assert "weights_only" not in str(caught.value)


def test_a_safetensors_header_that_promises_more_than_the_file_has_is_damaged(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    with pytest.raises(WeightsError, match="cannot be read as a checkpoint"):
        read_weights(tmp_path / "a.safetensors")
