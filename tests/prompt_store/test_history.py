"""The history of a domain."""

import pickle

import pytest

from prompt_store import Store, StoreCorruptError, record_files
from tests.prompt_store.samples import sample_bundle


@pytest.fixture
def store(quick_path):
    return Store.open(quick_path / "store")


def filled(store, n_versions=2):
    for seed in range(n_versions):
        store.add("flowers", sample_bundle(seed))
    return store


def test_history_names_who_when_from_and_to(store):
    filled(store, 2)
    store.activate("flowers", 1, actor="anna")
    store.activate("flowers", 2, actor="bo\n\x1b[31m")
    store.rollback("flowers", actor="x" * 500)
    store.retire("flowers", 2)
    entries = store.history("flowers")

    assert [(entry.action, entry.from_version, entry.to_version) for entry in entries] == [
        ("publish", None, 1),
        ("publish", None, 2),
        ("activate", None, 1),
        ("activate", 1, 2),
        ("rollback", 2, 1),
        ("retire", 2, None),
    ]
    assert [entry.actor for entry in entries[2:5]] == ["anna", "bo??[31m", "x" * 128]


def swapped_to_and_fro(store, n_swaps):
    filled(store, 2)
    for number in range(n_swaps):
        store.activate("flowers", number % 2 + 1)
    return store


def test_a_long_history_is_read_in_pages_that_leave_nothing_out(store):
    swapped_to_and_fro(store, 9)
    pages, before = [], None
    while page := store.history("flowers", limit=4, before=before):
        pages.insert(0, page)
        before = page[0].seq
    assert [entry.seq for page in pages for entry in page] == list(range(1, 12))
    assert [len(page) for page in pages] == [3, 4, 4]
    assert store.history("flowers")[-4:] == pages[-1]


@pytest.mark.parametrize("bounds", [{"limit": 0}, {"before": 0}])
def test_invalid_history_bounds_are_rejected(store, bounds):
    with pytest.raises(ValueError, match="at least 1"):
        swapped_to_and_fro(store, 1).history("flowers", **bounds)


@pytest.mark.parametrize("before", [None, 5])
def test_a_modified_record_is_detected(store, before):
    swapped_to_and_fro(store, 4)
    path = store.root / "domains" / "flowers" / "log" / "0000000004.json"
    path.write_bytes(path.read_bytes().replace(b'"actor":""', b'"actor":"eve"'))
    with pytest.raises(StoreCorruptError, match="record 4"):
        store.history("flowers", before=before)


def test_a_record_missing_from_a_cached_log_is_detected(store):
    swapped_to_and_fro(store, 1)
    assert store.live("flowers").version == 1
    log = store.root / "domains" / "flowers" / "log"
    (log / "0000000005.json").write_bytes(b"{}")
    with pytest.raises(StoreCorruptError, match="record 4"):
        store.live("flowers")


def test_a_commit_between_the_two_checks_is_not_damage(store, monkeypatch):
    swapped_to_and_fro(store, 1)
    other = Store.open(store.root)
    looked_ahead = record_files._has_later

    def late_look(*args, **kwargs):
        monkeypatch.undo()
        other.activate("flowers", 2)
        other.activate("flowers", 1)
        return looked_ahead(*args, **kwargs)

    monkeypatch.setattr(record_files, "_has_later", late_look)
    assert store.live("flowers").seq == 5


def test_the_state_cache_grows_by_one_number_per_swap(store):
    """A domain that is swapped every minute for years must not fill the memory."""
    few = len(pickle.dumps(swapped_to_and_fro(store, 5)._logs.state("flowers")))
    for number in range(100):
        store.activate("flowers", number % 2 + 1)
    assert len(pickle.dumps(store._logs.state("flowers"))) < few + 100 * 8
