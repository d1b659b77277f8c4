"""Loading backbones: sources, fingerprints, refusals."""

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file

from prompted_clip import sources
from prompted_clip.backbone import load_backbone
from prompted_clip.errors import WeightsError
from prompted_clip.internals import check_supported, vision_blocks
from tests.tiny import register_tiny_models, tiny_backbone


@pytest.fixture(autouse=True)
def _tiny_models():
    register_tiny_models()


def test_the_same_seed_gives_the_same_fingerprint_and_another_seed_another():
    assert load_backbone("tiny", random_seed=0).fingerprint == tiny_backbone().fingerprint
    assert load_backbone("tiny", random_seed=1).fingerprint != tiny_backbone().fingerprint


def test_random_weights_leave_the_global_random_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load_backbone("tiny", random_seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_demo_weights_that_are_not_packaged_are_said_to_be_in_the_checkout(tmp_path, monkeypatch):
    load_backbone("demo-student")
    monkeypatch.setattr(sources, "DEMO_FOLDER", tmp_path)
    with pytest.raises(WeightsError, match=r"source checkout has demo-teacher\.safetensors"):
        load_backbone("demo-teacher")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_local_file_loads_with_the_fingerprint_of_the_model_it_was_saved_from(tmp_path, suffix):
    state = {name: tensor.contiguous() for name, tensor in tiny_backbone().clip.state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    loaded = load_backbone("tiny", pretrained=str(path))
    assert loaded.fingerprint == tiny_backbone().fingerprint
    assert loaded.pretrained == path.name


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return (print, ("code ran",))

    path = tmp_path / "attack.pt"
    torch.save({"state_dict": Attack()}, path)
    with pytest.raises(WeightsError, match="contains objects other than tensors"):
        load_backbone("tiny", pretrained=str(path))


def test_no_weights_named_is_an_error_that_lists_the_tags():
    with pytest.raises(WeightsError, match=r"openai.*random weights"):
        load_backbone("ViT-B-16")


def test_a_missing_file_is_named():
    with pytest.raises(WeightsError, match=r"No weights file at 'absent.pt'"):
        load_backbone("tiny", pretrained="absent.pt")


def test_an_unknown_architecture_suggests_neighbours():
    with pytest.raises(WeightsError, match=r"Unknown backbone 'ViT-B-17'.*ViT-B-16"):
        load_backbone("ViT-B-17")


@pytest.mark.parametrize(
    ("arch", "part"), [("RN50", "ModifiedResNet"), pytest.param("coca_base", "CoCa", marks=pytest.mark.slow)]
)
def test_model_families_without_plain_vit_towers_are_refused(arch, part, monkeypatch):
    model = open_clip.create_model(arch, device="meta")
    monkeypatch.setattr(open_clip, "create_model", lambda *_a, **_k: model)
    with pytest.raises(WeightsError, match=f"does not support prompts: .*{part}"):
        load_backbone(arch, random_seed=0)


def test_a_resize_mode_that_pads_is_refused(monkeypatch):
    values = open_clip.get_model_preprocess_cfg(tiny_backbone().clip) | {"resize_mode": "longest"}
    monkeypatch.setattr(open_clip, "get_model_preprocess_cfg", lambda _: values)
    with pytest.raises(WeightsError, match="resize mode 'longest'; supported: shortest, squash"):
        load_backbone("tiny", random_seed=0)


def test_a_seed_and_weights_together_are_refused():
    with pytest.raises(WeightsError, match="both weights"):
        load_backbone("tiny", pretrained="x.pt", random_seed=0)


def test_quick_gelu_changes_the_fingerprint_but_not_the_weights():
    quick = load_backbone("tiny", random_seed=0, quick_gelu=True)
    assert isinstance(quick.clip.visual.transformer.resblocks[0].mlp.gelu, QuickGELU)
    assert quick.fingerprint != tiny_backbone().fingerprint


def test_building_a_model_leaves_no_warning_of_random_weights(caplog):
    load_backbone("demo-student")
    assert "randomly" not in caplog.text


@pytest.mark.parametrize(
    ("arch", "layers", "width"),
    [("ViT-B-16", 12, 768), pytest.param("ViT-L-14-quickgelu", 24, 1024, marks=pytest.mark.slow)],
)
def test_full_size_backbones_are_supported(arch, layers, width):
    model = check_supported(open_clip.create_model(arch, device="meta"), arch)
    assert (len(vision_blocks(model)), model.visual.transformer.width) == (layers, width)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_layer_norm_has_the_backbones_dtype(dtype):
    register_tiny_models()
    backbone = load_backbone("tiny", random_seed=0, dtype=dtype)
    norms = [module for module in backbone.clip.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert {norm.weight.dtype for norm in norms} == {dtype}
