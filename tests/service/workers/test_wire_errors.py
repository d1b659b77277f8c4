"""Errors travel between processes whole: the client cannot tell where they were raised."""

import inspect

import msgspec
import pytest

from prompt_store import errors as store_errors
from prompted_clip import errors as model_errors
from service import errors as service_errors
from service.http.problems import TABLE, describe, respond
from service.workers.rpc import WireError, from_wire, to_wire
from tests.service.http.test_problems import NEVER_ANSWERED

KINDS = sorted(
    {
        kind
        for module in (store_errors, model_errors, service_errors)
        for kind in vars(module).values()
        if inspect.isclass(kind) and issubclass(kind, Exception)
    }
    - NEVER_ANSWERED,
    key=lambda kind: kind.__name__,
)
ARGUMENTS = {
    "BackboneMismatchError": ((), {"expected": "sha256:a", "found": "sha256:b"}),
    **dict.fromkeys(("OverloadedError", "CapacityError", "RateLimitedError"), (("busy",), {"retry_after_s": 2.5})),
    "VersionExistsError": (("there",), {"version": 7}),
    "ExampleNotFoundError": (("not there",), {"ids": [3]}),
    "ExamplesDamagedError": (("damaged",), {"ids": [3]}),
    "ExamplesFullError": (("full",), {"limit": 4}),
    **dict.fromkeys(
        ("BundleInvalidError", "LimitExceededError", "DigestMismatchError"),
        (("a_rule", "what is wrong"), {"field": "classes[3].name", "limit": 4}),
    ),
}


def made(kind):
    arguments, named = ARGUMENTS.get(kind.__name__, (("something is wrong",), {}))
    error = kind(*arguments, **named)
    if isinstance(error, service_errors.ServiceError):
        error.extra |= {"limit": 3, "errors": [{"index": 0, "status": 415}]}
    return error


def sent(error):
    """The error after the way over the wire."""
    return from_wire(msgspec.msgpack.decode(msgspec.msgpack.encode(to_wire(error)), type=WireError))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_survives_the_trip(kind):
    error = made(kind)
    back = sent(error)
    assert type(back) is kind
    assert str(back) == str(error)
    assert vars(back) == vars(error)
    assert describe(back) == describe(error)
    assert respond(back).headers == respond(error).headers


def test_the_table_knows_every_one_of_them():
    assert set(KINDS) == set(TABLE)


def test_a_class_without_a_row_of_its_own_arrives_as_the_nearest_one_above():
    class SpecialError(service_errors.OverloadedError):
        """Known to one process only."""

    back = sent(SpecialError("busy", retry_after_s=3))
    assert type(back) is service_errors.OverloadedError
    assert (str(back), back.retry_after_s) == ("busy", 3)


def test_what_is_a_bug_tells_nothing(caplog):
    back = sent(KeyError("/etc/passwd at 0x7f00"))
    assert describe(back)["code"] == "internal"
    assert "passwd" not in str(back)
    assert "passwd" in caplog.text, "the log of the process where it happened holds it"


def test_a_name_that_is_no_error_of_ours_becomes_a_plain_failure():
    back = from_wire(WireError("SystemExit", "x", {}))
    assert type(back) is service_errors.ServiceError
