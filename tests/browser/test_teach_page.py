"""Teaching on the page: a hundred unlabelled pictures become a live domain of five classes."""

from collections import defaultdict

import numpy as np
import pytest

from tests.browser.conftest import opened
from training.demo.folders import write_class_folders
from training.demo.world import CLASS_NAMES

N_CLASSES, N_PICTURES, MAX_CLICKS = 5, 100, 30
CLASSES = CLASS_NAMES[:N_CLASSES]


@pytest.fixture(scope="module")
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
        page.get_by_label("Name", exact=True).fill("shapes")
        page.get_by_label("Classes", exact=True).fill(", ".join(CLASSES))
        page.get_by_role("combobox", name="Prompts").select_option("satellite")
        person.click(page.get_by_role("button", name="Create the domain"))
        page.locator("#teach-files").wait_for(state="attached")

        paths = sorted(folder.glob("train/*/*"))
        person.n_clicks += 1  # opens the file dialog
        page.set_input_files("#teach-files", paths)
        page.get_by_role("heading", name=f"{N_PICTURES} pictures to label").wait_for()
        page.locator("section[aria-label='add pictures'] progress").wait_for(state="detached")

        # A person sees the class of each picture; here it follows from the order of the upload.
        first = server.get("/domains/shapes/examples?limit=1").json()["examples"][0]["id"]
        truth = {first + number: label_of(path) for number, path in enumerate(paths)}
        groups = [shown_ids(group) for group in page.locator(".group").all()]
        assert sorted(id_ for ids in groups for id_ in ids) == sorted(truth)
        group_of = {id_: number for number, ids in enumerate(groups) for id_ in ids}
        by_label = defaultdict(list)
        for ids in groups:
            labels = [truth[id_] for id_ in ids]
            by_label[max(set(labels), key=labels.count)].append(ids[0])
        for label, firsts in by_label.items():
            for id_ in firsts:
                group = page.locator(".group", has=page.get_by_alt_text(f"picture {id_}", exact=True))
                person.click(group.get_by_role("button", name="Group"))
                for stray in (one for one in groups[group_of[id_]] if truth[one] != label):
                    person.click(group.get_by_role("button", name=f"picture {stray}", exact=True))
            person.click(page.locator(".label-bar").get_by_role("button", name=label))
            labelled = next(id_ for id_ in groups[group_of[firsts[0]]] if truth[id_] == label)
            page.get_by_role("button", name=f"picture {labelled}", exact=True).wait_for(state="detached")

        page.get_by_role("region", name="report").get_by_text("of the text features").wait_for()
        person.click(page.get_by_role("button", name="Make live"))
        page.get_by_text("Version 2 of shapes is live").wait_for()
        assert person.n_clicks <= MAX_CLICKS
        assert accuracy(server, "shapes", folder) > 0.8

        page.get_by_role("link", name="Classify with it").click()
        page.get_by_role("button", name="Use a camera").wait_for()
        assert page.get_by_role("checkbox", checked=True).count() == 1
        assert page.get_by_role("checkbox", name="shapes", exact=True).is_checked()


def test_a_new_domain_is_offered_the_prompts_of_domains_that_have_some(browser, server):
    server.put("/domains/unboosted", json={"classes": ["one", "two"]}).raise_for_status()
    listed = server.get("/domains").json()["domains"]
    with opened(browser, f"{server.base_url}#teach") as page:
        page.get_by_role("combobox", name="Prompts").wait_for()
        offered = page.get_by_role("combobox", name="Prompts").locator("option").all_text_contents()
    boosted = [f"boosting prompts of {one['domain']}" for one in listed if one["has_boosting"]]
    assert offered == ["none: the plain backbone", *boosted]
    assert "boosting prompts of unboosted" not in offered


