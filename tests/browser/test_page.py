"""The page in a real browser: classify, domains, live charts, the API key, accessibility."""

import base64
import json
import re

import pytest

from prompt_store import digest_bytes
from prompt_store.bundle import read_bundle, write_bundle
from prompt_store.signing_keys import sign_bundle
from service.access.key_file import add_key
from service.demo.process import running
from tests.browser.conftest import opened
from tests.browser.pictures import ASSETS, pictures_of
from tests.prompt_store.keys import private_key, trusted_key, write_keys

SATELLITE = pictures_of("satellite")
TABS = ("classify", "teach", "domains", "live")


def tab(page, name):
    page.get_by_role("link", name=name, exact=True).click()


def choose_domains(page, *names):
    page.get_by_role("checkbox").first.wait_for()
    for box in page.get_by_role("group", name="Domains").get_by_role("checkbox").all():
        box.uncheck()
    for name in names:
        page.get_by_role("checkbox", name=name, exact=True).check()


def test_pictures_are_classified_for_several_domains_side_by_side(page):
    choose_domains(page, "satellite", "sketch")
    page.set_input_files("#classify-files", SATELLITE[:2])
    page.locator(".predictions").nth(3).wait_for()
    cards = page.locator(".picture")
    assert cards.count() == 2
    for card in cards.all():
        assert card.locator("h4").all_inner_texts() == ["satellite", "sketch"]
        shares = [
            float(text.rstrip(" %")) for text in card.locator(".answer").first.locator(".number").all_inner_texts()
        ]
        assert len(shares) == 3
        assert shares == sorted(shares, reverse=True)
        assert re.search(r"version 1, \w{12}, \d+ ms", card.locator(".answer small").first.inner_text())


def test_the_page_shows_what_the_service_answers(page, server):
    choose_domains(page, "satellite")
    page.set_input_files("#classify-files", SATELLITE[0])
    shown = page.locator(".predictions li").first.inner_text().split("\n")[0]
    answer = server.post("/classify/satellite", content=SATELLITE[0].read_bytes()).json()
    assert shown == answer["results"][0]["predictions"][0]["label"]


def test_other_settings_classify_the_shown_pictures_again(page):
    choose_domains(page, "satellite")
    page.set_input_files("#classify-files", SATELLITE[:2])
    page.locator(".predictions").nth(1).wait_for()
    choose_domains(page, "sketch")
    page.locator(".answer", has_text="sketch").locator(".predictions").nth(1).wait_for()
    assert page.locator(".answer h4").all_inner_texts() == ["sketch", "sketch"]
    page.get_by_label("Classes shown").select_option("5")
    page.locator(".predictions li").nth(9).wait_for()
    page.get_by_label("Other labels").fill("red circle, blue square,")
    page.locator(".predictions li").nth(4).wait_for(state="detached")
    assert {text.split("\n")[0] for text in page.locator(".predictions li").all_inner_texts()} == {
        "red circle",
        "blue square",
    }
    page.get_by_label("Other labels").fill("")
    page.locator(".predictions li").nth(9).wait_for()
    page.get_by_label("Abstain").select_option("0.05")
    page.get_by_role("alert").get_by_text("no abstention threshold").first.wait_for()


def test_an_answer_for_earlier_settings_is_never_shown(page):
    """The first answer is held back until the settings have changed twice."""
    choose_domains(page, "satellite")
    held = []
    page.route("**/classify/**top_k=3", lambda route: held.append(route))
    with page.expect_request("**/classify/**top_k=3"):
        page.set_input_files("#classify-files", SATELLITE[0])
    page.get_by_label("Classes shown").select_option("5")
    page.locator(".predictions li").nth(4).wait_for()
    held[0].continue_()
    page.get_by_label("Classes shown").select_option("10")
    page.locator(".predictions li").nth(9).wait_for()
    page.unroute("**/classify/**top_k=3")
    assert page.locator(".predictions li").count() == 10


def test_the_previous_answer_stays_until_the_next_one_arrives(page):
    choose_domains(page, "satellite")
    page.set_input_files("#classify-files", SATELLITE[0])
    page.locator(".predictions li").nth(2).wait_for()
    held = []
    page.route("**/classify/**", lambda route: held.append(route))
    with page.expect_request("**/classify/**"):
        page.get_by_label("Classes shown").select_option("5")
    assert page.locator(".predictions li").count() == 3
    assert page.locator(".answer[aria-busy=true]").count() == 1
    held[0].continue_()
    page.locator(".predictions li").nth(4).wait_for()
    page.locator(".answer[aria-busy=false]").wait_for()


def test_pictures_and_their_answers_stay_while_another_tab_is_shown(page):
    choose_domains(page, "sketch", "satellite")
    page.set_input_files("#classify-files", SATELLITE[:2])
    page.locator(".predictions").nth(3).wait_for()
    tab(page, "Domains")
    page.get_by_role("button", name="satellite", exact=True).wait_for()
    page.route("**/classify/**", lambda route: route.abort())  # no picture is sent again
    tab(page, "Classify")
    page.locator(".predictions").nth(3).wait_for()
    assert page.locator(".answer h4").all_inner_texts() == ["sketch", "satellite"] * 2
    page.get_by_role("button", name="Remove all pictures").click()
    page.locator(".picture").first.wait_for(state="detached")


