"""The history of a domain."""

import json
import pickle

import pytest

from prompt_store import Store, StoreCorruptError, record_files
from prompt_store.records import decode_record, encode_record
from prompt_store.strict_json import dump_canonical
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


def log_of(store):
    return store.root / "domains" / "flowers" / "log"


def overwrite(path, data):
    path.chmod(0o644)
    path.write_bytes(data)


CHANGES = {
    "add": lambda store: store.add("flowers", sample_bundle(5)),
    "add again": lambda store: store.add("flowers", sample_bundle(1)),
    "activate": lambda store: store.activate("flowers", 2),
    "activate again": lambda store: store.activate("flowers", 1),
    "retire": lambda store: store.retire("flowers", 2),
}


@pytest.mark.parametrize("number", [3, 2, 1])
@pytest.mark.parametrize("change", CHANGES)
def test_nothing_is_acknowledged_on_top_of_a_lost_record(store, number, change):
    swapped_to_and_fro(store, 1)
    before = sorted(path.name for path in log_of(store).iterdir())
    before.remove(f"{number:010d}.json")
    (log_of(store) / f"{number:010d}.json").unlink()
    with pytest.raises(StoreCorruptError, match=f"record {number} is missing"):
        CHANGES[change](store)

    assert sorted(path.name for path in log_of(store).iterdir()) == before


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_is_acknowledged_on_top_of_a_changed_record(store, change):
    swapped_to_and_fro(store, 1)
    last = log_of(store) / "0000000003.json"
    other = decode_record(last.read_bytes()).model_copy(update={"actor": "eve"})
    overwrite(last, encode_record(other))
    with pytest.raises(StoreCorruptError, match="record 3 is damaged"):
        CHANGES[change](store)


def flip(data, index):
    flipped = bytearray(data)
    flipped[index // 8] ^= 1 << index % 8
    return bytes(flipped)


def test_every_flipped_bit_in_a_record_is_detected(store):
    data = (log_of(swapped_to_and_fro(store, 1)) / "0000000003.json").read_bytes()
    for index in range(8 * len(data)):
        with pytest.raises(ValueError, match=r"checksum|not a valid record"):
            decode_record(flip(data, index))


def test_a_flipped_bit_in_the_last_record_that_changes_only_history_is_detected(store):
    last = log_of(swapped_to_and_fro(store, 1)) / "0000000003.json"
    data = last.read_bytes()
    overwrite(last, flip(data, 8 * data.index(b'"at":"2') + 8 * 6))
    with pytest.raises(StoreCorruptError, match="record 3 is damaged: its checksum does not match"):
        Store.open(store.root).live("flowers")
    with pytest.raises(StoreCorruptError, match="record 3"):
        store.history("flowers")


def without_checksums(store):
    """Rewrite a log as an earlier release wrote it."""
    head = "sha256:" + "0" * 64
    for path in sorted(log_of(store).iterdir()):
        fields = json.loads(path.read_bytes()) | {"prev": head}
        del fields["checksum"]
        overwrite(path, dump_canonical(fields))
        head = record_files.digest_bytes(path.read_bytes())
    overwrite(store.root / "FORMAT", b'{"format":1}\n')


def test_a_log_of_an_earlier_release_is_read_and_continued(store):
    swapped_to_and_fro(store, 3)
    without_checksums(store)
    old = Store.open(store.root)
    entries = old.history("flowers")
    assert [entry.seq for entry in entries] == [1, 2, 3, 4, 5]
    assert old.rollback("flowers").version == 2
    assert old.add("flowers", sample_bundle(3)).version == 3

    assert [entry.seq for entry in Store.open(store.root).history("flowers")] == [1, 2, 3, 4, 5, 6, 7]
    assert b'"checksum":"sha256:' in (log_of(store) / "0000000007.json").read_bytes()
    assert (store.root / "FORMAT").read_bytes() == b'{"format":1}\n'


def test_a_new_store_names_its_minor_format_version(store):
    assert json.loads((store.root / "FORMAT").read_bytes()) == {"format": 1, "minor": 1}
