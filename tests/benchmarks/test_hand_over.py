"""Forwards beside a thread that never rests: each way with its interval, and the thread only while it runs."""

import sys
import threading

from benchmarks import hand_over


def test_each_way_runs_once_beside_a_busy_thread_at_its_own_interval_and_leaves_nothing_behind():
    seen = []
    before_s, others = sys.getswitchinterval(), set(threading.enumerate())

    def run():
        seen.append((len(set(threading.enumerate()) - others), sys.getswitchinterval()))

    turns = hand_over.ways(run)
    for turn in turns.values():
        turn()

    assert seen[0] == (0, before_s)
    assert [busy for busy, _ in seen[1:]] == [1] * len(hand_over.INTERVALS_S)
    for (_, found_s), interval_s, name in zip(seen[1:], hand_over.INTERVALS_S, list(turns)[1:], strict=True):
        assert abs(found_s - interval_s) < 1e-6
        assert name == f"{interval_s * 1000:g} ms"
    assert sys.getswitchinterval() == before_s
    assert not set(threading.enumerate()) - others