def test_shown_pictures_are_classified_by_the_version_that_goes_live(page, server):
    body = {"classes": ["circle", "square"]}
    first = server.put("/domains/renewed", json=body).json()
    page.reload()
    choose_domains(page, "renewed")
    page.set_input_files("#classify-files", SATELLITE[0])
    page.get_by_text("version 1").wait_for()
    data = server.get("/domains/renewed/versions/1/content").content
    manifest, tensors = read_bundle(data).manifest, dict(read_bundle(data).tensors)
    warmer = manifest.model_copy(update={"logit_scale": manifest.logit_scale / 2})
    added = server.post("/domains/renewed/versions?activate=true", content=write_bundle(warmer, tensors)).json()
    assert added["digest"] != first["digest"]
    page.get_by_text("version 2").wait_for()


def test_the_page_starts_with_the_domain_that_went_live_last(page, server):
    server.put("/domains/zebra", json={"classes": ["circle", "square"]}).raise_for_status()
    page.reload()
    page.get_by_role("checkbox", name="zebra", exact=True).wait_for()
    assert page.get_by_role("checkbox", checked=True).count() == 1
    assert page.get_by_role("checkbox", name="zebra", exact=True).is_checked()


def test_a_reload_keeps_the_chosen_domains(page):
    choose_domains(page, "sketch", "satellite")
    page.reload()
    page.get_by_role("checkbox", name="sketch", exact=True).wait_for()
    names = [box.locator("xpath=..").inner_text().strip() for box in page.get_by_role("checkbox", checked=True).all()]
    assert names == ["satellite", "sketch"]


def test_free_labels_replace_the_classes(page):
    page.get_by_label("Other labels").fill("red circle, blue square")
    page.set_input_files("#classify-files", SATELLITE[0])
    page.locator(".predictions li").first.wait_for()
    labels = [text.split("\n")[0] for text in page.locator(".predictions li").all_inner_texts()]
    assert sorted(labels) == ["blue square", "red circle"]


def test_a_file_that_is_not_a_picture_is_refused_in_words(page, tmp_path):
    broken = tmp_path / "notes.jpg"
    broken.write_text("these are notes, not a picture, though the file name ends in jpg")
    page.set_input_files("#classify-files", [broken, SATELLITE[0]])
    page.locator(".predictions").first.wait_for()
    assert "Unsupported image format" in page.get_by_role("alert").inner_text()


def test_a_picture_from_the_camera_is_classified(page):
    page.get_by_role("button", name="Use a camera").click()
    page.get_by_role("button", name="Take a picture").click()
    page.locator(".predictions").first.wait_for()
    assert page.locator(".picture .name").inner_text().startswith("camera")


def test_a_pasted_picture_is_classified(page):
    page.locator("#classify-files").wait_for(state="attached")
    page.evaluate(
        """async () => {
          const canvas = document.createElement("canvas");
          canvas.width = canvas.height = 64;
          canvas.getContext("2d").fillRect(0, 0, 32, 64);
          const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
          const data = new DataTransfer();
          data.items.add(new File([blob], "pasted.png", { type: "image/png" }));
          document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
        }"""
    )
    page.locator(".predictions").first.wait_for()
    assert page.locator(".picture .name").inner_text() == "pasted.png"


def test_a_bundle_is_uploaded_activated_rolled_back_compared_and_deleted(page):
    tab(page, "Domains")
    page.get_by_role("button", name="thermal", exact=True).click()
    section = page.get_by_role("region", name="thermal", exact=True)
    upload = ASSETS / "upload" / "thermal-promptsrc.safetensors"
    section.get_by_label("Activate after the upload").check()
    section.locator("input[type=file]").set_input_files(upload)
    section.get_by_text("Stored as version 2, live.").wait_for()
    rows = section.locator("tbody").first.locator("tr")
    rows.filter(has_text="2 live").wait_for()
    assert [row.split()[0] for row in rows.locator("th").all_inner_texts()] == ["2", "1"]

    section.get_by_text("Compare two versions").click()
    section.get_by_label("first version").select_option("1")
    section.get_by_label("second version").select_option("2")
    section.get_by_role("rowheader", name="provenance.created").wait_for()

    section.get_by_role("button", name="Roll back").first.click()
    section.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    rows.filter(has_text="1 live").wait_for()
    section.get_by_text("History").click()
    section.get_by_role("cell", name="rollback", exact=True).wait_for()

    section.get_by_role("button", name="Activate", exact=True).click()
    rows.filter(has_text="2 live").wait_for()
    section.get_by_role("button", name="Delete").first.click()
    section.get_by_role("dialog").get_by_role("button", name="Delete").click()
    rows.filter(has=page.get_by_role("rowheader", name="1", exact=True)).wait_for(state="detached")


