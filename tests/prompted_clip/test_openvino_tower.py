"""The OpenVINO tower's embeddings are torch's, for every shape and grid of prompts, on any number of threads."""

import functools
import importlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn.functional import cosine_similarity

from prompted_clip.backbone import load_backbone
from prompted_clip.errors import BackendError
from prompted_clip.openvino_tower import OpenVinoTower, has_bfloat16
from prompted_clip.prompts import collate_grids, join_groups
from prompted_clip.vision import ImageTower
from tests.openvino_extra import assert_no_usage_statistics, needs_openvino
from tests.tiny import random_pixels, register_tiny_models

pytestmark = pytest.mark.slow  # each tower is compiled for seconds

BOUND = 1e-4
"""Largest relative difference of an embedding."""
COSINE_BOUNDS = {"bfloat16": 3e-4, "int8": 2e-3}
"""Largest 1 - cosine to float32."""
ARCHS = ["tiny", "demo-student"]
N_ROWS = 5


@functools.cache
def backbone_of(arch="tiny", quick_gelu=False):
    register_tiny_models()
    return load_backbone(arch, random_seed=None if arch.startswith("demo") else 0, quick_gelu=quick_gelu)


@functools.cache
def tower_of(arch="tiny", quick_gelu=False, **options):
    return OpenVinoTower(backbone_of(arch, quick_gelu), **options)


def grid(arch, seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    width = backbone_of(arch).vision_width
    return join_groups([torch.randn(*shape, width, generator=generator) for shape in shapes])


def mixed_grids(arch):
    """One grid per row, of equal width and different depths."""
    deepest = backbone_of(arch).n_vision_layers
    return [grid(arch, row, (1 + row % deepest, 3), (1, 2)) for row in range(N_ROWS)]


def grid_named(name, arch):
    deepest = backbone_of(arch).n_vision_layers
    return {
        "none": lambda: None,
        "shared": lambda: grid(arch, 0, (2, 3), (deepest, 2)),
        "one position": lambda: grid(arch, 0, (2, 1)),
        "mixed depths": lambda: collate_grids(mixed_grids(arch)),
    }[name]()


def difference(found, expected):
    """The largest relative difference of a row."""
    return ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max().item()


@needs_openvino
@pytest.mark.parametrize("name", ["none", "shared", "one position", "mixed depths"])
@pytest.mark.parametrize("quick_gelu", [False, True], ids=["gelu", "quickgelu"])
@pytest.mark.parametrize("arch", ARCHS)
def test_float32_embeddings_are_torchs(arch, quick_gelu, name):
    backbone = backbone_of(arch, quick_gelu)
    pixels, prompts = random_pixels(N_ROWS, backbone.image_size), grid_named(name, arch)
    expected = ImageTower(backbone)(pixels, prompts)
    found = tower_of(arch, quick_gelu)(pixels, prompts)
    assert found.dtype == torch.float32
    assert difference(found, expected) < BOUND


def tower_in(dtype, arch):
    if dtype == "bfloat16" and not has_bfloat16():
        pytest.skip("this processor has no bfloat16")
    return tower_of(arch, dtype=dtype)


@needs_openvino
@pytest.mark.parametrize("name", ["none", "mixed depths"])
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", list(COSINE_BOUNDS))
def test_embeddings_of_narrow_types_are_near_float32s(dtype, arch, name):
    pixels, prompts = random_pixels(N_ROWS, backbone_of(arch).image_size), grid_named(name, arch)
    found, expected = (tower(pixels, prompts) for tower in (tower_in(dtype, arch), ImageTower(backbone_of(arch))))
    assert found.dtype == torch.float32
    gap = (1 - cosine_similarity(found, expected)).max().item()
    assert 1e-7 < gap < COSINE_BOUNDS[dtype]


@needs_openvino
def test_int8_multiplies_int8_weights():
    precisions = [
        operation.get_rt_info()["runtimePrecision"].astype(str)
        for operation in tower_of("demo-student", dtype="int8").compiled.get_runtime_model().get_ops()
        if operation.get_rt_info()["layerType"].astype(str) == "FullyConnected"
    ]
    assert precisions.count("i8") >= 4 * backbone_of("demo-student").n_vision_layers


@needs_openvino
@pytest.mark.parametrize("arch", ARCHS)
def test_int8_rows_of_a_mixed_batch_equal_each_image_alone(arch):
    tower, pixels, grids = (
        tower_in("int8", arch),
        random_pixels(N_ROWS, backbone_of(arch).image_size),
        mixed_grids(arch),
    )
    mixed = tower(pixels, collate_grids(grids))
    alone = torch.cat([tower(pixels[row : row + 1], own) for row, own in enumerate(grids)])
    assert (1 - cosine_similarity(mixed, alone)).max().item() < COSINE_BOUNDS["int8"]


@needs_openvino
def test_importing_openvino_sends_no_usage_statistics(tmp_path):
    assert_no_usage_statistics("from prompted_clip.openvino_tower import openvino; openvino()", tmp_path)


@needs_openvino
@pytest.mark.parametrize("arch", ARCHS)
def test_rows_of_a_mixed_batch_equal_each_image_alone(arch):
    tower, pixels, grids = tower_of(arch), random_pixels(N_ROWS, backbone_of(arch).image_size), mixed_grids(arch)
    mixed = tower(pixels, collate_grids(grids))
    alone = torch.cat([tower(pixels[row : row + 1], own) for row, own in enumerate(grids)])
    assert difference(mixed, alone) < BOUND


@needs_openvino
@pytest.mark.parametrize("n_rows", [1, 2, 7, 33])
@pytest.mark.parametrize("name", ["none", "shared"])
def test_rows_do_not_depend_on_the_batch_size(name, n_rows):
    pixels, prompts = random_pixels(64), grid_named(name, "tiny")
    whole = tower_of()(pixels, prompts)
    assert difference(tower_of()(pixels[:n_rows], prompts), whole[:n_rows]) < BOUND


@needs_openvino
def test_prompts_change_the_embeddings():
    pixels = random_pixels(N_ROWS)
    plain, prompted = (tower_of()(pixels, grid_named(name, "tiny")) for name in ("none", "shared"))
    assert difference(prompted, plain) > 100 * BOUND


@needs_openvino
@pytest.mark.parametrize("n_streams", [1, 2])
def test_several_threads_get_the_answers_of_one(n_streams):
    tower = tower_of(n_threads=2, n_streams=n_streams)
    batches = [
        (random_pixels(1 + index % 4, seed=index), grid("tiny", index, (2, 1 + index % 3))) for index in range(40)
    ]
    expected = [tower(*batch) for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda batch: tower(*batch), batches))
    assert all(map(torch.equal, found, expected))


