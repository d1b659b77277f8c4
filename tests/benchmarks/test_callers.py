"""Callers without HTTP: each has one image under way, and goes through the service's own decoder and queue."""

import pytest

from benchmarks import callers
from benchmarks.errors import BenchError
from prompt_store.store import Store
from service.settings import Settings
from tests.service.fakes import FakeModel, colour_bundle, picture

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def started(tmp_path):
    store, model = Store.open(tmp_path / "store"), FakeModel()
    for domain in ("paint", "ink"):
        store.activate(domain, store.add(domain, colour_bundle(domain)).version)
    runtime = await callers.start(Settings(store_poll_s=0, calibrate_s=0), model, store)
    yield runtime, model
    await runtime.stop()


async def test_callers_have_every_image_decoded_and_scored_and_no_more_than_one_each_under_way(started):
    runtime, model = started
    per_s = await callers.closed_rate(
        runtime, [picture(), picture(kind="JPEG")], ["paint", "ink"], n_callers=3, duration_s=0.3
    )

    assert per_s > 0
    assert {domain for batch in model.batches for domain in batch} == {"paint", "ink"}
    assert 1 <= max(map(len, model.batches)) <= 3


async def test_a_time_too_short_for_a_rate_is_told(started):
    runtime, _ = started
    with pytest.raises(BenchError, match="too short"):
        await callers.closed_rate(runtime, [picture()], ["paint"], n_callers=1, duration_s=0)
