"""Fits few-shot heads to the examples of domains, with the same code as `caspl fit`.

Legend: N labelled examples, M unlabelled examples, K classes, E joint width.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prompt_store.bundle import Bundle, read_bundle
from prompt_store.class_names import comparison_key
from prompt_store.errors import VersionExistsError
from prompt_store.versions import Added
from prompted_clip.errors import StackMismatchError
from prompted_clip.fit_report import AUTO
from prompted_clip.fitted_bundle import FitClasses, check_replaceable, check_restrictable, write_fit
from service.domains.cache import LoadingCache
from service.domains.creator import encode_names
from service.errors import (
    ExampleNotFoundError,
    ExamplesStaleError,
    FitFailedError,
    RequestInvalidError,
    TooFewExamplesError,
)
from service.examples.connections import in_thread
from service.examples.fit_process import FitJob, FitProcess, check_size
from service.examples.records import ClassChoice, DomainFit, FitOptions, LeftOutPrediction
from service.inference import ImageResult, ScoringOptions

if TYPE_CHECKING:
    from service.domains.backend import LocalBackend
    from service.domains.live_table import LoadedVersion
    from service.domains.publisher import Publisher
    from service.examples.database import ExampleDatabase
    from service.images.decoder import Decoder
    from service.observability.metrics import Metrics

logger = logging.getLogger(__name__)

MAX_FITS: Final = 8
"""Cached reports."""
MAX_BUNDLES: Final = 2
"""Cached base versions by digest: while labels change, every fit reads the same one."""
METHODS_WITH_UNLABELLED: Final = (AUTO, "gda")
EMBEDDED_AT_ONCE: Final = 16
EMBEDDING_TIMEOUT_S: Final = 60.0
DEFAULTS: Final = FitOptions()


class FitKey(NamedTuple):
    """Everything that a fit depends on; `based_on` is None in `options`."""

    domain: str
    revision: int
    base_digest: str
    options: FitOptions = DEFAULTS


class StaleFeaturesError(Exception):
    """Examples have no features for the base version's image prompts."""


