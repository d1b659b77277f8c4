"""How much of the project's Python one request passes through, counted by a profiler in the running application."""

import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from prompt_store.store import Store
from service.demo.files import ASSETS, BACKBONE, read_bundles, seed_store
from service.engine.loading import load_model
from service.settings import Settings
from tests.architecture.repository import PACKAGES, ROOT

pytestmark = pytest.mark.anyio

MAX_FILES_PER_IMAGE = 26
MAX_CALLS_PER_IMAGE = 200
OURS = tuple(str(ROOT / package) for package in (*PACKAGES, "caspl"))


@pytest.fixture
def model():
    return load_model(Settings(backbone=BACKBONE, device="cpu"))


@pytest.fixture
def store(tmp_path):
    store = Store.open(tmp_path / "store")
    seed_store(store, ASSETS / "bundles")
    return store


@pytest.fixture
def calls():
    """Calls of the project's functions by (file, function), while `calls.is_on`; threads that start later count too."""

    class Calls(Counter):
        is_on = False

        @property
        def files(self):
            return {str(Path(file).relative_to(ROOT)) for file, _ in self}

    counted = Calls()

    def profile(frame, event, _):
        if counted.is_on and event == "call" and frame.f_code.co_filename.startswith(OURS):
            counted[frame.f_code.co_filename, frame.f_code.co_qualname] += 1

    threading.setprofile(profile)
    sys.setprofile(profile)
    yield counted
    sys.setprofile(None)
    threading.setprofile(None)


async def test_an_image_passes_few_files_and_calls(serve, calls):
    image = min((ASSETS / "images").glob("*/*"))
    async with serve() as client:

        async def classify():
            answer = await client.post(f"/classify/{image.parent.name}", content=image.read_bytes())
            assert answer.status_code == 200

        for _ in range(3):
            await classify()
        requests = []
        for _ in range(5):
            calls.clear()
            calls.is_on = True
            await classify()
            calls.is_on = False
            requests.append((calls.total(), calls.files, calls.most_common(10)))
    n_calls, files, most = min(requests, key=lambda request: request[0])  # the others ran beside a background task
    assert len(files) <= MAX_FILES_PER_IMAGE, "\n".join(sorted(files))
    assert n_calls <= MAX_CALLS_PER_IMAGE, most


async def test_an_uploaded_bundle_is_parsed_once(serve, calls):
    upload = read_bundles(ASSETS / "upload")[0]
    async with serve() as client:
        calls.is_on = True
        answer = await client.post(f"/domains/{upload.domain}/versions?activate=true", content=upload.data)
        calls.is_on = False
    assert answer.status_code == 201
    by_name = Counter(name for _, name in calls.elements())
    assert by_name["read_bundle"] == by_name["parse_header"] == 1
