"""Changes of the service's API keys in the audit log."""

from collections.abc import Mapping

from prompt_store.audit import Audit, KeyChange, read_audit
from prompt_store.disk import Disk
from prompt_store.layout import Layout


def key_changes(layout: Layout, keys: Mapping[str, tuple[str, str]]) -> list[KeyChange]:
    """Return one change per key that differs from the keys in the log; see `Store.audit_keys`.

    The keys before are computed from the log, so changes while no service ran are found, too.

    Raises:
        StoreReadOnlyError: `storage_busy`.
    """
    before: dict[str, str] = {}
    for entry in read_audit(layout).entries:
        if entry.key is not None:
            if entry.key.change == "removed":
                before.pop(entry.key.id, None)
            else:
                before[entry.key.id] = entry.key.fields
    changes = [
        KeyChange(id=key, change="changed" if key in before else "added", fields=fields, scopes=scopes)
        for key, (fields, scopes) in sorted(keys.items())
        if before.get(key) != fields
    ]
    gone = [(key, fields) for key, fields in sorted(before.items()) if key not in keys]
    return changes + [KeyChange(id=key, change="removed", fields=fields) for key, fields in gone]


def append_key_changes(layout: Layout, disk: Disk, keys: Mapping[str, tuple[str, str]]) -> list[KeyChange]:
    """Append and return `key_changes`.

    Raises: as `Audit.append`.
    """
    changes = key_changes(layout, keys)
    for change in changes:
        Audit(layout, disk).append("key", key=change)
    return changes
