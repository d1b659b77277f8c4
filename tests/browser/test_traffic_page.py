"""The page with pictures of a domain's traffic: dropped ones, abstentions, pictures kept for labelling."""

import base64

import pytest

from service.demo.process import running
from tests.browser.conftest import opened
from tests.browser.pictures import ASSETS
from tests.browser.test_page import choose_domains
from tests.browser.test_teach_page import label_of
from training.demo.folders import write_class_folders

pytestmark = pytest.mark.slow  # a server of its own, and a fit

N_LABELLED, N_TRAFFIC, N_CLASSES, N_KEPT = 64, 12, 4, 3
RATE = "0.1"
DROP = """({ selector, files }) => {
  const data = new DataTransfer();
  for (const { name, base64 } of files) {
    const bytes = Uint8Array.from(atob(base64), (one) => one.charCodeAt(0));
    data.items.add(new File([bytes], name, { type: "image/png" }));
  }
  const events = ["dragover", "drop"].map((name) =>
    new DragEvent(name, { dataTransfer: data, bubbles: true, cancelable: true }));
  events.forEach((event) => document.querySelector(selector).dispatchEvent(event));
  return events.map((event) => event.defaultPrevented);
}"""
"""Otherwise the browser would open the files."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures in folders of their classes."""
    folder = tmp_path_factory.mktemp("satellite")
    write_class_folders("satellite", folder, n_train=N_LABELLED, n_test=N_TRAFFIC, n_classes=N_CLASSES)
    return folder


@pytest.fixture(scope="module")
def server(browser, folder):
    """A demo service that keeps uncertain pictures; satellite was fitted, so that its classifications can abstain."""
    with running(ASSETS, ["--keep-uncertain", str(N_KEPT)]) as (_, client):
        paths = sorted(folder.glob("train/*/*"))
        for start in range(0, N_LABELLED, 16):
            files = [(label_of(path), (path.name, path.read_bytes())) for path in paths[start : start + 16]]
            client.post("/domains/satellite/examples", files=files).raise_for_status()
        client.post("/domains/satellite/fit", json={"activate": True}).raise_for_status()
        yield client


@pytest.fixture
def traffic(folder):
    """Pictures that are not among the examples."""
    return sorted(folder.glob("test/*/*"))


@pytest.mark.parametrize("selector", ["label:has(#classify-files)", "body"], ids=["frame", "beside the frame"])
def test_dropped_pictures_are_classified(page, traffic, selector):
    choose_domains(page, "sketch")
    dropped = traffic[:2]
    files = [{"name": one.name, "base64": base64.b64encode(one.read_bytes()).decode()} for one in dropped]
    assert page.evaluate(DROP, {"selector": selector, "files": files}) == [True, True]
    page.locator(".predictions").nth(1).wait_for()
    assert sorted(page.locator(".picture .name").all_inner_texts()) == sorted(one.name for one in dropped)


def test_an_abstention_is_shown_as_such(page, server, traffic):
    query = {"abstain": RATE}
    answers = [server.post("/classify/satellite", params=query, content=one.read_bytes()).json() for one in traffic]
    expected = [answer["results"][0]["abstained"] for answer in answers]
    choose_domains(page, "satellite")
    page.get_by_label("Abstain").select_option(RATE)
    for number, path in enumerate(traffic):
        page.set_input_files("#classify-files", path)
        page.locator(".predictions").nth(number).wait_for()
    newest_first = [card.get_by_text("Abstained").count() == 1 for card in page.locator(".picture").all()]
    assert any(expected)
    assert newest_first == expected[::-1]


def test_pictures_kept_from_traffic_are_labelled_on_the_page(browser, server, traffic):
    for path in traffic:
        server.post("/classify/satellite", content=path.read_bytes()).raise_for_status()
    counts = server.get("/domains/satellite/examples").json()["counts"]
    assert counts["unlabelled"] == N_KEPT
    with opened(browser, f"{server.base_url}#teach") as page:
        page.get_by_role("combobox", name="Domain").select_option("satellite")
        page.get_by_text(f"{N_KEPT} pictures to label").wait_for()
        page.get_by_label("order of the pictures").select_option("uncertain")
        page.get_by_text("Predicted as").first.click()
        page.locator(".tile[aria-pressed=true]").first.wait_for()
        n_selected = page.locator(".tile[aria-pressed=true]").count()
        page.get_by_role("form", name="label the selected pictures").get_by_role("button").first.click()
        page.get_by_text(f"{N_KEPT - n_selected} picture").first.wait_for()
    after = server.get("/domains/satellite/examples").json()["counts"]
    assert after["labelled"] == counts["labelled"] + n_selected


def drop(page, selector, *paths):
    """Drop files and folders of the disk on an element, as a file manager does."""
    box = page.locator(selector).bounding_box()
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        event = {"type": kind, "x": box["x"] + 5, "y": box["y"] + 5, "data": data}
        session.send("Input.dispatchDragEvent", event)


def test_a_dropped_folder_is_named_and_the_picture_beside_it_is_added(browser, server, folder, traffic):
    server.put("/domains/dropped", json={"classes": ["one", "two"]}).raise_for_status()
    picture = traffic[0]
    with opened(browser, f"{server.base_url}#teach/dropped") as page:
        page.locator("label:has(#teach-files)").wait_for()
        drop(page, "label:has(#teach-files)", folder / "test", picture)
        page.get_by_text("Folders are not read: test. Drop the files in them instead.").wait_for()
        page.get_by_role("heading", name="1 picture to label").wait_for()
        assert page.get_by_text("cannot be reached").count() == 0
        drop(page, "label:has(#teach-files)", picture)
        page.get_by_text("Added before: 1 picture unchanged").wait_for()
        assert page.get_by_text("Folders are not read").count() == 0
    assert server.get("/domains/dropped/examples").json()["counts"]["unlabelled"] == 1
