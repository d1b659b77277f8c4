"""The audit log: every change has its entry, and no entry or record can be altered unnoticed."""

import errno
import itertools
import json
import shutil

import pytest
from typer.testing import CliRunner

from prompt_store import Store, StoreReadOnlyError
from prompt_store.cli import store_app
from prompt_store.records import with_checksum
from prompt_store.repair import check_store
from tests.prompt_store.faults import CountingDisk, CrashingDisk, FailingDisk, run_scenario
from tests.prompt_store.samples import sample_bundle

FIELDS = "sha256:" + "1" * 64
OTHER = "sha256:" + "2" * 64


@pytest.fixture
def store(quick_path):
    """Two domains, seven records, and three entries about keys."""
    store = Store.open(quick_path / "store")
    store.add("flowers", sample_bundle(0), actor="k1")
    store.audit_keys({"aaaaaaaa": (FIELDS, "classify"), "bbbbbbbb": (FIELDS, "publish")})
    store.activate("flowers", 1, actor="k1")
    store.add("weeds", sample_bundle(0, "weeds"), actor="k2")
    store.add("flowers", sample_bundle(1), origin="fit", actor="k2")
    store.activate("flowers", 2, actor="k2")
    store.audit_keys({"bbbbbbbb": (FIELDS, "publish")})
    store.rollback("flowers", actor="k1")
    store.retire("flowers", 2, actor="k1")
    return store


def entries(store):
    return sorted((store.root / "audit").iterdir())


def problems(store, expected=None):
    return Store.open(store.root).audit().problems(expected)


def overwrite(path, data):
    path.chmod(0o644)
    path.write_bytes(data)


def test_the_log_lists_all_changes_with_their_actors(store):
    report = store.audit()

    assert [(row.action, row.domain or row.key, row.version, row.actor) for row in report.rows] == [
        ("publish", "flowers", 1, "k1"),
        ("key added", "aaaaaaaa (classify)", None, ""),
        ("key added", "bbbbbbbb (publish)", None, ""),
        ("activate", "flowers", 1, "k1"),
        ("publish", "weeds", 1, "k2"),
        ("fit", "flowers", 2, "k2"),
        ("activate", "flowers", 2, "k2"),
        ("key removed", "aaaaaaaa", None, ""),
        ("rollback", "flowers", 1, "k1"),
        ("retire", "flowers", 2, "k1"),
    ]
    assert [row.entry for row in report.rows] == list(range(1, 11))
    assert report.problems() == []


def test_a_change_that_is_none_has_no_entry(store):
    store.activate("flowers", 1)
    store.audit_keys({"bbbbbbbb": (FIELDS, "publish")})

    assert len(entries(store)) == 10
    assert [change.change for change in store.audit_keys({"bbbbbbbb": (OTHER, "publish")})] == ["changed"]


def test_a_removed_entry_is_found(store):
    for path in entries(store)[:-1]:
        copy = path.read_bytes()
        path.unlink()
        assert problems(store) == [f"Entry {int(path.stem)} is missing."]
        path.write_bytes(copy)
    assert problems(store) == []


