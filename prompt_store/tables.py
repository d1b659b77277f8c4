"""Output of `caspl store` and `caspl bundle`: JSON values and tables.

Text from bundles and logs is escaped, so that it cannot inject markup or terminal control sequences.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table
from rich.text import Text

from prompt_store.audit_check import AuditRow
from prompt_store.bundle import Bundle
from prompt_store.check import Finding, StoreCheck
from prompt_store.contents import head_kind
from prompt_store.repair import Repair
from prompt_store.signers import signature_infos
from prompt_store.store import Store

if TYPE_CHECKING:
    from prompt_store.signing_keys import SignaturePolicy

_SHOWN_CLASSES = 5
SHOWN_KEY_CHARS = 16


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


def _cell(value: object) -> Text:
    """Escape a value for the terminal."""
    return Text("-" if value is None else _printable(str(value)))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Build a table; None is shown as a dash."""
    result = Table(title=_cell(title), title_justify="left", title_style="bold")
    for column in columns:
        result.add_column(column, overflow="fold")
    for row in rows:
        result.add_row(*(_cell(value) for value in row))
    return result


def bundle_facts(bundle: Bundle, n_bytes: int) -> dict[str, Any]:
    """A bundle's metadata as JSON values."""
    return {
        "digest": bundle.digest,
        "size_bytes": n_bytes,
        "tensors": {
            name: {"dtype": str(array.dtype), "shape": list(array.shape)}
            for name, array in sorted(bundle.tensors.items())
        },
        "manifest": bundle.manifest.model_dump(mode="json"),
    }


def bundle_tables(bundle: Bundle, n_bytes: int) -> list[Table]:
    """A bundle's metadata as tables, including unknown manifest fields."""
    manifest, made = bundle.manifest, bundle.manifest.provenance
    names = [spec.name for spec in manifest.classes]
    more = f" and {len(names) - _SHOWN_CLASSES} more" if len(names) > _SHOWN_CLASSES else ""
    facts = [
        ("domain", manifest.domain),
        ("digest", bundle.digest),
        ("size", f"{n_bytes} bytes"),
        ("backbone", f"{manifest.backbone.arch} ({manifest.backbone.pretrained or 'own weights'})"),
        ("fingerprint", manifest.backbone.fingerprint),
        ("classes", f"{len(names)}: {', '.join(names[:_SHOWN_CLASSES])}{more}"),
        ("templates", len(manifest.templates)),
        ("logit scale", manifest.logit_scale),
        ("head", _head(bundle)),
        ("temperature", manifest.calibration and f"{manifest.calibration.temperature:g}"),
        ("labels", "any" if manifest.stack.labels == "any" else "its own classes only"),
        ("made by", f"{made.method}, phase {made.phase}, code {made.code_version}, {made.created}"),
    ]
    facts += [(f"metric {name}", value) for name, value in made.metrics.items()]
    facts += [(f"unknown field {name}", value) for name, value in (manifest.model_extra or {}).items()]
    tensors = [(name, list(array.shape), array.dtype) for name, array in sorted(bundle.tensors.items())]
    return [table("Bundle", ("field", "value"), facts), table("Tensors", ("name", "shape", "type"), tensors)]


def _head(bundle: Bundle) -> str:
    """Describe the head."""
    stack = bundle.manifest.stack
    match head_kind(stack, bundle.tensors):
        case "conditional":
            return "conditional: text features computed per image"
        case "projector":
            return "static, with an image projector"
        case "class":
            reads = "unit features" if stack.head_input == "unit" else "embeddings"
            return f"static, plus a linear head with weight {stack.head_share:g} on {reads}"
        case "plain":
            return "static"


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    if isinstance(value, Mapping) and value:
        items = ((f"{prefix}.{key}" if prefix else str(key), child) for key, child in value.items())
    elif isinstance(value, list) and value:
        items = ((f"{prefix}[{index}]", child) for index, child in enumerate(value))
    else:
        return {prefix: value}
    return {path: leaf for name, child in items for path, leaf in _flat(child, name).items()}


