"""Interrupts workloads in every way and collects the problems found afterwards.

After each interruption a reader must see exactly the confirmed steps, or one more; looking twice must give the same;
and the next change must succeed.
"""

import hashlib
import math
import random
import shutil
import signal
import time
from dataclasses import dataclass, field

from prompt_store import PromptStoreError, Store
from prompt_store.check import check_layout
from prompt_store.example_checksums import content_problems
from prompt_store.layout import Layout
from prompt_store.sqlite_files import SIDE_FILES, database_problem
from service.errors import ServiceError
from tests.crash.forked import BROKEN
from tests.crash.power import power_failures, write_tree
from tests.crash.traced import run
from tests.crash.workloads import WORKLOADS, views_after_steps
from tests.service.examples.pictures import KEY, add, new_example, open_database

ERRORS = ("EIO", "ENOSPC")
KILL = "KILL"
NAMES = {
    "openat",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "unlink",
    "unlinkat",
    "rmdir",
    "mkdir",
    "mkdirat",
}
BYTES = {"write", "pwrite64", "fsync", "fdatasync", "ftruncate", "fallocate", "fchmod"}


@dataclass
class Outcome:
    """Numbers of possible and tried interruptions, and the problems after them."""

    n_possible: int = 0
    n_tried: int = 0
    problems: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, name, n=1):
        self.counts[name] = self.counts.get(name, 0) + n


def record(forker, name, folder):
    """The run without interruption, and the views after each of its steps."""
    views = views_after_steps(WORKLOADS[name], folder / f"{name}-views")
    whole = run(forker, name, folder / f"{name}-whole")
    assert whole.code == 0, whole.lines
    assert whole.n_done == len(views) - 1
    return whole, views


def injections(calls, root, faults):
    """(fault, call) for every call that changes something below `root`."""
    changing = [
        call
        for call in calls
        if (call.paths[-1] == str(root) or call.paths[-1].startswith(f"{root}/"))
        and (call.name in BYTES or (call.name in NAMES and (call.name != "openat" or call.creates)))
    ]
    return [(fault, call) for call in changing for fault in faults]


def problem_after(name, root, allowed):
    """The problem in the files after an interruption; None without one."""
    workload = WORKLOADS[name]
    try:
        seen = [workload.view(root), workload.view(root)]
        if seen[0] not in allowed:
            return f"a reader gets {seen[0]!r}, expected one of {allowed!r}"
        if seen[1] != seen[0]:
            return f"a second reader gets {seen[1]!r} after {seen[0]!r}"
        workload.change(root)
    except Exception as error:  # noqa: BLE001  any error is a problem
        return f"{type(error).__name__}: {error}"
    return None


def inject_faults(forker, name, folder, faults, *, recorded, until_s=math.inf, limit=None, seed=0, where=""):
    """Inject each fault into each call on a path that contains `where`.

    In random order, until the time is up, and at most `limit` times.
    """
    whole, views = recorded
    outcome = Outcome()
    todo = injections(whole.calls, folder / f"{name}-whole", faults)
    outcome.n_possible = len(todo)
    random.Random(seed).shuffle(todo)  # noqa: S311
    todo = [(fault, call) for fault, call in todo if where in call.paths[-1]]
    for number, (fault, call) in enumerate(todo[:limit]):
        if time.monotonic() > until_s:
            break
        root = folder / f"{name}-{number}"
        kind = "signal" if fault == KILL else "error"
        ended = run(forker, name, root, inject=(call.name, f"{kind}={fault}:when={call.nth}"))
        leftovers = sorted(path.name for path in root.rglob(".*") if path.is_file())
        found = problem_after(name, root, views[ended.n_done : ended.n_done + 2])
        if fault == KILL and ended.code != -signal.SIGKILL:
            found = f"not killed: {ended.code} {ended.lines}"
        elif ended.code == BROKEN:
            found = ended.lines[-1]
        elif fault != KILL and not call.name.startswith("unlink") and leftovers:
            found = found or f"temporary files left: {leftovers}"
        outcome.n_tried += 1
        outcome.count("refused" if ended.code > 0 else "tolerated" if ended.code == 0 else "killed")
        if found:
            outcome.problems.append(f"{name}, {fault} at {call.name} {call.nth} ({call.paths[-1]}): {found}")
        shutil.rmtree(root)
    return outcome


