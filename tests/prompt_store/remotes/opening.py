"""Remotes from the text of an address, as the commands open them."""

from prompt_store.remotes.address import parse_address
from prompt_store.remotes.remote import open_remote


def opened(text, **options):
    return open_remote(parse_address(text), **options)
