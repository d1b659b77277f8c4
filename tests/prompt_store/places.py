"""Places of a store: a directory or a bucket. A test with the fixture `place` runs with both."""

import itertools
import os
from contextlib import contextmanager
from functools import cache

import pytest

from prompt_store import Store, open_store
from prompt_store.s3_store import CACHE_VARIABLE
from tests.prompt_store.s3_server import fault_proxy, moto_server

VARIABLES = {
    "AWS_ACCESS_KEY_ID": "test-key-id",
    "AWS_SECRET_ACCESS_KEY": "test-secret-key",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}
numbers = itertools.count()


class DiskPlace:
    """A store in a directory."""

    def __init__(self, folder):
        self.root = folder / "store"
        self.address = str(self.root)

    def open(self, *, create=True):
        return Store.open(self.root, create=create)

    def another(self):
        """The store as another machine or process opens it."""
        return self.open()

    def put(self, key, data):
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.chmod(0o644)
        path.write_bytes(data)

    def get(self, key):
        return (self.root / key).read_bytes()

    def remove(self, key):
        (self.root / key).unlink()

    def names(self, under=""):
        found = (path for path in self.root.rglob("*") if path.is_file() and path.name != "LOCK")
        return sorted(key for path in found if (key := path.relative_to(self.root).as_posix()).startswith(under))


class S3Place:
    """A store in a bucket behind a `FaultProxy`; each `another` has a copy of its own."""

    def __init__(self, folder, proxy, name):
        from botocore.session import get_session

        self.folder = folder
        self.proxy = proxy
        self.bucket, self.prefix = name, "stores/shelf/"
        self.address = f"s3://{name}/{self.prefix[:-1]}"
        self.client = get_session().create_client("s3")
        self.client.create_bucket(Bucket=name)

    def open(self, *, create=True, **options):
        return open_store(self.address, create=create, cache=self.folder / "cache", **options)

    def another(self, **options):
        return open_store(self.address, create=True, cache=self.folder / f"cache-{next(numbers)}", **options)

    def put(self, key, data):
        self.client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=data)

    def get(self, key):
        return self.client.get_object(Bucket=self.bucket, Key=self.prefix + key)["Body"].read()

    def remove(self, key):
        self.client.delete_object(Bucket=self.bucket, Key=self.prefix + key)

    def names(self, under=""):
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + under)
        return [one["Key"].removeprefix(self.prefix) for page in pages for one in page.get("Contents", ())]


@contextmanager
def s3_environment(port):
    """A proxy in front of moto's server, and variables that lead all clients of this process to it."""
    with fault_proxy(port) as proxy, pytest.MonkeyPatch.context() as patch:
        for name, value in VARIABLES.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        patch.delenv(CACHE_VARIABLE, raising=False)
        patch.setattr("botocore.session.create_loader", models)
        yield proxy


@cache
def models(*_):
    """Parses botocore's description of S3 once, not for each client: that takes seconds on a loaded machine."""
    from botocore.loaders import create_loader

    return create_loader()


@pytest.fixture(scope="session")
def moto_port():
    with moto_server() as port:
        yield port


@pytest.fixture
def s3_place(moto_port, quick_path):
    with s3_environment(moto_port) as proxy:
        yield S3Place(quick_path, proxy, f"bucket-{os.getpid()}-{next(numbers)}")


@pytest.fixture
def proxy(s3_place):
    return s3_place.proxy


@pytest.fixture(params=["disk", "s3"])
def place(request, quick_path):
    return DiskPlace(quick_path) if request.param == "disk" else request.getfixturevalue("s3_place")
