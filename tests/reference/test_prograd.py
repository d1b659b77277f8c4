"""Value and gradient of ProGrad match its equations, in float64, with and without a conflict."""

import pytest
import torch

from tests.base_models import feature_batch, random_images, relative_error, slow_twin, tiny_base_model, token_ids
from training.adapting.prograd import ProGrad, ProGradRecipe

CLASSES = ["cat", "striped circle", "a rather long name"]
TOLERANCE = 1e-9


def slow_losses(base_model, context, labels, recipe):
    """L_ce and L_kl written out."""
    slow = slow_twin(base_model)
    reference = base_model if recipe.reference == "boosted" else base_model.plain()
    texts, reference_texts = [], []
    for name in CLASSES:
        ids = token_ids(base_model, f"{name}.")
        texts.append(slow.text(ids, context.unsqueeze(0), base_model.text_boost))
        ids = token_ids(base_model, recipe.template.replace("{}", name))
        reference_texts.append(slow.text(ids, None, reference.text_boost))
    tau, task, general = recipe.kl_temperature, 0, 0
    for image, label in zip(random_images(len(labels), torch.float64), labels, strict=True):
        scores = base_model.logit_scale * torch.stack(texts) @ slow.image(image, base_model.image_boost)
        frozen = base_model.logit_scale * torch.stack(reference_texts) @ slow.image(image, reference.image_boost)
        task = task - (scores[label] - scores.exp().sum().log())
        target = (frozen / tau).exp() / (frozen / tau).exp().sum()
        log_share = scores / tau - (scores / tau).exp().sum().log()
        general = general - tau**2 * sum(p * q for p, q in zip(target, log_share, strict=True))
    return task / len(labels), general / len(labels)


def written_out_step(task, general, share):
    """The rule element by element, and the overlap <a, b̂>."""
    a, b = task.flatten().tolist(), general.flatten().tolist()
    length = sum(y * y for y in b) ** 0.5
    overlap = sum(x * y for x, y in zip(a, b, strict=True)) / length
    if overlap < 0:
        a = [x - share * overlap * y / length for x, y in zip(a, b, strict=True)]
    return torch.tensor(a, dtype=torch.float64).reshape(task.shape), overlap


@pytest.mark.parametrize(("boost", "reference"), [(None, "boosted"), ((2, 3), "boosted"), ((2, 3), "plain")])
@pytest.mark.parametrize(("tau", "share"), [(1.0, 1.0), (2.0, 0.5)])
@pytest.mark.parametrize("is_conflict", [True, False])
def test_value_and_gradient_match_the_paper(boost, reference, tau, share, is_conflict):
    base_model = tiny_base_model(boost, torch.float64)
    recipe = ProGradRecipe(context_tokens=4, context_init="", reference=reference, kl_temperature=tau, projection=share)
    method = ProGrad(base_model, CLASSES, recipe).double()
    batch = feature_batch(base_model, [0, 0], reference)
    # Labels that the zero-shot model holds for least likely pull against it, its own favourites along with it.
    zero_shot = (
        batch.reference_BE @ method.reference_text_KE.T - batch.features_BE @ method.texts.encode(method.context).T
    )
    labels = (zero_shot.argmin(1) if is_conflict else zero_shot.argmax(1)).tolist()

    loss = method.loss(feature_batch(base_model, labels, reference))
    loss.backward()

    context = method.context.detach().clone().requires_grad_()
    task, general = slow_losses(base_model, context, labels, recipe)
    (task_gradient,) = torch.autograd.grad(task, [context], retain_graph=True)
    (general_gradient,) = torch.autograd.grad(general, [context])
    expected, overlap = written_out_step(task_gradient, general_gradient, share)
    assert (overlap < 0) == is_conflict
    assert relative_error(loss, task) < TOLERANCE
    assert relative_error(method.context.grad, expected) < TOLERANCE
