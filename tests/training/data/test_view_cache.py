"""Cached outputs of frozen models for fixed views."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import tiny_backbone
from training.data.view_cache import ViewCache
from training.data.views import Views


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(5):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(tmp_path / f"{index}.png")
    return sorted(tmp_path.iterdir())


def views(files, augmentation, n_fixed):
    return Views(
        files,
        image_size=32,
        preprocess=tiny_backbone().preprocess,
        augmentation=augmentation,
        crop_scale_min=0.2,
        seed=3,
        n_fixed=n_fixed,
    )


@pytest.mark.parametrize(("augmentation", "n_fixed", "n_sets"), [("none", 0, 1), ("crop-flip", 2, 2)])
def test_each_fixed_view_is_computed_once(files, augmentation, n_fixed, n_sets):
    calls = []

    def mean(pixels):
        calls.append(len(pixels))
        return pixels.float().mean(dim=(1, 2, 3))

    shown = views(files, augmentation, n_fixed)
    values = ViewCache(shown, mean)
    for epoch in range(6):
        order = shown.order(epoch)
        torch.testing.assert_close(values.get(order, epoch), shown.load(order.tolist(), epoch).float().mean((1, 2, 3)))
    assert sum(calls) == 5 * n_sets


def test_random_views_are_computed_every_time(files):
    calls = []
    values = ViewCache(views(files, "crop-flip", 0), lambda pixels: calls.append(1) or pixels.float().mean((1, 2, 3)))
    first, second = (values.get(torch.arange(5), epoch) for epoch in (0, 1))
    assert len(calls) == 2
    assert not torch.equal(first, second)


def test_epochs_cycle_through_the_fixed_views(files):
    shown = views(files, "crop-flip", 2)
    sets = [shown.load(range(5), epoch) for epoch in range(4)]
    assert torch.equal(sets[0], sets[2])
    assert torch.equal(sets[1], sets[3])
    assert not torch.equal(sets[0], sets[1])


def test_views_that_exceed_the_memory_limit_are_decoded_again(files, monkeypatch):
    kept = views(files, "crop-flip", 2).load([4, 0], 1)
    monkeypatch.setattr("training.data.views.MAX_CACHED_BYTES", 0)
    assert torch.equal(views(files, "crop-flip", 2).load([4, 0], 1), kept)


def test_prefetched_views_equal_loaded_views(files):
    plain, prefetched = views(files, "crop-flip", 0), views(files, "crop-flip", 0)
    prefetched.prefetch([3, 1], 7)
    prefetched.prefetch([0], 7)
    assert torch.equal(prefetched.load([3, 1], 7), plain.load([3, 1], 7))
    assert torch.equal(prefetched.load([0], 7), plain.load([0], 7))
    assert not prefetched._prefetched


def test_given_pixels_are_not_decoded_again(files):
    calls = []
    shown = views(files, "crop-flip", 0)
    values = ViewCache(shown, lambda pixels: calls.append(pixels) or pixels.float().mean((1, 2, 3)))
    pixels = shown.load([2, 4], 3)
    values.get(torch.tensor([2, 4]), 3, pixels)
    assert calls[0] is pixels
