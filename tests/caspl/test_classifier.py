import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import caspl
from caspl.errors import ImageError, InvalidRequestError, NotFoundError
from prompt_store.bundle import read_bundle, write_bundle
from prompt_store.manifest import Calibration
from prompted_clip.errors import DeviceError, StackMismatchError, WeightsError
from tests.architecture.repository import ROOT
from tests.fakecuda.simulation import simulated_cuda
from tests.stacks import random_bundle
from tests.tiny import register_tiny_models, tiny_backbone

DEMO = ROOT / "service" / "demo"
DONUT = DEMO / "images" / "satellite" / "striped-donut-1.jpg"
CRESCENT = DEMO / "images" / "thermal" / "plain-crescent-3.jpg"


@pytest.fixture(scope="module")
def classifier():
    bundles = [DEMO / "bundles" / f"{domain}.safetensors" for domain in ("satellite", "thermal")]
    return caspl.Classifier("demo-student", bundles=bundles, device="cpu", batch_size=2)


def test_the_example_of_the_readme_works(classifier):
    (result,) = classifier.classify([DONUT], "satellite")

    assert result.label == "striped donut"
    assert result.probability > 0.9
    assert (result.domain, result.version) == ("satellite", None)
    assert len(result.predictions) == 5


def test_paths_bytes_pictures_and_arrays_give_the_same_result(classifier):
    picture = Image.open(DONUT).convert("RGB")
    results = classifier.classify(
        [DONUT, str(DONUT), DONUT.read_bytes(), picture, np.asarray(picture)], "satellite", top_k=3
    )

    assert len({tuple(found.label for found in result.predictions) for result in results}) == 1
    assert max(result.probability for result in results) == pytest.approx(results[0].probability, abs=1e-5)


def test_a_single_image_is_a_list_of_one(classifier):
    pixels = np.asarray(Image.open(DONUT).convert("RGB"))
    for one in (DONUT, str(DONUT), DONUT.read_bytes(), Image.open(DONUT), pixels):
        assert [result.label for result in classifier.classify(one, "satellite")] == ["striped donut"]
    assert len(classifier.classify(np.stack([pixels, pixels]), "satellite")) == 2


def test_domains_are_mixed_in_one_call(classifier):
    results = classifier.classify([DONUT, CRESCENT, DONUT], ["satellite", "thermal", "satellite"])

    assert [result.domain for result in results] == ["satellite", "thermal", "satellite"]
    assert [result.label for result in results] == ["striped donut", "faded crescent", "striped donut"]


def test_labels_replace_the_classes_of_the_bundle(classifier):
    (result,) = classifier.classify([DONUT], "satellite", labels=["plain cross", "striped donut"])

    assert [(found.label, found.class_id) for found in result.predictions] == [("striped donut", 1), ("plain cross", 0)]
    assert sum(found.probability for found in result.predictions) == pytest.approx(1)


def test_labels_may_be_one_string_with_commas(classifier):
    (result,) = classifier.classify(DONUT, "satellite", labels="plain  cross, striped donut")

    assert {found.label for found in result.predictions} == {"plain cross", "striped donut"}


def test_labels_are_normalized_as_class_names(classifier):
    (result,) = classifier.classify(DONUT, "satellite", labels=["plain_cross", " striped  donut"])
    assert {one.label for one in result.predictions} == {"plain cross", "striped donut"}


@pytest.mark.parametrize("labels", [["fox", "FOX"], "fox,,wolf", ["fox", "a\0b"]])
def test_labels_that_are_no_class_names_are_an_error(classifier, labels):
    with pytest.raises(InvalidRequestError, match=r"labels\[1\]") as failed:
        classifier.classify(DONUT, "satellite", labels=labels)
    assert failed.value.code == "label_invalid"


@pytest.fixture
def calibrated(classifier):
    """A classifier with thresholds at the probability of DONUT's best class, and above."""
    (result,) = classifier.classify(DONUT, "satellite")
    bundle = read_bundle((DEMO / "bundles" / "satellite.safetensors").read_bytes())
    thresholds = {"0.01": result.probability, "0.05": math.nextafter(result.probability, 1)}
    calibration = Calibration(temperature=1.0, abstain=thresholds)
    data = write_bundle(bundle.manifest.model_copy(update={"calibration": calibration}), bundle.tensors)
    return caspl.Classifier("demo-student", bundles=[data], device="cpu")


