"""The engine benchmark on a small backbone: its object's shape, and that its batches are what their names say."""

import asyncio
import dataclasses
import json

import numpy as np
import pytest
import torch
from rich.console import Console

from benchmarks.bundles import BundleShape, random_bundle
from benchmarks.engine import EngineOptions, best
from benchmarks.engine_report import measure
from benchmarks.engine_rows import Feeder, noise, register, run_batches
from benchmarks.tags import source_of
from prompt_store.bundle import read_bundle
from prompted_clip.model import PromptedClip
from service.engine.engine import Engine
from tests.tiny import register_tiny_models, tiny_backbone

QUIET = Console(quiet=True)
RATIOS = {
    "mixed_64_vs_single",
    "mixed_1000_vs_single",
    "paged_1000_of_64_vs_single",
    "vs_open_clip_fp32_eager",
    "fraction_of_matmul_rate",
    "fraction_of_sliced_matmul_rate",
    "operations_vs_matrix_products",
    "fraction_of_square_product_rate",
    "prompt_overhead",
    "quick_gelu_vs_gelu",
    "prompt_overhead_vs_open_clip_same_dtype",
}


def test_a_random_bundle_is_sound_and_its_labels_say_whose_they_are():
    bundle = read_bundle(random_bundle(tiny_backbone(), "d00001", 4, BundleShape(2, 1, depth=9, n_classes=5)))

    assert {source_of(spec.name) for spec in bundle.manifest.classes} == {("d00001", 4)}
    assert bundle.manifest.stack.image.boost.depth == tiny_backbone().n_vision_layers
    assert random_bundle(tiny_backbone(), "d00001", 5, BundleShape()) != random_bundle(
        tiny_backbone(), "d00001", 4, BundleShape()
    )


@pytest.fixture
def feeder():
    backbone = tiny_backbone()
    engine = Engine(PromptedClip(backbone))
    stacks = asyncio.run(register(engine, backbone, 70, BundleShape(2, 1, n_classes=3), QUIET))
    yield Feeder(engine, stacks, noise(backbone.image_size), np.random.default_rng(0))
    engine.close()


def test_batches_hold_the_domains_that_their_names_say(feeder):
    def domains(batch):
        return [row.stack.domain for row in batch]

    assert len(set(domains(feeder.single(32)))) == 1
    assert len(set(domains(feeder.mixed(32, 64)))) == 32
    assert set(domains(feeder.mixed(128, 64))) == {stack.domain for stack in feeder.stacks[:64]}
    popular = domains(feeder.popular(4000, 1.0))
    assert popular.count("d00000") > 5 * popular.count("d00050")


def test_batches_are_all_answered_or_the_measurement_fails(feeder):
    asyncio.run(run_batches(feeder.engine, [feeder.mixed(4, 64) for _ in range(3)]))
    stack = feeder.stacks[0]
    feeder.stacks[0] = dataclasses.replace(stack, text_features=torch.full_like(stack.text_features, float("nan")))

    with pytest.raises(RuntimeError, match="answered 0 of 2 rows"):
        asyncio.run(run_batches(feeder.engine, [feeder.single(2)]))


def test_of_sizes_that_are_as_fast_the_smallest_is_the_best():
    assert best({1: 3.0, 2: 4.8, 4: 4.81, 8: 4.9, 16: 4.6}) == 2
    assert best({1: 40.0, 8: 50.0, 16: 52.0}) == 16


def test_one_run_writes_every_ratio_with_its_spread_and_samples():
    register_tiny_models()
    options = EngineOptions(
        backbone="tiny", device="cpu", dtype="float32", n_registered=70, tokens=3, batch_rows=4, budget_s=0.1
    )

    whole = json.loads(json.dumps(measure(options, QUIET).as_object(), allow_nan=False))

    assert set(whole["ratios"]) == RATIOS
    assert all(whole["spread"][name]["n_rounds"] >= 3 for name in RATIOS)
    assert set(whole["samples"]["seconds_per_turn"]) >= {"single", "mixed_64", "paged", "plain", "open_clip_fp32"}
    counted = whole["samples"]["operations_per_image"]
    assert counted["plain"] < counted["prompted"]
    assert whole["settings"]["batch_rows"] == 4
