"""TransCLIP: a Gaussian mixture over the unlabelled images, regularised by the text predictions, as a linear head.

With assignments z_i on the simplex, means mu_k and one diagonal covariance S for all classes, minimise

    L(z, mu, S) = - sum_i z_i . log p_i - 1/2 sum_ij w_ij z_i . z_j + sum_i ( z_i . log z_i - λ z_i . log ŷ_i )

    log p_ik = -1/2 (f_i - mu_k)^T S^-1 (f_i - mu_k) - 1/2 log det S       ŷ_i = softmax( s · <f_i, g_k> )

by alternating updates in closed form:

    z_i  <- softmax( log p_i + sum_j w_ij z_j + λ log ŷ_i )     all images at once, with the last z on the right
    mu_k <- sum_i z_ik f_i / sum_i z_ik
    S    <- diag of sum_ik z_ik (f_i - mu_k)^2 / U

Source: TransCLIP (arXiv 2406.01837): its zero-shot objective (mixture, Laplacian, and KL divergence from the text
predictions) and its block majorise-minimise updates. w is symmetric: half of max(0, <f_i, f_j>) at (i, j) and half at
(j, i) for each nearest neighbour j of i. Differs from the paper's repository, which divides log p_i by 50 and w by the
number of neighbours, normalises the means to length 1, and starts the mean of c at the images with the highest
p(c | x), weighted by it, even if another class is more probable. The paper classifies the images that it learns from;
here a classifier of other images is exported:

    log p_k(f) + λ log ŷ_k(f) = (S^-1 mu_k + λ s g_k) . f - 1/2 mu_k^T S^-1 mu_k + terms that do not depend on k

It has no Laplacian term, because other images have no neighbours. Nothing is random.

Legend: U images, K classes, E joint width, J neighbours of an image.
"""

from dataclasses import dataclass
from typing import Final

import torch
from pydantic import Field
from torch import Tensor

from prompt_store.contents import MAX_ABS_VALUE
from training.adapting.method import ExportedPrompts, LinearHead, detached
from training.adapting.reference import TextSettings
from training.errors import RecipeError
from training.label_free.method import Learned, Unlabelled, most_confident

MIN_VARIANCE: Final = 1e-5
"""Keeps S invertible if all images agree in some dimension."""
_BLOCK_ROWS: Final = 1024


class TransCLIPRecipe(TextSettings):
    """The values of the paper's repository for the zero-shot case."""

    text_weight: float = Field(default=1.0, ge=0, description="λ, the weight of the text predictions")
    neighbours: int = Field(default=3, ge=0, description="nearest neighbours of an image; 0 for no Laplacian term")
    initial_images: int = Field(default=8, ge=1, description="most confident images of each class that start its mean")
    rounds: int = Field(default=10, ge=1, description="updates of means and covariance")
    steps: int = Field(default=5, ge=1, description="updates of the assignments in each round")


@dataclass(frozen=True, eq=False)
class Mixture:
    """One Gaussian per class: means mu_KE and variances s_E (the diagonal of S), float64."""

    mu_KE: Tensor
    s_E: Tensor

    def log_density(self, features_UE: Tensor) -> Tensor:
        """The logarithm of p_ik, up to a constant of the width: [U, K]."""
        scaled_KE = self.mu_KE / self.s_E
        squares_U1 = (features_UE**2 / self.s_E).sum(dim=1, keepdim=True)
        squares_K = (self.mu_KE * scaled_KE).sum(dim=1)
        return features_UE @ scaled_KE.T - (squares_U1 + squares_K + self.s_E.log().sum()) / 2

    def head(self, text_KE: Tensor, scale: float) -> LinearHead:
        """The classifier of further images, centred over the classes; `scale` is λ s."""
        scaled_KE = self.mu_KE / self.s_E
        weight_KE, bias_K = scaled_KE + scale * text_KE, -(self.mu_KE * scaled_KE).sum(dim=1) / 2
        weight_KE, bias_K = weight_KE - weight_KE.mean(dim=0), bias_K - bias_K.mean()
        return LinearHead(detached(weight_KE), detached(bias_K), share=1.0, reads_unit=True)


@dataclass(frozen=True, eq=False)
class Affinities:
    """w, sparse and symmetric: half of `weights_UJ` at (i, rows_UJ[i]) and half at the transposed index."""

    rows_UJ: Tensor
    weights_UJ: Tensor

    def __matmul__(self, z_UK: Tensor) -> Tensor:
        """The sum over j of w_ij z_j: [U, K]."""
        total_UK = torch.zeros_like(z_UK)
        for rows_U, weights_U in zip(self.rows_UJ.unbind(1), self.weights_UJ.unbind(1), strict=True):
            total_UK += weights_U.unsqueeze(1) * z_UK[rows_U] / 2
            total_UK.index_add_(0, rows_U, weights_U.unsqueeze(1) * z_UK / 2)
        return total_UK


