"""Where weights come from: tags, files, folders, and a hub that cannot be reached."""

import json
import logging
import shutil
import socket
import time

import huggingface_hub
import open_clip
import pytest
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import save_file

from prompt_store.bundle import read_bundle
from prompted_clip import sources
from prompted_clip.backbone import load_backbone
from prompted_clip.errors import StackMismatchError, WeightsError
from prompted_clip.model import PromptedClip
from prompted_clip.sources import find_weights, known_tag
from tests.stacks import random_bundle
from tests.tiny import register_tiny_models, tiny_backbone
from training.errors import BoostBundleError
from training.prompted_backbone import boosted_backbone

INCEPTION = [0.5, 0.5, 0.5]


@pytest.fixture(autouse=True)
def _tiny_models(monkeypatch):
    register_tiny_models()
    tags = {
        "plain": {"hf_hub": "org/plain/", "mean": (0.1, 0.1, 0.1), "std": (0.2, 0.2, 0.2)},
        "half": {"hf_hub": "org/half/", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
        "quick": {"hf_hub": "org/quick/", "quick_gelu": True, "mean": (0.1, 0.1, 0.1), "std": (0.2, 0.2, 0.2)},
    }
    defaults = {"interpolation": "bicubic", "resize_mode": "shortest"}
    monkeypatch.setitem(
        open_clip.pretrained._PRETRAINED, "tiny", {name: defaults | values for name, values in tags.items()}
    )


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tiny_backbone().clip.state_dict().items()}, path)
    return path


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache, and a hub address that nothing answers; calls are counted."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_a, **_k: None)
    return monkeypatch


@pytest.mark.parametrize(
    ("arch", "near"), [("ViT-B-17", "ViT-B-16"), ("vit-b-16", "ViT-B-16"), ("ViT-B/32", "ViT-B-32"), ("Tiny", "tiny")]
)
def test_an_unknown_architecture_suggests_similar_ones(arch, near):
    with pytest.raises(WeightsError, match=f"Unknown backbone {arch!r}. Did you mean .*{near}"):
        find_weights(arch, "openai")


@pytest.mark.parametrize(
    ("arch", "tag", "message"),
    [
        ("ViT-B-16", "opnai", "Did you mean openai"),
        ("ViT-B-16", "laion2b_s32b_b82k", "It is a tag of ViT-L-14"),
        ("tiny", "zzz", "Tags: plain, half, quick"),
    ],
)
def test_an_unknown_tag_suggests_similar_ones(arch, tag, message):
    with pytest.raises(WeightsError, match=f"has no weights {tag!r}.*{message}"):
        find_weights(arch, tag)


@pytest.mark.parametrize("arch", ["roberta-ViT-B-32", "ViT-B-16-SigLIP", "EVA02-B-16"])
def test_towers_of_other_libraries_are_refused_without_a_download(arch):
    with pytest.raises(WeightsError, match=r"does not support prompts: its .* is not a tower of open_clip"):
        find_weights(arch, None, random_seed=0)


def test_a_local_file_with_a_tags_preprocessing_uses_its_values_and_activation(weights):
    loaded = load_backbone("tiny", pretrained=str(weights), preprocess_of="half")
    assert (loaded.preprocess["mean"], loaded.preprocess["std"]) == (INCEPTION, INCEPTION)
    quick = load_backbone("tiny", pretrained=str(weights), preprocess_of="quick")
    assert quick.fingerprint == load_backbone("tiny", pretrained=str(weights), quick_gelu=True).fingerprint
    plain = load_backbone("tiny", pretrained=str(weights), preprocess_of="half", quick_gelu=True)
    assert plain.fingerprint == loaded.fingerprint


@pytest.mark.parametrize("options", [{"preprocess_of": "half"}, {"tag": "plain"}])
def test_quick_gelu_does_not_change_weights_that_are_known_to_use_gelu(weights, hub, caplog, options):
    hub.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name: str(weights))
    pretrained = options.pop("tag", str(weights))
    loaded = load_backbone("tiny", pretrained=pretrained, quick_gelu=True, **options)
    assert loaded.fingerprint == tiny_backbone().fingerprint
    assert "uses GELU: --quick-gelu is ignored" in caplog.text


def test_a_local_file_warns_of_values_that_it_does_not_record(weights, caplog):
    load_backbone("tiny", pretrained=str(weights))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "weights.safetensors does not record its preprocessing and activation; using mean [0.48" in warning
    assert "GELU" in warning
    assert "plain, half, quick: name the tag of these weights with --preprocess-of" in warning


def test_a_named_tag_needs_no_warning(weights, caplog):
    load_backbone("tiny", pretrained=str(weights), preprocess_of="plain")
    assert [record for record in caplog.records if record.levelno == logging.WARNING] == []


def test_the_preprocessing_of_an_unknown_tag_is_refused(weights):
    with pytest.raises(WeightsError, match=r"has no weights 'hlaf'.*Did you mean half"):
        load_backbone("tiny", pretrained=str(weights), preprocess_of="hlaf")
    with pytest.raises(WeightsError, match="--preprocess-of is for local files"):
        load_backbone("tiny", pretrained="plain", preprocess_of="half")


def folder_of(weights, folder, **config):
    """A folder as open_clip pushes it to the hub."""
    folder.mkdir()
    shutil.copy(weights, folder / "open_clip_model.safetensors")
    model = open_clip.get_model_config("tiny") | config.pop("model", {})
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": config}))
    return folder


