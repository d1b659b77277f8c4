"""The engine benchmark on a tiny backbone."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from benchmarks.bundles import BundleShape, random_bundle, source_of
from benchmarks.engine import EngineBench, EngineOptions, measure
from benchmarks.engine_openvino import ALONE, OpenVinoAlone, add_openvino_numbers, variants
from benchmarks.report import Report
from prompt_store.bundle import read_bundle
from prompted_clip.openvino_tower import OpenVinoTower, has_bfloat16
from tests.openvino_extra import needs_openvino
from tests.tiny import random_pixels, register_tiny_models, tiny_backbone

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


@pytest.fixture
def quick(monkeypatch):
    """Turns of two images."""
    register_tiny_models()
    monkeypatch.setattr("benchmarks.engine.TURN_S", 0.001)
    for sizes in ("SIZES", "LIBRARY_SIZES"):
        monkeypatch.setattr(f"benchmarks.engine.{sizes}", {"cpu": (2,)})


ALWAYS = {"vs_open_clip_same_dtype", "mixed_64", "mixed_all", "prompt_overhead"}


def test_a_run_without_the_extra_openvino_reports_every_ratio_with_its_spread_and_names_the_extra(quick, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)

    result = json.loads(json.dumps(measure(OPTIONS, QUIET).as_object(), allow_nan=False))

    assert set(result["numbers"]) == ALWAYS
    assert all(number["n"] >= 3 for number in result["numbers"].values())
    assert (result["settings"]["backend"], result["settings"]["dtype"]) == ("torch", "float32")
    assert "pip install 'caspl-serve[openvino]'" in result["notes"][0]


@needs_openvino
@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "backend", "dtype"),
    [
        ({}, "torch", "float32"),
        ({"backend": "openvino", "dtype": "auto"}, "openvino", "float32"),
        ({"dtype": "int8"}, "openvino", "int8"),
    ],
)
def test_openvino_takes_its_turns_with_the_engine_and_open_clip(quick, given, backend, dtype):
    result = measure(replace(OPTIONS, **given), QUIET).as_object()

    types = ("float32", "bfloat16", "int8") if has_bfloat16() else ("float32", "int8")
    alternatives = set(result["samples"]["images_per_s"])
    assert alternatives >= {"open_clip, float32", ALONE, *(f"OpenVINO, {one}" for one in types)}
    in_int8 = dtype == "int8"
    compared = ALWAYS - {"vs_open_clip_same_dtype"} | {"vs_open_clip_float32"} if in_int8 else ALWAYS
    assert set(result["numbers"]) == compared | {"int8_vs_open_clip_float32", "best_vs_openvino_int8"}
    assert (result["settings"]["backend"], result["settings"]["dtype"]) == (backend, dtype)
    assert result["notes"] == []


@needs_openvino
def test_openvino_runs_in_every_dtype_whatever_the_engine_runs_in():
    options = replace(OPTIONS, backend="torch", dtype="bfloat16", extra=(("backend", "torch"), ("max_batch_rows", "8")))
    for name, given in variants(options).items():
        assert (given.backend, f"OpenVINO, {given.dtype}") == ("openvino", name)
        assert given.extra == (("max_batch_rows", "8"),)


RATES = {"one domain": [8.0] * 3, "OpenVINO, float32": [4.0] * 3, "OpenVINO, int8": [10.0] * 3}


@pytest.mark.parametrize(
    ("int8", "best", "met"), [(10.0, "OpenVINO, int8", (True, True)), (7.0, "one domain", (False, False))]
)
def test_int8_is_compared_with_open_clip_and_the_fastest_engine_with_openvino_alone(int8, best, met):
    report = Report("engine", {})
    rates = RATES | {"OpenVINO, int8": [int8] * 3, "open_clip, float32": [4.0] * 3, ALONE: [10.0] * 3}
    add_openvino_numbers(report, rates)

    numbers = report.numbers
    assert numbers["int8_vs_open_clip_float32"]["value"] == int8 / 4
    assert numbers["best_vs_openvino_int8"]["value"] == rates[best][0] / 10
    assert f"({best})" in numbers["best_vs_openvino_int8"]["meaning"]
    assert tuple(numbers[name]["met"] for name in ("int8_vs_open_clip_float32", "best_vs_openvino_int8")) == met
    targets = (numbers[name]["target"] for name in ("int8_vs_open_clip_float32", "best_vs_openvino_int8"))
    assert tuple(targets) == (">= 2.5", ">= 1")


@needs_openvino
@pytest.mark.slow
def test_openvino_alone_encodes_every_batch_in_int8():
    backbone, images = tiny_backbone(), random_pixels(3).numpy()
    alone, found = OpenVinoAlone(backbone, images, n_threads=1), []
    alone._queue.set_callback(lambda request, _: found.append(request.get_output_tensor(0).data.copy()))

    alone.run(3, 4)

    expected = OpenVinoTower(backbone, dtype="int8")(random_pixels(3)).numpy()
    assert len(found) == 4
    assert all(np.array_equal(one, expected) for one in found)
