"""The example database in one process."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import ExampleNotFoundError, ExamplesFullError
from service.examples.records import Counts
from tests.service.examples.pictures import KEY, add, feature, new_example, open_database


@pytest.fixture
def database(quick_path):
    database = open_database(quick_path)
    yield database
    database.close()


def labels(database, domain="flowers"):
    return {example.id: example.label for example in database.page(domain, limit=1000)}


def test_reading_creates_no_file(database, quick_path):
    assert database.page("flowers") == []
    assert database.counts("flowers") == Counts(0, 0, {}, 0)
    assert database.revision("flowers") == 0
    assert database.labelled("flowers", KEY).features_NE.shape == (0, 0)
    assert database.remove("flowers", None) == 0
    assert add(database) == []
    with pytest.raises(ExampleNotFoundError):
        database.relabel("flowers", [1], "rose")
    assert list(quick_path.iterdir()) == []


def test_an_added_example_has_its_label_picture_thumbnail_and_origin(database):
    (added,) = add(database, new_example(1, "rose", picture=b"JPEG"))
    (example,) = database.page("flowers")

    assert added.status == "added"
    assert (example.id, example.domain, example.label, example.added_by) == (added.id, "flowers", "rose", "anna")
    assert (example.sha256, example.source) == (new_example(1).sha256, "upload")
    assert example.added_at.endswith("Z")
    assert example.has_picture
    assert database.picture("flowers", added.id) == b"JPEG"
    assert database.thumbnail("flowers", added.id) == new_example(1).thumbnail
    assert example.n_bytes == len(b"JPEG") + len(new_example(1).thumbnail) + len(feature(1))


def test_the_same_picture_is_one_example(database):
    first, again = add(database, new_example(1, "rose"), new_example(1, "rose"))
    (unlabelled,) = add(database, new_example(1, None))
    (other,) = add(database, new_example(1, "tulip"))

    assert [first.status, again.status, unlabelled.status, other.status] == ["added", "exists", "exists", "relabelled"]
    assert {first.id, again.id, unlabelled.id, other.id} == {first.id}
    assert labels(database) == {first.id: "tulip"}


def test_domains_share_nothing(database):
    (rose,) = add(database, new_example(1, "rose"))
    (weed,) = add(database, new_example(1, "weed"), domain="weeds")

    assert rose.id != weed.id
    assert labels(database) == {rose.id: "rose"}
    with pytest.raises(ExampleNotFoundError):
        database.thumbnail("weeds", rose.id)
    with pytest.raises(ExampleNotFoundError):
        database.relabel("weeds", [weed.id, rose.id], "nettle")
    database.put_features("weeds", "other", {rose.id: feature(2)})
    assert database.labelled("flowers", "other").stale_ids == [rose.id]
    assert database.remove("weeds", [rose.id]) == 0
    assert database.remove("weeds", None) == 1
    assert labels(database) == {rose.id: "rose"}


def test_adding_a_picture_again_adds_the_feature_and_the_picture_that_it_lacks(database):
    (added,) = add(database, new_example(1, "rose"))
    revision = database.revision("flowers")
    add(database, new_example(1, "rose", key="second", picture=b"JPEG"))

    assert database.labelled("flowers", "second").ids_N == [added.id]
    assert database.labelled("flowers", KEY).ids_N == [added.id]
    assert database.picture("flowers", added.id) == b"JPEG"
    assert database.revision("flowers") > revision
    assert database.page("flowers")[0].n_bytes == 4 + len(new_example(1).thumbnail) + 2 * len(feature(1))


def test_a_kept_picture_of_traffic_that_is_uploaded_counts_as_uploaded(database):
    add(database, new_example(1, None), source="traffic")
    assert database.page("flowers")[0].source == "traffic"
    add(database, new_example(1, None))

    assert database.page("flowers")[0].source == "upload"


def test_relabelling_is_all_or_none_and_names_the_unknown_ids(database):
    ids = [one.id for one in add(database, *(new_example(n, "rose") for n in range(5)))]
    with pytest.raises(ExampleNotFoundError, match=r"\b77, 78\b") as caught:
        database.relabel("flowers", [*ids, 78, 77], "tulip")
    assert caught.value.extra == {"ids": [77, 78]}
    assert set(labels(database).values()) == {"rose"}

    assert database.relabel("flowers", ids[:3], "tulip") == 3
    assert database.relabel("flowers", ids, "tulip") == 2
    assert database.relabel("flowers", ids[:1], None) == 1
    assert database.relabel("flowers", [], "tulip") == 0
    assert labels(database) == {id_: None if id_ == ids[0] else "tulip" for id_ in ids}


@pytest.mark.parametrize("example_id", [-1, 0, 2**63 - 1, 2**63, 10**30])
def test_an_id_beyond_any_row_is_an_unknown_one(database, example_id):
    add(database, new_example(1, "rose"))
    for call in (database.thumbnail, database.picture):
        with pytest.raises(ExampleNotFoundError):
            call("flowers", example_id)
    with pytest.raises(ExampleNotFoundError):
        database.relabel("flowers", [example_id], "tulip")
    assert database.remove("flowers", [example_id]) == 0
    assert database.page("flowers", ids=[example_id]) == []
    assert len(database.page("flowers", after=example_id)) == (example_id < 1)


def test_removed_examples_are_gone_and_their_ids_are_not_used_again(database):
    ids = [one.id for one in add(database, *(new_example(n, "rose") for n in range(3)))]
    assert database.remove("flowers", [ids[2], 999]) == 1
    with pytest.raises(ExampleNotFoundError):
        database.thumbnail("flowers", ids[2])
    (again,) = add(database, new_example(2, "rose"))
    assert again.id > ids[2]
    assert database.remove("flowers", None) == 3

    assert database.page("flowers") == []
    assert database.counts("flowers") == Counts(0, 0, {}, 0)
    assert database.labelled("flowers", KEY).ids_N == database.labelled("flowers", KEY).stale_ids == []


def test_the_space_of_removed_examples_is_used_again(database, quick_path):
    sizes = []
    for n in range(6):
        add(database, *(new_example(100 * n + k, "rose", picture=b"x" * 20_000) for k in range(50)))
        database.remove("flowers", None)
        database.close()
        sizes.append((quick_path / "examples.sqlite3").stat().st_size)
    assert sizes[-1] == sizes[1]


def test_a_page_filters_by_label_state_and_ids(database):
    rose, tulip, none, second = add(
        database, new_example(1, "rose"), new_example(2, "tulip"), new_example(3, None), new_example(4, "rose")
    )

    def ids(**filters):
        return [example.id for example in database.page("flowers", **filters)]

    assert ids(label="rose") == [rose.id, second.id]
    assert ids(label="rose", after=rose.id) == [second.id]
    assert ids(is_labelled=False) == [none.id]
    assert ids(is_labelled=True, limit=2) == [rose.id, tulip.id]
    assert ids(ids=[none.id, tulip.id, 999]) == [tulip.id, none.id]
    assert ids(ids=[]) == []


def test_the_revision_rises_with_every_change_and_with_nothing_else(database):
    revisions = [database.revision("flowers")]

    def changes(call):
        call()
        revisions.append(database.revision("flowers"))
        return revisions[-1] > revisions[-2]

    assert changes(lambda: add(database, new_example(1, "rose"), new_example(2, "rose")))
    assert not changes(lambda: add(database, new_example(1, "rose")))
    assert changes(lambda: add(database, new_example(1, "tulip")))
    assert changes(lambda: database.relabel("flowers", [2], None))
    assert not changes(lambda: database.relabel("flowers", [2], None))
    assert not changes(lambda: add(database, new_example(1, "weed"), domain="weeds"))
    assert not changes(lambda: database.put_features("flowers", "second", {1: feature(1)}))
    assert changes(lambda: database.remove("flowers", [1]))
    assert not changes(lambda: database.remove("flowers", [1]))
    assert changes(lambda: database.remove("flowers", None))
    assert changes(lambda: add(database, new_example(1, "rose")))


def test_features_come_by_id_with_the_stale_ones_apart(database):
    added = add(database, *(new_example(n, "rose" if n % 2 else "tulip") for n in range(4)), new_example(9, None))
    ids = [one.id for one in added]
    database.put_features("flowers", "second", {ids[2]: feature(32), ids[0]: feature(30), 999: feature(1)})
    first, second = database.labelled("flowers", KEY), database.labelled("flowers", "second")

    assert (first.ids_N, first.labels_N) == (ids[:4], ["tulip", "rose", "tulip", "rose"])
    assert first.features_NE.dtype == np.float32
    np.testing.assert_array_equal(first.features_NE, [np.frombuffer(feature(n), "<f4") for n in range(4)])
    assert (second.ids_N, second.stale_ids) == ([ids[0], ids[2]], [ids[1], ids[3]])
    np.testing.assert_array_equal(second.features_NE[1], np.frombuffer(feature(32), "<f4"))
    unlabelled = database.unlabelled("flowers", KEY)
    assert (unlabelled.ids_N, unlabelled.labels_N, unlabelled.stale_ids) == ([ids[4]], [""], [])
    assert first.revision == database.revision("flowers")


def test_labelled_and_unlabelled_features_are_read_together(database):
    add(database, *(new_example(n, None if n % 3 == 0 else "rose") for n in range(7)))
    expected = database.labelled("flowers", KEY), database.unlabelled("flowers", KEY)
    for found, alone in zip(database.features("flowers", KEY), expected, strict=True):
        np.testing.assert_array_equal(found.features_NE, alone.features_NE)
        assert replace(found, features_NE=alone.features_NE) == alone
    assert [len(one.ids_N) for one in expected] == [4, 3]
    assert [len(one.stale_ids) for one in database.features("flowers", "other")] == [4, 3]


def test_the_digest_depends_on_pictures_and_labels_alone(database, quick_path):
    other = open_database(quick_path / "other")
    examples = [new_example(n, f"class {n % 3}") for n in range(9)]
    add(database, *examples)
    add(other, *reversed(examples), new_example(99, "rose"))
    other.remove("flowers", [10])
    digest = database.labelled("flowers", KEY).digest

    assert other.labelled("flowers", KEY).digest == digest
    database.relabel("flowers", [1], "class 2")
    assert database.labelled("flowers", KEY).digest != digest
    database.relabel("flowers", [1], "class 0")
    assert database.labelled("flowers", KEY).digest == digest
    other.close()


def test_a_feature_of_another_width_is_refused(database):
    add(database, new_example(1, "rose"))
    with pytest.raises(ValueError, match="has 16 bytes"):
        database.put_features("flowers", KEY, {1: b"\0" * 16})


def test_the_limit_of_a_domain_refuses_the_whole_call(quick_path):
    database = open_database(quick_path, max_per_domain=3)
    add(database, new_example(1, "rose"), new_example(2, "rose"))
    with pytest.raises(ExamplesFullError, match="4 examples; the maximum is 3") as caught:
        add(database, new_example(2, "tulip"), new_example(3, "rose"), new_example(4, "rose"))
    assert (caught.value.code, caught.value.limit) == ("examples_full", 3)
    assert labels(database) == {1: "rose", 2: "rose"}
    add(database, new_example(3, "rose"))
    assert add(database, new_example(3, "tulip"))[0].status == "relabelled"
    assert add(database, new_example(1, "rose"), domain="weeds")[0].status == "added"
    database.close()
    smaller = open_database(quick_path, max_per_domain=1)
    assert add(smaller, new_example(1, "tulip"))[0].status == "relabelled"
    smaller.close()


def test_the_limit_of_bytes_counts_all_domains_and_removing_frees_it(quick_path):
    size = len(new_example(1).thumbnail) + len(feature(1))
    database = open_database(quick_path, max_bytes=2 * size + 10)
    add(database, new_example(1, "rose"))
    add(database, new_example(1, "rose"), domain="weeds")
    with pytest.raises(ExamplesFullError, match="max_example_bytes") as caught:
        add(database, new_example(2, "rose"), domain="trees")
    assert caught.value.limit == 2 * size + 10
    assert database.counts("flowers").n_bytes == size
    database.remove("weeds", None)
    assert add(database, new_example(2, "rose"), domain="trees")[0].status == "added"
    database.close()


def test_one_domain_leaves_half_of_the_bytes_to_others(quick_path):
    size = len(new_example(1).thumbnail) + len(feature(1))
    database = open_database(quick_path, max_bytes=4 * size)
    add(database, new_example(1, "rose"), new_example(2, "rose"))
    with pytest.raises(ExamplesFullError, match="half of max_example_bytes") as caught:
        add(database, new_example(3, "rose"))
    assert caught.value.limit == 2 * size
    assert database.counts("flowers").n_bytes == 2 * size
    assert add(database, new_example(2, "tulip"))[0].status == "relabelled"
    assert add(database, new_example(1, "rose"), new_example(2, "rose"), domain="weeds")[1].status == "added"
    database.close()


def test_threads_share_a_database(database):
    def work(first):
        for n in range(first, first + 30, 3):
            added = add(database, *(new_example(n + k, "rose") for k in range(3)))
            database.relabel("flowers", [added[0].id], "tulip")
            database.remove("flowers", [added[2].id])
            assert {one.id for one in database.page("flowers", limit=1000)} >= {one.id for one in added[:2]}
            assert added[0].id in database.labelled("flowers", KEY).ids_N

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(work, 100 * n) for n in range(8)]:
            done.result()
    assert database.counts("flowers").by_label == {"rose": 80, "tulip": 80}


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(0, 12), st.sampled_from([None, "rose", "tulip"])),
            st.tuples(st.just("relabel"), st.integers(0, 12), st.sampled_from([None, "rose", "tulip"])),
            st.tuples(st.just("remove"), st.integers(0, 12), st.none()),
        ),
        max_size=25,
    ),
    st.integers(1, 5),
)
@settings(max_examples=40, deadline=None)
def test_after_any_changes_pages_and_counts_agree_with_a_dictionary(tmp_path_factory, changes, page_size):
    database = open_database(tmp_path_factory.mktemp("examples"))
    expected, ids = {}, {}
    for action, n, label in changes:
        digest = new_example(n).sha256
        if action == "add":
            is_new = digest not in expected
            (added,) = add(database, new_example(n, label))
            ids[digest] = added.id
            relabels = not is_new and label is not None and label != expected[digest]
            assert added.status == ("added" if is_new else "relabelled" if relabels else "exists")
            if is_new or label is not None:
                expected[digest] = label
        elif digest in expected:
            if action == "relabel":
                assert database.relabel("flowers", [ids[digest]], label) == (label != expected[digest])
                expected[digest] = label
            else:
                assert database.remove("flowers", [ids[digest]]) == 1
                del expected[digest]

    seen, after = [], 0
    while page := database.page("flowers", after=after, limit=page_size):
        assert len(page) <= page_size
        seen += page
        after = page[-1].id
    assert [one.id for one in seen] == sorted(ids[digest] for digest in expected)
    assert {one.sha256: one.label for one in seen} == expected
    named = [label for label in expected.values() if label]
    counts = database.counts("flowers")
    assert counts.by_label == {label: named.count(label) for label in sorted(set(named))}
    assert (counts.labelled, counts.unlabelled) == (len(named), len(expected) - len(named))
    assert counts.n_bytes == sum(one.n_bytes for one in seen)
    database.close()
