"""Collection of unused bundles in a bucket, beside other machines that publish and activate."""

import pytest

from prompt_store import StoreUnavailableError, digest_bytes
from tests.prompt_store.samples import sample_bundle

BUNDLES = [sample_bundle(seed) for seed in range(4)]


@pytest.fixture
def store(s3_place):
    store = s3_place.open()
    store.add("flowers", BUNDLES[0])
    store.activate("flowers", 1)
    return store


def collected(store):
    """A store with an old bundle that no version refers to."""
    store.add("flowers", BUNDLES[1])
    store.retire("flowers", 2)
    return store


def no_fault(method, key):
    return None


def publish_at_deletion(proxy, another, afterwards=no_fault):
    """When the collection deletes its first object, publish the bundle on another machine; then apply a fault."""

    def publish(method, key):
        if method == "DELETE":
            proxy.fault = no_fault
            assert another.add("flowers", BUNDLES[1]).version == 3
            proxy.fault = afterwards

    proxy.fault = publish


def test_a_bundle_that_is_published_again_while_it_is_collected_is_put_back(store, s3_place, proxy):
    another = s3_place.another()
    collected(store)
    publish_at_deletion(proxy, another)
    assert digest_bytes(BUNDLES[1]) in store.gc(grace_s=-1).removed_blobs
    assert s3_place.another().read("flowers", 3) == BUNDLES[1]


def test_a_bundle_is_put_back_although_another_process_has_removed_its_copy(store, s3_place, proxy):
    another = s3_place.another()
    collected(store)

    def follow(method, key):
        if method == "GET" and "domains" in key:  # the collection's next request after the deletion
            proxy.fault = no_fault
            s3_place.open()  # a server with the same copy

    publish_at_deletion(proxy, another, follow)
    store.gc(grace_s=-1)
    assert s3_place.another().read("flowers", 3) == BUNDLES[1]


def test_a_bundle_is_put_back_by_the_next_collection_if_the_bucket_was_away(store, s3_place, proxy):
    another = s3_place.another()
    collected(store)
    publish_at_deletion(proxy, another, lambda method, key: "refuse" if method == "GET" else None)
    with pytest.raises(StoreUnavailableError):
        store.gc(grace_s=-1)
    proxy.fault = no_fault
    store.gc(grace_s=-1)
    assert s3_place.another().read("flowers", 3) == BUNDLES[1]
    assert not list(store.root.rglob(".tmp*"))


def test_a_bundle_that_is_collected_while_it_is_published_is_stored_again(store, s3_place, proxy):
    another = s3_place.another()
    collected(store)

    def collect(method, key):
        if method == "PUT" and "/log/" in key:
            proxy.fault = no_fault
            assert digest_bytes(BUNDLES[1]) in store.gc(grace_s=-1).removed_blobs

    proxy.fault = collect
    assert another.add("flowers", BUNDLES[1]).version == 3
    assert s3_place.another().read("flowers", 3) == BUNDLES[1]


def test_a_collection_keeps_a_version_that_another_machine_makes_live_meanwhile(store, s3_place, proxy):
    for data in BUNDLES[1:]:
        store.add("flowers", data)
    another = s3_place.another()

    def activate(method, key):
        if method == "PUT" and "/log/" in key:
            proxy.fault = no_fault
            another.activate("flowers", 2)

    proxy.fault = activate
    report = store.gc(keep_versions=1, grace_s=-1)
    assert report.retired == (("flowers", 3),)
    latest = s3_place.another()
    assert (latest.live("flowers").version, latest.read("flowers", 2)) == (2, BUNDLES[1])
    assert latest.rollback("flowers").version == 1
