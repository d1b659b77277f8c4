"""Keeps the store's audit log complete: the API keys in force, and changes whose writer was killed."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from typing import TYPE_CHECKING, Final

from prompt_store.errors import PromptStoreError

if TYPE_CHECKING:
    from prompt_store.store import Store
    from service.access.keys import KeyRing

logger = logging.getLogger(__name__)

EVERY_S: Final = 1.0


class AuditFollower:
    """Appends to the audit log what no request does, from a background task of the process that has the store."""

    def __init__(self, store: Store, keys: KeyRing) -> None:
        self._store = store
        self._keys = keys
        self._recorded: dict[str, tuple[str, str]] | None = None
        self._problem = ""

    async def run(self) -> None:
        """Complete the log once, then follow the keys; a failed attempt is repeated, and logged once."""
        is_complete = False
        while True:
            try:
                if not is_complete:
                    await self._complete()
                    is_complete = True
                await self.follow_keys()
                self._problem = ""
            except PromptStoreError as error:
                if self._problem != str(error):
                    facts = {"code": error.code, "detail": str(error)}
                    logger.error("audit.incomplete", extra=facts)  # noqa: TRY400  the message is complete
                self._problem = str(error)
            await asyncio.sleep(EVERY_S)

    async def follow_keys(self) -> None:
        """Append the changes of the keys since the last call, or since the last service of this store.

        Raises:
            PromptStoreError: the log cannot be read or written.
        """
        keys = {
            key.id: (
                # Sets have no order, which differs between processes.
                _digest(key.model_dump_json(exclude={"scopes", "domains"}), *sorted(key.scopes), *sorted(key.domains)),
                " ".join(sorted(key.scopes)),
            )
            for key in self._keys.in_force()
        }
        if keys == self._recorded:
            return
        changes = await asyncio.to_thread(self._store.audit_keys, keys)
        self._recorded = keys
        for change in changes:
            logger.info("keys.audited", extra={"key": change.id, "change": change.change, "scopes": change.scopes})

    async def _complete(self) -> None:
        n_entries, problem = await asyncio.to_thread(self._store.complete_audit)
        if n_entries:
            logger.warning("audit.completed", extra={"n_entries": n_entries})
        if problem:
            logger.error("audit.damaged", extra={"detail": problem})


def _digest(*parts: str) -> str:
    return f"sha256:{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()}"
