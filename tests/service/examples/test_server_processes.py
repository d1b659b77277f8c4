"""Examples of a server in processes of its own: added and kept by several web processes, and after a kill."""

import re
import signal

import pytest

from service.examples.database import ExampleDatabase
from tests.service.fakes import picture
from tests.service.processes import client_of, eventually, serving

N_PICTURES = 24


def torn(n):
    """A picture between red and green."""
    return picture(f"#ff{200 + n:02x}00")


def counted(client, result):
    found = re.findall(rf'caspl_examples_total{{domain="paint",result="{result}"}} (\S+)', client.get("/metrics").text)
    return sum(map(float, found))


@pytest.mark.slow
@pytest.mark.parametrize("web_workers", [0, 2])
def test_a_killed_server_has_every_example_that_it_acknowledged_or_kept(store, web_workers):
    with serving(store, web_workers=web_workers, keep_uncertain=5) as (process, url), client_of(url) as client:
        ids = set()
        for n in range(0, N_PICTURES, 2):
            files = [("red", picture(f"#{255 - n:02x}0000")), ("green", picture(f"#00{255 - n:02x}00"))]
            answer = client.post("/domains/paint/examples", files=files)
            assert answer.status_code == 201, answer.text
            ids |= {one["id"] for one in answer.json()["examples"]}
            assert client.post("/classify/paint", content=torn(n)).status_code == 200
        eventually(lambda: counted(client, "kept") >= 5)
        process.send_signal(signal.SIGKILL)

    database = ExampleDatabase(store.root / "examples.sqlite3", max_per_domain=100, max_bytes=2**30)
    labelled = database.page("paint", limit=1000, is_labelled=True)
    assert {one.id for one in labelled} == ids
    assert len(labelled) == N_PICTURES
    kept = database.page("paint", limit=1000, is_labelled=False)
    assert {one.source for one in kept} == {"traffic"}
    assert 5 >= len(kept) > 0
    database.close()
    with serving(store, web_workers=web_workers) as (_, url), client_of(url) as client:
        counts = client.get("/domains/paint/examples").json()["counts"]
        assert (counts["labelled"], counts["by_label"]) == (24, {"green": 12, "red": 12})
