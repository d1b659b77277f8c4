"""Keeps the least certain images of classify requests as unlabelled examples, so that labelling goes where it helps."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from prompt_store.errors import PromptStoreError
from service.errors import ServiceError
from service.examples.database import ExampleDatabase
from service.examples.records import NewExample
from service.images.decoder import open_image, thumbnail_of
from service.inference import ImageResult, Scored, ScoringOptions
from service.observability.metrics import Metrics
from service.settings import MIB, Settings

logger = logging.getLogger(__name__)

MAX_WAITING_IMAGES: Final = 64
MAX_WAITING_BYTES: Final = 32 * MIB
BOUND_TTL_S: Final = 30.0
"""Bounds in memory expire, as other processes keep images, too, and labelled images leave space for others."""


class Candidate(NamedTuple):
    """An image to keep, with the version that scored it."""

    domain: str
    data: bytes
    margin: float
    digest: str
    features: dict[str, bytes]
    actor: str


class Bound(NamedTuple):
    """The margin below which a domain keeps images of a version, until a monotonic time."""

    digest: str
    margin: float
    until_s: float


class UncertainImages:
    """Keeps the `keep_uncertain` images per domain with the smallest difference of the two highest probabilities.

    A thread makes thumbnails and writes, one image at a time; when too many are waiting, further ones are dropped.
    """

    def __init__(self, examples: ExampleDatabase, settings: Settings, metrics: Metrics) -> None:
        self._examples = examples
        self._settings = settings
        self._metrics = metrics
        self._bounds: dict[str, Bound] = {}
        self._thread = ThreadPoolExecutor(1, "uncertain-images")
        self._lock = threading.Lock()
        self._n_waiting = self._n_waiting_bytes = 0

    def widened(self, options: ScoringOptions) -> ScoringOptions:
        """Extend eligible options by the embedding and a second class, as `offer` requires; return others unchanged."""
        if not self.is_eligible(options):
            return options
        return dataclasses.replace(options, top_k=max(2, options.top_k), embedding=True)

    @staticmethod
    def is_eligible(options: ScoringOptions) -> bool:
        """Whether images are scored as a live version does by default: among its own classes, with all prompts."""
        return not options.labels and options.stack == "cascade"

    def offer(self, domain: str, data: bytes, answer: ImageResult, scored: Scored, actor: str) -> None:
        """Keep an image later if it is uncertain enough now; returns at once.

        Args:
            domain: the domain whose live version scored it.
            data: the image file.
            answer: its result, with `widened` options.
            scored: the results of the request for this domain.
            actor: the client that sent the image.
        """
        if len(answer.predictions) < 2 or answer.embedding is None:  # a single class is always certain
            return
        margin = answer.predictions[0].probability - answer.predictions[1].probability
        bound = self._bounds.get(domain)
        is_current = bound is not None and bound.digest == scored.digest and time.monotonic() < bound.until_s
        if bound is not None and is_current and margin >= bound.margin:
            return
        with self._lock:
            is_dropped = self._n_waiting >= MAX_WAITING_IMAGES or self._n_waiting_bytes + len(data) > MAX_WAITING_BYTES
            if not is_dropped:
                self._n_waiting += 1
                self._n_waiting_bytes += len(data)
        if is_dropped:
            self._metrics.examples_counted(domain, "dropped", 1)
            return
        features = {scored.feature_key: answer.embedding}
        self._thread.submit(self._keep, Candidate(domain, data, margin, scored.digest, features, actor))

    def close(self) -> None:
        """Finish the current image and drop the waiting ones."""
        self._thread.shutdown(cancel_futures=True)

    def _keep(self, candidate: Candidate) -> None:
        domain, digest, n_kept = candidate.domain, candidate.digest, self._settings.keep_uncertain
        try:
            if candidate.margin < self._examples.uncertain_bound(domain, digest=digest, n_kept=n_kept):
                is_kept = self._examples.keep_uncertain(
                    domain,
                    self._example(candidate),
                    margin=candidate.margin,
                    digest=digest,
                    n_kept=n_kept,
                    actor=candidate.actor,
                )
                self._metrics.examples_counted(domain, "kept", int(is_kept))
            margin = self._examples.uncertain_bound(domain, digest=digest, n_kept=n_kept)
        except Exception as error:
            margin = -math.inf  # no further attempt until the bound expires
            self._metrics.examples_counted(domain, "dropped", 1)
            if isinstance(error, PromptStoreError | ServiceError):
                logger.warning("example.not_kept", extra={"domain": domain, "code": error.code})
            else:
                logger.exception("example.not_kept", extra={"domain": domain, "code": "internal"})
        finally:
            with self._lock:
                self._n_waiting -= 1
                self._n_waiting_bytes -= len(candidate.data)
        self._bounds[domain] = Bound(digest, margin, time.monotonic() + BOUND_TTL_S)

    def _example(self, candidate: Candidate) -> NewExample:
        thumbnail, _ = open_image(candidate.data, self._settings, thumbnail_of)
        return NewExample(
            label=None,
            sha256=hashlib.sha256(candidate.data).hexdigest(),
            thumbnail=thumbnail,
            picture=candidate.data if self._settings.keep_examples == "pictures" else None,
            features=candidate.features,
        )
