"""Users and passwords of registries, from the configuration that `docker login`, `podman login` and `oras login` write.

In this order: the variable `DOCKER_AUTH_CONFIG`, which has the content of such a file; `config.json` in the folder
`DOCKER_CONFIG`; `~/.docker/config.json`. A credential helper that is named there is run first.
"""

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from prompt_store.errors import RemoteError

DOCKER_HUB: Final = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_HUB_KEY: Final = "https://index.docker.io/v1/"
_MAX_BYTES: Final = 1024 * 1024
_HELPER_S: Final = 30
_HELPER: Final = re.compile(r"[a-z0-9][a-z0-9._-]*")
_TOKEN_USER: Final = "<token>"  # noqa: S105  the user name that helpers give with an identity token


def read_credentials(host: str) -> tuple[str, str] | None:
    """The user and the password for a registry; None if there are none.

    Args:
        host: with a port, if the address has one.

    Raises:
        RemoteError: `credentials_invalid`, the configuration cannot be used.
    """
    source, config = _configuration()
    key = _HUB_KEY if host in DOCKER_HUB else host
    helpers, auths = _object(config.get("credHelpers"), source), _object(config.get("auths"), source)
    helper = helpers.get(key, config.get("credsStore"))
    if helper and (found := _from_helper(str(helper), key, source)):
        return found
    names = {key, host, *(f"{scheme}://{host}{path}" for scheme in ("https", "http") for path in ("", "/v1/", "/v2/"))}
    entry = next((_object(auths[name], source) for name in auths if name.rstrip("/") in names or name in names), {})
    if entry.get("identitytoken"):
        raise _unusable(source, f"has an identity token for {host}, which is not supported; log in with a password")
    if auth := entry.get("auth"):
        try:
            user, colon, password = base64.b64decode(str(auth), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise _unusable(source, f"has an `auth` of {host} that is not base64") from error
        if not colon:
            raise _unusable(source, f"has an `auth` of {host} that is not base64 of USER:PASSWORD")
        return user, password.rstrip("\0")
    if "username" in entry and "password" in entry:
        return str(entry["username"]), str(entry["password"])
    return None


def _configuration() -> tuple[str, Mapping[str, Any]]:
    """The configuration, and where it is from; empty if there is none."""
    source = "DOCKER_AUTH_CONFIG"
    text = os.environ.get(source, "")
    if not text.strip():
        path = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
        source = str(path)
        try:
            with path.open("rb") as file:
                text = file.read(_MAX_BYTES).decode()
        except FileNotFoundError:
            return source, {}
        except (OSError, UnicodeDecodeError) as error:
            raise _unusable(source, f"cannot be read ({type(error).__name__})") from error
    try:
        return source, _object(json.loads(text), source)
    except ValueError as error:
        raise _unusable(source, "is not JSON") from error


def _from_helper(helper: str, key: str, source: str) -> tuple[str, str] | None:
    """Run a credential helper of docker; None if it has no entry."""
    if _HELPER.fullmatch(helper) is None:
        raise _unusable(source, "names an invalid credential helper")
    command = f"docker-credential-{helper}"
    try:
        run = subprocess.run(  # noqa: S603  docker's own interface
            [command, "get"], input=key.encode(), capture_output=True, timeout=_HELPER_S, check=False
        )
        found = json.loads(run.stdout) if run.returncode == 0 else {}
        user, password = found.get("Username"), found.get("Secret")
    except (OSError, subprocess.SubprocessError, ValueError, AttributeError) as error:
        raise _unusable(source, f"names the helper {command}, which failed ({type(error).__name__})") from error
    if user == _TOKEN_USER:
        raise _unusable(source, f"names the helper {command}, which has an identity token; log in with a password")
    return (str(user), str(password)) if user and password else None


def _object(value: object, source: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _unusable(source, "is not a configuration of docker")
    return value


def _unusable(source: str, problem: str) -> RemoteError:
    return RemoteError(f"{source} {problem}. `docker login` writes a new one.", code="credentials_invalid")
