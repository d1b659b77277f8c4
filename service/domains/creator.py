"""Creates domains from class names alone, with or without the boosting prompts of another domain."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from prompt_store.class_names import UNLABELLED, comparison_key, normalize_labels
from prompt_store.errors import BundleInvalidError
from prompt_store.manifest import DEFAULT_TEMPLATE, MAX_CLASSES, check_domain
from prompted_clip.errors import StackMismatchError
from prompted_clip.zero_shot_bundle import check_boosted, text_stack, zero_shot_bundle
from service.errors import DomainExistsError, RequestInvalidError

if TYPE_CHECKING:
    from prompt_store.bundle import Bundle
    from prompt_store.versions import Added
    from prompted_clip.stack import PromptStack
    from service.domains.live_table import LiveTable, LoadedVersion
    from service.domains.loader import VersionLoader
    from service.domains.publisher import Publisher
    from service.engine.engine import Engine

logger = logging.getLogger(__name__)

TEXTS_PER_CALL: Final = 64
"""Texts encoded between two batches of images."""
MAX_TEXTS: Final = MAX_CLASSES
"""Maximum number of classes times templates."""


@dataclass(frozen=True)
class NewDomain:
    """A created domain: its first version, class names and templates, and the version whose prompts it has."""

    added: Added
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    boosted_by: LoadedVersion | None


class DomainCreator:
    """Creates domains through a publisher."""

    def __init__(self, table: LiveTable, loader: VersionLoader, publisher: Publisher, engine: Engine) -> None:
        self._table = table
        self._loader = loader
        self._publisher = publisher
        self._engine = engine
        self._creating = asyncio.Lock()

    async def create(
        self, domain: str, classes: Sequence[str], templates: Sequence[str], boosted_by: str | None, *, actor: str
    ) -> NewDomain:
        """Create a domain and make it live.

        Args:
            domain: name of the new domain.
            classes: class names, normalized here.
            templates: text around the class names; if empty, those of `boosted_by`, or `DEFAULT_TEMPLATE`.
            boosted_by: domain whose live version's boosting prompts are copied, or None.
            actor: key id, for the history.

        Raises:
            BundleInvalidError: invalid domain name.
            RequestInvalidError: an invalid or duplicate class name, too many texts, or no boosting prompts to copy.
            DomainExistsError: the domain exists.
            DomainNotFoundError, DomainNotLiveError, DomainUnavailableError: `boosted_by` has no live version.
            TextTooLongError: a class name and its template do not fit the text tower.
            SignatureError: this service serves signed bundles only, and has no key to sign its own.
            OSError and errors of `Publisher.publish`: nothing was created.
        """
        check_domain(domain)
        self._loader.signing.require_key()
        try:
            names = normalize_labels(classes)
        except BundleInvalidError as error:
            field = error.field and error.field.replace("labels", "classes")
            message = str(error).replace("labels[", "classes[")
            raise RequestInvalidError(message, code="class_name", extra={"field": field}) from error
        for index, name in enumerate(names):
            if comparison_key(name) == UNLABELLED:
                message = f"classes[{index}] is the name of examples without a label. Choose another name."
                raise RequestInvalidError(message, code="class_name", extra={"field": f"classes[{index}]"})
        async with self._creating:
            await self._check_new(domain)
            source, bundle = await self._boosting(boosted_by)
            texts = tuple(templates or (bundle.manifest.templates if bundle else ())) or (DEFAULT_TEMPLATE,)
            if len(names) * len(texts) > MAX_TEXTS:
                found = f"{len(names)} classes and {len(texts)} templates"
                message = f"Expected at most {MAX_TEXTS} texts (classes times templates), found {found}."
                raise RequestInvalidError(message, extra={"limit": MAX_TEXTS})
            backbone = self._engine.backbone
            scale = bundle.manifest.logit_scale if bundle else backbone.logit_scale
            stack = text_stack(domain, texts, scale, source.stack if source else None)
            data = zero_shot_bundle(
                domain,
                names,
                await encode_names(self._engine, stack, names),
                templates=texts,
                backbone=backbone.spec(),
                logit_scale=scale,
                boosted=bundle,
            )
            added = await self._publisher.publish_own(domain, data, activate=True, actor=actor, origin="create")
        facts = {"n_classes": len(names), "boosted_by": boosted_by, "actor": actor}
        logger.info("domain.created", extra={"domain": domain, **facts})
        return NewDomain(added, names, texts, source)

    async def _check_new(self, domain: str) -> None:
        if domain in self._table.states or domain in await asyncio.to_thread(self._loader.store.domains):
            raise DomainExistsError(
                f"The domain {domain} exists. Choose another name, or add versions with "
                f"POST /domains/{domain}/versions or POST /domains/{domain}/fit."
            )

    async def _boosting(self, domain: str | None) -> tuple[LoadedVersion | None, Bundle | None]:
        """The live version of a domain, and its bundle, which has boosting prompts; None for no domain."""
        if domain is None:
            return None, None
        source = self._table.pin(domain)
        bundle = await asyncio.to_thread(self._loader.read, domain, source.version)
        try:
            check_boosted(bundle)
        except StackMismatchError as error:
            raise RequestInvalidError(str(error), code="stack_unsupported", extra={"field": "boosted_by"}) from error
        return source, bundle


async def encode_names(engine: Engine, stack: PromptStack, names: Sequence[str]) -> NDArray[Any]:
    """Unit text features of class names by a stack's templates and text prompts: [K, E] float32.

    Between `TEXTS_PER_CALL` texts the device runs waiting images.

    Raises:
        StackMismatchError, TextTooLongError, DeviceMemoryError: as `Engine.with_labels`.
    """
    step, parts = max(1, TEXTS_PER_CALL // max(1, len(stack.templates))), []
    for start in range(0, len(names), step):
        encoded = (await engine.with_labels(stack, names[start : start + step])).text_features
        if encoded is None:
            raise StackMismatchError(f"Domain {stack.domain!r} has no fixed text features.")
        parts.append(encoded.float().numpy())
    return np.concatenate(parts)
