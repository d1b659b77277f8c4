"""Several processes on one store, some of them killed."""

import json
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prompt_store import Store
from tests.prompt_store.samples import sample_bundle

ROOT = Path(__file__).parents[2]

WRITER = """
import json, sys, time
from pathlib import Path
from prompt_store import Store, read_bundle
from tests.prompt_store.samples import sample_bundle
root, name, first, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
store = Store.open(root)
bundles = [sample_bundle(seed) for seed in range(first, first + count)]
print(json.dumps([read_bundle(data).digest for data in bundles]), flush=True)
sys.stdin.readline()
for data in bundles:
    added = store.add("flowers", data, actor=name)
    print(json.dumps(["add", added.version, added.digest]), flush=True)
    store.activate("flowers", added.version, actor=name)
    print(json.dumps(["activate", added.version, added.digest]), flush=True)
"""


def start(root, name, first, count):
    command = [sys.executable, "-c", WRITER, str(root), name, str(first), str(count)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return process, json.loads(process.stdout.readline())


def go(process):
    process.stdin.write("go\n")
    process.stdin.flush()


def lines(text):
    return [json.loads(line) for line in text.splitlines() if line.endswith("]")]


@pytest.mark.parametrize("n_each", [50, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_two_processes_add_and_activate_at_once_without_a_lost_update(quick_path, n_each):
    root = quick_path / "store"
    processes = [start(root, name, first, n_each)[0] for name, first in (("anna", 0), ("bo", n_each))]
    for process in processes:
        go(process)
    with ThreadPoolExecutor() as readers:  # a full pipe would hold one of them up
        acknowledged = [lines(output) for output, _ in readers.map(subprocess.Popen.communicate, processes)]
    store = Store.open(root)

    assert [process.returncode for process in processes] == [0, 0]
    added = [(version, digest) for own in acknowledged for action, version, digest in own if action == "add"]
    assert sorted(version for version, _ in added) == list(range(1, 2 * n_each + 1))
    assert {info.version: info.digest for info in store.versions("flowers")} == dict(added)
    history = store.history("flowers", limit=5 * n_each)
    assert [entry.seq for entry in history] == list(range(1, 4 * n_each + 1))
    moves = [entry for entry in history if entry.action == "activate"]
    assert len(moves) == 2 * n_each
    assert [entry.from_version for entry in moves] == [None, *(entry.to_version for entry in moves[:-1])]
    own = {version for _, version, _ in acknowledged[0]}
    assert all(entry.actor == ("anna" if entry.to_version in own else "bo") for entry in moves)


def test_a_reader_sees_what_another_process_wrote(quick_path):
    reader = Store.open(quick_path / "store")
    process, _ = start(quick_path / "store", "anna", 0, 1)
    assert reader.domains() == []
    go(process)
    process.communicate(timeout=30)

    assert reader.live("flowers").version == 1


@pytest.mark.slow
def test_writers_killed_at_random_moments_lose_nothing_acknowledged(quick_path):
    dice = random.Random(20)  # noqa: S311 - moments, not secrets
    root = quick_path / "store"
    Store.open(root)
    acknowledged = {}
    attempted = set()
    n_kills = 0
    for batch in range(12):
        started = [start(root, f"w{index}", 10_000 * batch + 1000 * index, 100) for index in range(2)]
        processes = [process for process, _ in started]
        attempted.update(*(digests for _, digests in started))
        for process in processes:
            go(process)
        time.sleep(dice.uniform(0.001, 0.06))
        for process in processes:
            process.send_signal(signal.SIGKILL)
        outputs = [process.communicate(timeout=30)[0] for process in processes]
        n_kills += sum(process.returncode == -signal.SIGKILL for process in processes)
        for output in outputs:
            acknowledged |= {version: digest for _, version, digest in lines(output)}
        store = Store.open(root)
        found = {info.version: info.digest for info in store.versions("flowers")} if store.domains() else {}
        assert acknowledged.items() <= found.items()
        assert attempted >= set(found.values())
        assert sorted(found) == list(range(1, len(found) + 1))
        for version in list(found)[-6:]:
            store.read("flowers", version)
        moves = [move for output in outputs for move in lines(output) if move[0] == "activate"]
        assert not moves or store.live("flowers") is not None

    assert n_kills >= 20
    report = store.gc(keep_versions=10**6, grace_s=-1, temporary_grace_s=-1)
    assert report.retired == ()
    assert not [path for path in root.rglob("*") if ".tmp-" in path.name]
    assert store.add("flowers", sample_bundle(999_999)).version == len(found) + 1