def test_pictures_of_one_class_alone_have_no_report(browser, server, folder):
    server.put("/domains/one-class", json={"classes": list(CLASSES), "boosted_by": "satellite"}).raise_for_status()
    paths = [path for path in sorted(folder.glob("train/*/*")) if label_of(path) == CLASSES[0]]
    add_examples(server, "one-class", folder, None, paths)
    with opened(browser, f"{server.base_url}#teach") as page:
        page.get_by_label("Domain").select_option("one-class")
        report = page.get_by_role("region", name="report")
        report.get_by_role("button", name="Make live", disabled=False).wait_for()  # the fit is there
        assert report.get_by_text("Label pictures of at least two classes").is_visible()
        assert "accuracy" not in report.inner_text()


def test_classes_without_pictures_are_counted_instead_of_advice_on_more_pictures(browser, server, folder):
    server.put("/domains/unfinished", json={"classes": list(CLASSES)}).raise_for_status()
    paths = [path for path in sorted(folder.glob("train/*/*")) if label_of(path) in CLASSES[:2]]
    add_examples(server, "unfinished", folder, None, paths)
    with opened(browser, f"{server.base_url}#teach/unfinished") as page:
        report = page.get_by_role("region", name="report")
        report.get_by_text("3 of 5 classes have no labelled picture").wait_for()
        assert "likely" not in report.inner_text()


def test_a_file_that_is_not_an_image_is_named_with_the_reason(browser, server, folder, tmp_path):
    server.put("/domains/files", json={"classes": list(CLASSES)}).raise_for_status()
    text = tmp_path / "notes.jpg"
    text.write_text("Not a picture. " * 20)
    with opened(browser, f"{server.base_url}#teach") as page:
        page.get_by_label("Domain").select_option("files")
        page.set_input_files("#teach-files", [text])
        page.get_by_text("notes.jpg: Unsupported image format: The image is not a JPEG, PNG or WebP file.").wait_for()


def add_examples(server, domain, folder, field, paths):
    for start in range(0, len(paths), 16):
        files = [(field or label_of(path), (path.name, path.read_bytes())) for path in paths[start : start + 16]]
        assert server.post(f"/domains/{domain}/examples", files=files).is_success


def test_a_wrong_label_is_among_the_labels_to_check_and_is_corrected_with_one_click(browser, server, folder):
    server.put("/domains/corrected", json={"classes": list(CLASSES), "boosted_by": "satellite"}).raise_for_status()
    paths = sorted(folder.glob("train/*/*"))
    wrong = next(path for path in paths if label_of(path) == CLASSES[0])
    add_examples(server, "corrected", folder, None, [path for path in paths if path != wrong])
    add_examples(server, "corrected", folder, CLASSES[1], [wrong])
    with opened(browser, f"{server.base_url}#teach") as page:
        page.get_by_label("Domain").select_option("corrected")
        suspects = page.get_by_role("region", name="labels to check")
        n_before = int(suspects.get_by_role("heading").inner_text().split("(")[1].rstrip(")"))
        mistake = suspects.locator("figure", has_text=f"labelled {CLASSES[1]}").filter(
            has_text=f"Change to {CLASSES[0]}"
        )
        mistake.get_by_role("button").first.click()
        page.get_by_text(f"Labels to check ({n_before - 1})").or_(page.get_by_text("No label looks wrong")).wait_for()
    counts = server.get("/domains/corrected/examples?limit=1").json()["counts"]["by_label"]
    assert counts[CLASSES[0]] == sum(label_of(path) == CLASSES[0] for path in paths)


def open_suspects(browser, server, folder, domain):
    """The page of a domain with a picture of the first class that is labelled as the second one."""
    server.put(f"/domains/{domain}", json={"classes": list(CLASSES), "boosted_by": "satellite"}).raise_for_status()
    paths = sorted(folder.glob("train/*/*"))
    wrong = next(path for path in paths if label_of(path) == CLASSES[0])
    add_examples(server, domain, folder, None, [path for path in paths if path != wrong])
    add_examples(server, domain, folder, CLASSES[1], [wrong])
    return opened(browser, f"{server.base_url}#teach/{domain}")


def suspect_ids(server, domain):
    return [one["id"] for one in server.get(f"/domains/{domain}/fit").json()["report"]["suspects"]]


