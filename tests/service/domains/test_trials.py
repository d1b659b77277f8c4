import pytest

from service.domains import trials
from service.domains.trials import Trials

pytestmark = pytest.mark.anyio


class Tried:
    """Notes the stacks it is asked to try out; fails those it is told to."""

    def __init__(self):
        self.stacks = []
        self.failing = set()

    async def __call__(self, stack):
        self.stacks.append(stack)
        if stack in self.failing:
            raise RuntimeError(stack)


async def test_a_content_is_tried_out_once_and_again_only_if_it_failed():
    tried = Tried()
    tried.failing = {"bad"}
    contents = Trials(tried)
    for _ in range(2):
        await contents.hold("sha256:good", "good")
        with pytest.raises(RuntimeError, match="bad"):
            await contents.hold("sha256:bad", "bad")
    assert tried.stacks == ["good", "bad", "bad"]
    assert contents.has_passed("sha256:good")
    assert not contents.has_passed("sha256:bad")


async def test_once_its_time_is_over_a_content_is_believed_and_outside_the_block_tried_out_after_all():
    tried = Tried()
    contents = Trials(tried)
    with contents.for_at_most(60):
        await contents.hold("sha256:a", "in time")
    with contents.for_at_most(0):
        await contents.hold("sha256:b", "late")
        assert tried.stacks == ["in time"]
        assert not contents.has_passed("sha256:b")
    await contents.hold("sha256:b", "late")
    assert tried.stacks == ["in time", "late"]


async def test_more_contents_than_are_remembered_are_tried_out_anew(monkeypatch):
    monkeypatch.setattr(trials, "MAX_PASSED", 2)
    tried = Tried()
    contents = Trials(tried)
    for digest in "abca":
        await contents.hold(digest, digest)
    assert tried.stacks == ["a", "b", "c", "a"]
