"""Exported files, run by ONNX Runtime and OpenVINO, answer as `caspl.Classifier` does."""

import functools
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from PIL import Image

from caspl import Classifier
from prompt_store.bundle import read_bundle
from prompted_clip.backbone import load_backbone
from prompted_clip.errors import ExportError
from prompted_clip.folded import FoldedClassifier, trace
from prompted_clip.model import PromptedClip
from prompted_clip.model_files import run_model, to_onnx, to_openvino
from prompted_clip.preprocess import to_pixels, upright_rgb
from service.demo.files import ASSETS
from tests.prompted_clip.test_folded import KINDS
from tests.stacks import random_bundle

IMAGES = sorted((ASSETS / "images").glob("*/*.*"))[:5]
METADATA = json.dumps({"domain": "demo", "classes": ["a", 'b "quoted"', "ü"]}, ensure_ascii=False)
QUICK = "few-shot head"
"""Checked in every run; the others are slow."""
EVERY_KIND = [name if name == QUICK else pytest.param(name, marks=pytest.mark.slow) for name in KINDS]


@functools.cache
def student():
    return load_backbone("demo-student")


@functools.cache
def bundle_of(kind):
    if kind == "demo":
        return (ASSETS / "bundles" / "satellite.safetensors").read_bytes()
    return random_bundle(backbone=student(), **KINDS[kind])


@functools.cache
def onnx_of(kind, input_type="uint8", batch=None, opset=18):
    stack = PromptedClip(student()).load_stack(read_bundle(bundle_of(kind)))
    model = FoldedClassifier(student(), stack, with_embedding=True)
    return to_onnx(trace(model, input_type, batch), model.output_names, METADATA, opset=opset)


def files_of(kind, model_format):
    return {".onnx": onnx_of(kind)} if model_format == "onnx" else to_openvino(onnx_of(kind))


@functools.cache
def pixels():
    size, preprocess = student().image_size, student().preprocess
    return np.stack([to_pixels(upright_rgb(Image.open(path)), size, preprocess) for path in IMAGES])


def classify(kind):
    """Probabilities in the order of the classes, and embeddings, from `caspl.Classifier`."""
    classifier = Classifier("demo-student", bundles=[bundle_of(kind)], device="cpu")
    (names,) = classifier.domains.values()
    results = classifier.classify(IMAGES, top_k=len(names), embedding=True)
    rows = [{found.class_id: found.probability for found in result.predictions} for result in results]
    ordered = np.array([[row[index] for index in range(len(names))] for row in rows])
    return ordered, np.stack([result.embedding for result in results])


@pytest.mark.parametrize("kind", [pytest.param("demo", marks=pytest.mark.slow), *EVERY_KIND])
def test_both_runtimes_give_the_probabilities_of_the_classifier(kind):
    probabilities, embeddings = classify(kind)

    for model_format in ("onnx", "openvino"):
        found, found_embeddings = run_model(files_of(kind, model_format), pixels())

        np.testing.assert_allclose(found, probabilities, rtol=0, atol=1e-5)
        np.testing.assert_allclose(found_embeddings, embeddings, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_format", ["onnx", "openvino"])
def test_rows_of_a_batch_have_the_outputs_of_each_image_alone(model_format):
    files = files_of(QUICK, model_format)

    together, _ = run_model(files, pixels())
    alone = [run_model(files, pixels()[row : row + 1])[0] for row in range(len(IMAGES))]

    np.testing.assert_allclose(together, np.concatenate(alone), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_float_pixels_and_a_fixed_batch_give_the_same_probabilities():
    expected, _ = run_model({".onnx": onnx_of(QUICK)}, pixels()[:2])

    found, _ = run_model({".onnx": onnx_of(QUICK, "float32", 2)}, pixels()[:2].astype(np.float32))

    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_the_onnx_file_is_valid_and_names_its_inputs_and_outputs():
    onnx.checker.check_model(onnx.load_from_string(onnx_of(QUICK)), full_check=True)
    session = onnxruntime.InferenceSession(onnx_of(QUICK))

    described = [(one.name, one.type, one.shape) for one in (*session.get_inputs(), *session.get_outputs())]
    assert described == [
        ("pixels", "tensor(uint8)", ["batch", 3, 64, 64]),
        ("probabilities", "tensor(float)", ["batch", 3]),
        ("embedding", "tensor(float)", ["batch", student().embed_dim]),
    ]


def test_both_files_contain_the_metadata():
    session = onnxruntime.InferenceSession(onnx_of(QUICK))
    files = to_openvino(onnx_of(QUICK))
    model = openvino.Core().read_model(files[".xml"], openvino.Tensor(np.frombuffer(files[".bin"], np.uint8)))

    assert session.get_modelmeta().custom_metadata_map == {"caspl": METADATA}
    assert json.loads(model.get_rt_info(["framework", "caspl"]).astype(str)) == json.loads(METADATA)
    assert [one.any_name for one in (*model.inputs, *model.outputs)] == ["pixels", "probabilities", "embedding"]


def test_the_graph_needs_no_operators_that_depend_on_data():
    operators = {node.op_type for node in onnx.load_from_string(onnx_of(QUICK)).graph.node}

    assert not operators & {"GatherND", "ScatterND", "Range", "NonZero", "Loop", "If"}


@pytest.mark.slow
def test_the_same_bundle_gives_the_same_bytes():
    again = onnx_of.__wrapped__(QUICK)

    assert again == onnx_of(QUICK)
    assert to_openvino(again) == to_openvino(again)


def test_no_path_of_this_machine_is_in_the_files():
    content = b"".join([onnx_of(QUICK), *to_openvino(onnx_of(QUICK)).values()])

    assert [
        place for place in (Path.cwd(), Path.home(), Path(onnx.__file__).parent) if str(place).encode() in content
    ] == []


@pytest.mark.slow
def test_newer_operators_can_be_chosen():
    model = onnx.load_from_string(onnx_of(QUICK, opset=20))

    assert [(one.domain, one.version) for one in model.opset_import] == [("", 20)]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch warns of the unknown opset
def test_an_opset_that_torch_does_not_write_is_rejected():
    with pytest.raises(ExportError, match=r"cannot write opset 99; it wrote 18\. Use --opset 18"):
        onnx_of(QUICK, opset=99)


def test_weights_beyond_the_limit_of_a_file_are_rejected(monkeypatch):
    monkeypatch.setattr("prompted_clip.model_files.MAX_ONNX_BYTES", 1000)

    with pytest.raises(ExportError, match="an ONNX file holds 2 GiB"):
        onnx_of.__wrapped__(QUICK)
