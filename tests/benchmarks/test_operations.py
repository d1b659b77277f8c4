"""Counted operations: right for a product whose count is known, and as the page shows them."""

from pathlib import Path

import pytest
import torch

from benchmarks.operations import boost_run, image_forward, markdown_table, measure, operations
from tests.tiny import tiny_backbone
from training.recipe import BoostRecipe

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


def test_a_product_of_matrices_counts_two_operations_per_multiplication():
    assert operations(lambda: torch.zeros(3, 5) @ torch.zeros(5, 7)) == 2 * 3 * 5 * 7


def test_attention_is_counted_without_gradients_too():
    backbone = tiny_backbone()
    width, n_tokens, n_layers = backbone.vision_width, 17, backbone.n_vision_layers
    products = 2 * n_tokens * width * (4 * width + 2 * 4 * width + 2 * n_tokens) * n_layers
    patches = 2 * 16 * width * 3 * 8 * 8
    assert image_forward(backbone) == products + patches + 2 * width * backbone.embed_dim


def test_a_run_costs_twice_as_much_with_twice_the_epochs():
    recipe = BoostRecipe(image_tokens=2, text_tokens=2, epochs=2)
    once, twice = (
        boost_run(tiny_backbone(), tiny_backbone("tiny-teacher", 1), recipe.model_copy(update={"epochs": n}), 9, 3)
        for n in (2, 4)
    )
    assert twice == 2 * once


@pytest.mark.slow
def test_the_page_shows_the_counts():
    assert markdown_table(measure()) in PAGE.read_text()
