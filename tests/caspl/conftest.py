"""The service in this process, as its own tests run it."""

from tests.service.conftest import model, serve, store

__all__ = ["model", "serve", "store"]
