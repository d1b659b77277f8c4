"""The whole way against its halves: what is compared with what, and the halves themselves on small things."""

import asyncio
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import benchmarks.pipeline
from benchmarks.decoders_alone import DecodersAlone, Work, decode_for
from benchmarks.engine_alone import SLICE_S, EngineAlone, best, slice_s
from benchmarks.forms import as_form
from benchmarks.report import Report
from benchmarks.running import Service
from benchmarks.stage import ServeOptions, Stage
from benchmarks.tags import domain_name
from prompted_clip.model import PromptedClip
from service.engine.engine import Engine
from tests.tiny import tiny_backbone


@pytest.fixture
def photographs(tmp_path):
    paths = [tmp_path / f"{number}.jpg" for number in range(3)]
    for number, path in enumerate(paths):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return paths


def work(photographs, **changes):
    backbone = tiny_backbone()
    given = {"way": "exact", "image_size": backbone.image_size, "values": backbone.preprocess, "n_threads": 2}
    return Work(paths=[str(path) for path in photographs], **(given | changes))


def test_the_batch_size_with_the_highest_median_is_the_best_not_the_luckiest():
    assert best({1: [10.0, 11.0, 50.0], 8: [12.0, 13.0, 12.5], 16: [9.0, 9.0, 9.0]}) == [12.0, 13.0, 12.5]


@pytest.mark.parametrize("way", ["exact", "fast"])
def test_a_process_decodes_for_as_long_as_it_is_told(photographs, way):
    assert decode_for(work(photographs, way=way), 0.05) > 10


@pytest.mark.slow
def test_processes_that_decode_side_by_side_count_together_and_end(photographs):
    with DecodersAlone(work(photographs), 2) as decoders:
        assert decoders.rate(0.1) > 20
    with pytest.raises(RuntimeError, match="shutdown"):
        decoders.rate(0.1)


def test_the_engine_alone_answers_mixed_batches():
    model = PromptedClip(tiny_backbone())
    engine = Engine(model)
    with asyncio.Runner() as loop:
        domains = [domain_name(index) for index in range(3)]
        alone = EngineAlone(loop, engine, model, domains, max_rows=32, seed=0)
        assert alone.sizes == (1, 2, 4, 8, 16)
        assert alone.rate(4, 0.05) > 0
    engine.close()


def test_a_form_holds_so_many_photographs_whatever_there_are(photographs):
    given = as_form(photographs[:2], 5)
    (path,) = given["bodies"]
    assert Path(path).read_bytes().count(b'filename="') == 5
    assert given["n_images"] == 5
    assert given["content_type"].startswith("multipart/form-data; boundary=")


@pytest.mark.parametrize(("engine_per_s", "decoded_per_s", "ratio"), [(100.0, 400.0, 0.9), (400.0, 100.0, 0.9)])
def test_the_whole_way_is_compared_with_the_slower_half(monkeypatch, photographs, engine_per_s, decoded_per_s, ratio):
    class FakeDecoders(DecodersAlone):
        def __init__(self, work, n_processes):
            asked.update(n_processes=n_processes, n_threads=work.n_threads, way=work.way)

        def rate(self, duration_s):
            return decoded_per_s

        def __exit__(self, *_):
            pass

    asked = {}
    fake_engine = SimpleNamespace(sizes=(1, 8), rate=lambda n_rows, _: engine_per_s / (9 - n_rows))
    monkeypatch.setattr(benchmarks.pipeline, "DecodersAlone", FakeDecoders)
    monkeypatch.setattr(benchmarks.pipeline, "EngineAlone", lambda *_, **__: fake_engine)
    monkeypatch.setattr(Stage, "closed_rate", lambda self, n_clients, duration_s, **changes: 90.0)
    options = ServeOptions(
        backbone="tiny", device="cpu", web_workers=2, extra=(("n_decode_threads", "3"), ("preprocess", "fast"))
    )
    service = Service("http://127.0.0.1:9", 0, None, [domain_name(0)], {})
    model = PromptedClip(tiny_backbone())
    report = Report("serve", {})
    benchmarks.pipeline.pipeline(Stage(options, service, photographs, model, Console(quiet=True)), model, report)
    (number,) = report.numbers
    assert number.ratio.value == pytest.approx(ratio)
    assert asked == {"n_processes": 2, "n_threads": 3, "way": "fast"}


def test_a_slice_is_as_long_as_the_machine_is_slow_and_never_short():
    assert slice_s([300.0, 10.0], 32) == SLICE_S
    assert slice_s([2.0, 4.0], 32) == pytest.approx(24.0), "three turns of 32 images at the faster of both rates"