@needs_openvino
def test_an_embedding_is_not_overwritten_by_later_calls():
    first = tower_of()(random_pixels(2))
    before = first.clone()
    tower_of()(random_pixels(2, seed=1))
    assert torch.equal(first, before)


@needs_openvino
def test_prompts_and_pixels_are_not_modified():
    pixels, prompts = random_pixels(N_ROWS), grid_named("mixed depths", "tiny")
    before = [tensor.clone() for tensor in (pixels, prompts.tokens, prompts.depths)]
    tower_of()(pixels, prompts)
    assert all(map(torch.equal, before, (pixels, prompts.tokens, prompts.depths)))


@needs_openvino
def test_pixels_of_any_memory_layout_give_the_same_embeddings():
    pixels = random_pixels(N_ROWS)
    channels_last = pixels.contiguous(memory_format=torch.channels_last)
    assert torch.equal(tower_of()(channels_last), tower_of()(pixels))


@needs_openvino
def test_a_backbone_in_another_dtype_is_refused():
    register_tiny_models()
    with pytest.raises(BackendError, match=r"float32 weights on the CPU; found bfloat16 on cpu"):
        OpenVinoTower(load_backbone("tiny", random_seed=0, dtype=torch.bfloat16))


def test_without_the_extra_the_error_names_the_install_command(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(BackendError, match=r"No module named 'openvino'.*pip install 'caspl-serve\[openvino\]'"):
        OpenVinoTower(backbone_of())
