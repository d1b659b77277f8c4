"""Targets of phase 1 from several teachers: the mean of their distributions, weighted per image.

    q_m = softmax(z_m),   p = Σ_m w_m softmax(z_m / τ),   Σ_m w_m = 1

`teacher_weights` of the recipe selects the weights w_m of an image:

    mean:       w_m = 1 / M
    entropy:    w_m ∝ exp(-H(q_m)), one over the perplexity of the teacher's prediction
    agreement:  w_m ∝ Σ_k q_mk q̄_k, q̄ the mean of all q_m: the probability that a class drawn from this teacher's
                distribution and one drawn from the ensemble's are the same

TheProfessor (arXiv 2606.23897) distils from two teachers, weighted equally or by confidence; its abstract does not
define confidence. The formulas here are this project's.

Legend: M teachers, B images, K classes, T classes of several domains.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from training.recipe import BoostRecipe


def image_weights(logits_MBK: Tensor, recipe: BoostRecipe) -> Tensor:
    """Logarithms of the weights of each teacher for each image: [M, B]."""
    log_q_MBK = logits_MBK.log_softmax(dim=-1)
    q_MBK = log_q_MBK.exp()
    if recipe.teacher_weights == "entropy":
        weights_MB = (q_MBK * log_q_MBK).sum(dim=-1)
    elif recipe.teacher_weights == "agreement":
        weights_MB = (q_MBK * q_MBK.mean(dim=0)).sum(dim=-1).log()
    else:
        weights_MB = torch.zeros_like(log_q_MBK[..., 0])
    return weights_MB.log_softmax(dim=0)


def joint_logits(logits: Sequence[Tensor], recipe: BoostRecipe) -> Tensor:
    """Logits z with softmax(z / τ) = p, for `distillation_loss`; those of a single teacher are returned as they are.

    Args:
        logits: each teacher's class scores, [B, K] on one device.
        recipe: weights and temperature.

    Returns:
        τ log p: [B, K].
    """
    if len(logits) == 1:
        return logits[0]
    logits_MBK = torch.stack(list(logits))
    tau = recipe.temperature
    log_w_MB1 = image_weights(logits_MBK, recipe)[..., None]
    return tau * torch.logsumexp((logits_MBK / tau).log_softmax(dim=-1) + log_w_MB1, dim=0)


def joint_logits_of_domains(logits: Sequence[Tensor], recipe: BoostRecipe, columns: Sequence[Tensor]) -> Tensor:
    """`joint_logits` among the classes of each domain, side by side.

    Args:
        logits: each teacher's scores of the classes of all domains, [B, T].
        recipe: weights and temperature.
        columns: per domain, the places of its classes; together 0, ..., T - 1 in order.

    Returns:
        [B, T]; of a row only the columns of the image's own domain have a meaning.
    """
    if len(logits) == 1:
        return logits[0]
    return torch.cat([joint_logits([scores[:, own] for scores in logits], recipe) for own in columns], dim=1)
