"""The Hugging Face Hub: one model repository per domain, with the bundle, its signatures, its ML-BOM and a model card.

The library `huggingface_hub` lists and writes repositories. Downloads are read by `transfer`, which bounds them and
never sends the token to another host.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Final
from urllib.parse import quote

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from huggingface_hub.utils.tqdm import disable_progress_bars

from prompt_store.bundle import read_bundle
from prompt_store.errors import DigestMismatchError, LimitExceededError, RemoteError
from prompt_store.header import MAX_BUNDLE_BYTES
from prompt_store.remotes.address import HubAddress, printable
from prompt_store.remotes.artifact import (
    BOM_SUFFIX,
    BUNDLE_SUFFIX,
    MAX_BOM_BYTES,
    SIGNATURE_SUFFIX,
    Artifact,
    file_names,
)
from prompt_store.remotes.model_card import CARD, write_card
from prompt_store.remotes.transfer import TIMEOUT_S, Transfer
from prompt_store.signature_files import MAX_SIGNATURES
from prompt_store.signatures import MAX_SIGNATURE_BYTES

_NOT_OURS: Final = frozenset({CARD, ".gitattributes"})
_HTTP_LIBRARIES: Final = frozenset({"httpcore", "httpcore2", "httpx", "httpx2", "requests", "urllib3"})
"""Versions of `huggingface_hub` use different ones, whose errors have no common class."""


class Hub:
    """One address on the Hub, or on the server that the variable `HF_ENDPOINT` names.

    Args:
        address: of the repository.
        plain_http: allow plain HTTP to other hosts than this machine, too.
    """

    def __init__(self, address: HubAddress, *, plain_http: bool = False) -> None:
        self.address = address
        self._api = HfApi(library_name="caspl-serve")
        token = get_token()
        self._transfer = Transfer(
            self._api.endpoint,
            plain_http=plain_http,
            authorization=f"Bearer {token}" if token else None,
            hint="Log in with `hf auth login`, or set HF_TOKEN.",
        )

    def close(self) -> None:
        """Close the connections."""
        self._transfer.close()

    def newest(self) -> str:
        """The commit that the address names now.

        Raises:
            RemoteError: the Hub cannot be reached, refuses access, or has no such repository or revision.
        """
        return self._commit(self._info(self.address.revision, files=False))

    def pull(self, revision: str | None = None) -> Artifact:
        """Download the artifact; every file is verified against its digest in the repository.

        Args:
            revision: a commit, such as `newest` returns; None is the one that the address names.

        Raises:
            RemoteError: as `newest`; `media_type_unknown`, the repository has not exactly one bundle.
            LimitExceededError: a file is too large; it was not downloaded.
            DigestMismatchError: a file has other bytes.
        """
        info = self._info(revision or self.address.revision, files=True)
        commit, files = self._commit(info), _files(info)
        bundles = [name for name in files if name.endswith(BUNDLE_SUFFIX)]
        if len(bundles) != 1:
            message = f"{self.address} has {len(bundles)} files *{BUNDLE_SUFFIX}, expected 1. `caspl push` writes one."
            raise RemoteError(message, code="media_type_unknown")
        name = bundles[0]
        signatures = sorted(_signatures(files, name), key=lambda path: (len(path), path))  # `.sig` before `.2.sig`
        if len(signatures) > MAX_SIGNATURES:
            raise RemoteError(f"{self.address} has too many signatures.", code="media_type_unknown")
        bom_name = f"{name.removesuffix(BUNDLE_SUFFIX)}{BOM_SUFFIX}"
        return Artifact(
            self._read(files[name], commit, MAX_BUNDLE_BYTES),
            tuple(self._read(files[path], commit, MAX_SIGNATURE_BYTES) for path in signatures),
            self._read(files[bom_name], commit, MAX_BOM_BYTES) if bom_name in files else None,
            tuple(sorted(set(files) - {name, bom_name, *signatures} - _NOT_OURS)),
        )

    def push(self, artifact: Artifact, *, is_public: bool = False) -> str:
        """Upload an artifact in one commit, and create the repository if there is none.

        Args:
            artifact: its files; the model card is made from it.
            is_public: whether a new repository is public; the visibility of an existing one stays.

        Returns:
            the address with the commit.

        Raises:
            RemoteError: `repository_taken`, the repository has a bundle of another domain; otherwise as `newest`.
        """
        bundle = read_bundle(artifact.bundle)
        name = f"{bundle.manifest.domain}{BUNDLE_SUFFIX}"
        files = file_names(name, artifact) | {CARD: write_card(bundle, artifact, str(self.address))}
        disable_progress_bars()
        with self._converted_errors():
            self._api.create_repo(self.address.repository, private=not is_public, exist_ok=True)
        present = _files(self._info(self.address.revision, files=False))
        if foreign := [path for path in present if path.endswith(BUNDLE_SUFFIX) and path != name]:
            message = (
                f"{self.address} has {printable(foreign[0])} already. Push each domain to a repository of its own."
            )
            raise RemoteError(message, code="repository_taken")
        stale = [path for path in _signatures(present, name) if path not in files]
        with self._converted_errors():
            commit = self._api.create_commit(
                self.address.repository,
                [
                    *(CommitOperationAdd(path, data) for path, data in files.items()),
                    *(CommitOperationDelete(path) for path in stale),
                ],
                commit_message=f"Bundle {bundle.digest}",
                revision=self.address.revision,
            )
        return str(HubAddress(self.address.repository, commit.oid))

    def _info(self, revision: str | None, *, files: bool) -> ModelInfo:
        with self._converted_errors():
            return self._api.model_info(
                self.address.repository, revision=revision, timeout=TIMEOUT_S, files_metadata=files
            )

    def _commit(self, info: ModelInfo) -> str:
        if not info.sha:
            raise RemoteError(f"{self.address} has no commit yet.", code="remote_not_found")
        return info.sha

    def _read(self, file: RepoSibling, commit: str, limit: int) -> bytes:
        if file.size is None or file.size > limit:
            message = f"{printable(file.rfilename)} has {file.size} bytes according to the Hub; the limit is {limit}."
            raise LimitExceededError("too_large", message, limit=limit)
        path = f"{self._transfer.origin.path.rstrip('/')}/{self.address.repository}/resolve/{commit}"
        answer = self._transfer.send("GET", f"{path}/{quote(file.rfilename)}", max_bytes=file.size)
        if answer.status != HTTPStatus.OK:
            raise RemoteError(f"{answer.url.host} answers {printable(file.rfilename)} with status {answer.status}.")
        expected, found = _digests(file, answer.body)
        if expected != found:
            name = printable(file.rfilename)
            message = f"{name} has digest {found}, but the repository names {printable(expected)}."
            raise DigestMismatchError("digest_mismatch", message)
        return answer.body

    @contextmanager
    def _converted_errors(self) -> Iterator[None]:
        """Raise `RemoteError` for the errors of `huggingface_hub`."""
        try:
            yield
        except OfflineModeIsEnabled as error:
            message = "HF_HUB_OFFLINE is set: the Hub is not used. Unset it, or use a file."
            raise RemoteError(message, code="remote_offline") from error
        except RevisionNotFoundError as error:
            raise RemoteError(f"There is no such revision: {self.address}.", code="remote_not_found") from error
        except (GatedRepoError, RepositoryNotFoundError) as error:
            message = f"There is no {self.address}, or it is private. Log in with `hf auth login`, or set HF_TOKEN."
            raise RemoteError(message, code="remote_not_found") from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            is_refused = status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
            remedy = "Log in with `hf auth login`, or set HF_TOKEN." if is_refused else "Try again later."
            message = f"The Hub answers with status {status} to {self.address}. {remedy}"
            raise RemoteError(message, code="remote_unauthorized" if is_refused else "remote_failed") from error
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise RemoteError(f"The Hub's answer about {self.address} is an error: {printable(str(error))}") from error
        except Exception as error:
            if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _HTTP_LIBRARIES:
                raise
            message = f"Cannot reach the Hub at {self._transfer.origin.host} ({type(error).__name__})."
            raise RemoteError(message, code="remote_unreachable") from error


def _files(info: ModelInfo) -> dict[str, RepoSibling]:
    """The files in the root folder of a repository by name."""
    return {file.rfilename: file for file in info.siblings or () if "/" not in file.rfilename}


def _signatures(paths: Iterable[str], bundle_name: str) -> list[str]:
    """The signature files of a bundle among the files of a repository, which may have names of their own."""
    return [path for path in paths if path.startswith(bundle_name) and path.endswith(SIGNATURE_SUFFIX)]


def _digests(file: RepoSibling, data: bytes) -> tuple[str, str]:
    """The digest that a repository names for a file, and that of the bytes: SHA-256 in LFS, else that of a git blob."""
    if file.lfs is not None:
        return file.lfs.sha256, hashlib.sha256(data).hexdigest()
    blob = b"blob %d\0" % len(data) + data
    return str(file.blob_id), hashlib.sha1(blob, usedforsecurity=False).hexdigest()