def cut_power(name, folder, *, recorded, until_s=math.inf, limit=None, seed=0):
    """Recover from every distinct state of the disk after a power failure; bounded as `inject_faults`."""
    whole, views = recorded
    outcome, seen = Outcome(), set()
    todo = []
    for state, n_done in power_failures(folder / f"{name}-whole", whole.calls, seed):
        key = (n_done, hash(frozenset(state.items())))
        if key not in seen:
            seen.add(key)
            todo.append((state, n_done))
    outcome.n_possible = len(todo)
    random.Random(seed).shuffle(todo)  # noqa: S311
    for number, (state, n_done) in enumerate(todo[:limit]):
        if time.monotonic() > until_s:
            break
        root = folder / f"{name}-power-{number}"
        write_tree(state, root)
        outcome.n_tried += 1
        if found := problem_after(name, root, views[n_done : n_done + 2]):
            outcome.problems.append(f"{name}, power failure after step {n_done}, {sorted(state)}: {found}")
        shutil.rmtree(root)
    return outcome


def kill_at_random(forker, folder, *, until_s, seed=0, max_rounds=10**6):
    """Kill pairs of writers to one store and to one database of examples; compare with all that they confirmed."""
    dice, outcome = random.Random(seed), Outcome()  # noqa: S311
    confirmed = {"endless_store": {}, "endless_examples": {}}
    for name in confirmed:
        (folder / name).mkdir()
    for number in range(max_rounds):
        if time.monotonic() > until_s:
            break
        name = list(confirmed)[number % 2]
        outputs = [folder / f"{name}-{number}-{writer}" for writer in range(2)]
        pids = [forker.fork(name, folder / name, path, 10**7 * number + 10**6 * n) for n, path in enumerate(outputs)]
        for pid in pids:
            forker.go(pid)
        time.sleep(dice.uniform(0.001, 0.06))
        for pid in pids:
            forker.kill(pid)
        for path in outputs:
            for line in (path.read_text() if path.exists() else "").split("\n")[:-1]:
                confirm(confirmed[name], line)
            path.unlink(missing_ok=True)
        outcome.n_tried += len(pids)
        look = lost_versions if name == "endless_store" else lost_examples
        outcome.problems += [f"{name}, round {number}: {found}" for found in look(folder / name, confirmed[name])]
    outcome.count("confirmed", sum(map(len, confirmed.values())))
    return outcome


def confirm(confirmed, line):
    """Record a confirmed change: of versions their digests, of examples their labels."""
    action, key, *value = line.split()
    if action != "live":
        confirmed[key] = value[0]


def lost_versions(root, confirmed):
    store = Store.open(root / "store")
    found = {str(info.version): info.digest for info in store.versions("flowers")} if store.domains() else {}
    wrong = [version for version, digest in confirmed.items() if found.get(version) != digest]
    gaps = [version for version in range(1, len(found) + 1) if str(version) not in found]
    for version in list(found)[-4:]:
        store.read("flowers", int(version))
    return [f"versions lost or changed: {wrong}"] * bool(wrong) + [f"versions missing: {gaps}"] * bool(gaps)


def lost_examples(root, confirmed):
    database = open_database(root, max_per_domain=10**6)
    labels = {one.sha256: one.label for one in database.page("flowers", limit=10**6)}
    database.close()
    wrong = [digest for digest, label in confirmed.items() if labels.get(digest) != label]
    return [f"examples lost or changed: {len(wrong)}"] * bool(wrong)


