"""Labelled examples of noisy colours, for the colour model."""

import hashlib

import numpy as np

from service.examples.records import NewExample
from tests.service.fakes import COLOURS, FINGERPRINT

KEY = f"{FINGERPRINT}/3"
"""The feature key of bundles with boosting prompts."""


def colour_example(colour, n, label=None, *, key=KEY, picture=None):
    """An example whose feature is a colour with noise of seed `n`."""
    row = np.array(COLOURS[colour]) / 255 + np.random.default_rng(n).normal(0, 0.3, 3)
    unit = (row / np.linalg.norm(row)).astype("<f4").tobytes()
    digest = hashlib.sha256(f"{colour} {n}".encode()).hexdigest()
    return NewExample(label, digest, b"WEBP", picture, {key: unit})


def add_colours(database, domain="paint", n_each=8, *, names=None, **options):
    """Add labelled examples of red, green and blue; `names` are their labels, the colours by default."""
    examples = [
        colour_example(colour, n, label, **options)
        for colour, label in (names or {one: one for one in ("red", "green", "blue")}).items()
        for n in range(n_each)
    ]
    return database.add(domain, examples, actor="anna", source="upload")
