"""What a person can mend about a benchmark that does not run."""

from prompt_store.errors import PromptStoreError
from prompted_clip.errors import PromptedClipError
from service.errors import ServiceError


class BenchError(Exception):
    """A measurement cannot be made here; the message says why and what to do."""


TOLD = (BenchError, ServiceError, PromptStoreError, PromptedClipError)
"""Errors that say by themselves what is wrong."""