def test_any_changed_bit_of_an_entry_is_found(store):
    for path in entries(store):
        intact = path.read_bytes()
        for position in range(0, 8 * len(intact), 41):  # every bit of a byte, in bytes all over the file
            flipped = bytearray(intact)
            flipped[position // 8] ^= 1 << position % 8
            overwrite(path, bytes(flipped))
            assert problems(store), position
        overwrite(path, intact)
    assert problems(store) == []


def test_reordered_entries_are_found(store):
    for first, second in itertools.pairwise(entries(store)):
        one, two = first.read_bytes(), second.read_bytes()
        overwrite(first, two)
        overwrite(second, one)
        assert problems(store)[0].startswith(f"Entry {int(first.stem)} is in the wrong place")
        overwrite(first, one)
        overwrite(second, two)


def test_an_entry_of_another_store_is_found(store, quick_path):
    other = Store.open(quick_path / "other")
    for seed in range(10):
        other.add("flowers", sample_bundle(seed))
    for path in entries(store):
        intact = path.read_bytes()
        overwrite(path, (other.root / "audit" / path.name).read_bytes())
        assert problems(store), path.name
        overwrite(path, intact)


def test_entries_that_are_cut_off_leave_changes_without_an_entry(store):
    last = f"{len(entries(store))}:{store.audit().head}"
    for path in entries(store)[:-3:-1]:
        path.unlink()

    assert problems(store) == [
        "flowers: Records 5 to 6 have no entry in the audit log: the writer was killed before it was written, was an "
        "earlier release, or the end of the audit log was removed."
    ]
    assert problems(store, last)[-1].startswith(f"Entry {last} is not in the log")


def test_a_cut_of_both_logs_is_found_with_an_entry_that_was_noted_before(store):
    last = f"{len(entries(store))}:{store.audit().head}"
    entries(store)[-1].unlink()
    max((store.root / "domains/flowers/log").iterdir()).unlink()

    assert problems(store) == []
    assert problems(store, last) == [f"Entry {last} is not in the log: entries were removed from its end, or replaced."]
    assert problems(store, "10:sha256:no")
    assert problems(store, "nonsense")


def test_an_entry_about_a_key_that_is_cut_off_is_found_with_an_entry_that_was_noted_before(store):
    store.audit_keys({})
    last = f"{len(entries(store))}:{store.audit().head}"
    entries(store)[-1].unlink()

    assert problems(store) == []
    assert problems(store, last) == [f"Entry {last} is not in the log: entries were removed from its end, or replaced."]


def test_records_that_are_cut_off_are_found(store):
    last = max((store.root / "domains/flowers/log").iterdir())
    last.unlink()

    assert problems(store) == ["flowers: Record 6, which entry 10 of the audit log names, is missing: it was removed."]
    report = store.audit()
    assert report.rows[-1].action == "missing"


def test_a_record_that_is_removed_or_changed_before_the_last_one_is_found(store):
    for path in sorted((store.root / "domains/flowers/log").iterdir())[:-1]:
        number, intact = int(path.stem), path.read_bytes()
        path.unlink()
        assert [text.partition(".")[0] for text in problems(store)] == [f"flowers: Commit record {number} is missing"]
        path.write_bytes(with_checksum(json.loads(intact) | {"actor": "someone else"}))
        (problem,) = problems(store)
        assert problem.startswith(f"flowers: Commit record {number + 1} is damaged: it does not continue the chain")
        overwrite(path, intact)
    assert problems(store) == []


def test_a_removed_domain_is_found(store):
    shutil.rmtree(store.root / "domains/weeds")

    assert problems(store) == ["weeds: Record 1, which entry 5 of the audit log names, is missing: it was removed."]


def test_replaced_records_are_found_although_their_own_chain_is_intact(store, quick_path):
    other = Store.open(quick_path / "other")
    other.add("weeds", sample_bundle(0, "weeds"), actor="someone else")
    shutil.rmtree(store.root / "domains/weeds")
    shutil.copytree(other.root / "domains/weeds", store.root / "domains/weeds")

    assert problems(store) == ["weeds: Record 1 is not the one that entry 5 of the audit log names: it was replaced."]


def test_the_check_of_a_store_finds_the_same_and_a_repair_has_its_own_entry(store):
    max((store.root / "domains/flowers/log").iterdir()).unlink()
    shutil.rmtree(store.root / "domains/weeds")

    found, _ = check_store(store.root)
    assert not found.is_sound
    found, repairs = check_store(store.root, repair=True)
    assert found.is_sound, found
    assert {repair.path for repair in repairs} == {"domains/flowers", "domains/weeds"}
    assert problems(store) == []
    rows = Store.open(store.root).audit().rows[-2:]
    assert {(row.action, row.domain, row.record) for row in rows} == {
        ("repair", "flowers", 5),
        ("repair", "weeds", 0),
    }


def test_a_damaged_log_does_not_prevent_changes_and_a_repair_begins_a_new_one(store):
    overwrite(entries(store)[4], b"{}")
    store.activate("weeds", 1)
    assert problems(store) == ["Entry 5 is damaged: it is not a valid entry."]

    found, _ = check_store(store.root, repair=True)
    assert found.is_sound
    assert list((store.root / "quarantine").rglob("audit/0000000005.json"))
    assert problems(store) == []
    assert [row.entry for row in store.audit().rows] == [1, 1, 1, 1, 1, 1, 2, 2]
    store.add("weeds", sample_bundle(3, "weeds"))
    assert problems(store) == []


def test_a_store_of_an_earlier_release_is_completed(store):
    shutil.rmtree(store.root / "audit")

    assert check_store(store.root)[0].is_sound
    assert len(problems(store)) == 2
    assert store.complete_audit() == (2, "")
    assert store.complete_audit() == (0, "")
    assert problems(store) == []
    assert [row.entry for row in store.audit().rows] == [1, 1, 1, 1, 1, 1, 2]


@pytest.mark.parametrize("is_after", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["before", "after"])
def test_after_a_kill_at_any_call_no_entry_is_ahead_of_the_records_and_every_gap_is_found(quick_path, is_after):
    whole = CountingDisk()
    run_scenario(quick_path / "whole", whole)
    n_gaps = 0
    for step in range(whole.n_calls):
        root = quick_path / f"{step}"
        run_scenario(root, CrashingDisk(step, is_after=is_after))
        if not (root / "FORMAT").exists():
            continue
        report = Store.open(root).audit()
        assert report.problem == ""
        assert not any(gap.is_lost for gap in report.gaps)
        uncovered = [row for row in report.rows if row.entry is None]
        assert len(uncovered) <= 1  # the change that was interrupted
        assert bool(uncovered) == bool(report.gaps)
        n_gaps += len(report.gaps)
        Store.open(root).complete_audit()
        assert Store.open(root).audit().problems() == []
    assert n_gaps > 20


@pytest.fixture
def synced_entry(quick_path):
    """A store whose version 2 is not live, and the number of the call that syncs the entry of its activation."""
    root, counting = quick_path / "store", CountingDisk()
    store = Store.open(root, disk=counting)
    store.add("flowers", sample_bundle(0))
    before = counting.n_calls
    store.activate("flowers", 1)
    n_calls = counting.n_calls - before
    store.add("flowers", sample_bundle(1))
    return root, n_calls - 6


def test_a_failed_entry_does_not_fail_the_change(synced_entry, caplog):
    root, step = synced_entry
    failing = FailingDisk(step, errno.ENOSPC)
    assert Store.open(root, disk=failing).activate("flowers", 2).version == 2
    assert failing.failed_call == "sync_file"
    assert "audit.incomplete" in caplog.text
    assert [row.entry for row in Store.open(root).audit().rows] == [1, 2, 3, None]


def test_after_a_disk_error_while_an_entry_is_written_the_store_is_read_only_until_a_restart(synced_entry):
    root, step = synced_entry
    failed = Store.open(root, disk=FailingDisk(step, errno.EIO))
    assert failed.activate("flowers", 2).version == 2
    assert not failed.is_writable
    with pytest.raises(StoreReadOnlyError):
        failed.activate("flowers", 1)
    assert Store.open(root).activate("flowers", 1).version == 1


def test_concurrent_writers_of_two_domains_share_one_chain(store):
    other = Store.open(store.root)
    for number in range(5):
        store.add("flowers", sample_bundle(10 + number))
        other.add("weeds", sample_bundle(20 + number, "weeds"))

    assert problems(store) == []
    assert len(entries(store)) == 20


@pytest.fixture
def run(store):
    def call(*arguments, code=0):
        result = CliRunner().invoke(store_app, ["audit", "--store", str(store.root), *arguments])
        assert result.exit_code == code, result.output
        return result.stdout

    return call


def test_the_command_shows_the_changes(run):
    text = run()
    facts = json.loads(run("--json", "--limit", "2"))

    assert "key removed" in text
    assert "The last one is 10:sha256:" in text
    assert [change["action"] for change in facts["changes"]] == ["rollback", "retire"]


def test_the_command_verifies(run, store):
    last = json.loads(run("--verify", "--json"))["last"]
    run("--verify", "--expect", last)
    entries(store)[-1].unlink()

    facts = json.loads(run("--verify", "--expect", last, "--json", code=1))
    assert facts["is_intact"] is False
    assert len(facts["problems"]) == 2
