"""Screenshots of every tab: light, dark and as wide as a phone. `SCREENSHOTS=folder` keeps them."""

import os
from pathlib import Path

import pytest
from PIL import Image, ImageStat

from tests.browser.conftest import opened
from tests.browser.pictures import pictures_of
from training.demo.folders import write_class_folders
from training.demo.world import CLASS_NAMES

pytestmark = pytest.mark.slow

LOOKS = {
    "": {"viewport": {"width": 1100, "height": 900}, "color_scheme": "light"},
    "-dark": {"viewport": {"width": 1100, "height": 900}, "color_scheme": "dark"},
    "-phone": {"viewport": {"width": 400, "height": 800}, "color_scheme": "light"},
}


@pytest.fixture(scope="module")
def shapes(server, tmp_path_factory):
    """A domain with labelled and unlabelled pictures."""
    folder = tmp_path_factory.mktemp("screenshots") / "satellite"
    write_class_folders("satellite", folder, n_train=64, n_test=8, n_classes=4)
    server.put("/domains/shapes", json={"classes": CLASS_NAMES[:4], "boosted_by": "satellite"})
    paths = sorted(folder.glob("train/*/*"))
    for start in range(0, len(paths), 16):
        files = [
            (path.parent.name.replace("_", " ") if number % 3 else "unlabelled", (path.name, path.read_bytes()))
            for number, path in enumerate(paths[start : start + 16])
        ]
        server.post("/domains/shapes/examples", files=files).raise_for_status()
    return "shapes"


def show(page, name, domain):
    page.get_by_role("link", name=name.capitalize(), exact=True).click()
    if name == "classify":
        page.get_by_role("checkbox").first.wait_for()
        for box in page.get_by_role("group", name="Domains").get_by_role("checkbox").all():
            box.uncheck()
        for one in ("satellite", "sketch"):
            page.get_by_role("checkbox", name=one, exact=True).check()
        page.set_input_files("#classify-files", pictures_of("satellite")[:2])
        page.locator(".predictions").nth(3).wait_for()
    elif name == "teach":
        page.get_by_label("Domain").select_option(domain)
        page.locator(".tile img[src^=blob]").nth(15).wait_for()
        page.get_by_text("of the text features").wait_for()
        page.locator(".group button").first.click()
    elif name == "domains":
        page.get_by_role("button", name=domain, exact=True).click()
        page.get_by_text("Compare two versions").wait_for()
    else:
        page.locator(".chart canvas").first.wait_for()


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", ["classify", "teach", "domains", "live"])
def test_a_tab_is_drawn(browser, server, shapes, tmp_path, name, look):
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    file = folder / f"page-{name}{look}.png"
    with opened(browser, str(server.base_url), **LOOKS[look]) as page:
        show(page, name, shapes)
        page.screenshot(path=file, animations="disabled")
    with Image.open(file) as picture:
        assert picture.width == LOOKS[look]["viewport"]["width"]
        is_dark = ImageStat.Stat(picture.convert("L")).median[0] < 100
    assert is_dark is (look == "-dark")
