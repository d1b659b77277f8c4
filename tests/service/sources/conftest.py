import pytest


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """Registries on this machine are reached directly, without credentials of this machine."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("DOCKER_CONFIG", "/nonexistent")
