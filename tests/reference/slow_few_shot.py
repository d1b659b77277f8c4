"""Few-shot heads by loops over the published equations, one refit for each example."""

import math

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from prompted_clip.few_shot import RIDGE, SHARPNESS
from prompted_clip.fit import ALPHAS, MIN_EXAMPLES
from prompted_clip.gda import MIN_DAMPING


def slow_scores(name, features, labels, query):
    """One query's scores by loops over the published equations."""
    n, width = features.shape
    classes = range(max(labels) + 1)
    if name == "tip-adapter":
        near = [SHARPNESS * float(np.dot(query, one)) + 1 - SHARPNESS for one in features]
        return [sum(value for value, label in zip(near, labels, strict=True) if label == k) for k in classes]
    if name == "ridge":
        inputs = np.array([[*one, 1.0] for one in features])
        gram = sum(np.outer(one, one) for one in inputs) + RIDGE * np.eye(width + 1)
        return [float(np.linalg.inv(gram) @ inputs.T @ (labels == k) @ [*query, 1.0]) for k in classes]
    means = [features[labels == k].mean(axis=0) for k in classes]
    scatter = sum(np.outer(one - means[k], one - means[k]) for one, k in zip(features, labels, strict=True))
    precision = width * np.linalg.inv(scatter + max(np.trace(scatter) / (n - 1), MIN_DAMPING) * np.eye(width))
    noise = np.trace(precision @ scatter) / (n - len(means))
    return [
        float(mean @ precision @ query - (mean @ precision @ mean - noise / (labels == k).sum()) / 2)
        for k, mean in enumerate(means)
    ]


def slow_fit(name, features, labels, text_logits, queries, query_text_logits):
    """Loss, calibrated logits of the queries and leave-one-out logits of the best alpha of one method."""
    kept = [k for k in range(text_logits.shape[1]) if (labels == k).sum() >= MIN_EXAMPLES]
    used = np.isin(labels, kept)
    own = np.searchsorted(kept, labels)

    def added(query, row=None):
        scores = np.zeros(text_logits.shape[1])
        rows = used if row is None else used & (np.arange(len(labels)) != row)
        found = np.array(slow_scores(name, features[rows], own[rows], query))
        scores[kept] = found - found.mean()
        return scores

    left_out = np.array([added(features[row], row) for row in range(len(labels))])

    def spread(scores):
        return np.sqrt(((scores - scores.mean(1, keepdims=True)) ** 2).mean())

    best = (*least_loss(text_logits, labels), query_text_logits, text_logits)
    for alpha in ALPHAS * spread(text_logits[:, kept]) / spread(left_out[:, kept]):
        logits = text_logits + alpha * left_out
        loss, temperature = least_loss(logits, labels)
        if loss < best[0]:
            term = np.array([added(query) for query in queries])
            best = loss, temperature, query_text_logits + alpha * term, logits
    return best[0], best[2] / best[1], best[3]


def least_loss(logits, labels):
    """By a fine search over the temperature; targets smoothed by 1/(N + 1)."""
    n, n_classes = logits.shape
    targets = np.full(logits.shape, 1 / (n + 1) / n_classes)
    targets[np.arange(n), labels] += 1 - 1 / (n + 1)

    def loss(temperature):
        return float(cross_entropy(torch.from_numpy(logits / temperature), torch.from_numpy(targets)))

    low, high = math.log(1 / 30), math.log(30)
    for _ in range(60):
        third = (high - low) / 3
        low, high = (low, high - third) if loss(math.exp(low + third)) < loss(math.exp(high - third)) else (
            low + third, high)  # fmt: skip
    return loss(math.exp(low)), math.exp(low)
