"""Whether a peer does the same work: its classes against those of the plain model in float32."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from benchmarks.errors import BenchError
from benchmarks.peers.plain_clip import N_DOMAINS, PlainClip
from benchmarks.peers.servers import DOMAINS, Peer

MIN_AGREEMENT = 0.95
"""Smallest share of equal classes in float32; random weights may have ties."""

Classes = Mapping[tuple[Path, int], int]
"""Best class by photograph and domain."""


def expected_classes(backbone: str, threads: int, photographs: Sequence[Path]) -> Classes:
    """The classes of the plain model in float32."""
    clip = PlainClip(backbone, "float32", threads)
    classes: dict[tuple[Path, int], int] = {}
    for path in photographs:
        answers = clip.classify([clip.decode(path.read_bytes())] * N_DOMAINS, range(N_DOMAINS))
        classes |= {(path, index): int(answer["class_id"]) for index, answer in enumerate(answers)}
    return classes


def agreement(url: str, peer: Peer, expected: Classes) -> float | None:
    """Share of photographs and domains with the expected class; None for a peer with another model.

    Raises:
        BenchError: an error answer.
    """
    if not peer.is_plain:
        return None
    n_equal = 0
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        for (path, index), class_id in expected.items():
            headers = {name: value.format(domain=DOMAINS[index]) for name, value in peer.headers}
            response = client.post(
                peer.path.format(domain=DOMAINS[index]),
                content=peer.body.write(path.read_bytes(), index),
                headers={"Content-Type": peer.body.content_type, **headers},
            )
            if not response.is_success:
                raise BenchError(f"{peer.name} answered {response.status_code}: {response.text[:200]}")
            n_equal += class_of(response.json()) == class_id
    return n_equal / len(expected)


def class_of(body: Mapping[str, Any]) -> int:
    """The class in an answer: a field of its own, or an output tensor."""
    if "outputs" in body:
        return int(next(one["data"][0] for one in body["outputs"] if one["name"] == "class_id"))
    return int(body["class_id"])