def nearest(features_UE: Tensor, n_neighbours: int) -> Affinities:
    """max(0, cosine) to each image's nearest neighbours, itself excluded; all others if there are fewer."""
    n_neighbours = min(n_neighbours, len(features_UE) - 1)
    rows, weights = [], []
    for start in range(0, len(features_UE), _BLOCK_ROWS):
        cosines_BU = features_UE[start : start + _BLOCK_ROWS] @ features_UE.T
        own_B = torch.arange(len(cosines_BU))
        cosines_BU[own_B, start + own_B] = -torch.inf
        best = cosines_BU.topk(n_neighbours, dim=1)
        rows.append(best.indices)
        weights.append(best.values.clamp(min=0))
    return Affinities(torch.cat(rows), torch.cat(weights))


def assign(log_density_UK: Tensor, affinities: Affinities, z_UK: Tensor, log_text_UK: Tensor, weight: float) -> Tensor:
    """One update of all assignments; `log_text_UK` is log ŷ and `weight` is λ."""
    return (log_density_UK + affinities @ z_UK + weight * log_text_UK).softmax(dim=1)


def fit_mixture(features_UE: Tensor, z_UK: Tensor, previous: Mixture) -> Mixture:
    """Update of means and covariance; a class without any assignment keeps its mean."""
    counts_K1 = z_UK.sum(dim=0).unsqueeze(1)
    mu_KE = torch.where(counts_K1 > 0, z_UK.T @ features_UE / counts_K1, previous.mu_KE)
    # sum_ik z_ik (f_i - mu_k)^2, multiplied out; the assignments of an image sum to 1
    squares_E = (features_UE**2).sum(dim=0) - (counts_K1 * mu_KE**2).sum(dim=0)
    return Mixture(mu_KE, (squares_E / len(features_UE)).clamp(min=MIN_VARIANCE))


def initial_mixture(features_UE: Tensor, text_KE: Tensor, probabilities_UK: Tensor, n_images: int) -> Mixture:
    """Means of the most confident images, and variance 1/E; a class without any starts at its text feature."""
    found = most_confident(probabilities_UK, n_images)
    z_UK = torch.zeros_like(probabilities_UK)
    z_UK[found.rows_N, found.labels_N] = 1
    width = features_UE.shape[1]
    start = Mixture(text_KE, torch.full((width,), 1 / width, dtype=text_KE.dtype))
    return Mixture(fit_mixture(features_UE, z_UK, start).mu_KE, start.s_E)


def learn_transclip(unlabelled: Unlabelled, recipe: TransCLIPRecipe) -> Learned:
    """Fit the mixture to all images and fold it, with the text features, into a linear head.

    Raises:
        RecipeError: the images vary so little that the head's weights exceed the limits of a bundle.
    """
    encoded = unlabelled.encoded
    features_UE, text_KE = encoded.features_UE.double(), encoded.text_KE.double()
    log_text_UK = encoded.scores_UK.double().log_softmax(dim=1)
    z_UK = log_text_UK.exp()
    affinities = nearest(features_UE, recipe.neighbours)
    mixture = initial_mixture(features_UE, text_KE, z_UK, recipe.initial_images)
    for _ in range(recipe.rounds):
        log_density_UK = mixture.log_density(features_UE)
        for _ in range(recipe.steps):
            z_UK = assign(log_density_UK, affinities, z_UK, log_text_UK, recipe.text_weight)
        mixture = fit_mixture(features_UE, z_UK, mixture)
    changed_U = z_UK.argmax(dim=1) != log_text_UK.argmax(dim=1)
    head = mixture.head(text_KE, recipe.text_weight * unlabelled.base_model.logit_scale)
    if max(head.weight_KE.abs().max(), head.bias_K.abs().max()) > MAX_ABS_VALUE:
        msg = (
            f"TransCLIP divides by the variance of the image features, which falls to {mixture.s_E.min():.1g}: the "
            f"{len(features_UE)} images are too few or too similar. Add images, or choose another method."
        )
        raise RecipeError(msg)
    metrics = {"share_of_changed_predictions": float(changed_U.double().mean())}
    return Learned(ExportedPrompts(head=head), encoded.template, metrics)
