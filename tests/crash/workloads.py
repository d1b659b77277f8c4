"""The interrupted workloads: short series of changes to the store, the examples, the API keys and a training run.

A workload's steps are run in a process of its own, which confirms each one. Whatever interrupts it, a process that
starts afterwards must see the confirmed steps, and may see one more.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prompt_store import PromptStoreError, Store
from prompt_store.example_checksums import content_problems
from prompt_store.sqlite_files import database_problem, reclaim_space
from service.access.key_file import add_key, read_keys, revoke_key
from service.errors import ServiceError, SettingsError
from tests.prompt_store.faults import BUNDLES, scenario
from tests.prompt_store.faults import view as store_view
from tests.prompt_store.samples import sample_bundle
from tests.service.examples.pictures import add, new_example, open_database


@dataclass(frozen=True)
class Workload:
    """Changes to the files in one directory, which exists.

    Attributes:
        steps: makes one change per `next`.
        view: everything that a reader who starts now gets; raises if anything is damaged.
        change: one more change, which must succeed on whatever an interruption left.
        errors: failures that callers are prepared for.
    """

    steps: Callable[[Path], Iterator[None]]
    view: Callable[[Path], object]
    change: Callable[[Path], None]
    errors: tuple[type[Exception], ...]


def store_steps(root):
    store = Store.open(root / "store")
    for action, _ in scenario():
        action(store)
        yield


def view_of_store(root):
    return store_view(Store.open(root / "store"))


def change_store(root):
    store = Store.open(root / "store")
    report = store.audit()
    assert report.problem == ""
    assert not any(gap.is_lost for gap in report.gaps)
    store.complete_audit()
    assert store.audit().problems() == []
    store.gc(keep_versions=20, grace_s=-1, temporary_grace_s=-1)
    assert not [path for path in root.rglob("*") if ".tmp-" in path.name]
    added = store.add("flowers", BUNDLES[3])
    assert store.activate("flowers", added.version).version == added.version
    assert store.read("flowers", added.version) == BUNDLES[3]
    history = store.history("flowers")
    assert [entry.seq for entry in history] == list(range(1, len(history) + 1))


def example_steps(root):
    database = open_database(root)
    first = add(database, new_example(0, "rose"), new_example(1, None, picture=b"x" * 30_000))
    yield
    database.relabel("flowers", [first[1].id], "tulip")
    yield
    add(database, *(new_example(n, "daisy") for n in range(2, 12)))
    yield
    database.remove("flowers", [first[0].id])
    yield
    database.close()
    reclaim_space(root / "examples.sqlite3")
    yield
    add(database, new_example(20, "rose", picture=b"y" * 50_000))
    yield
    database.close()
    yield


def view_of_examples(root):
    database = open_database(root)
    path = root / "examples.sqlite3"
    assert database_problem(path) is None
    assert not path.exists() or content_problems(path) == []
    page = database.page("flowers", limit=1_000)
    counts = database.counts("flowers")
    assert counts.labelled + counts.unlabelled == len(page)
    assert counts.n_bytes == sum(one.n_bytes for one in page)
    database.close()
    return frozenset((one.sha256, one.label, one.has_picture, one.n_bytes) for one in page)


def change_examples(root):
    database = open_database(root)
    assert add(database, new_example(999, "rose"))[0].status == "added"
    database.close()


def key_steps(root):
    path = root / "keys.json"
    add_key(path, ["classify"], [])
    yield
    add_key(path, ["publish"], ["flowers"])
    yield
    revoke_key(path, read_keys(path)[0].id)
    yield
    add_key(path, ["teach"], [])
    yield


def view_of_keys(root):
    path = root / "keys.json"
    return tuple(tuple(key.scopes) for key in read_keys(path)) if path.exists() else ()


def change_keys(root):
    add_key(root / "keys.json", ["metrics"], [])
    assert ("metrics",) in view_of_keys(root)


IDENTITY = {"recipe": "a", "data": "b"}


def training_steps(root):
    import torch

    from training.checkpoint import save_checkpoint
    from training.files import write_atomic

    path = root / "run" / "bundle.safetensors.checkpoint"
    for step in range(1, 4):
        save_checkpoint(path, IDENTITY, {"step": step, "prompts": torch.full((40, 40), float(step))})
        yield
    write_atomic(root / "run" / "bundle.safetensors", BUNDLES[0])
    path.unlink()
    yield


def view_of_training(root):
    from training.checkpoint import load_checkpoint

    out = root / "run" / "bundle.safetensors"
    if out.exists():  # the run is over, and whether its checkpoint is still there makes no difference
        return BUNDLES.index(out.read_bytes())
    state = load_checkpoint(root / "run" / "bundle.safetensors.checkpoint", IDENTITY)
    if state is None:
        return None
    assert bool((state["prompts"] == state["step"]).all())
    return f"step {state['step']}"


def change_training(root):
    from training.checkpoint import save_checkpoint
    from training.files import write_atomic

    save_checkpoint(root / "run" / "other.checkpoint", IDENTITY, {"step": 1})
    write_atomic(root / "run" / "bundle.safetensors", BUNDLES[0])
    assert view_of_training(root) == 0


WORKLOADS = {
    "store": Workload(store_steps, view_of_store, change_store, (PromptStoreError,)),
    "examples": Workload(example_steps, view_of_examples, change_examples, (PromptStoreError, ServiceError)),
    "keys": Workload(key_steps, view_of_keys, change_keys, (SettingsError,)),
    "training": Workload(training_steps, view_of_training, change_training, (OSError,)),
}


def views_after_steps(workload, root):
    """What is seen before the first step and after each one, if nothing goes wrong."""
    root.mkdir()
    return [workload.view(root), *(workload.view(root) for _ in workload.steps(root))]


def endless_store(root, first, log):
    """Add and activate new versions, and log each."""
    store = Store.open(root / "store")
    for seed in range(first, first + 100_000):
        added = store.add("flowers", sample_bundle(seed))
        log(f"add {added.version} {added.digest}")
        store.activate("flowers", added.version)
        log(f"live {added.version} {added.digest}")


def endless_examples(root, first, log):
    """Add examples, label one, and log each."""
    database = open_database(root, max_per_domain=10**6)
    for n in range(first, first + 10**6, 2):
        added = add(database, new_example(n, "rose"), new_example(n + 1, None))
        log(f"add {new_example(n).sha256} rose")
        database.relabel("flowers", [added[1].id], "tulip")
        log(f"label {new_example(n + 1).sha256} tulip")
