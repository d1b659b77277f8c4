"""A bit of an example that changes on the disk is found, and never learned from."""

import re
import sqlite3
import sys
import time
from contextlib import closing

import numpy as np
import pytest

from prompt_store.errors import StoreCorruptError
from prompt_store.example_checksums import content_problems
from prompt_store.repair import check_store
from prompt_store.sqlite_files import database_problem
from prompt_store.store import Store
from service.errors import ExamplesDamagedError
from service.examples import tables
from service.examples.fit_process import FitJob, FitProcess
from service.examples.records import NewExample
from tests.service.examples import colours
from tests.service.examples.colours import add_colours, colour_example
from tests.service.examples.pictures import KEY, add, feature, new_example, open_database
from tests.service.examples.test_confirmations import write_first_release

NAME = "examples.sqlite3"
PICTURE = b"a whole picture file " * 40


@pytest.fixture
def folder(quick_path):
    """Five examples: 1 and 2 with labels, 3 and 4 without; 4 has a picture."""
    folder = quick_path / "store"
    database = open_database(folder)
    add(database, new_example(1, "marigold"), new_example(2, "tulip"), new_example(3))
    add(database, new_example(4, picture=PICTURE), new_example(5, "daisy"))
    database.close()
    return folder


def flip(folder, content, bit=0, *, where=NAME):
    """Flip a bit of this content, which is in the file once."""
    path = folder / where
    data = bytearray(path.read_bytes())
    assert data.count(content) == 1
    data[data.index(content) + bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def execute(folder, statement):
    """Run a statement, as an earlier release or a damage would, and return the rows."""
    with closing(sqlite3.connect(folder / NAME)) as connection, connection:
        return connection.execute(statement).fetchall()


def damaged(call):
    with pytest.raises(ExamplesDamagedError) as caught:
        call()
    return caught.value.extra["ids"]


REMEDY = "Run `caspl store check --repair`, remove those that it still reports, and add their pictures again."
CONTENTS = {
    "a label": (b"marigoldupload", 0, 1),  # the label is in an index, too, but not before the source
    "a label that is no text afterwards": (b"marigoldupload", 7, 1),
    "a feature": (feature(2), 0, 2),
    "the sign of a feature": (feature(2), 31, 2),
    "the feature of an unlabelled example": (feature(3), 8, 3),
    "the digest of a picture": (new_example(5).sha256.encode() + b"daisy", 0, 5),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_a_flipped_bit_is_found_by_the_check_and_the_example_is_not_learned_from(folder, case):
    content, bit, number = CONTENTS[case]
    Store.open(folder)
    flip(folder, content, bit)
    database = open_database(folder)
    read = database.unlabelled if number == 3 else database.labelled
    assert damaged(lambda: read("flowers", KEY)) == [number]
    database.close()
    assert not check_store(folder)[0].is_sound
    found, _ = check_store(folder, repair=True)
    assert [one.detail for one in found.all_findings()] == [
        f"Examples of flowers changed on the disk: {number}. {REMEDY}"
    ]
    assert len(database.page("flowers")) == 5
    database.remove("flowers", [number])
    assert number not in read("flowers", KEY).ids_N
    add(database, new_example(number, "lily"))
    assert "lily" in database.labelled("flowers", KEY).labels_N
    database.close()
    assert check_store(folder)[0].is_sound


def test_a_flipped_bit_in_an_index_is_repaired_and_no_example_is_lost(folder):
    Store.open(folder)
    data = (folder / NAME).read_bytes()
    assert data.count(b"marigold") == 2
    (folder / NAME).write_bytes(re.sub(rb"marigold(?!upload)", b"narigold", data))
    assert "index examples_by_label" in str(database_problem(folder / NAME))
    found, repairs = check_store(folder, repair=True)
    assert found.is_sound
    assert [one.action for one in repairs] == ["Made the indexes anew."]
    database = open_database(folder)
    assert database.labelled("flowers", KEY).labels_N == ["marigold", "tulip", "daisy"]
    database.close()


def test_an_example_that_loses_its_label_is_found_among_the_unlabelled_ones_too(folder):
    execute(folder, "DROP TRIGGER checksum_outdated")  # the bits in front of the row, which have the type, changed
    execute(folder, "UPDATE examples SET label = NULL WHERE id = 1")
    database = open_database(folder)
    for read in (database.labelled, database.unlabelled, database.features):
        assert damaged(lambda read=read: read("flowers", KEY)) == [1]
    database.close()


@pytest.mark.parametrize(("content", "read", "number"), [(b"WEBP 2", "thumbnail", 2), (PICTURE, "picture", 4)])
def test_a_damaged_thumbnail_or_picture_is_not_read(folder, content, read, number):
    flip(folder, content, 5)
    database = open_database(folder)
    assert damaged(lambda: getattr(database, read)("flowers", number)) == [number]
    assert database.thumbnail("flowers", 1) == b"WEBP 1"
    database.close()
    assert len(content_problems(folder / NAME)) == 1


def test_an_example_that_no_longer_counts_is_missed(folder):
    execute(folder, "UPDATE domains SET n_examples = n_examples + 1")
    database = open_database(folder)
    with pytest.raises(StoreCorruptError, match="has 6 examples of flowers, of which 5 are found"):
        database.labelled("flowers", KEY)
    database.close()
    assert content_problems(folder / NAME) == ["The totals of the examples of flowers do not match its examples."]


def test_a_feature_that_disappears_is_found(folder):
    execute(folder, "DELETE FROM features WHERE example = 2")
    assert content_problems(folder / NAME) == [f"Examples of flowers changed on the disk: 2. {REMEDY}"]


def test_every_change_keeps_the_checksums_in_step(folder):
    database = open_database(folder)
    database.relabel("flowers", [1, 3], "rose", is_confirmed=True)
    database.relabel("flowers", [2], None)
    add(database, new_example(2, "lily"))
    add(database, new_example(1, "lily", picture=b"kept later"), new_example(3, key="sha256:other/key"))
    database.put_features("flowers", "sha256:new/prompts", {1: feature(11), 5: feature(15)})
    database.put_features("flowers", "sha256:new/prompts", {1: feature(99)})  # it has one: ignored
    database.keep_uncertain("flowers", new_example(9), margin=0.1, digest="d", n_kept=5, actor="anna")
    database.remove("flowers", [4])
    assert database.labelled("flowers", KEY).labels_N == ["lily", "lily", "rose", "daisy"]
    database.close()
    parts = execute(folder, "SELECT example, count(*) FROM checksums GROUP BY example")
    assert parts == [(1, 5), (2, 3), (3, 4), (5, 4), (6, 3)]
    assert content_problems(folder / NAME) == []


def test_a_database_of_the_first_release_gets_checksums_with_its_next_change(quick_path):
    write_first_release(quick_path)
    assert content_problems(quick_path / NAME) == []
    database = open_database(quick_path)
    assert database.labelled("flowers", KEY).labels_N == ["rose", "tulip"]
    database.relabel("flowers", [1], "marigold")
    database.close()
    assert execute(quick_path, "SELECT count(*) FROM checksums") == [(10,)]
    assert content_problems(quick_path / NAME) == []
    flip(quick_path, feature(2))
    assert damaged(lambda: database.labelled("flowers", KEY)) == [2]


def test_a_label_that_an_earlier_release_changes_is_no_damage(folder):
    execute(folder, "UPDATE examples SET label = 'lily' WHERE id = 1")
    assert content_problems(folder / NAME) == []
    database = open_database(folder)
    assert database.labelled("flowers", KEY).labels_N == ["lily", "tulip", "daisy"]
    database.relabel("flowers", [1], "lily")
    database.close()
    flip(folder, b"lilyupload")
    assert damaged(lambda: database.labelled("flowers", KEY)) == [1]


@pytest.mark.anyio
async def test_a_fit_is_refused_with_the_damaged_examples_until_they_are_removed(serve, store):
    async with serve() as client:
        examples = client.context.examples
        added = add_colours(examples)
        examples.close()
        flip(store.root, colour_example("red", 0).features[colours.KEY])
        answer = await client.post("/domains/paint/fit")
        await client.delete(f"/domains/paint/examples/{added[0].id}")
        later = await client.post("/domains/paint/fit")
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["ids"]) == (409, "examples_damaged", [added[0].id])
    assert problem["title"] == "Damaged examples"
    assert later.status_code == 201, later.text


N, WIDTH, CLASSES = 10_000, 512, 10
WITHOUT_CHECKSUMS = """
SELECT e.id, e.sha256, e.label, f.feature FROM examples AS e LEFT JOIN features AS f
    ON f.example = e.id AND f.key = (SELECT id FROM feature_keys WHERE name = :key)
WHERE e.domain = (SELECT id FROM domains WHERE name = :name) ORDER BY e.id
"""


def large_database(folder):
    """A domain with 10,000 labelled examples of ten classes and features of 512 numbers."""
    dice = np.random.default_rng(0)
    centres = dice.normal(size=(CLASSES, WIDTH))
    rows = centres[np.arange(N) % CLASSES] + 3 * dice.normal(size=(N, WIDTH))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("<f4")
    database = open_database(folder, max_per_domain=N)
    add(
        database,
        *(
            NewExample(f"class {n % CLASSES}", new_example(n).sha256, b"WEBP", None, {KEY: rows[n].tobytes()})
            for n in range(N)
        ),
    )
    return database, (centres / np.linalg.norm(centres, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.slow
def test_verifying_10_000_examples_takes_less_than_5_percent_of_a_fit(quick_path, monkeypatch, capsys):
    database, text_KE = large_database(quick_path)
    verified, plain = (tables._verify, tables._FEATURES), (lambda *_: None, WITHOUT_CHECKSUMS)

    def read(how):
        for name, value in zip(("_verify", "_FEATURES"), how, strict=True):
            monkeypatch.setattr(tables, name, value)
        began_s = time.perf_counter()
        found, _ = database.features("flowers", KEY)
        return time.perf_counter() - began_s, found

    rounds = [(read(verified), read(plain)) for _ in range(7)]  # alternately: other load affects both
    verified_s, plain_s = (sorted(one[side][0] for one in rounds)[3] for side in (0, 1))
    found = rounds[0][0][1]
    job = FitJob(
        features_NE=found.features_NE,
        labels_N=np.array([int(label.removeprefix("class ")) for label in found.labels_N]),
        unlabelled_ME=found.features_NE[:0],
        text_KE=text_KE,
        logit_scale=100.0,
        class_names=tuple(f"class {n}" for n in range(CLASSES)),
        method="auto",
        uses_unlabelled=False,
    )
    process = FitProcess()
    began_s = time.perf_counter()
    process.run(job)
    fit_s = time.perf_counter() - began_s
    process.close()
    database.close()
    share = (verified_s - plain_s) / (plain_s + fit_s)
    line = f"reading {1000 * plain_s:.0f} ms, verifying {1000 * (verified_s - plain_s):.0f} ms, fit {fit_s:.2f} s"
    with capsys.disabled():
        sys.stderr.write(f"\n{line}: {share:.2%}\n")
    assert share < 0.05
