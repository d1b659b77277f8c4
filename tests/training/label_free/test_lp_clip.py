"""LP-CLIP: loss and gradients against its equations in float64, its start, and its head."""

import pytest
import torch

from tests.base_models import feature_batch, tiny_base_model
from tests.labelled import perturbed
from tests.reference.one_step import assert_same_step
from training.errors import RecipeError
from training.label_free.lp_clip import LinearProbe, LPCLIPRecipe, learn_lp_clip
from training.label_free.method import Encoded, Unlabelled

CLASSES = ["cat", "dog", "striped circle"]
LABELS = [2, 0, 1]


def probe(base_model):
    method = LinearProbe(base_model.zero_shot_text(CLASSES, ["{}."]), base_model.logit_scale, "{}.")
    return method.double() if base_model.backbone.dtype == torch.float64 else method


@pytest.mark.parametrize("boost", [None, (2, 3)])
def test_loss_and_gradients_match_the_equations(boost):
    base_model = tiny_base_model(boost, torch.float64)
    method, batch = perturbed(probe(base_model)), feature_batch(base_model, LABELS)
    expected = 0
    for feature, label in zip(batch.features_BE, LABELS, strict=True):
        scores = torch.stack(
            [
                base_model.logit_scale * ((w * feature).sum() + b)
                for w, b in zip(method.weight, method.bias, strict=True)
            ]
        )
        expected = expected - (scores[label] - scores.exp().sum().log()) / len(LABELS)
    assert_same_step(method, batch, expected)


def test_training_starts_at_the_zero_shot_classifier():
    base_model = tiny_base_model((2, 3))
    batch = feature_batch(base_model, LABELS)
    text = base_model.zero_shot_text(CLASSES, ["{}."])
    torch.testing.assert_close(
        probe(base_model).logits(batch), base_model.logit_scale * batch.features_BE @ text.T, rtol=1e-5, atol=1e-5
    )


def test_the_head_scores_like_the_layer():
    base_model = tiny_base_model((2, 3))
    method, batch = perturbed(probe(base_model)), feature_batch(base_model, LABELS)
    head = method.fold().head
    assert (head.share, head.reads_unit) == (1.0, True)
    torch.testing.assert_close(batch.features_BE @ head.weight_KE.T + head.bias_K, method.logits(batch).detach())


def unlabelled(scores, train):
    base_model = tiny_base_model()
    text = base_model.zero_shot_text(CLASSES, ["{}."])
    return Unlabelled(base_model, CLASSES, Encoded(torch.zeros(len(scores), 24), text, scores, "{}."), train, None)


def test_images_below_the_threshold_are_left_out():
    trained = []
    scores = torch.tensor([[0.9, 0.05, 0.05], [0.4, 0.3, 0.3], [0.1, 0.7, 0.2]]).log()
    learn_lp_clip(
        unlabelled(scores, lambda _method, found, _recipe: trained.append(found)), LPCLIPRecipe(threshold=0.6)
    )
    (found,) = trained
    assert (found.rows_N.tolist(), found.labels_N.tolist()) == ([0, 2], [0, 1])


def test_a_threshold_that_no_image_reaches_is_an_error_with_the_highest_probability():
    with pytest.raises(RecipeError, match=r"probability 0\.9 .*highest is 0\.4"):
        learn_lp_clip(unlabelled(torch.tensor([[0.4, 0.3, 0.3]]).log(), None), LPCLIPRecipe(threshold=0.9))
