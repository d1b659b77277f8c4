"""A rollout is a record of the domain's log: durable, one per domain, ended by every change of the live version."""

import pytest

from prompt_store import ConflictError, RolloutPlan, VersionLiveError, VersionNotFoundError
from prompt_store.digest import digest_bytes
from prompt_store.disk import open_directory
from prompt_store.record_files import read_records
from prompt_store.records import State, encode_record
from prompt_store.rollouts import RolloutChange
from tests.prompt_store.samples import sample_bundle

PLAN = RolloutPlan(version=2, mode="canary", percent=12.5, min_images=30)


@pytest.fixture
def store(place):
    """Three versions, of which the first is live."""
    store = place.open()
    for seed in range(3):
        store.add("flowers", sample_bundle(seed))
    store.activate("flowers", 1, actor="anna")
    return store


def records_of(store):
    state = store._logs.require("flowers")
    with open_directory(store.root / "domains" / "flowers" / "log") as log:
        return read_records(log, state, first=1, last=state.seq)


def test_every_process_reads_a_rollout_and_the_live_version_stays(store, place):
    started = store.start_rollout("flowers", PLAN, actor="bo").rollout
    found = place.another().live("flowers")
    assert found.version == 1
    assert found.rollout == started
    assert (started.plan, started.actor, started.seq) == (PLAN, "bo", 5)
    assert started.digest == store.versions("flowers")[1].digest


def test_the_history_and_the_audit_log_have_start_and_end_with_both_versions(store):
    started = store.start_rollout("flowers", PLAN, actor="bo").rollout
    store.end_rollout("flowers", started.seq, event="rollback", detail="9.0% of 30 images disagree", actor="bo")
    store.start_rollout("flowers", PLAN, actor="cy")
    store.end_rollout("flowers", actor="cy")
    last = store.history("flowers")[-4:]
    assert [(one.action, one.from_version, one.to_version, one.actor) for one in last] == [
        ("rollout start", 1, 2, "bo"),
        ("rollout rollback", 1, 2, "bo"),
        ("rollout start", 1, 2, "cy"),
        ("rollout stop", 1, 2, "cy"),
    ]
    assert [one.detail for one in last] == ["", "9.0% of 30 images disagree", "", ""]
    report = store.audit()
    assert report.problems() == []
    assert [(row.action, row.version) for row in report.rows[-4:]] == [(one.action, 2) for one in last]


def test_only_one_rollout_runs_in_a_domain(store):
    store.start_rollout("flowers", PLAN)
    with pytest.raises(ConflictError, match="Stop it first") as refused:
        store.start_rollout("flowers", RolloutPlan(version=3))
    assert refused.value.code == "rollout_running"


def test_a_candidate_is_a_stored_version_that_is_not_live(store):
    with pytest.raises(VersionLiveError):
        store.start_rollout("flowers", RolloutPlan(version=1))
    with pytest.raises(VersionNotFoundError):
        store.start_rollout("flowers", RolloutPlan(version=9))
    with pytest.raises(ConflictError, match="live version is 1"):
        store.start_rollout("flowers", PLAN, expected_live=3)
    store.add("idle", sample_bundle(0, "idle"))
    with pytest.raises(ConflictError, match="live version is none"):
        store.start_rollout("idle", RolloutPlan(version=1))
    assert store.live("flowers").rollout is None


def test_a_candidate_can_neither_be_retired_nor_collected(store):
    store.start_rollout("flowers", PLAN)
    with pytest.raises(ConflictError, match="rollout"):
        store.retire("flowers", 2)
    store.gc(keep_versions=1, grace_s=-1)
    assert [info.version for info in store.versions("flowers")] == [1, 2, 3]
    store.end_rollout("flowers")
    store.gc(keep_versions=1, grace_s=-1)
    assert [info.version for info in store.versions("flowers")] == [1, 3]


