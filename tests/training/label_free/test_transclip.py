"""TransCLIP: its updates against the paper's objective, written out in float64, and its head."""

import itertools
import math

import pytest
import torch

from tests.base_models import tiny_base_model
from training.errors import RecipeError
from training.label_free.method import Encoded, Unlabelled
from training.label_free.transclip import (
    Affinities,
    Mixture,
    TransCLIPRecipe,
    assign,
    fit_mixture,
    initial_mixture,
    learn_transclip,
    nearest,
)

U, K, E = 14, 3, 5


def drawn(seed=0):
    """Unit features, log text predictions, assignments on the simplex and a mixture."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    features = torch.nn.functional.normalize(normal(U, E), dim=1)
    mixture = Mixture(0.5 * normal(K, E), normal(E).exp() / E)
    return features, (2 * normal(U, K)).log_softmax(1), normal(U, K).softmax(1), mixture


def dense(affinities):
    """w as a matrix [U, U]."""
    return affinities @ torch.eye(U, dtype=torch.float64)


def log_density(features, mixture):
    """log p_ik, one image and one class at a time, without the constant of the width."""
    rows = []
    for f in features:
        deviations = [f - mu for mu in mixture.mu_KE]
        rows.append(torch.stack([-((d * d / mixture.s_E).sum() + mixture.s_E.log().sum()) / 2 for d in deviations]))
    return torch.stack(rows)


def objective(features, z, mixture, log_text, w, weight):
    """L(z, mu, S), one image at a time."""
    total, density = 0, log_density(features, mixture)
    for i in range(U):
        total = total - (z[i] * density[i]).sum() + (z[i] * z[i].log()).sum() - weight * (z[i] * log_text[i]).sum()
        total = total - sum(w[i, j] * (z[i] * z[j]).sum() for j in range(U)) / 2
    return total


def positive_definite(features):
    """Affinities of all pairs plus a diagonal, with which the Laplacian term is concave, as the updates assume."""
    rows = torch.arange(U).expand(U, U)
    weights = (features @ features.T).clamp(min=0)
    return Affinities(rows, weights + U * torch.eye(U, dtype=torch.float64))


def test_log_densities_are_those_of_a_gaussian():
    features, _, _, mixture = drawn()
    torch.testing.assert_close(mixture.log_density(features), log_density(features, mixture), rtol=1e-12, atol=1e-12)
    normal = torch.distributions.MultivariateNormal(mixture.mu_KE, torch.diag(mixture.s_E))
    expected = normal.log_prob(features.unsqueeze(1)) + E / 2 * math.log(2 * math.pi)
    torch.testing.assert_close(mixture.log_density(features), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_the_objective_never_rises(weight):
    features, log_text, z, mixture = drawn()
    affinities = positive_definite(features)
    w, values = dense(affinities), []
    for _ in range(4):
        for _ in range(3):
            values.append(objective(features, z, mixture, log_text, w, weight))
            z = assign(mixture.log_density(features), affinities, z, log_text, weight)
        values.append(objective(features, z, mixture, log_text, w, weight))
        mixture = fit_mixture(features, z, mixture)
    values.append(objective(features, z, mixture, log_text, w, weight))
    assert all(after <= before + 1e-10 for before, after in itertools.pairwise(values))
    assert values[-1] < values[0] - 1


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_assignments_that_no_longer_change_are_a_stationary_point(weight):
    features, log_text, z, mixture = drawn(1)
    affinities = nearest(features, 3)
    for _ in range(300):
        z = assign(mixture.log_density(features), affinities, z, log_text, weight)
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(objective(features, z, mixture, log_text, dense(affinities), weight), [z])
    # On the simplex: the gradient is the same for all classes of an image.
    assert (gradient - gradient.mean(dim=1, keepdim=True)).abs().max() < 1e-8


def test_updated_means_and_variances_are_a_stationary_point():
    features, log_text, z, mixture = drawn(2)
    updated = fit_mixture(features, z, mixture)
    mu, s = updated.mu_KE.clone().requires_grad_(), updated.s_E.clone().requires_grad_()
    w = torch.zeros(U, U, dtype=torch.float64)
    gradients = torch.autograd.grad(objective(features, z, Mixture(mu, s), log_text, w, 1.0), [mu, s])
    assert all(gradient.abs().max() < 1e-9 for gradient in gradients)


def test_affinities_are_cosines_to_the_nearest_neighbours_and_symmetric():
    features, *_ = drawn(3)
    cosines = features @ features.T
    expected = torch.zeros(U, U, dtype=torch.float64)
    for i in range(U):
        others = sorted((j for j in range(U) if j != i), key=lambda j: -cosines[i, j])[:3]
        for j in others:
            expected[i, j] += cosines[i, j].clamp(min=0) / 2
            expected[j, i] += cosines[i, j].clamp(min=0) / 2
    torch.testing.assert_close(dense(nearest(features, 3)), expected)
    assert dense(nearest(features, 0)).abs().max() == 0
    assert nearest(features[:2], 3).rows_UJ.tolist() == [[1], [0]]


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_the_head_scores_images_without_neighbours_like_the_mixture(weight):
    features, _, z, mixture = drawn(4)
    text = torch.nn.functional.normalize(torch.randn(K, E, dtype=torch.float64), dim=1)
    scale = 20.0
    log_text = (scale * features @ text.T).log_softmax(1)
    expected = assign(mixture.log_density(features), nearest(features, 0), z, log_text, weight)

    head = mixture.head(text, weight * scale)

    found = (features.float() @ head.weight_KE.T + head.bias_K).softmax(1)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-5)
    assert (head.share, head.reads_unit) == (1.0, True)


def test_means_start_at_the_most_confident_images_or_at_the_text_features():
    features, *_ = drawn(5)
    text = torch.ones(K, E, dtype=torch.float64)
    probabilities = torch.zeros(U, K, dtype=torch.float64)
    probabilities[:, 1] = torch.linspace(0.5, 0.9, U)
    probabilities[:, 0] = 1 - probabilities[:, 1]
    start = initial_mixture(features, text, probabilities, 2)
    torch.testing.assert_close(start.mu_KE[1], features[-2:].mean(0))
    torch.testing.assert_close(start.mu_KE[2], text[2])
    assert start.s_E.tolist() == [1 / E] * E


def test_images_that_hardly_vary_are_an_error_with_advice():
    base_model = tiny_base_model()
    generator = torch.Generator().manual_seed(0)
    text = base_model.zero_shot_text(["cat", "dog"], ["{}."])
    noise = 1e-3 * torch.randn(6, text.shape[1], generator=generator)
    features = torch.nn.functional.normalize(
        torch.nn.functional.normalize(torch.ones(text.shape[1]), dim=0) + noise, dim=1
    )
    features[:3, 0] += 0.5
    scores = torch.tensor([[5.0, 0.0]] * 3 + [[0.0, 5.0]] * 3)
    unlabelled = Unlabelled(base_model, ["cat", "dog"], Encoded(features, text, scores, "{}."), None, None)
    with pytest.raises(RecipeError, match=r"the 6 images are too few or too similar\. Add images"):
        learn_transclip(unlabelled, TransCLIPRecipe())