class Fitter:
    """Computes fits, one at a time, and publishes them; `metrics` counts them."""

    def __init__(
        self,
        examples: ExampleDatabase,
        backend: LocalBackend,
        publisher: Publisher,
        decoder: Decoder,
        metrics: Metrics,
        *,
        max_waiting: int,
    ) -> None:
        self._examples = examples
        self._backend = backend
        self._publisher = publisher
        self._decoder = decoder
        self._metrics = metrics
        self._process = FitProcess()
        self._fits: LoadingCache[FitKey, DomainFit] = LoadingCache(MAX_FITS, max_waiting=max_waiting, kind="fits")
        self._texts: LoadingCache[tuple[str, tuple[str, ...]], NDArray[np.float32]] = LoadingCache(
            MAX_FITS, max_waiting=1
        )
        self._bundles: LoadingCache[str, Bundle] = LoadingCache(MAX_BUNDLES, max_waiting=1)
        self._domain_locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def report(self, domain: str, options: FitOptions = DEFAULTS) -> DomainFit:
        """The fit to a domain's current examples; cached, and shared by concurrent callers.

        Raises:
            DomainNotFoundError, DomainNotLiveError, DomainUnavailableError, VersionNotFoundError: no base version.
            TooFewExamplesError: no labelled examples, or fewer than two classes.
            ExamplesStaleError: examples have no features for the base version's image prompts, nor pictures.
            ExamplesDamagedError: examples do not match their checksums.
            RequestInvalidError: the base version has a head that cannot be replaced, or cannot encode new classes;
                too many examples times classes.
            TextTooLongError: a new class does not fit the text tower.
            OverloadedError: too many fits are waiting, or the queue of images is full.
            FitFailedError: the computation failed.
        """
        if options.unlabelled and options.method not in METHODS_WITH_UNLABELLED:
            known = " and ".join(METHODS_WITH_UNLABELLED)
            raise RequestInvalidError(f"Only the methods {known} can use unlabelled examples, not {options.method}.")
        base = await self._base(domain, options.based_on)
        if (fit := self._fits.find(await self._key(domain, base, options))) is not None:
            return fit
        async with self._domain_locks[domain]:  # one fit per domain in the queue, so that domains take turns
            key = await self._key(domain, base, options)
            try:
                return await self._fits.get(key, lambda: self._compute(key, base, is_complete=False))
            except StaleFeaturesError:
                await self._embed(base)
                return await self._fits.get(key, lambda: self._compute(key, base, is_complete=True))

    async def current(self, domain: str) -> DomainFit | None:
        """The cached fit with the default options to the current examples and the live version; None without one."""
        live = self._backend.table.live(domain)
        if live is None:
            return None
        return self._fits.find(await self._key(domain, live, DEFAULTS))

    async def fit(
        self, domain: str, options: FitOptions = DEFAULTS, *, activate: bool, actor: str
    ) -> tuple[Added, DomainFit]:
        """Publish the fit to a domain's current examples as a version, and optionally make it live.

        Raises:
            ServiceError, PromptStoreError, PromptedClipError: as `report` and `Publisher.publish`; nothing was changed.
        """
        self._backend.loader.signing.require_key()
        fit = await self.report(domain, options)
        write = partial(write_fit, method=options.method, data_digests=fit.digests)
        data = await asyncio.to_thread(write, fit.base, fit.classes, fit.term, fit.report)
        bundle = await asyncio.to_thread(read_bundle, data)
        try:
            added = await self._publisher.publish_own(
                domain, data, bundle=bundle, activate=activate, actor=actor, origin="fit"
            )
        except VersionExistsError as error:  # a concurrent fit of the same content, and another one after it
            added = Added(error.version, bundle.digest, created=False)
            if activate:
                await self._publisher.activate(domain, added.version, expected=None, actor=actor)
        self._keep(domain, fit, bundle, added.version)
        facts = {"method": fit.report.method, "n_examples": fit.report.n_examples, "based_on": fit.base_version}
        logger.info("domain.fitted", extra={"domain": domain, "version": added.version, "actor": actor} | facts)
        return added, fit

    def _keep(self, domain: str, fit: DomainFit, bundle: Bundle, version: int) -> None:
        """Cache a fit as that based on the version that it became: prompts, text features and classes are the same."""
        options = replace(fit.options, classes="own")
        same = replace(fit, base=bundle, base_version=version, options=options, new_classes=())
        self._fits.put(FitKey(domain, fit.revision, bundle.digest, options), same)

    def close(self) -> None:
        """End the fit in progress."""
        self._process.close()

    async def _key(self, domain: str, base: LoadedVersion, options: FitOptions) -> FitKey:
        revision = await in_thread(self._examples.revision, domain)
        return FitKey(domain, revision, base.digest, replace(options, based_on=None))

    async def _base(self, domain: str, version: int | None) -> LoadedVersion:
        if version is None:
            return self._backend.table.pin(domain)
        live = self._backend.table.state(domain).live
        if live is not None and live.version == version:
            return live
        return await self._backend.loader.load_cached(domain, version)

    async def _compute(self, key: FitKey, base: LoadedVersion, *, is_complete: bool) -> DomainFit:
        """Fit now; `is_complete`: missing features have been computed where possible."""
        started_s, domain = time.monotonic(), key.domain
        feature_key = self._backend.feature_key(base.stack)
        labelled, unlabelled = await in_thread(self._examples.features, domain, feature_key)
        if not is_complete and (labelled.stale_ids or unlabelled.stale_ids):
            raise StaleFeaturesError
        if labelled.stale_ids:
            raise _stale(len(labelled.stale_ids), base)
        options, digests = key.options, {"examples": labelled.digest}
        if options.unlabelled:
            digests["unlabelled"] = unlabelled.digest
        if not labelled.ids_N:
            raise TooFewExamplesError(f"{domain} has no labelled examples. Add pictures, or label those it has.")
        read = partial(asyncio.to_thread, self._backend.loader.read, domain, base.version)
        bundle = await self._bundles.get(base.digest, read)
        classes, new = await self._classes(base, bundle, labelled.labels_N, options.classes)
        job = FitJob(
            features_NE=labelled.features_NE,
            labels_N=classes.indices(labelled.labels_N),
            unlabelled_ME=unlabelled.features_NE if unlabelled.ids_N else labelled.features_NE[:0],
            text_KE=classes.text_KE,
            logit_scale=bundle.manifest.logit_scale,
            class_names=classes.names,
            method=options.method,
            uses_unlabelled=options.unlabelled,
        )
        try:
            result = await asyncio.to_thread(self._process.run, job)
        except FitFailedError:
            self._metrics.fit_counted(domain, "failed")
            raise
        names, ids = classes.names, [*labelled.ids_N, *unlabelled.ids_N]
        predicted = [names[index] for index in result.predicted.tolist()]
        self._metrics.fit_counted(domain, "computed")
        self._metrics.fit_s.observe(time.monotonic() - started_s)
        return DomainFit(
            base=bundle,
            base_version=base.version,
            revision=labelled.revision,
            digests=digests,
            options=options,
            classes=classes,
            new_classes=tuple(new),
            term=result.term,
            report=result.report,
            ids_N=labelled.ids_N,
            predictions=dict(zip(ids, map(LeftOutPrediction, predicted, result.margins.tolist()), strict=True)),
        )

    async def _classes(
        self, base: LoadedVersion, bundle: Bundle, labels: Sequence[str], choice: ClassChoice
    ) -> tuple[FitClasses, list[str]]:
        """The classes of a fit, and those that the base version lacks."""
        try:
            check_replaceable(bundle)
            classes = FitClasses.of_bundle(bundle)
            new = _new_classes(classes, labels)
            n_own = len(set(map(comparison_key, labels))) - len(new) if choice == "examples" else len(classes.specs)
            check_size(len(labels), n_own + len(new))  # before their names are encoded
            if new:
                key = (base.digest, tuple(new))
                text_NE = await self._texts.get(key, lambda: encode_names(self._backend.engine, base.stack, new))
                classes = classes.extended(new, text_NE)
            if choice == "examples":
                check_restrictable(bundle)
                classes = classes.restricted(labels)
        except StackMismatchError as error:
            raise RequestInvalidError(str(error), code="stack_unsupported") from error
        if len(classes.specs) < 2:
            message = f"A fit needs at least two classes; {base.domain} has {len(classes.specs)}. Label other examples."
            raise TooFewExamplesError(message)
        return classes, new

    async def _embed(self, base: LoadedVersion) -> None:
        """Compute missing features from the pictures that are kept.

        Raises:
            ExamplesStaleError: labelled examples have neither features nor pictures.
            OverloadedError: the queue is full. Features computed so far are kept.
        """
        domain, key = base.domain, self._backend.feature_key(base.stack)
        labelled, unlabelled = await in_thread(self._examples.features, domain, key)
        stale = [*labelled.stale_ids, *unlabelled.stale_ids]
        found = await in_thread(self._examples.page, domain, limit=len(stale), ids=stale)
        kept = {example.id for example in found if example.has_picture}
        if lacking := [number for number in labelled.stale_ids if number not in kept]:
            raise _stale(len(lacking), base)
        ids = [number for number in stale if number in kept]
        for start in range(0, len(ids), EMBEDDED_AT_ONCE):
            await self._embed_some(base, key, ids[start : start + EMBEDDED_AT_ONCE])

    async def _embed_some(self, base: LoadedVersion, key: str, ids: Iterable[int]) -> None:
        deadline_s = time.monotonic() + EMBEDDING_TIMEOUT_S
        pin = self._backend.hold(base.domain, base.version, deadline_s=deadline_s, priority=-1)
        pixels = {}
        for number in ids:
            try:
                picture = await in_thread(self._examples.picture, base.domain, number)
            except ExampleNotFoundError:  # removed meanwhile
                continue
            if picture is not None:
                pixels[number] = (await self._decoder.decode(picture, ("", base.domain))).pixels
        options = ScoringOptions("cascade", (), 1, deadline_s, priority=-1, embedding=True)
        scored = await pin.score(list(pixels.values()), options)
        features = {}
        for number, answer in zip(pixels, scored.answers, strict=True):
            if not isinstance(answer, ImageResult):
                raise answer
            if answer.embedding is not None:
                features[number] = answer.embedding
        await in_thread(self._examples.put_features, base.domain, key, features)


def _new_classes(classes: FitClasses, labels: Iterable[str]) -> list[str]:
    """The labels that are not among the classes, sorted; of several spellings the most frequent one."""
    counts = Counter(labels)
    missing = classes.missing(sorted(counts, key=lambda name: (counts[name], name)))
    return sorted({comparison_key(name): name for name in missing}.values())


def _stale(n_stale: int, base: LoadedVersion) -> ExamplesStaleError:
    return ExamplesStaleError(
        f"{n_stale} labelled examples have no features for the image prompts of version {base.version} of "
        f"{base.domain}, and their pictures were not kept. Add the pictures again, or use `based_on` with a version "
        "that has the image prompts they were added under.",
        extra={"n_stale": n_stale},
    )
