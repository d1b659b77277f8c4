"""The model card of a bundle on the Hugging Face Hub: README.md with metadata, made from the manifest alone."""

from collections.abc import Iterable, Iterator
from typing import Final

from huggingface_hub import ModelCardData

from prompt_store.bom import bundle_bom, teachers
from prompt_store.bundle import Bundle
from prompt_store.remotes.artifact import BUNDLE_SUFFIX, Artifact

CARD: Final = "README.md"
_SHOWN_CLASSES: Final = 100


def write_card(bundle: Bundle, artifact: Artifact, address: str) -> bytes:
    """Write the card; deterministic.

    Args:
        bundle: the bundle.
        artifact: its files.
        address: where it is published.
    """
    made = bundle.manifest.provenance
    data = ModelCardData(
        library_name="caspl-serve",
        pipeline_tag="image-classification",
        tags=["clip", "prompt-learning", "caspl", made.method, f"domain:{bundle.manifest.domain}"],
    )
    text = "\n".join(_lines(bundle, artifact, address))
    return f"---\n{data.to_yaml()}\n---\n\n{text}\n".encode()


def _lines(bundle: Bundle, artifact: Artifact, address: str) -> Iterator[str]:
    manifest, made, backbone = bundle.manifest, bundle.manifest.provenance, bundle.manifest.backbone
    domain = manifest.domain
    yield f"# CLIP prompts for the domain {domain}\n"
    yield "Prompt tokens and text features for a frozen CLIP, learned and served with CasPL Serve. The weights of the"
    yield "backbone are not in this repository.\n"
    yield from _table(
        ("field", "value"),
        (
            ("backbone", f"{backbone.arch} ({backbone.pretrained})" if backbone.pretrained else backbone.arch),
            ("fingerprint of its weights", backbone.fingerprint),
            ("file", f"{domain}{BUNDLE_SUFFIX}, {len(artifact.bundle)} bytes"),
            ("digest", bundle.digest),
            ("signatures", len(artifact.signatures)),
            ("method", made.method),
            ("phase", made.phase),
            ("created", f"{made.created}, CasPL Serve {made.code_version}"),
            *((f"data {name}", digest) for name, digest in sorted(made.data_digests.items())),
            *(
                (f"{name}: {key}", value)
                for name, teacher in teachers(made.teacher).items()
                for key, value in sorted(teacher.items())
            ),
        ),
    )
    component = bundle_bom(bundle, f"{domain}{BUNDLE_SUFFIX}", len(artifact.bundle))["metadata"]["component"]
    metrics = component["modelCard"].get("quantitativeAnalysis", {}).get("performanceMetrics", ())
    if metrics:
        yield "\n## Metrics\n\nAs recorded when the bundle was made.\n"
        yield from _table(("metric", "value"), ((one["type"], one["value"]) for one in metrics))
    names = [spec.name for spec in manifest.classes]
    yield f"\n## Classes ({len(names)})\n"
    more = f" and {len(names) - _SHOWN_CLASSES} more" if len(names) > _SHOWN_CLASSES else ""
    yield ", ".join(_cell(name) for name in names[:_SHOWN_CLASSES]) + more
    yield "\n## Use\n\n```console"
    yield f"$ caspl pull {address} --store store --activate"
    yield f"$ caspl serve --follow {address}\n```"


def _table(columns: tuple[str, str], rows: Iterable[tuple[str, object]]) -> Iterator[str]:
    yield f"| {columns[0]} | {columns[1]} |"
    yield "|---|---|"
    for name, value in rows:
        yield f"| {_cell(name)} | {_cell(value)} |"


def _cell(value: object) -> str:
    """A text of the manifest that adds no markup to the card."""
    text = " ".join(str(value).split())
    return "".join(f"\\{char}" if char in r"\|[]*_`" else {"<": "&lt;", ">": "&gt;"}.get(char, char) for char in text)