def test_a_right_label_is_confirmed_and_stays_off_the_labels_to_check(browser, server, folder):
    with open_suspects(browser, server, folder, "confirmed") as page:
        suspects = page.get_by_role("region", name="labels to check").locator("figure")
        suspects.first.wait_for()
        before, alt = suspect_ids(server, "confirmed"), suspects.first.locator("img").get_attribute("alt")
        query = f"/domains/confirmed/examples?limit=1&after={before[0] - 1}"
        suspects.first.get_by_text(server.get(query).json()["examples"][0]["name"], exact=True).wait_for()
        suspects.first.get_by_role("button", name="Label is right").click()
        page.get_by_text("Confirmed as").wait_for()
        page.locator("figure").get_by_alt_text(alt, exact=True).wait_for(state="detached")
        page.reload()
        page.get_by_role("region", name="report").get_by_text("of the text features").wait_for()
        assert suspects.get_by_alt_text(alt, exact=True).count() == 0
        assert suspect_ids(server, "confirmed") == before[1:]
        label = server.get(query).json()["examples"][0]["label"]
        page.get_by_text("Labelled pictures", exact=True).click()
        page.get_by_role("combobox", name="Class").last.select_option(label)
        figure = page.locator("figure", has=page.get_by_alt_text(f"picture {before[0]}", exact=True))
        figure.get_by_text("confirmed").wait_for()


def test_the_last_label_or_confirmation_can_be_undone(browser, server, folder):
    with open_suspects(browser, server, folder, "undone") as page:
        suspects = page.get_by_role("region", name="labels to check").locator("figure")
        suspects.first.wait_for()
        before = suspect_ids(server, "undone")
        alt = suspects.first.locator("img").get_attribute("alt")
        for action in ("Label is right", "Change to"):
            suspects.first.get_by_role("button", name=action).click()
            suspects.get_by_alt_text(alt, exact=True).wait_for(state="detached")
            page.get_by_role("status").get_by_role("button", name="Undo").click()
            suspects.get_by_alt_text(alt, exact=True).wait_for()
            page.get_by_role("button", name="Undo", exact=True).wait_for(state="detached")
            assert suspect_ids(server, "undone") == before


def test_undone_labels_of_a_group_return_its_pictures(browser, server, folder):
    server.put("/domains/regrouped", json={"classes": list(CLASSES)}).raise_for_status()
    add_examples(server, "regrouped", folder, "unlabelled", sorted(folder.glob("train/*/*"))[:8])
    with opened(browser, f"{server.base_url}#teach/regrouped") as page:
        page.get_by_role("heading", name="8 pictures to label").wait_for()
        page.locator(".tile").nth(7).wait_for()
        page.locator(".tile").nth(0).click()
        page.locator(".tile").nth(7).click(modifiers=["Shift"])
        page.locator(".label-bar").get_by_role("button", name=CLASSES[0]).click()
        page.get_by_text(f"Labelled {CLASSES[0]}: 8 pictures").wait_for()
        page.get_by_label("Domain").press("Control+z")
        page.get_by_role("heading", name="8 pictures to label").wait_for()
        page.locator(".tile").nth(7).wait_for()
    assert server.get("/domains/regrouped/examples").json()["counts"]["labelled"] == 0


def test_an_upload_with_a_label_ends_the_undo_of_earlier_labels(browser, server, folder):
    server.put("/domains/replaced", json={"classes": list(CLASSES)}).raise_for_status()
    paths = sorted(folder.glob("train/*/*"))[:4]
    add_examples(server, "replaced", folder, "unlabelled", paths)
    with opened(browser, f"{server.base_url}#teach/replaced") as page:
        page.locator(".tile").nth(3).wait_for()
        page.locator(".tile").first.click()
        page.locator(".label-bar").get_by_role("button", name=CLASSES[0]).click()
        undo = page.get_by_role("button", name="Undo", exact=True)
        undo.wait_for()
        page.get_by_label("New pictures are").select_option(CLASSES[1])
        page.set_input_files("#teach-files", paths)
        undo.wait_for(state="detached")
        page.get_by_text("Added before: 0 pictures unchanged, 4 pictures with a new label.").wait_for()
    assert server.get("/domains/replaced/examples").json()["counts"]["by_label"] == {CLASSES[1]: 4}


