"""The manifest of a bundle in a registry: CNCF ModelPack on the OCI image manifest.

The bundle is one uncompressed weight layer, so the digest of its layer is the digest of the bundle. Signatures and
ML-BOM are documentation layers of the same manifest: one digest covers all of them, and any registry keeps them
together. Layers are named as ModelPack's `modctl` and `oras` expect.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prompt_store.bundle import Bundle
from prompt_store.digest import DIGEST_PATTERN, digest_bytes
from prompt_store.errors import LimitExceededError, RemoteError
from prompt_store.header import MAX_BUNDLE_BYTES
from prompt_store.remotes.artifact import (
    BOM_SUFFIX,
    BUNDLE_SUFFIX,
    MAX_BOM_BYTES,
    SIGNATURE_SUFFIX,
    Artifact,
    file_names,
)
from prompt_store.signature_files import MAX_SIGNATURES
from prompt_store.signatures import MAX_SIGNATURE_BYTES
from prompt_store.strict_json import StrictJsonError, dump_canonical, load_object

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE: Final = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE: Final = "application/vnd.cncf.model.config.v1+json"
WEIGHT_TYPE: Final = "application/vnd.cncf.model.weight.v1.raw"
DOCUMENT_TYPE: Final = "application/vnd.cncf.model.doc.v1.raw"
FILE_PATH: Final = "org.cncf.model.filepath"
TITLE: Final = "org.opencontainers.image.title"
_MAX_LAYERS: Final = 64
_MEDIA_TYPE: Final = re.compile(r"[\w.+-]{1,100}/[\w.+-]{1,100}")


class Descriptor(BaseModel):
    """A blob of a manifest, by digest; further fields are not used."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    media_type: Annotated[str, Field(alias="mediaType")]
    digest: Annotated[str, Field(pattern=rf"^{DIGEST_PATTERN}$")]
    size: Annotated[int, Field(ge=0)]
    annotations: dict[str, str] = Field(default_factory=dict)

    @property
    def file_name(self) -> str:
        """The name of its file; empty without one."""
        return self.annotations.get(FILE_PATH) or self.annotations.get(TITLE, "")


class _Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    schema_version: Annotated[int, Field(alias="schemaVersion", ge=2, le=2)]
    config: Descriptor
    layers: Annotated[list[Descriptor], Field(max_length=_MAX_LAYERS)]


@dataclass(frozen=True)
class Layers:
    """The layers of an artifact to download, and the names of further files."""

    bundle: Descriptor
    signatures: tuple[Descriptor, ...]
    bom: Descriptor | None
    others: tuple[str, ...]


def write_manifest(artifact: Artifact, bundle: Bundle) -> tuple[bytes, dict[str, bytes]]:
    """Build the manifest of an artifact; deterministic.

    Returns:
        the manifest, and the blobs that it names, by digest.
    """
    made, backbone = bundle.manifest.provenance, bundle.manifest.backbone
    name = f"{bundle.manifest.domain}{BUNDLE_SUFFIX}"
    files = file_names(name, artifact)
    dtypes = sorted({str(array.dtype) for array in bundle.tensors.values()})
    config = dump_canonical(
        {
            "descriptor": {
                "createdAt": made.created,
                "family": "CLIP",
                "name": bundle.manifest.domain,
                "title": f"CLIP prompts for the domain {bundle.manifest.domain}",
            },
            "config": {"architecture": backbone.arch, "format": "safetensors", "precision": "+".join(dtypes)},
            "modelfs": {"type": "layers", "diffIds": [digest_bytes(data) for data in files.values()]},
        }
    )
    layers = [
        {
            "mediaType": WEIGHT_TYPE if path == name else DOCUMENT_TYPE,
            "digest": digest_bytes(data),
            "size": len(data),
            "annotations": {FILE_PATH: path, TITLE: path},
        }
        for path, data in files.items()
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": digest_bytes(config), "size": len(config)},
        "layers": layers,
        "annotations": {
            "org.opencontainers.image.created": made.created,
            TITLE: bundle.manifest.domain,
            "caspl.domain": bundle.manifest.domain,
            "caspl.digest": bundle.digest,
            "caspl.backbone": backbone.arch,
            "caspl.fingerprint": backbone.fingerprint,
            "caspl.method": made.method,
            "caspl.phase": made.phase,
        },
    }
    return dump_canonical(manifest), {digest_bytes(data): data for data in (config, *files.values())}


