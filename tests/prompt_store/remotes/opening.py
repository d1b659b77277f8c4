"""Remotes from the text of an address, as the commands open them; `close_all` closes them after a test."""

from prompt_store.remotes.address import parse_address
from prompt_store.remotes.remote import open_remote

_OPEN = []


def opened(text, **options):
    _OPEN.append(open_remote(parse_address(text), **options))
    return _OPEN[-1]


def close_all():
    while _OPEN:
        _OPEN.pop().close()
