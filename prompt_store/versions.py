"""The results of the store's operations."""

from dataclasses import dataclass

from prompt_store.rollouts import Rollout


@dataclass(frozen=True)
class Added:
    """Result of `add`; `created` is False if the newest version already has this content."""

    version: int
    digest: str
    created: bool


@dataclass(frozen=True)
class VersionInfo:
    """One version; `created_at` is ISO 8601 in UTC."""

    version: int
    digest: str
    size_bytes: int
    created_at: str
    is_live: bool


@dataclass(frozen=True)
class SignatureInfo:
    """A stored signature of a version.

    Attributes:
        key: the hint of the key that made it, empty if the file is damaged.
        name: of this key, if the signature was verified with it.
        problem: the reason why it is not verified, empty if it is.
    """

    key: str
    name: str = ""
    problem: str = ""

    @property
    def is_verified(self) -> bool:
        """Whether the signature is valid, and by a key that is accepted."""
        return not self.problem


@dataclass(frozen=True)
class LiveInfo:
    """A domain's live version, and the rollout beside it.

    `seq` is the number of the domain's last commit, `since` is ISO 8601 in UTC.
    """

    version: int
    digest: str
    seq: int
    since: str
    rollout: Rollout | None = None


@dataclass(frozen=True)
class HistoryEntry:
    """One commit.

    `action` is `publish`, `activate`, `rollback`, `retire`, `rollout start`, `rollout stop` or `rollout rollback`; the
    versions of a rollout are the live one and the candidate. `detail` has the figures of its automatic end.
    """

    at: str
    actor: str
    action: str
    from_version: int | None
    to_version: int | None
    seq: int
    detail: str = ""
