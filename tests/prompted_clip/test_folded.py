"""A folded classifier: one module with the answers of the model that serves the domain."""

import pytest
import torch

from prompt_store.bundle import read_bundle
from prompt_store.manifest import Calibration
from prompted_clip.errors import ExportError
from prompted_clip.folded import FoldedClassifier, trace
from prompted_clip.model import PromptedClip
from tests.stacks import random_bundle
from tests.tiny import random_pixels, tiny_backbone

KINDS = {
    "labels only": {"image_boost": None},
    "boosted": {"image_boost": (2, 3), "text_boost": (1, 2)},
    "adapted": {"image_boost": (3, 3), "image_adapt": (1, 2), "text_boost": (2, 2), "text_adapt": (1, 2)},
    "class-specific contexts": {"text_adapt": (3, 1, 2)},
    "class head": {"head": "class", "text_adapt": (1, 2)},
    "few-shot head": {
        "head": "class",
        "head_input": "unit",
        "calibration": Calibration(temperature=2.5, abstain={"0.05": 0.4}),
    },
    "projector": {"head": "projector", "labels": "own", "image_adapt": (2, 2)},
}
"""Options of a random bundle for each kind that can be folded."""


@pytest.fixture(scope="module")
def model():
    return PromptedClip(tiny_backbone())


def load(model, **options):
    return model.load_stack(read_bundle(random_bundle(**options)))


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_its_probabilities_and_embeddings_are_those_of_the_model(model, options):
    stack, pixels = load(model, **options), random_pixels(4)
    features = model.encode_images(pixels, [stack] * 4)

    with torch.no_grad():
        probabilities, embeddings = FoldedClassifier(model.backbone, stack, with_embedding=True)(pixels)
        from_floats, _ = FoldedClassifier(model.backbone, stack, with_embedding=True)(pixels.float())

    torch.testing.assert_close(probabilities, torch.stack(model.score(features, [stack] * 4)), rtol=0, atol=1e-6)
    torch.testing.assert_close(embeddings, features.unit_BE, rtol=0, atol=1e-6)
    assert torch.equal(from_floats, probabilities)


def test_a_conditional_head_is_rejected_with_the_reason(model):
    stack = load(model, head="conditional", text_adapt=(1, 3))

    with pytest.raises(ExportError, match=r"'demo' has a conditional head \(CoCoOp\): its text features depend on"):
        FoldedClassifier(model.backbone, stack)


def test_a_traced_classifier_takes_any_batch_and_computes_each_row_alone(model):
    folded = FoldedClassifier(model.backbone, load(model, **KINDS["adapted"]))
    program, pixels = trace(folded, "uint8", None).module(), random_pixels(5, seed=1)

    (together,) = program(pixels)
    alone = torch.cat([program(pixels[row : row + 1])[0] for row in range(5)])

    assert together.shape == (5, 3)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(together, folded(pixels)[0], rtol=0, atol=1e-6)


def test_a_fixed_batch_size_is_enforced(model):
    program = trace(FoldedClassifier(model.backbone, load(model)), "float32", 2).module()

    assert program(random_pixels(2).float())[0].shape == (2, 3)
    with pytest.raises(AssertionError):
        program(random_pixels(3).float())
