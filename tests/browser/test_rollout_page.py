"""A running rollout on the page, in a real browser: its figures, and the buttons that end it."""

import time

import pytest

from tests.browser.pictures import ASSETS, pictures_of

pytestmark = pytest.mark.slow  # a server of its own

THERMAL = pictures_of("thermal")
CANDIDATE = ASSETS / "upload" / "thermal-promptsrc.safetensors"


@pytest.fixture
def version(server):
    """A version of thermal that is not live."""
    versions = server.get("/domains/thermal/versions").json()["versions"]
    if len(versions) == 1:
        server.post("/domains/thermal/versions", content=CANDIDATE.read_bytes()).raise_for_status()
    server.put("/domains/thermal/live", json={"version": 1}).raise_for_status()
    return 2


def started(server, page, version, **plan):
    """The section of a rollout that was started by another client, on the tab Domains."""
    body = {"version": version, "percent": 100} | plan
    server.post("/domains/thermal/rollout", json=body).raise_for_status()
    page.goto(f"{server.base_url}/#domains/thermal")
    page.reload()
    section = page.get_by_role("region", name="rollout", exact=True)
    section.wait_for()
    return section


def settled(server, n_images):
    """The rollout once each image is compared or dropped."""
    while True:
        found = server.get("/domains/thermal/rollout").json()
        if found["n_compared"] + found["n_dropped"] == n_images:
            return found
        time.sleep(0.05)


def test_the_page_shows_the_figures_of_a_running_rollout_and_stops_it(page, server, version):
    section = started(server, page, version, max_disagreement=1, max_confidence_shift=1)
    section.get_by_text("compared", exact=True).wait_for()
    for _ in range(3):
        for picture in THERMAL:
            server.post("/classify/thermal", content=picture.read_bytes()).raise_for_status()
    found = settled(server, 3 * len(THERMAL))
    assert found["n_compared"] > 0
    section.get_by_text(f"{found['n_compared']} image").wait_for()
    assert "shadow since" in section.inner_text()
    plan = "100 % of the requests, for at least 200 images, then the comparison continues"
    assert plan in " ".join(section.inner_text().split())
    page.get_by_role("rowheader", name="2 candidate").wait_for()
    page.get_by_role("cell", name="1 (rollout of 2)").wait_for()

    section.get_by_role("button", name="Stop the rollout").first.click()
    section.get_by_role("dialog").get_by_role("button", name="Stop the rollout").click()
    section.wait_for(state="detached")
    page.get_by_text("History").click()
    page.get_by_role("cell", name="rollout stop", exact=True).first.wait_for()
    assert server.get("/domains/thermal/rollout").status_code == 404


def test_the_candidate_is_activated_from_the_page(page, server, version):
    section = started(server, page, version, mode="canary")
    section.get_by_role("button", name="Activate the candidate").first.click()
    section.get_by_role("dialog").get_by_role("button", name="Activate the candidate").click()
    section.wait_for(state="detached")
    page.get_by_role("rowheader", name="2 live").wait_for()
    assert server.get("/domains/thermal").json()["version"] == 2


def test_a_shadow_is_started_from_the_page(page, server, version):
    page.goto(f"{server.base_url}/#domains/thermal")
    page.reload()
    row = page.get_by_role("region", name="thermal", exact=True).locator("tbody").first.locator("tr").first
    row.get_by_role("button", name="Roll out").first.click()
    row.get_by_role("dialog").get_by_role("button", name="Roll out").click()
    page.get_by_role("region", name="rollout", exact=True).get_by_text("compared", exact=True).wait_for()
    assert page.get_by_role("button", name="Roll out").count() == 0
    found = server.get("/domains/thermal/rollout").json()
    assert (found["version"], found["mode"], found["percent"]) == (2, "shadow", 10)
    server.delete("/domains/thermal/rollout").raise_for_status()


def test_a_rollout_that_ends_by_itself_leaves_the_page_with_its_figures_in_the_history(page, server, version):
    section = started(server, page, version, max_disagreement=0, max_confidence_shift=0, min_images=1)
    for picture in THERMAL * 5:
        server.post("/classify/thermal", content=picture.read_bytes()).raise_for_status()
    section.wait_for(state="detached")
    page.get_by_text("History").click()
    page.get_by_role("cell", name="rollout rollback: ").first.wait_for()
