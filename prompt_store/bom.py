"""A CycloneDX 1.6 ML-BOM of a bundle: its contents, origin and metrics.

Deterministic: it has no other time than the bundle's.
"""

import json
import uuid
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any, Final

from prompt_store.bundle import Bundle
from prompt_store.digest import is_digest

SPEC_VERSION: Final = "1.6"


def bundle_bom(bundle: Bundle, name: str, n_bytes: int) -> dict[str, Any]:
    """Describe a bundle as a CycloneDX document.

    Args:
        bundle: the bundle.
        name: of its file.
        n_bytes: size of its file.

    Returns:
        JSON values. The bundle is the document's subject, a machine-learning model; it depends on its backbone, its
        teacher and the data it was trained on.
    """
    manifest, made = bundle.manifest, bundle.manifest.provenance
    components = [_backbone(bundle), *_teachers(made.teacher), *_data(made.data_digests)]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'caspl-bundle:{bundle.digest}')}",
        "version": 1,
        "metadata": {
            "timestamp": made.created,
            "tools": {
                "components": [{"type": "application", "name": "caspl-serve", "version": version("caspl-serve")}]
            },
            "component": {
                "type": "machine-learning-model",
                "bom-ref": bundle.digest,
                "name": manifest.domain,
                "version": bundle.digest,
                "description": f"CLIP prompts and classes for the domain {manifest.domain}, as one safetensors file.",
                "hashes": [_hash(bundle.digest)],
                "modelCard": _model_card(bundle),
                "properties": list(_properties(bundle, name, n_bytes)),
            },
        },
        "components": components,
        "dependencies": [
            {"ref": bundle.digest, "dependsOn": [component["bom-ref"] for component in components]},
            *({"ref": component["bom-ref"]} for component in components),
        ],
    }


def _hash(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest.removeprefix("sha256:")}


def _backbone(bundle: Bundle) -> dict[str, Any]:
    """The backbone; its fingerprint covers the weights, not a file, so it is no CycloneDX hash."""
    spec = bundle.manifest.backbone
    return {
        "type": "machine-learning-model",
        "bom-ref": f"backbone:{spec.fingerprint}",
        "name": spec.arch,
        **({"version": spec.pretrained} if spec.pretrained else {}),
        "description": "The frozen CLIP that the prompts were trained on.",
        "properties": [_property("fingerprint", spec.fingerprint), _property("image_size", spec.image_size)],
    }


def teachers(teacher: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """The teacher of a manifest, or each of several, which are a list there, by its `bom-ref`."""
    if not teacher:
        return {}
    several = teacher.get("teachers")
    is_list = isinstance(several, list) and all(isinstance(one, dict) for one in several)
    found = several if is_list and several else [teacher]
    return {"teacher" if number == 1 else f"teacher:{number}": one for number, one in enumerate(found, start=1)}


def _teachers(teacher: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    for reference, one in teachers(teacher).items():
        name, pretrained = one.get("arch"), one.get("pretrained")
        yield {
            "type": "machine-learning-model",
            "bom-ref": reference,
            "name": str(name or "teacher"),
            **({"version": str(pretrained)} if pretrained else {}),
            "description": "A CLIP that the boosting prompts were distilled from.",
            "properties": [_property(key, value) for key, value in sorted(one.items())],
        }


def _data(digests: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for name, digest in sorted(digests.items()):
        yield {
            "type": "data",
            "bom-ref": f"data:{name}",
            "name": name,
            "description": "Data that the bundle was trained or evaluated on.",
            **({"hashes": [_hash(digest)]} if is_digest(digest) else {"properties": [_property("digest", digest)]}),
        }


def _model_card(bundle: Bundle) -> dict[str, Any]:
    manifest, made = bundle.manifest, bundle.manifest.provenance
    metrics = [{"type": metric, "value": _text(value)} for metric, value in _flat(made.metrics) if value is not None]
    return {
        "modelParameters": {
            "task": "image-classification",
            "architectureFamily": "CLIP",
            "modelArchitecture": manifest.backbone.arch,
            "datasets": [{"ref": f"data:{name}"} for name in sorted(made.data_digests)],
            "inputs": [{"format": "image"}],
            "outputs": [{"format": f"one of {len(manifest.classes)} classes"}],
        },
        **({"quantitativeAnalysis": {"performanceMetrics": metrics}} if metrics else {}),
    }


def _properties(bundle: Bundle, name: str, n_bytes: int) -> Iterator[dict[str, str]]:
    made = bundle.manifest.provenance
    yield _property("file", name)
    yield _property("size_bytes", n_bytes)
    for key in ("method", "phase", "seed", "code_version"):
        if (value := getattr(made, key)) is not None:
            yield _property(key, value)
    for path, value in _flat(made.recipe):
        yield _property(f"recipe.{path}", value)
    for spec in bundle.manifest.classes:
        yield _property("class", spec.name)


def _property(name: str, value: object) -> dict[str, str]:
    return {"name": f"caspl:{name}", "value": _text(value)}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested objects with their paths, sorted; lists are leaves."""
    for key, child in sorted(value.items()):
        if isinstance(child, Mapping) and child:
            yield from _flat(child, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", child
