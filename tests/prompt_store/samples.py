"""Small valid bundles, and hand-built files that violate a single rule."""

import json

import numpy as np

from prompt_store import Manifest, write_bundle

CLASSES = ("red tulip", "white rose", "daisy")


def manifest_fields(domain="flowers", class_names=CLASSES, **changes):
    fields = {
        "format": 1,
        "domain": domain,
        "backbone": {
            "arch": "ViT-B-16",
            "pretrained": "openai",
            "fingerprint": "sha256:" + "ab" * 32,
            "image_size": 224,
            "preprocess": {"mean": [0.5, 0.5, 0.5]},
        },
        "classes": [{"name": name, "text": name} for name in class_names],
        "templates": ["a photo of a {}."],
        "logit_scale": 100.0,
        "stack": {
            "head": "static",
            "image": {"boost": {"depth": 2, "tokens": 3}, "adapt": None},
            "text": {"boost": None, "adapt": None},
        },
        "provenance": {
            "method": "caspl",
            "phase": "boost",
            "recipe": {"steps": 10},
            "data_digests": {},
            "teacher": None,
            "seed": 1,
            "metrics": {"H": 0.5},
            "code_version": "0.1.0",
            "created": "2026-01-31T12:00:00Z",
        },
    }
    return fields | changes


def tensors(seed=0, n_classes=3, dtype=np.float32):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n_classes, 5))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return {
        "image.boost": rng.standard_normal((2, 3, 4)).astype(dtype),
        "text.features": features.astype(np.float32),
    }


def sample_bundle(seed=0, domain="flowers", **changes):
    return write_bundle(Manifest.model_validate(manifest_fields(domain, **changes)), tensors(seed))


NUMPY = {"F16": "<f2", "F32": "<f4"}
NAMES = {np.dtype("<f2"): "F16", np.dtype("<f4"): "F32"}


def raw_file(header, data=b"", *, pad=b""):
    """A file with the given header (text, bytes or JSON value), whatever it says."""
    if not isinstance(header, bytes | str):
        header = json.dumps(header)
    header = (header.encode("utf-8", "surrogatepass") if isinstance(header, str) else header) + pad
    return len(header).to_bytes(8, "little") + header + data


def header_and_data(manifest=None, arrays=None):
    """A valid header as a dictionary, and the bytes that follow it."""
    arrays = tensors() if arrays is None else arrays
    manifest = manifest_fields() if manifest is None else manifest
    text = manifest if isinstance(manifest, str) else json.dumps(manifest)
    header, chunks, position = {"__metadata__": {"manifest": text}}, [], 0
    for name, array in arrays.items():
        chunk = np.ascontiguousarray(array).tobytes()
        end = position + len(chunk)
        header[name] = {"dtype": NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [position, end]}
        chunks.append(chunk)
        position = end
    return header, b"".join(chunks)


def handmade(manifest=None, arrays=None):
    """A file like `write_bundle` makes, but without validation."""
    return raw_file(*header_and_data(manifest, arrays))


def tree(root):
    """Every file and directory under `root` with its bytes, to compare before and after."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in sorted(root.rglob("*"))
    }
