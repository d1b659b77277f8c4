"""Examples without real pictures."""

import hashlib

import numpy as np

from service.examples.database import ExampleDatabase
from service.examples.records import NewExample

KEY = "sha256:ab/cd"
WIDTH = 8


def feature(n):
    row = np.random.default_rng(n).normal(size=WIDTH)
    return (row / np.linalg.norm(row)).astype("<f4").tobytes()


def new_example(n, label=None, *, key=KEY, picture=None, name=None):
    digest = hashlib.sha256(b"%d" % n).hexdigest()
    return NewExample(label, digest, b"WEBP %d" % n, picture, {key: feature(n)}, name)


def open_database(directory, *, max_per_domain=1000, max_bytes=2**30):
    directory.mkdir(exist_ok=True)
    return ExampleDatabase(directory / "examples.sqlite3", max_per_domain=max_per_domain, max_bytes=max_bytes)


def add(database, *examples, domain="flowers", source="upload"):
    return database.add(domain, examples, actor="anna", source=source)
