"""Teaching on the page: a hundred unlabelled pictures become a live domain of five classes."""

import numpy as np
import pytest

from tests.browser.conftest import opened
from training.demo.folders import write_class_folders
from training.demo.world import CLASS_NAMES

N_CLASSES, N_PICTURES, MAX_CLICKS = 5, 100, 30
CLASSES = CLASS_NAMES[:N_CLASSES]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """`train/<class>/` with a hundred pictures of five classes, `test/<class>/` with others."""
    folder = tmp_path_factory.mktemp("pictures") / "satellite"
    write_class_folders("satellite", folder, n_train=N_PICTURES, n_test=50, n_classes=N_CLASSES)
    return folder


def label_of(path):
    return path.parent.name.replace("_", " ")


class Person:
    """Clicks, and counts the clicks."""

    def __init__(self, page):
        self.page, self.n_clicks = page, 0

    def click(self, locator):
        locator.click()
        self.n_clicks += 1


def accuracy(server, domain, folder):
    right = []
    for path in sorted(folder.glob("test/*/*")):
        result = server.post(f"/classify/{domain}?top_k=1", content=path.read_bytes()).json()["results"][0]
        right.append(result["predictions"][0]["label"] == label_of(path))
    return np.mean(right)


def shown_ids(group):
    return [int(alt.split()[1]) for alt in group.locator("img").evaluate_all("all => all.map((one) => one.alt)")]


def test_five_classes_from_a_hundred_unlabelled_pictures_are_live_within_thirty_clicks(browser, server, folder):
    with opened(browser, f"{server.base_url}#teach", viewport={"width": 1100, "height": 900}) as page:
        person = Person(page)
        page.get_by_label("Name").fill("shapes")
        page.get_by_label("Classes").fill(", ".join(CLASSES))
        page.get_by_label("Prompts").select_option("satellite")
        person.click(page.get_by_role("button", name="Create the domain"))
        page.locator("#teach-files").wait_for(state="attached")
        before = accuracy(server, "shapes", folder)

        paths = sorted(folder.glob("train/*/*"))
        person.n_clicks += 1  # opens the file dialog
        page.set_input_files("#teach-files", paths)
        page.get_by_role("heading", name=f"{N_PICTURES} pictures to label").wait_for()
        page.locator("section[aria-label='add pictures'] progress").wait_for(state="detached")

        # A person sees the class of each picture; here it follows from the order of the upload.
        first = min(server.get("/domains/shapes/examples?limit=1").json()["examples"][0]["id"], 10**9)
        truth = {first + number: label_of(path) for number, path in enumerate(paths)}
        groups = page.get_by_role("group", name="group")
        majority = {}
        for number in range(groups.count()):
            labels = [truth[id_] for id_ in shown_ids(groups.nth(number))]
            majority.setdefault(max(set(labels), key=labels.count), []).append(f"group {number + 1}")
        plan = {
            label: [shown_ids(page.get_by_role("group", name=name, exact=True))[0] for name in names]
            for label, names in majority.items()
        }
        for label, members in plan.items():
            for id_ in members:
                group = page.get_by_role("group").filter(has=page.get_by_alt_text(f"picture {id_}", exact=True)).last
                person.click(group.get_by_role("button", name="Group"))
            person.click(page.locator(".label-bar").get_by_role("button", name=label))
            page.locator(".label-bar").get_by_text("0 selected").wait_for()

        page.get_by_role("region", name="report").get_by_text("right when left out").wait_for()
        person.click(page.get_by_role("button", name="Make live"))
        page.get_by_text("Version 2 of shapes is live").wait_for()
        assert person.n_clicks <= MAX_CLICKS
        assert accuracy(server, "shapes", folder) > before
