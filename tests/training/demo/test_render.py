import pytest
import torch

from training.demo.render import BLOCK, draw, draw_series, seeded_generator
from training.demo.shapes import SHAPE_DISTANCES
from training.demo.shifts import DOMAINS, SHIFTED
from training.demo.textures import TEXTURE_SHARES
from training.demo.world import N_SHAPES, N_TEXTURES, SEEN_PAIRS, SHAPES, TEXTURES


@pytest.fixture(scope="module")
def clean():
    return draw_series(7, 16)


def draw_in_one_pose(colours, textures, shapes):
    """One image per row, with the same random draws, so that only the arguments differ."""
    rows = zip(colours, textures, shapes, strict=True)
    pictures = [draw(*(torch.tensor([value]) for value in row), seeded_generator(5, 0)) for row in rows]
    return torch.cat(pictures)


def test_every_shape_and_texture_can_be_drawn():
    assert tuple(SHAPE_DISTANCES) == SHAPES
    assert tuple(TEXTURE_SHARES) == TEXTURES


def test_an_image_depends_on_seed_and_index_only():
    many = draw_series(3, BLOCK + 40)
    few = draw_series(3, 20, start=BLOCK - 10)
    assert torch.equal(many.pixels[BLOCK - 10 : BLOCK + 10], few.pixels)
    assert torch.equal(many.labels[BLOCK - 10 : BLOCK + 10], few.labels)


def test_another_seed_draws_other_images():
    assert not torch.equal(draw_series(3, 8).pixels, draw_series(4, 8).pixels)


def test_shapes_look_different_in_the_same_pose():
    pictures = draw_in_one_pose([0] * N_SHAPES, [0] * N_SHAPES, range(N_SHAPES))
    distance = torch.cdist(pictures.flatten(1), pictures.flatten(1)) + 1e3 * torch.eye(N_SHAPES)
    assert distance.min() > 3


def test_textures_look_different_in_the_same_pose():
    pictures = draw_in_one_pose([0] * N_TEXTURES, range(N_TEXTURES), [1] * N_TEXTURES)
    distance = torch.cdist(pictures.flatten(1), pictures.flatten(1)) + 1e3 * torch.eye(N_TEXTURES)
    assert distance.min() > 3


def test_training_images_contain_no_held_out_pair():
    pool = draw_series(1, BLOCK, pairs=SEEN_PAIRS)
    drawn = set(zip(pool.textures.tolist(), pool.shapes.tolist(), strict=True))
    assert drawn <= set(SEEN_PAIRS)


def test_drawing_no_images_is_an_error():
    with pytest.raises(ValueError, match="n >= 1"):
        draw_series(1, 0)


@pytest.mark.parametrize("name", DOMAINS)
def test_a_domain_restyles_the_clean_series_image_by_image(name, clean):
    shifted = draw_series(7, 16, restyle=DOMAINS[name])
    assert shifted.pixels.shape == (16, 3, 64, 64)
    assert torch.equal(shifted.labels, clean.labels)
    assert torch.equal(shifted.pixels, clean.pixels) == (name == "clean")


@pytest.mark.parametrize("name", SHIFTED)
def test_a_domain_does_not_modify_its_input_and_depends_on_the_generator_only(name, clean):
    picture = clean.pixels[:4].float() / 255
    before = picture.clone()
    restyled = SHIFTED[name](picture, seeded_generator(1))
    assert torch.equal(picture, before)
    assert restyled.isfinite().all()
    assert torch.equal(restyled, SHIFTED[name](picture, seeded_generator(1)))
    assert not torch.equal(restyled, SHIFTED[name](picture, seeded_generator(2)))
