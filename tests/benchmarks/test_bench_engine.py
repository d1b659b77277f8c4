"""The engine benchmark on a tiny backbone."""

import json

import pytest
from rich.console import Console

from benchmarks.bundles import BundleShape, random_bundle, source_of
from benchmarks.engine import EngineBench, EngineOptions, measure
from prompt_store.bundle import read_bundle
from tests.tiny import register_tiny_models, tiny_backbone

QUIET = Console(quiet=True)
OPTIONS = EngineOptions(backbone="tiny", device="cpu", dtype="float32", n_domains=70, budget_s=0.1)


def test_a_random_bundle_is_valid_and_its_labels_name_its_version():
    bundle = read_bundle(random_bundle(tiny_backbone(), "d00001", 4, BundleShape(2, 1, depth=9, n_classes=5)))

    assert {source_of(spec.name) for spec in bundle.manifest.classes} == {("d00001", 4)}
    assert bundle.manifest.stack.image.boost.depth == tiny_backbone().n_vision_layers


@pytest.fixture(scope="module")
def bench():
    register_tiny_models()
    made = EngineBench(OPTIONS, QUIET)
    yield made
    made.close()


def domains(stacks):
    return [stack.domain for stack in stacks]


def test_batches_hold_the_domains_of_their_names(bench):
    assert len(set(domains(bench.one_domain(32)))) == 1
    assert len(set(domains(bench.many_domains(1000, n_domains=64)))) == 64
    popular = domains(bench.many_domains(4000, n_domains=70, alpha=1.0))
    assert popular.count("d00000") > 5 * popular.count("d00050")


def test_a_row_that_fails_stops_the_measurement(bench, monkeypatch):
    monkeypatch.setattr(bench, "images", bench.images[:, :, :4, :4])

    with pytest.raises((RuntimeError, ExceptionGroup)):
        bench.run(bench.one_domain, 2, 1)


def test_a_run_reports_every_ratio_with_its_spread(monkeypatch):
    register_tiny_models()
    monkeypatch.setattr("benchmarks.engine.TURN_S", 0.001)
    for sizes in ("SIZES", "LIBRARY_SIZES"):
        monkeypatch.setattr(f"benchmarks.engine.{sizes}", {"cpu": (2,)})

    result = json.loads(json.dumps(measure(OPTIONS, QUIET).as_object(), allow_nan=False))

    assert set(result["numbers"]) == {"vs_open_clip_same_dtype", "mixed_64", "mixed_all", "prompt_overhead"}
    assert all(number["n"] >= 3 for number in result["numbers"].values())
    assert result["settings"]["dtype"] == "float32"
