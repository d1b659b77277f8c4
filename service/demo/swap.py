"""Uploads versions, also while requests run."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import httpx

from service.demo.accuracy import LabelledImage, classify
from service.demo.process import DemoError

AROUND_SWAP_S: Final = 1.0
N_BACKGROUND: Final = 2


def live_version(client: httpx.Client, domain: str) -> int:
    """The live version of a domain."""
    return int(client.get(f"/domains/{domain}").json()["version"])


def upload(client: httpx.Client, domain: str, data: bytes, *, is_live: bool) -> int:
    """Upload a bundle as a new version, and activate it if `is_live`; returns the version.

    Raises:
        DemoError: the request failed, or the live version is not the expected one.
    """
    before = live_version(client, domain)
    answer = client.post(
        f"/domains/{domain}/versions",
        params={"activate": is_live},
        content=data,
        headers={"Content-Type": "application/octet-stream"},
    )
    if not answer.is_success:
        raise DemoError(f"Uploading a bundle of {domain} failed: {answer.text}")
    version = int(answer.json()["version"])
    live, expected = live_version(client, domain), version if is_live else before
    if live != expected:
        raise DemoError(f"Version {live} of {domain} is live, expected {expected}.")
    return version


def swap_under_traffic(
    client: httpx.Client, bundles: Mapping[str, bytes], images: Mapping[str, Sequence[LabelledImage]]
) -> tuple[dict[str, int], int]:
    """Upload and activate a bundle per domain while requests run.

    Args:
        client: for the service.
        bundles: by domain.
        images: by domain; sent one per request.

    Returns:
        The new versions by domain, and the number of requests.

    Raises:
        DemoError, httpx.HTTPError: a step or a request failed, or no request used an old version.
    """
    is_over = threading.Event()

    def send_requests() -> list[tuple[str, int]]:
        seen: list[tuple[str, int]] = []
        with httpx.Client(base_url=client.base_url, timeout=30, trust_env=False) as own:
            while not is_over.is_set():
                for domain, several in images.items():
                    seen += [(domain, int(classify(own, domain, [image])["version"])) for image in several]
        return seen

    with ThreadPoolExecutor(N_BACKGROUND) as threads:
        sending = [threads.submit(send_requests) for _ in range(N_BACKGROUND)]
        try:
            time.sleep(AROUND_SWAP_S)
            versions = {domain: upload(client, domain, data, is_live=True) for domain, data in bundles.items()}
            time.sleep(AROUND_SWAP_S)
        finally:
            is_over.set()
    seen = [answer for sent in sending for answer in sent.result()]
    for domain, version in versions.items():
        used = {one for name, one in seen if name == domain}
        if version not in used or len(used) == 1:
            raise DemoError(f"Requests used versions {sorted(used)} of {domain}; expected an old one and {version}.")
    return versions, len(seen)