def _tensor_difference(first: Bundle, second: Bundle, name: str) -> dict[str, Any] | None:
    left, right = first.tensors.get(name), second.tensors.get(name)
    if left is None or right is None:
        return {"name": name, "change": "added" if left is None else "removed"}
    if left.shape != right.shape or left.dtype != right.dtype:
        show = f"{left.dtype}{list(left.shape)} to {right.dtype}{list(right.shape)}"
        return {"name": name, "change": show}
    largest = float(np.abs(left.astype(np.float64) - right.astype(np.float64)).max())
    return {"name": name, "change": "values", "max_abs_difference": largest} if largest else None


def bundle_differences(first: Bundle, second: Bundle) -> dict[str, Any]:
    """The differences between two bundles: manifest fields by path, tensors by name."""
    left, right = (_flat(bundle.manifest.model_dump(mode="json")) for bundle in (first, second))
    fields = [
        {"field": path, "first": left.get(path), "second": right.get(path)}
        for path in sorted(left.keys() | right.keys())
        if left.get(path) != right.get(path)
    ]
    names = sorted(first.tensors.keys() | second.tensors.keys())
    tensors = [change for name in names if (change := _tensor_difference(first, second, name)) is not None]
    return {"is_equal": first.digest == second.digest, "fields": fields, "tensors": tensors}


def store_rows(store: Store, domain: str, keys: "SignaturePolicy | None" = None) -> list[dict[str, Any]]:
    """One row per version of a domain, with its signatures, verified with `keys`."""
    return [
        {"domain": domain, **asdict(info), "signatures": _signatures(store, info.digest, keys)}
        for info in store.versions(domain)
    ]


def _signatures(store: Store, digest: str, keys: "SignaturePolicy | None") -> list[dict[str, Any]]:
    return [asdict(one) | {"is_verified": one.is_verified} for one in signature_infos(store, digest, keys)]


def signed_by(signatures: Sequence[Mapping[str, Any]]) -> str | None:
    """The keys that signed a version, in one line; None without signatures."""
    return ", ".join(map(_signer, signatures)) or None


def _signer(signature: Mapping[str, Any]) -> str:
    key = str(signature["key"])[:SHOWN_KEY_CHARS]
    return str(signature["name"]) or key if signature["is_verified"] else f"{key or '?'} (not verified)"


def audit_table(rows: Iterable[AuditRow]) -> Table:
    """The changes of the audit log."""
    columns = ("entry", "at (UTC)", "actor", "action", "domain", "version", "key")
    cells = [(row.entry, row.at[:19], row.actor, row.action, row.domain, row.version, row.key) for row in rows]
    return table("Audit log", columns, cells)


def check_facts(check: StoreCheck, repairs: Sequence[Repair]) -> dict[str, Any]:
    """The result of a check as JSON values."""

    def facts(findings: Iterable[Finding]) -> list[dict[str, Any]]:
        return [{"path": one.path, "detail": one.detail, "is_damage": one.is_damage} for one in findings]

    return {
        "is_sound": check.is_sound,
        "repairs": [asdict(repair) for repair in repairs],
        "findings": facts(check.findings),
        "domains": [
            {
                "domain": one.domain,
                "n_records": one.n_records,
                "n_versions": one.n_versions,
                "live": one.live,
                "findings": facts(one.findings),
            }
            for one in check.domains
        ],
    }


def check_lines(check: StoreCheck, repairs: Sequence[Repair]) -> list[str]:
    """The result of a check as text: repairs, then each domain with its findings, then the store."""
    lines = [f"repaired {one.path}: {one.detail} {one.action}" for one in repairs]
    for one in check.domains:
        status = "damaged" if any(finding.is_damage for finding in one.findings) else "ok"
        live = f"version {one.live} is live" if one.live else "none is live"
        counts = f"{_count(one.n_records, 'record')}, {_count(one.n_versions, 'version')}"
        lines.append(f"{one.domain}: {status}, {counts}, {live}")
        lines += [f"  {finding.path}: {finding.detail}" for finding in one.findings]
    lines += [f"{finding.path}: {finding.detail}" for finding in check.findings]
    damaged = sum(finding.is_damage for finding in check.all_findings())
    lines.append(f"The store is damaged: {_count(damaged, 'finding')}." if damaged else "The store is sound.")
    return [_printable(line) for line in lines]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
