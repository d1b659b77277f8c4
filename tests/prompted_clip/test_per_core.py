"""Rows shared out among cores: the same embeddings, and nothing else in the process changes."""

import pytest
import torch

from prompted_clip.fused_vision import FusedImageTower
from prompted_clip.per_core import PerCoreTower, is_worth_sharing
from prompted_clip.prompts import collate_grids, join_groups
from tests.tiny import random_pixels, tiny_backbone


@pytest.fixture
def tower():
    return FusedImageTower(tiny_backbone())


def grid(seed, depth=2):
    return join_groups([torch.randn(depth, 3, 32, generator=torch.Generator().manual_seed(seed))])


@pytest.mark.parametrize("n_rows", [1, 2, 3, 4, 5, 8, 11])
@pytest.mark.parametrize("prompts", ["none", "shared", "own"])
def test_every_row_is_what_the_tower_alone_says(tower, n_rows, prompts):
    pixels = random_pixels(n_rows)
    own = collate_grids([grid(row, depth=1 + row % 3) for row in range(n_rows)])
    given = {"none": None, "shared": grid(0), "own": own}[prompts]
    torch.testing.assert_close(PerCoreTower(tower, 3)(pixels, given), tower(pixels, given), rtol=0, atol=1e-5)


def test_rows_go_to_different_threads_of_one_core_each_and_the_caller_keeps_its_own():
    seen = []

    def noting(pixels, _):
        seen.append((len(pixels), torch.get_num_threads()))
        return pixels.float().mean(dim=(2, 3))

    before = torch.get_num_threads()
    shared = PerCoreTower(noting, 2)
    shared(random_pixels(7))
    assert sorted(seen) == [(3, 1), (4, 1)]
    assert torch.get_num_threads() == before
    seen.clear()
    shared(random_pixels(1))
    assert seen == [(1, before)]


def test_what_one_core_raises_the_caller_gets():
    def failing(pixels, _):
        if pixels[0, 0, 0, 0] == 1:
            raise RuntimeError("no memory")
        return pixels

    pixels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    pixels[1] = 1
    with pytest.raises(RuntimeError, match="no memory"):
        PerCoreTower(failing, 2)(pixels)


@pytest.mark.parametrize(
    ("n_rows", "n_cores", "expected"),
    [
        (1, 2, False),
        (2, 2, True),
        (3, 2, False),
        (5, 2, True),
        (7, 8, False),
        (8, 8, True),
        (9, 8, False),
        (39, 8, True),
    ],
)
def test_cores_are_not_left_waiting_for_one_with_a_row_more(n_rows, n_cores, expected):
    assert is_worth_sharing(n_rows, n_cores) is expected
