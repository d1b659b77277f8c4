"""Interrupted processes: a sample of the crash matrix of `make crash`, and that it detects missing syncs."""

import math
import random

import pytest

from tests.crash.forked import Forker
from tests.crash.matrix import (
    ERRORS,
    KILL,
    cut_power,
    flip_bits,
    flip_example_bits,
    inject_faults,
    injections,
    kill_at_random,
    problem_after,
    record,
)
from tests.crash.power import Disk, power_failures, write_tree
from tests.crash.traced import Call, tracing_problem
from tests.crash.workloads import WORKLOADS

pytestmark = pytest.mark.skipif(bool(tracing_problem()), reason=tracing_problem())


@pytest.fixture(scope="module")
def forker():
    with Forker() as started:
        yield started


@pytest.fixture(params=WORKLOADS)
def recorded(request, forker, quick_path):
    return request.param, record(forker, request.param, quick_path)


def sample_or_all(n):
    """A test with `n` interruptions per workload, and a slow one with all of them."""
    every = pytest.param(None, marks=[pytest.mark.slow, pytest.mark.timeout(3_600)])
    return pytest.mark.parametrize("limit", [n, every], ids=["sample", "all"])


@sample_or_all(4)
def test_a_process_that_is_killed_at_a_system_call_loses_nothing_confirmed(forker, recorded, quick_path, limit):
    name, run = recorded
    outcome = inject_faults(forker, name, quick_path, (KILL,), recorded=run, limit=limit)
    assert outcome.problems == []
    assert outcome.n_tried == outcome.counts["killed"] == (limit or outcome.n_possible)
    assert outcome.n_possible > 15


@sample_or_all(4)
def test_a_system_call_that_fails_is_reported_and_loses_nothing_confirmed(forker, recorded, quick_path, limit):
    name, run = recorded
    outcome = inject_faults(forker, name, quick_path, ERRORS, recorded=run, limit=limit)
    assert outcome.problems == []
    assert outcome.n_tried == (limit or outcome.n_possible)


@sample_or_all(60)
def test_a_power_failure_loses_nothing_confirmed(recorded, quick_path, limit):
    name, run = recorded
    outcome = cut_power(name, quick_path, recorded=run, limit=limit)
    assert outcome.problems == []
    assert outcome.n_tried > 20


def test_a_database_that_could_not_be_written_as_a_whole_gets_no_name(forker, quick_path):
    run = record(forker, "examples", quick_path)
    outcome = inject_faults(forker, "examples", quick_path, ("EIO",), recorded=run, where=".tmp-", limit=80)
    assert outcome.problems == []
    assert outcome.counts["refused"] > 10


def test_writers_killed_at_random_lose_nothing_confirmed(forker, quick_path):
    outcome = kill_at_random(forker, quick_path, until_s=math.inf, max_rounds=8)
    assert outcome.problems == []
    assert outcome.n_tried == 16


def test_a_flipped_bit_in_a_store_is_detected(quick_path):
    outcome = flip_bits(quick_path, 150)
    assert outcome.problems == []
    assert outcome.counts["refused by the reader"] > 10


def test_a_flipped_bit_in_the_examples_is_never_read_as_other_content(quick_path):
    outcome = flip_example_bits(quick_path, 300)
    assert outcome.problems == []
    assert outcome.counts["refused by the reader"] > 10


def test_without_syncs_each_workload_loses_data(recorded, quick_path):
    name, (whole, views) = recorded
    calls = [call for call in whole.calls if call.name not in {"fsync", "fdatasync"}]
    found = None
    for number, (state, n_done) in enumerate(power_failures(quick_path / f"{name}-whole", calls)):
        root = quick_path / f"state-{number}"
        write_tree(state, root)
        if found := problem_after(name, root, views[n_done : n_done + 2]):
            break
    assert found


def test_every_change_of_a_workload_is_a_place_for_a_fault(recorded, quick_path):
    name, (whole, _) = recorded
    places = {call.name for _, call in injections(whole.calls, quick_path / f"{name}-whole", (KILL,))}
    assert places & {"fsync", "fdatasync"}
    assert places & {"write", "pwrite64"}


def states(*calls):
    disk = Disk("/r")
    for call in calls:
        disk.play(call)
    return {tuple(sorted(state.items())) for state in disk.states(random.Random(0))}  # noqa: S311


def test_the_model_loses_any_part_of_what_is_not_synced():
    created = Call("openat", 1, ("/r/a",), creates=True, fd=3)
    written = Call("write", 1, ("/r/a",), b"1234")
    assert states(created, written) == {(), (("a", b""),), (("a", b"12"),), (("a", b"1234"),)}


def test_the_model_keeps_a_synced_file_without_its_name_until_its_directory_is_synced():
    created = Call("openat", 1, ("/r/a",), creates=True, fd=3)
    written, synced = Call("write", 1, ("/r/a",), b"1234"), Call("fsync", 1, ("/r/a",))
    assert states(created, written, synced) == {(), (("a", b"1234"),)}
    assert states(created, written, synced, Call("fsync", 2, ("/r",))) == {(("a", b"1234"),)}


def test_the_model_loses_what_is_in_a_directory_that_is_lost():
    calls = Call("mkdir", 1, ("/r/d",)), Call("openat", 1, ("/r/d/a",), creates=True, fd=3), Call("fsync", 1, ("/r/d",))
    assert states(*calls) == {(), (("d", None), ("d/a", b""))}


def test_the_model_renames_wholly_or_not_at_all():
    old, new = (Call("openat", n, (f"/r/{name}",), creates=True, fd=3) for n, name in enumerate("ab"))
    calls = old, Call("write", 1, ("/r/a",), b"1"), Call("fsync", 1, ("/r/a",)), new, Call("fsync", 2, ("/r",))
    renamed = Call("rename", 1, ("/r/a", "/r/b"))
    assert states(*calls, renamed) == {(("a", b"1"), ("b", b"")), (("b", b"1"),)}
