"""Messages of pydantic's validation errors."""

from typing import Final

PREFIX: Final = "Value error, "
"""Added by pydantic to the message of a validator's `ValueError`."""


def plain_message(message: str) -> str:
    """Return a message of a validation error as the validator wrote it."""
    return message.removeprefix(PREFIX)
