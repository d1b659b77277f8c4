"""Labels that a person confirmed, also in a database of the first release, which has no table for them."""

import sqlite3
from pathlib import Path

import pytest

from service.errors import ExampleNotFoundError
from tests.service.examples.colours import add_colours, colour_example
from tests.service.examples.pictures import KEY, add, new_example, open_database
from tests.service.examples.test_processes import NAME, run_without_write_access

IN_BOTH_FORMS = True
URL = "/domains/paint/examples"
FIT = "/domains/paint/fit"
FIRST_RELEASE = Path(__file__).with_name("first_release.sql")


def write_first_release(directory):
    """The dump of a database of the domain flowers: a rose with its picture, a tulip, and one without a label."""
    directory.mkdir(exist_ok=True)
    connection = sqlite3.connect(directory / NAME)
    connection.executescript("PRAGMA journal_mode=WAL;" + FIRST_RELEASE.read_text())
    connection.close()


@pytest.fixture(params=["new", "of the first release"])
def database(quick_path, request):
    if request.param == "new":
        database = open_database(quick_path)
        add(database, new_example(1, "rose", picture=b"JPEG"), new_example(2, "tulip"), new_example(3, None))
    else:
        write_first_release(quick_path)
        database = open_database(quick_path)
    yield database
    database.close()


def confirmed(database):
    shown = {example.id for example in database.page("flowers") if example.is_confirmed}
    assert database.confirmed("flowers") == shown
    return shown


def test_nothing_is_confirmed_at_first(database):
    assert confirmed(database) == set()
    assert [example.label for example in database.page("flowers")] == ["rose", "tulip", None]
    assert database.labelled("flowers", KEY).ids_N == [1, 2]


def test_a_label_is_confirmed_until_it_changes_or_the_confirmation_is_withdrawn(database):
    revision = database.revision("flowers")
    assert database.relabel("flowers", [1], "rose", is_confirmed=True) == 0
    assert database.relabel("flowers", [2], "tulip", is_confirmed=True) == 0
    assert confirmed(database) == {1, 2}
    assert database.revision("flowers") == revision, "the fit is the same"
    database.relabel("flowers", [1], "rose")
    assert confirmed(database) == {1, 2}
    database.relabel("flowers", [1], "tulip")
    assert confirmed(database) == {2}
    assert database.relabel("flowers", [2], "tulip", is_confirmed=False) == 0
    assert confirmed(database) == set()


def test_another_label_can_be_confirmed_in_the_same_call(database):
    assert database.relabel("flowers", [1, 3], "lily", is_confirmed=True) == 2
    assert confirmed(database) == {1, 3}


def test_adding_the_picture_again_keeps_the_confirmation_of_the_same_label_only(database):
    database.relabel("flowers", [1], "rose", is_confirmed=True)
    add(database, new_example(1, "rose"))
    assert confirmed(database) == {1}
    add(database, new_example(1, "lily"))
    assert confirmed(database) == set()


def test_the_confirmation_of_a_removed_example_is_removed(database):
    database.relabel("flowers", [1, 2], "rose", is_confirmed=True)
    database.remove("flowers", [1])
    assert confirmed(database) == {2}
    assert database.confirmed("trees") == set()


def test_an_unknown_example_confirms_none(database):
    with pytest.raises(ExampleNotFoundError):
        database.relabel("flowers", [1, 9], "rose", is_confirmed=True)
    assert confirmed(database) == set()


def test_a_database_of_the_first_release_is_changed_by_the_first_change_only(quick_path):
    write_first_release(quick_path)
    before = (quick_path / NAME).read_bytes()
    database = open_database(quick_path)
    confirmed(database)
    database.close()
    assert (quick_path / NAME).read_bytes() == before
    database.relabel("flowers", [1], "rose", is_confirmed=True)
    database.close()
    with sqlite3.connect(quick_path / NAME) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,), "earlier releases still open it"
        assert connection.execute("SELECT example FROM confirmations").fetchall() == [(1,)]
        connection.execute("UPDATE examples SET label = 'lily' WHERE id = 1")  # as an earlier release does
        assert connection.execute("SELECT example FROM confirmations").fetchall() == []


def test_a_database_of_the_first_release_on_read_only_media_can_be_read(quick_path):
    write_first_release(quick_path / "store")
    assert run_without_write_access(quick_path / "store") == ["3", "2", "2", *["store_read_only"] * 3]


def add_wrong_label(client):
    """Blue among twenty pictures of each colour that is labelled as red; its id."""
    add_colours(client.context.examples, n_each=20)
    new = colour_example("red", 50, "blue")
    return client.context.examples.add("paint", [new], actor="", source="upload")[0].id


async def suspects(client):
    listed = (await client.get(URL, params={"suspect": "true"})).json()["examples"]
    reported = (await client.get(FIT)).json()["report"]["suspects"]
    assert [one["id"] for one in listed] == [one["id"] for one in reported]
    return [one["id"] for one in reported]


@pytest.mark.anyio
async def test_a_confirmed_label_is_no_suspect_until_another_label_is_sent(serve):
    async with serve() as client:
        number = add_wrong_label(client)
        before, etag = await suspects(client), (await client.get(FIT)).headers["etag"]
        answer = await client.patch(URL, json={"label": "blue", "ids": [number], "confirmed": True})
        after = await suspects(client)
        changed = await client.get(FIT, headers={"If-None-Match": etag})
        made = (await client.post(FIT, json={"activate": False})).json()["report"]["suspects"]
        await client.patch(URL, json={"label": "green", "ids": [number]})
        again = await suspects(client)
    assert answer.json() == {"domain": "paint", "label": "blue", "changed": 0}
    assert number in before
    assert after == [one["id"] for one in made] == [one for one in before if one != number]
    assert changed.status_code == 200, "the report of the ETag had another suspect"
    assert number in again


@pytest.mark.anyio
async def test_a_confirmation_is_shown_logged_and_can_be_withdrawn(serve, caplog):
    caplog.set_level("INFO")
    async with serve() as client:
        number = add_wrong_label(client)
        before = await suspects(client)
        body = {"label": "blue", "ids": [number]}
        await client.patch(URL, json=body | {"confirmed": True})
        (shown,) = [one for one in (await client.get(URL)).json()["examples"] if one["is_confirmed"]]
        await client.patch(URL, json=body | {"confirmed": False})
        assert await suspects(client) == before
    assert (shown["id"], shown["label"]) == (number, "blue")
    logged = [record for record in caplog.records if record.getMessage() == "example.confirmed"]
    assert [(one.domain, one.n, one.is_confirmed) for one in logged] == [("paint", 1, True), ("paint", 1, False)]


@pytest.mark.anyio
@pytest.mark.parametrize("body", [{"label": None}, {"label": "unlabelled"}, {}])
async def test_without_a_label_there_is_nothing_to_confirm(serve, body):
    async with serve() as client:
        number = add_wrong_label(client)
        answer = await client.patch(URL, json=body | {"ids": [number], "confirmed": True})
        (example,) = (await client.get(URL, params={"after": number - 1})).json()["examples"]
    assert (answer.status_code, answer.json()["code"]) == (422, "request_invalid")
    assert (example["label"], example["is_confirmed"]) == ("blue", False)
