"""Loading the model: device, dtype, image tower, threads."""

import dataclasses
from types import SimpleNamespace

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch.torch_version import TorchVersion

from prompted_clip.fused_tower import FusedImageTower
from service.engine.loading import (
    image_tower,
    load_model,
    num_streams,
    num_threads,
    select_backend,
    select_device,
    with_gpu_limits,
)
from service.errors import SettingsError
from service.settings import Settings
from tests.openvino_extra import needs_openvino
from tests.tiny import register_tiny_models, tiny_backbone


def test_device_and_type_follow_the_machine_unless_they_are_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert select_device(Settings()) == "cpu"
    with pytest.raises(SettingsError, match="device cpu"):
        select_device(Settings(device="cuda"))
    assert select_backend(Settings(backbone="demo-student"), "cpu") == ("torch", "float32")
    with monkeypatch.context() as measured:
        measured.setattr("service.engine.loading.fastest_backend", lambda *facts: facts)
        assert select_backend(Settings(), "cpu") == ("ViT-B-16", "cpu", "auto")
        assert select_backend(Settings(backend="openvino"), "cpu") == ("ViT-B-16", "cpu", "openvino")
    assert select_backend(Settings(dtype="bfloat16"), "cpu") == ("torch", "bfloat16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("prompted_clip.device_errors.unsupported_gpu", lambda _: None)
    assert select_device(Settings()) == "cuda"
    assert select_device(Settings(device="cuda:1")) == "cuda:1"


@pytest.mark.parametrize("device", ["auto", "cuda:1"])
def test_a_gpu_that_torch_has_no_code_for_is_refused(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("prompted_clip.device_errors.unsupported_gpu", lambda _: "Install another torch build.")
    with pytest.raises(SettingsError, match="Install another torch build"):
        select_device(Settings(device=device))


def test_a_gpu_gets_its_fastest_dtype_unless_another_is_set(monkeypatch):
    capabilities = {"cuda:0": (9, 0), "cuda:1": (7, 5)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
    assert select_backend(Settings(), "cuda:0") == ("torch", "bfloat16")
    assert select_backend(Settings(), "cuda:1") == ("torch", "float16")
    assert select_backend(Settings(dtype="float32"), "cuda:1") == ("torch", "float32")


@pytest.mark.parametrize(
    ("options", "choice"),
    [
        ({"backend": "openvino", "dtype": "float32"}, ("openvino", "float32")),
        ({"dtype": "int8"}, ("openvino", "int8")),
        ({"backend": "openvino", "backbone": "demo-student"}, ("openvino", "float32")),
    ],
)
def test_openvino_serves_on_the_cpu_where_the_settings_need_it_even_beside_a_gpu(monkeypatch, options, choice):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    settings = Settings(**options)
    assert select_device(settings) == "cpu"
    assert select_backend(settings, "cpu") == choice


@pytest.mark.slow
@needs_openvino
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_the_openvino_tower_is_loaded_and_int8_leaves_a_log_line(caplog, dtype):
    register_tiny_models()
    model = load_model(Settings(backbone="tiny", random_weights=0, backend="openvino", dtype=dtype))
    assert (model.image_tower.backend, model.image_tower.dtype) == ("openvino", dtype)
    assert ("backend.int8" in caplog.messages) is (dtype == "int8")


@pytest.mark.parametrize(("n_multiprocessors", "n_rows"), [(132, 128), (40, 32), (16, 32), (300, 256)])
def test_on_a_gpu_batches_are_as_large_as_it_is_and_queues_in_proportion(monkeypatch, n_multiprocessors, n_rows):
    facts = SimpleNamespace(multi_processor_count=n_multiprocessors)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: facts)
    monkeypatch.setattr("prompted_clip.device_errors.unsupported_gpu", lambda _: None)
    found = with_gpu_limits(Settings())
    assert (found.max_batch_rows, found.max_queued_rows, found.max_open_requests) == (n_rows, 4 * n_rows, 4 * n_rows)
    asked = with_gpu_limits(Settings(max_batch_rows=64, max_open_requests=9))
    assert (asked.max_batch_rows, asked.max_queued_rows, asked.max_open_requests) == (64, 256, 9)
    assert with_gpu_limits(Settings(device="cpu")) == Settings(device="cpu")


def test_on_the_cpu_the_fused_image_tower_serves_and_on_cuda_its_graphs():
    register_tiny_models()
    settings = Settings(backbone="tiny", random_weights=0, device="cpu", max_batch_rows=6)
    model = load_model(settings)
    assert isinstance(model.image_tower, FusedImageTower)
    on_cuda = dataclasses.replace(model.backbone, device=torch.device("cuda"))
    assert image_tower(on_cuda, settings).padded_batch_size(5) == settings.max_batch_rows


def test_a_torch_whose_captures_cannot_fail_safely_serves_without_graphs(monkeypatch, caplog):
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.12.1+cu128"))
    on_cuda = dataclasses.replace(tiny_backbone(), device=torch.device("cuda"))
    assert isinstance(image_tower(on_cuda, Settings(max_batch_rows=6)), FusedImageTower)
    assert "graph.unavailable" in caplog.messages


@pytest.mark.parametrize(("is_heavy", "streams"), [(False, 1), (True, 2)])
def test_cores_run_batches_side_by_side_where_the_backbone_is_worth_it(monkeypatch, is_heavy, streams):
    register_tiny_models()
    monkeypatch.setattr("service.engine.loading.is_heavy", lambda _: is_heavy)
    before = torch.get_num_threads()
    try:
        model = load_model(Settings(backbone="tiny", random_weights=0, device="cpu", n_torch_threads=2))
    finally:
        torch.set_num_threads(before)
    assert model.num_streams == streams


@pytest.mark.parametrize(
    ("has_cuda", "device", "arch", "is_shared"),
    [
        (False, "auto", "ViT-B-16", True),
        (False, "auto", "demo-student", False),
        (True, "cpu", "demo-student", False),
        (True, "auto", "demo-student", True),
        (True, "cuda:0", "demo-student", True),
    ],
)
def test_a_small_backbone_on_a_cpu_runs_on_one_thread(monkeypatch, has_cuda, device, arch, is_shared):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr("service.engine.loading.usable_cores", lambda: 6)
    assert num_threads(arch, device) == (6 if is_shared else 1)


@pytest.mark.parametrize(("asked", "found"), [(0, 1), (3, 3)])
def test_the_number_of_threads_in_the_settings_goes_before(asked, found):
    register_tiny_models()
    before = torch.get_num_threads()
    try:
        load_model(Settings(backbone="tiny", random_weights=0, device="cpu", n_torch_threads=asked))
        assert torch.get_num_threads() == found
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("n_threads", "max_batch_rows", "streams"), [(64, 32, 16), (2, 32, 2), (8, 1, 1), (1, 32, 1)])
def test_every_batch_that_runs_beside_others_has_room_for_two_images(monkeypatch, n_threads, max_batch_rows, streams):
    monkeypatch.setattr("service.engine.loading.is_heavy", lambda _: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    assert num_streams(tiny_backbone(), Settings(max_batch_rows=max_batch_rows)) == streams


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_the_backbone_is_built_as_the_settings_say(quick_gelu):
    register_tiny_models()
    model = load_model(Settings(backbone="tiny", random_weights=0, device="cpu", quick_gelu=quick_gelu))
    kinds = {type(block.mlp.gelu).__name__ for block in model.backbone.clip.transformer.resblocks}
    assert kinds == {"QuickGELU" if quick_gelu else "GELU"}


def test_a_local_file_uses_the_settings_for_facts_that_it_does_not_record(tmp_path, monkeypatch):
    register_tiny_models()
    values = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", {"half": values})
    state = {name: tensor.contiguous() for name, tensor in tiny_backbone().clip.state_dict().items()}
    save_file(state | {"positional_embedding": torch.randn(154, 32)}, tmp_path / "long.safetensors")
    settings = Settings(
        backbone="tiny",
        pretrained=str(tmp_path / "long.safetensors"),
        preprocess_of="half",
        interpolate_positions=True,
        device="cpu",
    )
    assert load_model(settings).backbone.preprocess["mean"] == [0.5] * 3
