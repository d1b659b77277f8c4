"""The service on a real Ray with two replicas: answers, versions, routing, ends, updates."""

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import pytest

from caspl.client import Client
from caspl.errors import CasplError, OverloadedError
from prompt_store.store import Store
from service.demo import process as plain
from service.demo.files import ASSETS, seed_store
from tests.service.processes import JoinedThreads, eventually
from tests.service.ray.clusters import cluster, environment, is_ready, replicas, samples, serving, updating

pytest.importorskip("ray.serve", reason="Ray is not installed: pip install 'caspl-serve[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

PICTURES = {folder.name: sorted(folder.iterdir()) for folder in (ASSETS / "images").iterdir()}
NEW_VERSION = ASSETS / "upload" / "thermal-promptsrc.safetensors"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("ray"), "--replicas", "2", "--route-by", "domain") as found:
        yield found


def facts(results):
    """What a client reads of results: version and digest, and the probability of each class."""
    return [(one.domain, one.version, one.digest, {p.label: p.probability for p in one.predictions}) for one in results]


def same(found, expected):
    """Whether results agree; in another batch the last bits of probabilities may differ."""
    return all(
        one[:3] == other[:3] and one[3] == pytest.approx(other[3], abs=1e-4)
        for one, other in zip(found, expected, strict=True)
    )


class Load(JoinedThreads):
    """Four of the project's clients classify pictures of a domain until the block ends or their requests fail.

    `answers` has the pictures' names with their results, `failures` what the clients raised after their retries,
    `statuses` the number of responses by status, those before retries included.
    """

    def __init__(self, url, domain="thermal", **options):
        self.answers, self.failures, self.statuses = [], [], Counter()
        self._url, self._domain, self._options, self._lock = url, domain, options, threading.Lock()
        super().__init__(*[self._classify] * 4)

    def _classify(self):
        with Client(self._url, **self._options) as client:
            client._http.event_hooks = {"response": [self._count]}
            try:
                while not self.is_over.is_set():
                    for path in PICTURES["thermal"]:
                        self.answers.append((path.name, facts(client.classify(path, self._domain))))
            except CasplError as error:
                self.failures.append(error)

    def has_answered(self, n):
        return len(self.answers) >= n

    def _count(self, response):
        with self._lock:
            self.statuses[response.status_code] += 1


def test_the_answers_are_those_of_a_plain_server(service):
    _, url = service
    with plain.running(ASSETS, []) as (_, http), Client(str(http.base_url)) as expected, Client(url) as client:
        for domain, paths in PICTURES.items():
            assert same(facts(client.classify(paths, domain)), facts(expected.classify(paths, domain)))
        assert client.domains() == expected.domains()


def test_each_domain_is_served_by_one_replica(service):
    _, url = service
    before = {domain: samples(url, "caspl_images_total", domain=domain) for domain in PICTURES}

    with Client(url) as client, ThreadPoolExecutor(4) as pool:
        for domain, paths in PICTURES.items():
            list(pool.map(lambda path, domain=domain: client.classify(path, domain), paths * 6))

    for domain in PICTURES:
        after = samples(url, "caspl_images_total", domain=domain)
        more = {replica: n - before[domain].get(replica, 0) for replica, n in after.items()}
        assert sorted(n for n in more.values() if n) == [6 * len(PICTURES[domain])], more


def test_a_version_published_through_one_replica_is_soon_live_in_both(service):
    _, url = service
    with Client(url) as client:
        published = client.publish(NEW_VERSION, activate=True)

        # The target is 2 s; a loaded machine gets more time. Without polling the store it would never happen.
        eventually(
            lambda: list(samples(url, "caspl_live_version", domain="thermal").values()) == [published.version] * 2,
            within_s=20,
        )