def content_of_examples(root):
    """Everything that is learned from or shown: both sets of features, and the thumbnails and pictures."""
    database = open_database(root)
    try:
        sets = [read("flowers", KEY) for read in (database.labelled, database.unlabelled)]
        ids = [number for one in sets for number in (*one.ids_N, *one.stale_ids)]
        return (
            [(one.ids_N, one.labels_N, one.features_NE.tobytes(), one.stale_ids, one.digest) for one in sets],
            [(database.thumbnail("flowers", number), database.picture("flowers", number)) for number in ids],
        )
    finally:
        database.close()


NO_EXAMPLES = ([([], [], b"", [], hashlib.sha256(b"").hexdigest())] * 2, [])


def flip_example_bits(folder, n_flips, seed=0):
    """Flip single bits of a database of examples: no read gives other content, and the check finds what is refused."""
    dice, outcome = random.Random(seed), Outcome(n_possible=n_flips)  # noqa: S311
    root = folder / "flipped-examples"
    database = open_database(root)
    for n in range(40):
        picture = b"picture %d " % n * 30 if n % 4 == 0 else None
        add(database, new_example(n, None if n % 5 == 0 else f"class {n % 3}", picture=picture))
    database.close()
    path = root / "examples.sqlite3"
    data, truth = path.read_bytes(), content_of_examples(root)
    for _ in range(n_flips):
        damaged, place = bytearray(data), dice.randrange(len(data))
        damaged[place] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        outcome.n_tried += 1
        try:
            is_refused = False
            found = content_of_examples(root)
            is_hidden = found == NO_EXAMPLES and is_found(path)  # the name of the domain changed
            if found != truth and not is_hidden:
                outcome.problems.append(f"examples, byte {place}: other content was read")
            outcome.count("found by the check alone" if is_hidden else "read around")
        except (PromptStoreError, ServiceError):
            is_refused = True
            outcome.count("refused by the reader")
        except Exception as error:  # noqa: BLE001  any other error is a problem
            outcome.problems.append(f"examples, byte {place}: {type(error).__name__}: {error}")
            continue
        if is_refused and not is_found(path):
            outcome.problems.append(f"examples, byte {place}: refused, and not found by the check")
        for side in SIDE_FILES:
            path.with_name(path.name + side).unlink(missing_ok=True)
    return outcome


def is_found(path):
    """Whether the check finds a problem in a database of examples."""
    try:
        return database_problem(path) is not None or content_problems(path) != []
    except PromptStoreError:
        return True


def flip_bits(folder, n_flips, seed=0):
    """Flip single bits of a store: in bundles and records each is detected, and no read gives other content.

    `FORMAT` has no checksum, since other minor versions of it are valid.
    """
    dice, outcome = random.Random(seed), Outcome(n_possible=n_flips)  # noqa: S311
    name, root = "store", folder / "flipped"
    root.mkdir()
    for _ in WORKLOADS[name].steps(root):
        pass
    truth, layout = WORKLOADS[name].view(root), Layout(root / "store")
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.stat().st_size]
    for _ in range(n_flips):
        path = dice.choice(files)
        data = path.read_bytes()
        damaged = bytearray(data)
        damaged[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        path.chmod(0o644)
        path.write_bytes(bytes(damaged))
        outcome.n_tried += 1
        where = path.relative_to(root)
        try:
            if WORKLOADS[name].view(root) != truth:
                outcome.problems.append(f"{where}: other content was read")
            outcome.count("read around")
        except PromptStoreError:
            outcome.count("refused by the reader")
        except ValueError as error:
            outcome.problems.append(f"{where}: other content was read: {error}")
        try:
            is_found = not check_layout(layout).is_sound
        except PromptStoreError:
            is_found = True
        if not is_found and path.name != "FORMAT":
            outcome.problems.append(f"{where}: not found by the check")
        path.write_bytes(data)
    return outcome
