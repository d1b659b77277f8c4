"""Model-based test of the store with random sequences of calls."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from prompt_store import ConflictError, RolloutPlan, Store, VersionExistsError, VersionLiveError, digest_bytes
from tests.prompt_store.samples import sample_bundle

BUNDLES = [sample_bundle(seed) for seed in range(6)]


class StoreMachine(RuleBasedStateMachine):
    """The store against a model: contents, retired versions, a stack of live ones, and a rollout's candidate."""

    def create(self):
        self.directory = tempfile.TemporaryDirectory(prefix="caspl-test-")
        return Store.open(Path(self.directory.name) / "store")

    def open_again(self):
        return Store.open(self.store.root, create=False)

    @initialize()
    def start(self):
        self.store = self.create()
        self.contents, self.retired, self.live_history, self.candidate = [], set(), [], None

    def teardown(self):
        if hasattr(self, "directory"):
            self.directory.cleanup()

    def available(self):
        return [index + 1 for index in range(len(self.contents)) if index + 1 not in self.retired]

    @rule(content=st.integers(0, len(BUNDLES) - 1))
    def add(self, content):
        known = [version for version in self.available() if self.contents[version - 1] == content]
        if known and known[-1] != self.available()[-1]:
            with pytest.raises(VersionExistsError):
                self.store.add("flowers", BUNDLES[content])
            return
        added = self.store.add("flowers", BUNDLES[content])
        assert added.created == (not known)
        if not known:
            self.contents.append(content)
        assert added.version == (known[-1] if known else len(self.contents))

    @precondition(lambda self: self.available())
    @rule(data=st.data())
    def activate(self, data):
        version = data.draw(st.sampled_from(self.available()))
        assert self.store.activate("flowers", version).version == version
        if not self.live_history or self.live_history[-1] != version:
            self.live_history.append(version)
        self.candidate = None

    @precondition(lambda self: self.live_history)
    @rule(data=st.data())
    def start_rollout(self, data):
        version = data.draw(st.sampled_from(self.available()))
        if self.candidate is not None or version == self.live_history[-1]:
            with pytest.raises((ConflictError, VersionLiveError)):
                self.store.start_rollout("flowers", RolloutPlan(version=version))
            return
        self.store.start_rollout("flowers", RolloutPlan(version=version))
        self.candidate = version

    @precondition(lambda self: self.contents)
    @rule()
    def end_rollout(self):
        assert self.store.end_rollout("flowers") == (self.candidate is not None)
        self.candidate = None

    @precondition(lambda self: self.contents)
    @rule()
    def rollback(self):
        live = self.live_history[-1] if self.live_history else None
        rest = list(self.live_history[:-1])
        while rest and (rest[-1] in self.retired or rest[-1] == live):
            rest.pop()
        if not rest:
            with pytest.raises(ConflictError):
                self.store.rollback("flowers")
            return
        assert self.store.rollback("flowers").version == rest[-1]
        self.live_history, self.candidate = rest, None

    @precondition(lambda self: self.available())
    @rule(data=st.data())
    def retire(self, data):
        version = data.draw(st.sampled_from(self.available()))
        if self.live_history and self.live_history[-1] == version:
            with pytest.raises(VersionLiveError):
                self.store.retire("flowers", version)
            return
        if self.candidate == version:
            with pytest.raises(ConflictError):
                self.store.retire("flowers", version)
            return
        self.store.retire("flowers", version)
        self.retired.add(version)

    @rule()
    def collect(self):
        self.store.gc(grace_s=-1, temporary_grace_s=-1)

    @rule()
    def reopen(self):
        self.store = self.open_again()

    @invariant()
    def the_store_equals_the_model(self):
        if not getattr(self, "contents", None):
            return
        infos = self.store.versions("flowers")
        assert [info.version for info in infos] == self.available()
        assert all(info.digest == digest_bytes(BUNDLES[self.contents[info.version - 1]]) for info in infos)
        live = self.store.live("flowers")
        assert (live.version if live else None) == (self.live_history[-1] if self.live_history else None)
        assert (live.rollout.plan.version if live and live.rollout else None) == self.candidate


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=15, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.slow
def test_a_store_in_a_bucket_equals_the_model_whichever_machine_reads_it(s3_place):
    class Machine(StoreMachine):
        def create(self):
            for key in s3_place.names():
                s3_place.remove(key)
            return s3_place.another()

        def open_again(self):
            return s3_place.another()

    few = settings(max_examples=4, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(Machine, settings=few)