def test_a_killed_replica_costs_retried_requests_only_and_no_answer_names_a_wrong_version(service):
    process, url = service
    with Client(url) as client:
        versions = {one.version for one in [client.publish(NEW_VERSION), client.activate("thermal", 1)]}
        expected = {
            (path.name, version): facts(client.classify(path, "thermal", version=version))
            for path in PICTURES["thermal"]
            for version in versions
        }
        for path in PICTURES["thermal"]:  # else a wrong label could not be found
            assert not same(*([(*one[:1], 0, "", one[3]) for one in expected[path.name, v]] for v in versions))
        with Load(url) as load:
            for version in (2, 1):
                eventually(partial(load.has_answered, len(load.answers) + 40), within_s=120)
                client.activate("thermal", version)
                old = replicas(process)
                os.kill(old[0], signal.SIGKILL)
                eventually(lambda old=old: len(set(replicas(process)) - set(old)) == 1, within_s=120)
                eventually(lambda: len(samples(url, "caspl_live_version", domain="thermal")) == 2, within_s=120)

    assert load.failures == []
    assert {answer[0][1] for _, answer in load.answers} == versions
    assert [one for one in load.answers if not same(one[1], expected[one[0], one[1][0][1]])] == []
    assert set(load.statuses) <= {200, 502, 503}, load.statuses


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with cluster(tmp_path_factory.mktemp("cluster")) as found:
        yield found


def run_on(address, folder, *options):
    """`caspl serve --ray` on a cluster, expected to fail."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "caspl", "serve", "--ray", "--port", "0", *options],
        env=environment(folder, {"RAY_ADDRESS": address}),
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        timeout=180,
    )


def test_replicas_that_cannot_start_end_the_command_with_the_reason_and_leave_nothing_behind(address, tmp_path):
    failed = run_on(address, tmp_path, "--backbone", "ViT-B-32", "--pretrained", "missing.pt")

    assert failed.returncode == 1
    assert "The replicas did not start" in failed.stderr
    assert "missing.pt" in failed.stderr
    with serving(tmp_path, RAY_ADDRESS=address) as (_, url):  # a Ray Serve left behind would reject it
        assert is_ready(url)


def test_it_joins_a_running_ray_where_a_second_service_is_rejected(address, tmp_path):
    with serving(tmp_path, RAY_ADDRESS=address) as (process, url):
        assert replicas(process) == []  # they belong to the cluster
        with Client(url) as client:
            assert client.classify(PICTURES["thermal"][0], "thermal")[0].version == 1

        second = run_on(address, tmp_path, "--demo")

        assert second.returncode == 2
        assert "Ray Serve already runs on this cluster" in second.stderr
        assert is_ready(url)


def test_replicas_are_added_under_load_and_sigterm_finishes_open_requests(tmp_path):
    # One request per replica is the target then.
    with serving(tmp_path, "--autoscale", "1:2", CASPL_MAX_BATCH_ROWS="1") as (process, url):
        assert len(replicas(process)) == 1
        with Load(url, retry_for_s=0) as load:
            eventually(lambda: len(samples(url, "caspl_live_version", domain="thermal")) == 2, within_s=180)
            assert load.failures == []
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0

    assert len(load.failures) == 4
    for error in load.failures:  # new requests are refused, or meet a closed port; none is cut off
        assert isinstance(error, OverloadedError) or "refused" in str(error), error
    assert set(load.statuses) <= {200, 503}


def test_an_update_replaces_all_replicas_without_a_failed_request_and_a_full_one_passes_requests_on(tmp_path):
    seed_store(Store.open(tmp_path / "store", create=True), ASSETS / "bundles")
    with updating(tmp_path) as service:
        old = set(replicas(service.process))
        with Load(service.url) as load:
            eventually(lambda: len(load.answers) > 20, within_s=60)
            service.update({"route_by": "domain"}, max_batch_rows=1)
            n_updated = len(load.answers)
            eventually(lambda: len(load.answers) > n_updated + 40, within_s=60)

        assert load.failures == []
        info = httpx.get(f"{service.url}/info", trust_env=False, timeout=60).json()
        assert info["limits"]["max_batch_rows"] == 1
        assert old.isdisjoint(replicas(service.process))
        # Both have answered: one alone takes two requests at a time, and there were four.
        assert len([n for n in samples(service.url, "caspl_images_total", domain="thermal").values() if n]) == 2