def test_the_tabs_keep_their_domain_while_another_tab_is_shown(browser, server, folder):
    with opened(browser, f"{server.base_url}#teach") as page:
        page.get_by_label("Domain").select_option("night")
        page.get_by_role("link", name="Domains").click()
        page.get_by_role("button", name="thermal", exact=True).click()
        page.get_by_role("link", name="Teach").click()
        page.get_by_text("Drop or paste pictures of night").wait_for()
        page.get_by_role("link", name="Domains").click()
        page.get_by_role("region", name="thermal", exact=True).wait_for()


def test_labelled_pictures_are_listed_by_class_unlabelled_and_deleted(browser, server, folder):
    server.put("/domains/tidied", json={"classes": list(CLASSES[:2])}).raise_for_status()
    add_examples(server, "tidied", folder, CLASSES[0], sorted(folder.glob("train/*/*"))[:5])
    with opened(browser, f"{server.base_url}#teach") as page:
        page.get_by_label("Domain").select_option("tidied")
        page.get_by_text("Labelled pictures", exact=True).click()
        page.get_by_role("combobox", name="Class").last.select_option(CLASSES[0])
        page.locator("details .tile").nth(4).wait_for()
        page.locator("details .tile").first.click()
        page.get_by_role("button", name="Remove the label of 1 picture").click()
        page.get_by_role("heading", name="1 picture to label").wait_for()
        page.locator("details .tile").nth(4).wait_for(state="detached")  # the list stays open
        page.locator("details .tile").first.click()
        page.get_by_role("button", name="Delete").first.click()
        with page.expect_response(lambda response: response.request.method == "DELETE"):
            page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    counts = server.get("/domains/tidied/examples?limit=1").json()["counts"]
    assert (counts["labelled"], counts["unlabelled"]) == (3, 1)


def test_a_domain_name_that_exists_is_refused_in_words(page):
    page.get_by_role("link", name="Teach").click()
    page.get_by_label("Name", exact=True).fill("satellite")
    page.get_by_label("Classes", exact=True).fill("one, two")
    page.get_by_role("button", name="Create the domain").click()
    page.get_by_role("alert").wait_for()
    assert page.get_by_role("alert").inner_text() == (
        "The domain satellite exists. Choose it in the list above, or another name."
    )


def test_pictures_that_cannot_be_added_are_named(browser, server, folder, tmp_path):
    server.put("/domains/partly", json={"classes": list(CLASSES[:2])}).raise_for_status()
    broken = tmp_path / "broken.jpg"
    broken.write_text("this text is not a picture, although the file name ends in .jpg " * 2)
    with opened(browser, f"{server.base_url}#teach") as page:
        page.get_by_label("Domain").select_option("partly")
        page.set_input_files("#teach-files", [broken, min(folder.glob("train/*/*"))])
        page.get_by_text("1 picture not added").wait_for()
        assert "broken.jpg: Unsupported image format" in page.get_by_role("alert").inner_text()
        page.get_by_role("heading", name="1 picture to label").wait_for()


def test_an_upload_that_fails_shows_how_many_pictures_were_sent(browser, server, folder):
    server.put("/domains/full", json={"classes": list(CLASSES)}).raise_for_status()
    limit = {"title": "Too many examples", "detail": "Remove some.", "code": "examples_full"}
    with opened(browser, f"{server.base_url}#teach") as page:
        page.get_by_label("Domain").select_option("full")
        page.set_input_files("#teach-files", sorted(folder.glob("train/*/*"))[:16])
        page.get_by_role("heading", name="16 pictures to label").wait_for()
        page.route("**/examples", lambda route: route.fulfill(status=409, json=limit))  # the POST
        page.set_input_files("#teach-files", sorted(folder.glob("train/*/*"))[16:36])
        page.get_by_role("alert").get_by_text("Too many examples: Remove some.").wait_for()
        assert "0 of 20 pictures sent" in page.get_by_role("region", name="add pictures").inner_text()


