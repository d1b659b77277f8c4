"""The length of an image's way: our files and Python calls for one posted JPEG, without the model's."""

import sys
import threading
from collections import Counter

import pytest

from tests.architecture.repository import ROOT
from tests.service.fakes import picture

pytestmark = pytest.mark.anyio

MAX_FILES, MAX_CALLS = 20, 165


async def test_one_image_passes_few_files_and_calls(serve):
    calls = Counter()
    is_on = False

    def count(frame, event, _argument):
        if is_on and event == "call" and frame.f_code.co_filename.startswith(f"{ROOT}/service/"):
            calls[frame.f_code.co_filename.removeprefix(f"{ROOT}/"), frame.f_code.co_name] += 1

    body, headers = picture(kind="JPEG"), {"content-type": "image/jpeg"}
    threading.setprofile(count)
    sys.setprofile(count)
    try:
        async with serve() as client:
            for n_sent in range(3):
                is_on = n_sent == 2  # what the first ones do once does not count
                assert (await client.post("/classify/paint", content=body, headers=headers)).status_code == 200
                is_on = False
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    files = {file for file, _ in calls}
    assert len(files) <= MAX_FILES, files
    assert sum(calls.values()) <= MAX_CALLS, calls