def read_manifest(data: bytes) -> Layers:
    """Parse a manifest, and check that it is one of a bundle whose layers are within the limits.

    Raises:
        RemoteError: `media_type_unknown`, another kind of artifact; `remote_failed`, not a manifest.
        LimitExceededError: a layer is too large.
    """
    try:
        fields = load_object(data)
    except StrictJsonError as error:
        raise RemoteError(f"The registry sends a manifest that is not JSON: {error}.") from error
    _check_types(fields)
    try:
        manifest = _Manifest.model_validate(fields)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"][:3])
        raise RemoteError(f"The registry sends a manifest with an invalid {where}.") from error
    return _sort_layers(manifest.layers)


def _check_types(fields: dict[str, Any]) -> None:
    """Check the types that a manifest names of itself."""
    config = fields.get("config")
    found = {
        "mediaType": (fields.get("mediaType", MANIFEST_TYPE), MANIFEST_TYPE),
        "artifactType": (fields.get("artifactType", ARTIFACT_TYPE), ARTIFACT_TYPE),
        "config.mediaType": (config.get("mediaType") if isinstance(config, dict) else None, CONFIG_TYPE),
    }
    for name, (value, expected) in found.items():
        if value != expected:
            raise _unknown_type(name, value, expected)


def _unknown_type(name: str, value: object, expected: str) -> RemoteError:
    shown = value if isinstance(value, str) and _MEDIA_TYPE.fullmatch(value) else "none"
    message = f"Not a bundle: {name} is {shown}, expected {expected}. `caspl push` writes one."
    return RemoteError(message, code="media_type_unknown")


def _sort_layers(layers: list[Descriptor]) -> Layers:
    bundles = [layer for layer in layers if layer.media_type == WEIGHT_TYPE]
    documents = [layer for layer in layers if layer.media_type == DOCUMENT_TYPE]
    unknown = next((layer for layer in layers if layer not in bundles and layer not in documents), None)
    if unknown is not None:
        raise _unknown_type("a layer's mediaType", unknown.media_type, f"{WEIGHT_TYPE} or {DOCUMENT_TYPE}")
    if len(bundles) != 1:
        message = f"Not a bundle: the artifact has {len(bundles)} weight layers, expected 1."
        raise RemoteError(message, code="media_type_unknown")
    signatures = [layer for layer in documents if layer.file_name.endswith(SIGNATURE_SUFFIX)]
    boms = [layer for layer in documents if layer.file_name.endswith(BOM_SUFFIX)]
    if len(signatures) > MAX_SIGNATURES or len(boms) > 1:
        raise RemoteError("The artifact has too many signatures or bills of materials.", code="media_type_unknown")
    _check_size("The bundle", bundles[0], MAX_BUNDLE_BYTES)
    for layer in signatures:
        _check_size("A signature", layer, MAX_SIGNATURE_BYTES)
    for layer in boms:
        _check_size("The bill of materials", layer, MAX_BOM_BYTES)
    others = tuple(layer.file_name or layer.digest for layer in documents if layer not in signatures + boms)
    return Layers(bundles[0], tuple(signatures), boms[0] if boms else None, others)


def _check_size(what: str, layer: Descriptor, limit: int) -> None:
    if layer.size > limit:
        message = f"{what} has {layer.size} bytes according to the registry; the limit is {limit}."
        raise LimitExceededError("too_large", message, limit=limit)
