"""Writers to a bucket that are killed: a version is there with its bundle and its record, or not at all."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prompt_store.s3 import Bucket
from prompt_store.s3_store import CACHE_VARIABLE
from tests.prompt_store.faults import ProcessCrash, scenario, view
from tests.prompt_store.samples import sample_bundle

ROOT = Path(__file__).parents[2]
WRITES = ("put_new", "put", "delete")


def counted(monkeypatch, crash_at=None, *, is_after=False):
    """Count the writes to buckets; crash before or after one of them, and refuse all requests afterwards."""
    done = []

    def patched(name):
        original = getattr(Bucket, name)

        def call(self, *arguments):
            if done and done[-1] == "dead":
                raise ProcessCrash
            if len(done) == crash_at:
                if is_after:
                    original(self, *arguments)
                done.append("dead")
                raise ProcessCrash(name)
            done.append(name)
            return original(self, *arguments)

        return call

    for name in WRITES:
        monkeypatch.setattr(Bucket, name, patched(name))
    return done


def run(place):
    """Run the scenario of `faults` until the crash: the last acknowledged view, and the attempted one."""
    acknowledged = attempted = ({}, None)
    try:
        store = place.another()
        for action, expected in scenario():
            attempted = expected
            action(store)
            acknowledged = expected
    except ProcessCrash:
        return acknowledged, attempted
    return acknowledged, acknowledged


N_WRITES = 21
"""Of the scenario without a crash; the first test compares it."""
QUICK = (0, 1, 2, 3, 19)
"""A format file, a bundle, a record, an entry of the audit log, and a removed bundle."""


def test_the_scenario_has_as_many_writes_as_there_are_crashes(s3_place, monkeypatch):
    done = counted(monkeypatch)
    acknowledged, _ = run(s3_place)
    assert len(done) == N_WRITES
    assert acknowledged == scenario()[-1][1]


@pytest.mark.parametrize("is_after", [False, True])
@pytest.mark.parametrize("step", [*QUICK, pytest.param(None, marks=pytest.mark.slow)])
def test_a_crash_at_any_write_leaves_the_state_before_or_after_a_change(s3_place, monkeypatch, step, is_after):
    """Step None stands for all others."""
    for number in [step] if step is not None else [n for n in range(N_WRITES) if n not in QUICK]:
        for key in s3_place.names():
            s3_place.remove(key)
        with monkeypatch.context() as patch:
            counted(patch, number, is_after=is_after)
            acknowledged, attempted = run(s3_place)
        store = s3_place.another()
        seen = view(store)
        assert seen in (acknowledged, attempted), number
        store.complete_audit()
        assert store.audit().problems() == [], number
        added = store.add("flowers", sample_bundle(99))
        assert store.activate("flowers", added.version).version == added.version
        assert s3_place.another().read("flowers", added.version) == sample_bundle(99)


WRITER = """
import json, sys
from prompt_store import open_store, read_bundle
from tests.prompt_store.samples import sample_bundle
store = open_store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for seed in range(int(sys.argv[2]), int(sys.argv[2]) + 100):
    added = store.add("flowers", sample_bundle(seed))
    print(json.dumps(["add", added.version, seed]), flush=True)
    store.activate("flowers", added.version)
    print(json.dumps(["activate", added.version, seed]), flush=True)
"""


@pytest.mark.slow
def test_processes_that_are_killed_lose_nothing_acknowledged_and_leave_no_half_version(s3_place):
    dice = random.Random(27)  # noqa: S311 - moments, not secrets
    s3_place.open()
    acknowledged = {}
    n_kills = 0
    for batch in range(5):
        processes = []
        for index in range(2):
            cache = s3_place.folder / f"killed-{batch}-{index}"
            command = [sys.executable, "-c", WRITER, s3_place.address, str(10_000 * batch + 1000 * index)]
            environment = os.environ | {CACHE_VARIABLE: str(cache)}
            processes.append(
                subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        time.sleep(dice.uniform(0.2, 1.0))
        for process in processes:
            process.send_signal(signal.SIGKILL)
        outputs = [process.communicate(timeout=60)[0] for process in processes]
        n_kills += sum(process.returncode == -signal.SIGKILL for process in processes)
        lines = [json.loads(line) for output in outputs for line in output.splitlines() if line.endswith("]")]
        acknowledged |= {version: seed for action, version, seed in lines if action == "add"}
        store = s3_place.another()
        versions = store.versions("flowers") if store.domains() else []
        assert [info.version for info in versions] == list(range(1, len(versions) + 1))
        for info in versions:
            data = store.read("flowers", info.version)
            assert info.version not in acknowledged or data == sample_bundle(acknowledged[info.version])
        assert set(acknowledged) <= {info.version for info in versions}
        store.complete_audit()
        assert store.audit().problems() == []
    assert n_kills == 10
    assert len(acknowledged) >= 5
