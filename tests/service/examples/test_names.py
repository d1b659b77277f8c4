"""File names of examples, also in databases of earlier releases, which have no table for them."""

import base64
import sqlite3

import pytest

from tests.service.examples.colours import add_colours
from tests.service.examples.pictures import add, new_example, open_database
from tests.service.examples.test_confirmations import write_first_release
from tests.service.examples.test_processes import NAME
from tests.service.fakes import picture

IN_BOTH_FORMS = True
URL = "/domains/paint/examples"


@pytest.fixture
def database(quick_path):
    database = open_database(quick_path)
    yield database
    database.close()


def names(database):
    return {example.id: example.name for example in database.page("flowers")}


def test_an_example_keeps_the_name_of_its_file(database):
    add(database, new_example(1, "rose", name="IMG_0412.jpg"), new_example(2, "rose"))
    assert names(database) == {1: "IMG_0412.jpg", 2: None}
    assert database.names("flowers", [1, 2, 99]) == {1: "IMG_0412.jpg"}
    assert database.names("trees", [1]) == {}


def test_the_same_picture_takes_the_name_that_it_was_added_under_last(database):
    add(database, new_example(1, "rose", name="IMG_0412.jpg"))
    revision = database.revision("flowers")
    add(database, new_example(1, "rose", name="rose.jpg"))
    assert names(database) == {1: "rose.jpg"}
    add(database, new_example(1, "rose"))
    assert names(database) == {1: "rose.jpg"}, "without a name, the last one stays"
    assert database.revision("flowers") == revision, "the fit is the same"


def test_the_name_of_a_removed_example_is_removed(database, quick_path):
    add(database, new_example(1, "rose", name="IMG_0412.jpg"), new_example(2, "rose", name="IMG_0413.jpg"))
    database.remove("flowers", [1])
    database.close()
    with sqlite3.connect(quick_path / NAME) as connection:
        assert connection.execute("SELECT * FROM names").fetchall() == [(2, "IMG_0413.jpg")]


def test_images_of_classify_requests_have_no_name(database):
    one = new_example(1, None, name="private.jpg")
    assert database.keep_uncertain("flowers", one, margin=0.1, digest="d", n_kept=5, actor="anna")
    assert names(database) == {1: None}


def test_a_database_with_confirmations_only_gets_names_with_its_next_change(quick_path):
    write_first_release(quick_path)
    database = open_database(quick_path)
    database.relabel("flowers", [1], "rose", is_confirmed=True)
    database.close()
    with sqlite3.connect(quick_path / NAME) as connection:
        connection.execute("DROP TABLE names")
    assert names(database) == {1: None, 2: None, 3: None}
    assert database.confirmed("flowers") == {1}
    add(database, new_example(4, "rose", name="IMG_0412.jpg"))
    assert names(database) == {1: None, 2: None, 3: None, 4: "IMG_0412.jpg"}
    assert database.confirmed("flowers") == {1}
    database.close()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("IMG_0412.jpg", "IMG_0412.jpg"),
        ("C:\\Pictures\\2026\\a.png", "a.png"),
        ("summer/a.png", "a.png"),
        ("x" * 300 + ".png", "x" * 251 + ".png"),
        ("a\x1b[31m\u202egnp.png", "a?[31m?gnp.png"),
    ],
)
async def test_a_list_shows_the_file_name_without_folders_and_control_characters(serve, sent, kept):
    async with serve() as client:
        await client.post(URL, files=[("red", (sent, picture("red")))])
        (example,) = (await client.get(URL)).json()["examples"]
    assert example["name"] == kept


@pytest.mark.anyio
async def test_an_image_without_a_name_is_added_without_one(serve):
    async with serve() as client:
        await client.post(URL, json={"images": [{"label": "red", "b64": base64.b64encode(picture()).decode()}]})
        (example,) = (await client.get(URL)).json()["examples"]
    assert example["name"] is None


@pytest.mark.anyio
async def test_suspects_of_a_report_have_their_names_and_the_report_changes_with_them(serve):
    async with serve() as client:
        add_colours(client.context.examples, n_each=20)
        wrong = picture("blue")
        await client.post(URL, files=[("red", ("IMG_0412.png", wrong))])
        before = await client.get("/domains/paint/fit")
        etag = {"If-None-Match": before.headers["etag"]}
        assert (await client.get("/domains/paint/fit", headers=etag)).status_code == 304
        await client.post(URL, files=[("red", ("blue.png", wrong))])
        after = await client.get("/domains/paint/fit", headers=etag)
    assert "IMG_0412.png" in [one["name"] for one in before.json()["report"]["suspects"]]
    assert "blue.png" in [one["name"] for one in after.json()["report"]["suspects"]]
