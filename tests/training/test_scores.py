"""Class scores: equation and precision."""

import torch

from training.scores import class_scores


def unit(*shape, seed):
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=-1, keepdim=True)


def test_text_features_may_be_shared_or_per_image():
    features, shared, own = unit(2, 5, seed=0), unit(3, 5, seed=1), unit(2, 3, 5, seed=2)

    by_shared, by_own = class_scores(10.0, features, shared), class_scores(10.0, features, own)

    for row in range(2):
        for column in range(3):
            torch.testing.assert_close(by_shared[row, column], 10 * features[row].dot(shared[column]))
            torch.testing.assert_close(by_own[row, column], 10 * features[row].dot(own[row, column]))


def test_autocast_does_not_reduce_the_precision_of_scores():
    features, texts = unit(4, 64, seed=0), unit(5, 64, seed=1)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = class_scores(100.0, features, texts)
        coarse = 100 * features @ texts.T

    assert found.dtype == torch.float32
    assert torch.equal(found, class_scores(100.0, features, texts))
    assert not torch.equal(coarse.float(), found)
