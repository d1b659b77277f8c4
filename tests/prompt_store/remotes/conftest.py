import pytest

from tests.prompt_store.remotes.opening import close_all


@pytest.fixture(autouse=True)
def no_login(monkeypatch, tmp_path):
    """No credentials and proxies of this machine; the value is the folder of docker's configuration."""
    for name in (
        "DOCKER_AUTH_CONFIG",
        "HF_TOKEN",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    folder = tmp_path / "docker"
    folder.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    yield folder
    close_all()
