"""Activates new versions while requests run."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from benchmarks.demo.accuracy import LabelledImage
from caspl import Client
from service.demo.process import DemoError

AROUND_SWAP_S: Final = 1.0
N_BACKGROUND: Final = 2


def swap_under_traffic(
    client: Client, bundles: Mapping[str, Path], images: Mapping[str, Sequence[LabelledImage]]
) -> tuple[dict[str, int], int]:
    """Publish and activate a bundle per domain while requests run.

    Args:
        client: for the service.
        bundles: by domain.
        images: by domain; sent one per request.

    Returns:
        The new versions by domain, and the number of requests.

    Raises:
        DemoError: no request used an old version, or none the new one.
        CasplError: a step or a request failed.
    """
    is_over = threading.Event()

    def send_requests() -> list[tuple[str, int | None]]:
        seen: list[tuple[str, int | None]] = []
        while not is_over.is_set():
            for domain, several in images.items():
                seen += [(domain, client.classify(image.path, domain)[0].version) for image in several]
        return seen

    with ThreadPoolExecutor(N_BACKGROUND) as threads:
        sending = [threads.submit(send_requests) for _ in range(N_BACKGROUND)]
        try:
            time.sleep(AROUND_SWAP_S)
            versions = {domain: client.publish(path, activate=True).version for domain, path in bundles.items()}
            time.sleep(AROUND_SWAP_S)
        finally:
            is_over.set()
    seen = [answer for sent in sending for answer in sent.result()]
    for domain, version in versions.items():
        used = {one for name, one in seen if name == domain}
        if version not in used or len(used) == 1:
            raise DemoError(
                f"Requests used versions {sorted(map(str, used))} of {domain}; expected an old one and {version}."
            )
    return versions, len(seen)