def test_a_local_folder_brings_architecture_activation_and_preprocessing(weights, tmp_path):
    folder = folder_of(weights, tmp_path / "my-clip", model={"quick_gelu": True}, mean=INCEPTION, size=[32, 32])
    loaded = load_backbone(f"local-dir:{folder}")
    assert (loaded.arch, loaded.pretrained) == ("tiny", "my-clip")
    assert loaded.preprocess["mean"] == INCEPTION
    assert loaded.preprocess["std"] == tiny_backbone().preprocess["std"]
    assert loaded.fingerprint == load_backbone("tiny", random_seed=0, quick_gelu=True).fingerprint


def test_a_repository_of_the_hub_brings_the_same_as_a_folder(weights, tmp_path, hub):
    folder = folder_of(weights, tmp_path / "snapshot", mean=INCEPTION)
    hub.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name: str(folder / name))
    loaded = load_backbone("hf-hub:org/my-clip")
    assert (loaded.arch, loaded.pretrained, loaded.preprocess["mean"]) == ("tiny", "hf-hub:org/my-clip", INCEPTION)
    assert loaded.fingerprint == tiny_backbone().fingerprint


def test_a_folder_of_an_architecture_that_open_clip_lacks_is_refused(weights, tmp_path):
    folder = folder_of(weights, tmp_path / "other", model={"embed_dim": 25})
    with pytest.raises(WeightsError, match="is none of open_clip's architectures"):
        load_backbone(f"local-dir:{folder}")


@pytest.mark.parametrize("missing", ["open_clip_config.json", "open_clip_model.safetensors"])
def test_an_incomplete_folder_names_the_missing_file(weights, tmp_path, missing):
    folder = folder_of(weights, tmp_path / "folder")
    (folder / missing).unlink()
    with pytest.raises(WeightsError, match=missing):
        load_backbone(f"local-dir:{folder}")


def test_a_folder_or_address_as_weights_is_an_error_with_the_right_option(tmp_path):
    with pytest.raises(WeightsError, match=f"is a folder: .*local-dir:{tmp_path} as the backbone"):
        find_weights("tiny", str(tmp_path))
    with pytest.raises(WeightsError, match="pass it as the backbone, without other weights"):
        find_weights("tiny", "hf-hub:org/name")
    with pytest.raises(WeightsError, match="pass no other weights"):
        find_weights("local-dir:x", "openai")


def test_without_a_network_a_tag_fails_within_seconds_with_the_next_step(hub):
    with socket.socket() as unanswered:
        unanswered.bind(("127.0.0.1", 0))  # does not listen: connections are refused
        address = f"http://127.0.0.1:{unanswered.getsockname()[1]}"
        hub.setattr(huggingface_hub, "hf_hub_url", lambda repo, name: f"{address}/{repo}/resolve/main/{name}")
        started = time.monotonic()
        with pytest.raises(WeightsError) as caught:
            find_weights("tiny", "plain")
        assert time.monotonic() - started < 30
    message = str(caught.value)
    assert "\n" not in message
    assert "Cannot download the weights 'plain' of tiny" in message
    assert "pass a local file" in message
    assert "hf download org/plain" in message
    assert "local-dir:weights" in message


def test_a_silent_hub_fails_after_one_attempt(hub):
    hub.setattr(sources, "HUB_TIMEOUT_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # accepts into the backlog and never answers
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        hub.setattr(huggingface_hub, "hf_hub_url", lambda repo, name: f"{address}/{name}")
        started = time.monotonic()
        with pytest.raises(WeightsError, match="Cannot download"):
            find_weights("tiny", "plain")
        assert time.monotonic() - started < 30


def test_cached_weights_need_no_network(weights, hub):
    hub.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name: str(weights))
    hub.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_a, **_k: pytest.fail("a request"))
    source = find_weights("tiny", "quick")
    assert (source.path, source.name, source.quick_gelu) == (weights, "quick", True)


def test_the_first_file_that_the_repository_has_is_downloaded(weights, hub):
    def metadata(url, timeout):
        if not url.endswith(".bin"):
            raise EntryNotFoundError(url)

    hub.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    downloads = []
    hub.setattr(huggingface_hub, "hf_hub_download", lambda *names: downloads.append(names) or str(weights))
    assert find_weights("tiny", "half").path == weights
    assert downloads == [("org/half", "open_clip_pytorch_model.bin")]


def test_a_bundle_made_with_other_preprocessing_is_refused(weights):
    bundle = read_bundle(random_bundle(image_boost=(2, 3)))
    half = load_backbone("tiny", pretrained=str(weights), preprocess_of="half")
    assert half.fingerprint == bundle.manifest.backbone.fingerprint
    with pytest.raises(StackMismatchError, match=r"with mean \[0\.48.*has \[0\.5, 0\.5, 0\.5\]"):
        PromptedClip(half).load_stack(bundle)
    with pytest.raises(BoostBundleError, match=r"with mean \[0\.48.*has \[0\.5, 0\.5, 0\.5\]"):
        boosted_backbone(half, bundle)


@pytest.mark.parametrize(
    ("arch", "name", "tag"),
    [
        ("ViT-B-16", "openai", "openai"),
        ("ViT-B-16", "own.pt", None),
        ("demo-student", "demo", None),
        ("tiny", None, None),
    ],
)
def test_a_manifests_name_of_weights_is_used_if_it_is_a_tag(arch, name, tag):
    assert known_tag(arch, name) == tag
