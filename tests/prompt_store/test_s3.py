"""Requests to a bucket, also when the network or the server fails."""

import logging
import sys

import pytest

from prompt_store import StoreCorruptError, StoreReadOnlyError, StoreUnavailableError
from prompt_store.s3 import Bucket, has_etag


@pytest.fixture
def bucket(s3_place):
    return Bucket(s3_place.address)


def code_of(call, *arguments):
    with pytest.raises(StoreUnavailableError) as caught:
        call(*arguments)
    assert "secret" not in str(caught.value)
    return caught.value.code


def test_an_object_is_created_once(bucket):
    assert bucket.put_new("a/1", b"first")
    assert not bucket.put_new("a/1", b"second")
    assert bucket.get("a/1")[0] == b"first"
    assert bucket.get("a/2") is None


def test_an_object_that_exists_with_the_same_bytes_counts_as_created(bucket):
    assert bucket.put_new("a/1", b"first")
    assert bucket.put_new("a/1", b"first")


def test_a_listing_is_sorted_and_begins_after_a_key(bucket):
    for key in ("b/1", "a/2", "a/10", "a/1"):
        bucket.put(key, key.encode())
    assert [one.key for one in bucket.list("a/")] == ["a/1", "a/10", "a/2"]
    assert [one.key for one in bucket.list("a/", after="a/10")] == ["a/2"]
    (one,) = bucket.list("b/")
    assert (one, one.size_bytes, has_etag(b"b/1", one.etag)) == (bucket.head("b/1"), 3, True)


def test_a_listing_has_more_objects_than_a_page(bucket, proxy, monkeypatch):
    monkeypatch.setattr("prompt_store.s3.N_LISTED", 2)
    for key in "abcde":
        bucket.put(key, b"")
    proxy.requests.clear()
    assert [one.key for one in bucket.list(after="a")] == ["b", "c", "d", "e"]
    assert len(proxy.requests) == 2


def test_deleting_twice_is_no_error(bucket):
    bucket.put("a", b"")
    bucket.delete("a")
    bucket.delete("a")
    assert bucket.head("a") is None


@pytest.mark.parametrize("fault", ["refuse", "lose", "500", "503", "500 after", "conflict", "slow"])
def test_a_write_that_fails_once_is_made_once(bucket, proxy, fault):
    proxy.once(fault, "PUT")
    assert bucket.put_new("a/1", b"mine")
    assert bucket.get("a/1")[0] == b"mine"


@pytest.mark.parametrize("fault", ["lose", "500 after"])
def test_a_write_that_lost_against_another_writer_is_not_taken_for_a_created_one(bucket, proxy, fault):
    bucket.put("a/1", b"theirs")
    proxy.once(fault, "PUT")
    assert not bucket.put_new("a/1", b"mine")


def test_a_write_whose_answers_are_all_lost_is_read_back(bucket, proxy):
    proxy.fault = lambda method, key: "lose" if method == "PUT" else None
    assert bucket.put_new("a/1", b"mine")


def test_a_write_that_cannot_be_read_back_is_reported_as_unknown(bucket, proxy):
    proxy.fault = lambda method, key: "lose" if method == "PUT" else "refuse"
    assert code_of(bucket.put_new, "a/1", b"mine") == "commit_unknown"
    proxy.fault = lambda method, key: "500" if method == "PUT" else None
    assert code_of(bucket.put_new, "a/2", b"mine") == "commit_unknown"


def test_a_write_that_the_client_repeated_and_that_cannot_be_read_back_is_reported_as_unknown(bucket, proxy):
    lost = ["lose"]
    proxy.fault = lambda method, key: "refuse" if method == "GET" else lost.pop() if lost else None
    assert code_of(bucket.put_new, "a/1", b"mine") == "commit_unknown"


def test_only_the_beginning_of_an_oversized_object_is_read(bucket):
    for n_bytes in (99, 100, 101, 10**6):
        bucket.put("a/1", bytes(n_bytes))
        assert bucket.get("a/1", max_bytes=100)[0] == bytes(min(n_bytes, 101))
    bucket.put("a/2", b"whole")
    assert bucket.get("a/2")[0] == b"whole"


