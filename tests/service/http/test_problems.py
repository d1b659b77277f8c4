import errno
import json
import re
from pathlib import Path

import pytest

from prompt_store.durable import to_store_error
from prompt_store.errors import PromptStoreError, RemoteError, StoreUnavailableError
from prompt_store.s3_errors import BodyError, ExistsError, MissingError, RaceError
from prompted_clip.errors import BackendError, DeviceError, ExportError, PromptedClipError
from service.demo.process import DemoError
from service.errors import BackboneMismatchError, OverloadedError, ServiceError
from service.http import problems
from service.ray.options import RayError

NEVER_ANSWERED = {BackendError, DemoError, DeviceError, ExportError, RayError, RemoteError}
"""Errors of commands and of the start, which no request can meet."""
CAUSES = {BodyError, ExistsError, MissingError, RaceError}
"""Kinds of `StoreUnavailableError` that only the requests to a bucket distinguish."""


def family(root):
    """A class and everything below it."""
    return [root, *(kind for child in root.__subclasses__() for kind in family(child))]


@pytest.mark.parametrize(
    "kind",
    [kind for root in (ServiceError, PromptStoreError, PromptedClipError) for kind in family(root)],
    ids=lambda kind: kind.__name__,
)
def test_every_error_of_the_three_packages_has_its_own_row(kind):
    if kind in CAUSES:
        assert problems.row_of(kind("")) is problems.TABLE[StoreUnavailableError]
    else:
        assert kind in problems.TABLE or kind in NEVER_ANSWERED


def test_every_row_belongs_to_an_error_of_ours_and_has_a_4xx_or_5xx_status():
    for kind, row in problems.TABLE.items():
        assert issubclass(kind, ServiceError | PromptStoreError | PromptedClipError)
        assert 400 <= row.status < 600


def test_an_unexpected_error_shows_a_fixed_text():
    answer = problems.respond(KeyError("/secret/path at 0x7f12"))
    body, media_type = problems.encode(answer.problem, "/classify/cats")
    assert (answer.status_code, json.loads(body)["code"]) == (500, "internal")
    assert "secret" not in body.decode()
    assert media_type == "application/problem+json"


def test_facts_of_an_error_stand_beside_its_code():
    body = problems.describe(BackboneMismatchError(expected="sha256:a", found="sha256:b"))
    assert (body["status"], body["code"]) == (409, "backbone_mismatch")
    assert (body["expected_fingerprint"], body["found_fingerprint"]) == ("sha256:a", "sha256:b")


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (1.2, "2"), (30, "30")])
def test_retry_after_is_whole_seconds_and_never_zero(seconds, header):
    assert problems.respond(OverloadedError("full", retry_after_s=seconds)).headers["retry-after"] == header


NEVER_SEEN = {
    "service_error", "settings_invalid", "client_gone", "prompt_store_error", "bundle_invalid", "model_error",
    "weights_invalid", "digest_mismatch",
}  # fmt: skip
"""Codes of bases, of start-up errors, of a check that no route makes, and of answers that nobody receives."""


def test_the_documentation_lists_every_code_under_its_status():
    page = (Path(__file__).parents[3] / "docs" / "http-api.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| (\d{3}) \| `(\w+)`", page, re.MULTILINE))
    for kind, row in problems.TABLE.items():
        code = getattr(kind, "default_code", None) or kind.code
        assert (str(row.status), code) in documented or code in NEVER_SEEN, (row.status, code)


def test_every_code_that_the_service_names_is_documented():
    page = (Path(__file__).parents[3] / "docs" / "http-api.md").read_text(encoding="utf-8")
    named = {
        code
        for path in (Path(__file__).parents[3] / "service").glob("**/*.py")
        if path.stem
        not in {"server", "device_process", "files", "process", "settings", "environment", "follower", "options"}
        for code in re.findall(r'\bcode="(\w+)"', path.read_text(encoding="utf-8"))
    }
    assert len(named) > 10
    assert {code for code in named if f"`{code}`" not in page} <= NEVER_SEEN


def test_a_title_of_its_own_belongs_to_a_code_that_the_code_names_and_differs_from_its_class():
    root = Path(__file__).parents[3]
    sources = "".join(
        path.read_text() for package in ("service", "prompt_store") for path in root.glob(f"{package}/**/*.py")
    )
    for code, title in problems.TITLES.items():
        assert re.search(rf'code="{code}"|"{code}",\s', sources), code
        assert title not in {row.title for row in problems.TABLE.values()}


@pytest.mark.anyio
async def test_a_second_rollback_reports_that_there_is_no_earlier_version(serve):
    async with serve() as client:
        answer = await client.post("/domains/paint/rollback")
    assert (answer.status_code, answer.json()["title"]) == (409, "No earlier live version")


@pytest.mark.parametrize(
    ("error", "title"),
    [
        (OSError(errno.EMFILE, "x"), "Too many open files"),
        (OSError(errno.EIO, "x"), "Disk error"),
        (OSError(errno.EROFS, "x"), "Store not writable"),
        (OSError(errno.ENOSPC, "x"), "Store full"),
    ],
)
def test_a_failed_write_is_named_after_its_cause(error, title):
    body = problems.describe(to_store_error(error))
    assert body["title"] == title
    assert body["status"] in {503, 507}
