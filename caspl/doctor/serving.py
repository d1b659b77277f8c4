"""Checks of the service's settings, its store, key file and port, and of a running server."""

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx

from caspl.doctor.finding import Finding, ok, problem, warning
from prompt_store.errors import PromptStoreError
from prompt_store.s3 import is_s3
from prompt_store.stores import check_store, open_store

if TYPE_CHECKING:
    from service.settings import Settings

TIMEOUT_S: Final = 5.0


def read_settings(**given: object) -> "tuple[Settings | None, Finding]":
    """The service's settings from CASPL_* variables, None if they are invalid or the service is not installed.

    Args:
        given: settings that override the variables.
    """
    try:
        from service.configuration.environment import load_settings  # noqa: PLC0415
        from service.errors import SettingsError  # noqa: PLC0415  the clients work without the extra
    except ModuleNotFoundError as error:
        return None, warning("settings", f"not read: {error.name} is not installed", 'pip install "caspl-serve[serve]"')
    try:
        settings = load_settings(**given)
    except SettingsError as error:
        return None, problem("settings", str(error), "Correct the variable; docs/configuration.md lists them.")
    names = sorted(settings.model_fields_set - given.keys())
    return settings, ok("settings", f"set by variables: {', '.join(names)}" if names else "defaults")


def check_bundle_store(store: str) -> Finding:
    """Whether the store is sound; of one in a bucket, whether it can be read, because a check copies all of it."""
    if is_s3(store):
        try:
            return ok("store", f"{store} can be read: {len(open_store(store).domains())} domains")
        except PromptStoreError as error:
            return problem("store", f"{store}: {error}", "caspl serve creates a store in a bucket that exists.")
    if not Path(store).exists():
        return ok("store", f"{store} does not exist yet; `caspl serve` creates it")
    try:
        found, _ = check_store(store)
    except PromptStoreError as error:
        return problem("store", f"{store}: {error}", "Pass the directory of a store as --store.")
    damages = [finding for finding in found.all_findings() if finding.is_damage]
    if damages:
        detail = f"{store}: {len(damages)} damaged, first {damages[0].path}: {damages[0].detail}"
        return problem("store", detail, f"caspl store check --repair --store {store}")
    n_live = sum(domain.live is not None for domain in found.domains)
    return ok("store", f"{store} is sound: {len(found.domains)} domains, {n_live} live")


def check_keys(settings: "Settings") -> Finding:
    """Whether the key file can be read, by its owner only."""
    from service.access.key_file import read_keys  # noqa: PLC0415  the clients work without the extra
    from service.errors import SettingsError  # noqa: PLC0415

    if settings.keys_file is None:
        return ok("keys", "no key file: requests need no key, and `caspl serve` listens on loopback only")
    try:
        keys = read_keys(settings.keys_file)
    except SettingsError as error:
        advice = f"chmod 600 {settings.keys_file}" if settings.keys_file.exists() else "caspl keys new creates it"
        return problem("keys", str(error), advice)
    return ok("keys", f"{settings.keys_file}: {len(keys)} keys, private")


def check_port(host: str, port: int) -> Finding:
    """Whether the service could listen, or does."""
    name = f"{host}:{port}"
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(kind) as own:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            own.bind((host, port))
    except OSError as error:
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        if _get(url, "/livez") is not None:
            return ok("port", f"{name} is used by a running CasPL Serve")
        return problem("port", f"cannot listen on {name}: {error.strerror}", "caspl serve --port 8001")
    return ok("port", f"{name} is free")


def check_server(url: str) -> Finding:
    """Whether a server answers and accepts requests."""
    ready = _get(url, "/readyz")
    if ready is None:
        return problem("server", f"no CasPL Serve at {url}", "Check the address, or start it: caspl serve")
    if not ready.is_success:
        return problem("server", f"{url} is not ready: {ready.text[:200]}", "Wait, or see the log of the server.")
    return ok("server", f"{url} is ready")


def _get(url: str, path: str) -> httpx.Response | None:
    """The response of a CasPL server; None if there is none, or it is from something else."""
    try:
        response = httpx.get(f"{url.rstrip('/')}{path}", timeout=TIMEOUT_S)
        body: Any = response.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return None
    return response if isinstance(body, dict) and {"is_alive", "is_ready"} & body.keys() else None