def test_an_image_below_the_threshold_has_no_label(calibrated):
    found = [calibrated.classify([DONUT, b"no image"], abstain=rate) for rate in (None, 0.01, 0.05)]

    assert [(result.abstained, result.label) for result, _ in found] == [
        (False, "striped donut"),
        (False, "striped donut"),
        (True, None),
    ]
    assert [failed.abstained for _, failed in found] == [False] * 3
    assert len({result.predictions for result, _ in found}) == 1


def test_abstention_needs_a_threshold_and_the_bundle_s_own_classes(calibrated, classifier):
    with pytest.raises(InvalidRequestError, match=r"rate 0\.2; use one of 0\.01, 0\.05\.") as failed:
        calibrated.classify(DONUT, abstain=0.2)
    assert failed.value.code == "abstain_unsupported"
    with pytest.raises(InvalidRequestError, match="omit labels"):
        calibrated.classify(DONUT, abstain=0.05, labels=["cross", "donut"])
    with pytest.raises(InvalidRequestError, match=r"'thermal'.*not calibrated"):
        classifier.classify(CRESCENT, "thermal", abstain=0.05)


def test_embeddings_are_returned_if_requested(classifier):
    images, domains = [DONUT, CRESCENT, b"no image"], ["satellite", "thermal", "satellite"]
    together = classifier.classify(images, domains, embedding=True)

    for image, domain, result in zip(images[:2], domains, together, strict=False):
        (alone,) = classifier.classify(image, domain, embedding=True)
        assert result.embedding.dtype == np.float32
        assert np.linalg.norm(result.embedding) == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(result.embedding, alone.embedding, atol=1e-5)
    assert together[2].embedding is None
    assert classifier.classify(DONUT, "satellite")[0].embedding is None


def test_without_bundles_the_plain_backbone_scores_the_labels():
    (result,) = caspl.Classifier("demo-student", device="cpu").classify(
        [DONUT], labels=["plain cross", "striped donut"]
    )

    assert (result.label, result.domain, result.digest) == ("striped donut", None, None)


def test_an_image_that_cannot_be_decoded_leaves_the_others_alone(classifier):
    cut = DONUT.read_bytes()[:500]
    results = classifier.classify([b"no image", DONUT, cut], "satellite")

    assert [bool(result.error) for result in results] == [True, False, True]
    assert results[0].predictions == ()
    with pytest.raises(ImageError, match="damaged") as caught:
        _ = results[0].label
    assert caught.value.code == "image_undecodable"


def test_notes_name_a_conversion(classifier):
    (result,) = classifier.classify([Image.new("CMYK", (40, 40))], "satellite")

    assert result.notes == ("cmyk",)


def test_a_bundle_replaces_the_earlier_one_of_its_domain(classifier):
    upload = next((DEMO / "upload").glob("*.safetensors"))
    own = caspl.Classifier("demo-student", bundles=[upload], device="cpu")
    domain = own.load(upload.read_bytes())

    assert list(own.domains) == [domain]
    assert own.classify([DONUT])[0].domain == domain


def test_mistakes_are_explained(classifier):
    with pytest.raises(NotFoundError, match=r"sketch; loaded: satellite, thermal"):
        classifier.classify([DONUT], "sketch")
    with pytest.raises(ValueError, match="0 domains for 1 images"):
        classifier.classify([DONUT])
    with pytest.raises(FileNotFoundError):
        classifier.classify([Path("missing.jpg")], "satellite")
    with pytest.raises(TypeError, match="uint8"):
        classifier.classify([np.zeros((8, 8, 3))], "satellite")
    with pytest.raises(StackMismatchError):
        classifier.load(random_bundle())


def test_a_local_file_takes_the_options_of_the_commands(tmp_path):
    register_tiny_models()
    path = tmp_path / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tiny_backbone().clip.state_dict().items()}, path)
    classifier = caspl.Classifier("tiny", pretrained=str(path), quick_gelu=True, device="cpu")

    assert classifier.classify(np.zeros((32, 32, 3), np.uint8), labels=["cat", "dog"])[0].probability > 0
    with pytest.raises(WeightsError, match="has no weights 'openai'"):
        caspl.Classifier("tiny", pretrained=str(path), preprocess_of="openai", device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="stands for GPUs of several kinds")
@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0"])
def test_a_gpu_that_torch_has_no_code_for_is_refused(device):
    with simulated_cuda() as simulated:
        simulated.capability = (7, 0)
        with pytest.raises(DeviceError, match=r"compute capability 7\.0.*Install a torch build with sm_70"):
            caspl.Classifier("demo-student", device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_that_is_not_there_is_refused():
    with pytest.raises(DeviceError, match=r"torch finds no CUDA device\. Use device cpu"):
        caspl.Classifier("demo-student", device="cuda")