@pytest.mark.parametrize("fault", ["refuse", "lose", "500", "half", "slow"])
def test_a_read_that_fails_once_is_repeated(bucket, proxy, fault):
    data = bytes(range(256)) * 400
    bucket.put("a/1", data)
    proxy.once(fault, "GET")
    assert bucket.get("a/1")[0] == data


@pytest.mark.parametrize("fault", ["refuse", "lose", "500", "503", "half"])
def test_a_listing_that_fails_once_is_complete(bucket, proxy, fault):
    for key in ("a", "b", "c"):
        bucket.put(key, b"")
    proxy.once(fault, "GET")
    assert [one.key for one in bucket.list()] == ["a", "b", "c"]


@pytest.mark.parametrize("fault", ["refuse", "500", "half"])
def test_a_read_that_goes_on_failing_is_an_error_and_never_a_part_of_the_object(bucket, proxy, fault):
    bucket.put("a/1", bytes(100_000))
    proxy.fault = lambda method, key: fault
    assert code_of(bucket.get, "a/1") == "store_unavailable"


def test_a_server_that_does_not_answer_in_time_is_unavailable(s3_place, proxy, monkeypatch):
    monkeypatch.setattr("prompt_store.s3.READ_TIMEOUT_S", 0.1)
    bucket = Bucket(s3_place.address)
    proxy.fault = lambda method, key: "slow"
    assert code_of(bucket.get, "a/1") == "store_unavailable"


@pytest.mark.parametrize(("fault", "code"), [("skewed", "clock_skew"), ("denied", "store_denied")])
def test_a_refusal_has_its_code_and_no_text_of_the_server(bucket, proxy, fault, code):
    proxy.fault = lambda method, key: fault
    for call in (lambda: bucket.get("a"), lambda: list(bucket.list()), lambda: bucket.put_new("a", b"")):
        assert code_of(call) == code


def test_missing_credentials_are_named(bucket, s3_place, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreUnavailableError, match="AWS_ACCESS_KEY_ID") as caught:
        Bucket(s3_place.address).get("a")
    assert caught.value.code == "store_denied"


def test_a_bucket_that_does_not_exist_is_named(s3_place):
    with pytest.raises(StoreCorruptError, match="no bucket of this name") as caught:
        list(Bucket("s3://nowhere-at-all/x").list())
    assert caught.value.code == "not_a_store"


def test_a_server_that_ignores_the_condition_is_refused_and_nothing_is_changed(bucket, proxy):
    bucket.put("FORMAT", b"{}")
    bucket.require_conditional_writes("FORMAT", b"{}")
    proxy.ignores_conditions = True
    assert code_of(bucket.require_conditional_writes, "FORMAT", b"{}") == "s3_unsupported"
    assert bucket.get("FORMAT")[0] == b"{}"


@pytest.mark.parametrize(
    "address",
    [
        *("s3://", "s3://A", "s3://key:secret@bucket", "s3://bucket//x", "s3://bucket/../x y", "s3://b/x?y"),
        *("s3://bucket/..", "s3://bucket/x/../y", "s3://bucket/./x", "s3://bucket/x/./"),
    ],
)
def test_an_address_that_is_none_is_refused_without_repeating_it(address):
    with pytest.raises(StoreCorruptError, match="expected s3://BUCKET") as caught:
        Bucket(address)
    assert "secret" not in str(caught.value)


def test_without_botocore_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "botocore.config", None)
    with pytest.raises(StoreReadOnlyError, match=r"caspl-serve\[s3\]") as caught:
        Bucket("s3://bucket")
    assert caught.value.code == "s3_not_installed"


def test_logs_have_no_credentials_at_any_level(bucket, caplog, monkeypatch):
    monkeypatch.setenv("AWS_SESSION_TOKEN", "test-session-token")
    with caplog.at_level(logging.DEBUG):
        bucket.put("a", b"")
        bucket.get("a")
    assert "test-s" not in caplog.text
    assert "Authorization" not in caplog.text