def test_an_invalid_bundle_is_explained_in_words(page, tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x10\0\0\0\0\0\0\0not a bundle at all")
    tab(page, "Domains")
    page.get_by_role("button", name="night", exact=True).click()
    page.get_by_role("region", name="night", exact=True).locator("input[type=file]").set_input_files(broken)
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert "Invalid bundle: The safetensors header must start with {." in alert.inner_text()


@pytest.mark.slow
def test_the_charts_follow_the_traffic(page, server):
    tab(page, "Live")
    page.locator(".chart canvas").first.wait_for()
    for _ in range(5):
        server.post("/classify/satellite", content=SATELLITE[0].read_bytes())
    caption = page.locator(".chart figcaption", has_text="Images per second").first
    caption.get_by_text(re.compile(r"images (0\.[1-9]|[1-9])")).wait_for()


def test_a_service_with_keys_requests_one_and_explains_a_wrong_one(browser, tmp_path):
    keys = tmp_path / "keys.json"
    secret = add_key(keys, ["classify"], ["satellite"])
    with running(ASSETS, ["--keys-file", str(keys)]) as (_, client), opened(browser, str(client.base_url)) as page:
        page.get_by_label("API key").fill("pk_wrongkey_" + "x" * 43)
        page.get_by_role("button", name="Use this key").click()
        page.get_by_role("alert").wait_for()
        assert "Unauthorized" in page.get_by_role("alert").inner_text()
        page.get_by_label("API key").fill(secret)
        page.get_by_role("button", name="Use this key").click()
        boxes = page.get_by_role("group", name="Domains").get_by_role("checkbox")
        boxes.first.wait_for()
        assert boxes.count() == 1
        page.set_input_files("#classify-files", SATELLITE[0])
        page.locator(".predictions").first.wait_for()
        stored = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
        assert json.loads(stored) == [{}, {"caspl.classify": '["satellite"]'}, ""]


@pytest.mark.slow
def test_versions_show_the_keys_that_signed_them_and_whether_that_is_verified(browser, tmp_path):
    private, _ = write_keys(tmp_path)
    data = (ASSETS / "upload" / "thermal-promptsrc.safetensors").read_bytes()
    signature = sign_bundle(digest_bytes(data), "thermal.safetensors", private_key(1))
    with (
        running(ASSETS, ["--signing-key", str(private)]) as (_, client),
        opened(browser, f"{client.base_url}#domains") as page,
    ):
        client.put("/domains/shapes", json={"classes": ["circle", "square"]}).raise_for_status()
        headers = {"Caspl-Signature": base64.b64encode(signature).decode(), "Content-Type": "application/octet-stream"}
        client.post("/domains/thermal/versions", content=data, headers=headers).raise_for_status()
        page.reload()
        page.get_by_role("button", name="shapes", exact=True).click()
        shown = page.get_by_role("region", name="shapes", exact=True).get_by_text("key0")
        assert shown.get_attribute("title") == f"verified, key {trusted_key().hint}"
        page.get_by_role("button", name="thermal", exact=True).click()
        section = page.get_by_role("region", name="thermal", exact=True)
        foreign = section.get_by_text(f"{trusted_key(1).hint[:12]} (not verified)")
        assert foreign.get_attribute("title").startswith("The signature is by another key.")
        section.get_by_role("columnheader", name="signed by").wait_for()
        assert section.locator("tbody").first.locator("tr").nth(1).locator("td").nth(2).inner_text() == "-"


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", TABS)
def test_no_tab_has_a_serious_accessibility_violation(browser, server, name, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    with opened(browser, f"{server.base_url}#{name}", color_scheme=scheme) as page:
        page.locator("main").get_by_text(re.compile("satellite|Requests per second|New domain")).first.wait_for(
            state="attached"
        )
        if name == "classify":
            page.set_input_files("#classify-files", SATELLITE[0])
            page.locator(".predictions").first.wait_for()
        found = axe.run(page).response["violations"]
    serious = {one["id"]: one["nodes"][0]["html"] for one in found if one["impact"] in {"serious", "critical"}}
    assert serious == {}


@pytest.mark.parametrize("name", TABS)
def test_no_tab_scrolls_sideways_on_a_phone(browser, server, name):
    with opened(browser, f"{server.base_url}#{name}", viewport={"width": 400, "height": 800}) as page:
        page.locator("main").get_by_text(re.compile("satellite|Requests per second|New domain")).first.wait_for(
            state="attached"
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_every_tab_is_reached_with_the_keyboard(page):
    page.get_by_role("group", name="Domains").wait_for()
    for expected in TABS:
        page.evaluate("document.activeElement.blur()")
        for _ in range(4):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.hash") == f"#{expected}":
                break
        page.keyboard.press("Enter")
        page.locator(f"nav a[aria-current=page][href='#{expected}']").wait_for()