@pytest.mark.parametrize(
    ("change", "live"),
    [
        (lambda store: store.activate("flowers", 3), 3),
        (lambda store: store.activate("flowers", 2), 2),
        (lambda store: store.activate("flowers", 1), 1),
        (lambda store: store.rollback("flowers"), 3),
    ],
    ids=["another version", "the candidate", "the live version again", "rollback"],
)
def test_every_change_of_the_live_version_ends_the_rollout(store, change, live):
    store.activate("flowers", 3)
    store.activate("flowers", 1)
    store.start_rollout("flowers", PLAN)
    change(store)
    assert (store.live("flowers").version, store.live("flowers").rollout) == (live, None)


def test_an_upload_leaves_the_rollout_alone(store):
    started = store.start_rollout("flowers", PLAN).rollout
    store.add("flowers", sample_bundle(7))
    assert store.live("flowers").rollout == started


def test_a_rollout_ends_once_although_two_processes_end_it(store, place):
    started = store.start_rollout("flowers", PLAN).rollout
    other = place.another()
    assert not other.end_rollout("flowers", started.seq - 1, event="rollback")
    assert store.end_rollout("flowers", started.seq, event="rollback")
    assert not other.end_rollout("flowers", started.seq, event="rollback")
    assert not other.end_rollout("flowers")
    again = store.start_rollout("flowers", PLAN).rollout
    other.refresh()
    assert not other.end_rollout("flowers", started.seq, event="rollback")
    assert other.live("flowers").rollout == again


def test_the_candidate_is_activated_by_its_own_rollout_only_while_that_runs(store):
    started = store.start_rollout("flowers", PLAN).rollout
    with pytest.raises(ConflictError, match="has ended"):
        store.activate("flowers", 2, completes=(started.seq - 1, ""))
    assert store.activate("flowers", 2, completes=(started.seq, "1.0% of 30 images disagree")).version == 2
    last = store.history("flowers")[-1]
    assert (last.action, last.from_version, last.to_version) == ("activate", 1, 2)
    assert last.detail == "1.0% of 30 images disagree"
    assert store.rollback("flowers").version == 1


def test_a_release_without_rollouts_reads_the_same_versions_live_and_to_roll_back_to(store):
    """It ignores the field `rollout` and reads each record of a rollout as an activation of the live version."""
    store.start_rollout("flowers", PLAN)
    store.end_rollout("flowers")
    started = store.start_rollout("flowers", RolloutPlan(version=3)).rollout
    store.activate("flowers", 3, completes=(started.seq, ""))
    store.start_rollout("flowers", PLAN)
    store.rollback("flowers")
    store.activate("flowers", 2)
    store.start_rollout("flowers", RolloutPlan(version=3))
    ours = theirs = State()
    for record in records_of(store):
        digest = digest_bytes(encode_record(record))
        ours = ours.after(record, digest)
        theirs = theirs.after(record.model_copy(update={"rollout": None}), digest)
        assert (theirs.live, theirs.rollback_version()) == (ours.live, ours.rollback_version())
        assert theirs.available() == ours.available()
    assert ours.rollout is not None


def test_records_of_other_changes_have_no_field_for_rollouts(store):
    for path in (store.root / "domains" / "flowers" / "log").iterdir():
        assert b"rollout" not in path.read_bytes()


@pytest.mark.parametrize(
    ("version", "change"),
    [
        (2, {"event": "start", "version": 3, "plan": RolloutPlan(version=3)}),
        (1, {"event": "start", "version": 2}),
        (1, {"event": "start", "version": 9, "plan": RolloutPlan(version=9)}),
    ],
    ids=["beside a version that is not live", "without a plan", "of an unknown version"],
)
def test_an_impossible_rollout_is_not_a_valid_record(store, version, change):
    state, last = store._logs.require("flowers"), records_of(store)[-1]
    target = state.find(version)
    record = last.model_copy(
        update={
            "seq": state.seq + 1,
            "prev": state.head,
            "version": version,
            "digest": target.digest,
            "rollout": RolloutChange(digest=state.find(min(change["version"], 3)).digest, **change),
        }
    )
    with pytest.raises(ValueError, match="rollout"):
        state.after(record, "sha256:" + "0" * 64)