def test_a_selection_made_while_labels_are_saved_is_kept(browser, server, folder):
    server.put("/domains/fast", json={"classes": list(CLASSES)}).raise_for_status()
    add_examples(server, "fast", folder, "unlabelled", sorted(folder.glob("train/*/*"))[:8])
    held = []
    with opened(browser, f"{server.base_url}#teach") as page:
        page.route("**/examples", lambda route: held.append(route))  # no bound method: Playwright sets an attribute
        page.get_by_label("Domain").select_option("fast")
        first, second = (page.get_by_alt_text(alt, exact=True) for alt in alts_of_tiles(page, 2))
        first.click()
        with page.expect_request(lambda request: request.method == "PATCH"):
            page.locator(".label-bar").get_by_role("button", name=CLASSES[0]).click()
        second.click()
        held[0].continue_()
        first.wait_for(state="detached")
        assert page.locator(".tile[aria-pressed=true] img").get_attribute("alt") == second.get_attribute("alt")
        page.get_by_text("1 selected").wait_for()


def alts_of_tiles(page, n):
    page.locator(".tile").nth(n - 1).wait_for()
    return [tile.get_attribute("alt") for tile in page.locator(".tile img").all()[:n]]


def test_unlabelled_pictures_are_shown_by_predicted_class_with_the_least_certain_first(browser, server, folder):
    server.put("/domains/sorted", json={"classes": list(CLASSES), "boosted_by": "satellite"}).raise_for_status()
    paths = sorted(folder.glob("train/*/*"))
    add_examples(server, "sorted", folder, None, paths[::2])
    add_examples(server, "sorted", folder, "unlabelled", paths[1::2])
    listed = server.get("/domains/sorted/examples?labelled=false&order=uncertain&limit=200").json()["examples"]
    with opened(browser, f"{server.base_url}#teach") as page:
        page.get_by_label("Domain").select_option("sorted")
        page.get_by_text("of the text features").wait_for()
        page.get_by_label("order of the pictures").select_option("uncertain")
        page.get_by_role("region", name=f"Predicted as {listed[0]['predicted']}").wait_for()
        for group in page.locator(".group").all():
            label = group.get_attribute("aria-label").removeprefix("Predicted as ")
            assert shown_ids(group) == [one["id"] for one in listed if one["predicted"] == label]


def test_hundreds_of_classes_with_strange_names_have_a_report(browser, server, folder):
    strange = ["constructor", "<img src=x onerror=alert(1)>", "hasOwnProperty", "__proto__ x"]
    names = [*strange, *(f"class {n}" for n in range(400))]
    assert server.put("/domains/many", json={"classes": names}).status_code == 201
    paths = sorted(folder.glob("train/*/*"))[:8]
    files = [(strange[n % 2], (path.name, path.read_bytes())) for n, path in enumerate(paths)]
    assert server.post("/domains/many/examples", files=files).status_code == 201
    with opened(browser, f"{server.base_url}#teach") as page:
        page.get_by_role("combobox", name="Domain").select_option("many")
        page.get_by_role("region", name="report").get_by_text("8 labelled pictures").wait_for()
        page.get_by_text("Labelled pictures", exact=True).click()
        options = page.get_by_role("combobox", name="Class").locator("option").all_text_contents()
    assert options == ["choose a class", "constructor (4)", "<img src=x onerror=alert(1)> (4)"]


def test_why_there_is_no_report_is_shown(browser, server, folder):
    server.put("/domains/long", json={"classes": ["one", "two"]})
    path = min(folder.glob("train/*/*"))
    server.post("/domains/long/examples", files=[("\u6f22" * 100, (path.name, path.read_bytes()))])
    with opened(browser, f"{server.base_url}#teach") as page:
        page.get_by_role("combobox", name="Domain").select_option("long")
        page.get_by_role("alert").get_by_text("Text too long").wait_for()
