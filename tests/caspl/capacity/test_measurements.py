"""The file of measurements, and measuring a server whose times are known."""

import json

import httpx
import pytest

import caspl
from caspl.capacity.measurements import read_measurements, write_measurements
from caspl.capacity.measuring import measure
from caspl.errors import CasplError, MeasurementsError
from tests.caspl.capacity.times import server

BATCH_MS = {1: 50.0, 2: 60.0, 4: 90.0, 8: 130.0}


def test_a_file_is_read_as_it_was_written(tmp_path):
    times = server({1: 0.05, 8: 0.2}, decode_s=0.004)

    write_measurements(times, tmp_path / "file.json")

    assert read_measurements(tmp_path / "file.json") == times


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"max_rows": 0}, "max_rows: Input should be greater than or equal to 1"),
        ({"batches": []}, "batches"),
        ({"batches": [{"rows": 2, "seconds": 0.1}]}, r"batches must ascend from 1 row, found \[2\]"),
        ({"batches": [{"rows": 1, "seconds": 0.0}]}, "batches.0.seconds"),
        ({"version": 2}, "version: Input should be 1"),
        ({"speed": 1}, "speed: Extra inputs"),
    ],
)
def test_a_file_with_a_wrong_value_is_refused_by_its_name(tmp_path, change, reason):
    path = tmp_path / "file.json"
    path.write_text(json.dumps(server({1: 0.1}).model_dump() | change))

    with pytest.raises(MeasurementsError, match=f"{reason}.*caspl plan --measure"):
        read_measurements(path)


def test_batch_times_are_interpolated_and_continued():
    times = server({1: 0.1, 4: 0.4, 8: 0.6}, max_rows=32)

    found = [times.batch_s(rows) for rows in (1, 2, 4, 6, 8, 16)]

    assert found == pytest.approx([0.1, 0.2, 0.4, 0.5, 0.6, 1.0])
    assert server({1: 0.1}, max_rows=4).batch_s(4) == pytest.approx(0.4)


class Answers(httpx.BaseTransport):
    """A server with an idle device of known times, which may run several batches of a request concurrently."""

    def __init__(self, n_concurrent=1, max_images=16, error=None):
        self._n_concurrent, self._max_images, self._error = n_concurrent, max_images, error
        self.sizes = []

    def handle_request(self, request):
        if request.url.path == "/info":
            backbone = {"arch": "tiny", "device": "cpu", "dtype": "bfloat16"}
            batches = {"max_rows": 8, "n_concurrent": self._n_concurrent, "n_pipelined": 0, "n_cores": 2}
            return httpx.Response(
                200, json={"backbone": backbone, "batches": batches, "limits": {"max_images": self._max_images}}
            )
        n_images = b"".join(request.stream).count(b'name="images"')
        self.sizes.append(n_images)
        device_ms = 30.0 if self._n_concurrent > 1 and n_images == 1 else BATCH_MS[-(-n_images // self._n_concurrent)]
        timing = {
            "decode": 4.0 * n_images,
            "queue": 1.0,
            "device": device_ms,
            "total": 7.0 + 4.0 * n_images + device_ms,
        }
        result = {"predictions": [], "error": self._error}
        return httpx.Response(200, json={"results": [result] * n_images, "timing_ms": timing})


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(bytes(2048))
    return path


def test_each_size_of_a_batch_and_the_parts_of_a_request_are_measured(picture):
    answers = Answers()
    with caspl.Client(transport=answers) as client:
        found = measure(client, "shelf", [picture], rounds=3)

    assert {one.rows: 1000 * one.seconds for one in found.batches} == pytest.approx(BATCH_MS)
    assert found.alone_s == pytest.approx(0.050)
    assert found.decode_s == pytest.approx(0.004)
    assert found.request_s == pytest.approx(0.006)
    assert found.pictures == "1 of 2 KiB on average"
    assert found.shares_cores
    assert (found.max_rows, found.n_concurrent, found.n_cores) == (8, 1, 2)


def test_a_server_with_two_concurrent_batches_gets_twice_the_images(picture):
    answers = Answers(n_concurrent=2)
    with caspl.Client(transport=answers) as client:
        found = measure(client, "shelf", [picture], rounds=3)

    assert set(answers.sizes) == {1, 2, 4, 8, 16}
    assert {one.rows: 1000 * one.seconds for one in found.batches} == pytest.approx(BATCH_MS)
    assert found.alone_s == pytest.approx(0.030)


def test_requests_have_no_more_images_than_the_server_accepts(picture):
    answers = Answers(max_images=3)
    with caspl.Client(transport=answers) as client, pytest.raises(KeyError):  # the fake has no time for 3 rows
        measure(client, "shelf", [picture], rounds=1)

    assert max(answers.sizes) == 3


def test_an_image_with_an_error_ends_the_measurement(picture):
    answers = Answers(error={"title": "Invalid image", "detail": "It is empty."})
    was_empty = pytest.raises(MeasurementsError, match="was not classified: It is empty")
    with caspl.Client(transport=answers) as client, was_empty:
        measure(client, "shelf", [picture], rounds=1)


def test_an_older_server_is_refused(picture):
    old = httpx.MockTransport(lambda _: httpx.Response(200, json={"backbone": {}, "limits": {}}))
    with caspl.Client(transport=old) as client, pytest.raises(CasplError, match="older than this command"):
        measure(client, "shelf", [picture])
