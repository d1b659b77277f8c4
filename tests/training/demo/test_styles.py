"""Synthesised styles."""

import pytest
import torch

from training.demo.render import draw_series, seeded_generator
from training.demo.styles import BASES, EFFECTS, synthesise

OPERATIONS = [*BASES, *(operation for _, operation in EFFECTS)]


def pictures(n):
    return draw_series(5, n).pixels.float() / 255


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
@pytest.mark.parametrize("n", [1, 5])
def test_an_operation_changes_every_image_and_depends_on_the_generator_alone(operation, n):
    clean = pictures(n)
    first, again, other = (operation(clean, seeded_generator(seed)) for seed in (1, 1, 2))
    assert first.shape == clean.shape
    assert torch.isfinite(first).all()
    assert torch.equal(first, again)
    assert all((a - b).abs().mean() > 1e-3 for a, b in zip(first, other, strict=True))
    assert all((a - b).abs().mean() > 1e-3 for a, b in zip(first, clean, strict=True))


def test_images_stay_in_range_and_the_input_is_not_modified():
    clean = pictures(64)
    before = clean.clone()
    styled = synthesise(clean, seeded_generator(3))
    assert torch.equal(clean, before)
    assert 0 <= styled.min() < styled.max() <= 1


def test_copies_of_one_image_get_different_styles():
    styled = synthesise(pictures(1).expand(24, -1, -1, -1), seeded_generator(4))
    distances = (styled[:, None] - styled[None]).abs().mean((2, 3, 4))
    alike = (distances < 0.02).sum(1) - 1  # a fifth keeps its colours, and some of these get no effect either
    assert alike.float().mean() < 2
