"""Forwards beside a thread that never rests: each way with its interval, and the thread only while it runs."""

import sys
import threading
from functools import partial

from benchmarks import hand_over
from prompted_clip.fused_vision import FusedImageTower
from tests.python_calls import python_calls
from tests.tiny import random_pixels, tiny_backbone


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


def test_the_form_it_is_compared_with_has_a_step_of_the_interpreter_for_each_of_the_forwards():
    backbone, pixels = tiny_backbone(), random_pixels(1)
    n_in_python, n_as_served = (
        python_calls(partial(tower, pixels)) for tower in (hand_over.in_python(backbone), FusedImageTower(backbone))
    )
    assert n_in_python > n_as_served + 10 * backbone.n_vision_layers


def test_the_table_has_a_row_for_every_way_and_a_column_for_every_form():
    table = hand_over.markdown_table({("alone", "a"): 1.0, ("5 ms", "a"): 2.0, ("alone", "b"): 3.0, ("5 ms", "b"): 4.0})
    assert table.splitlines() == [
        "| hands over after | a | b |",
        "| --- | --- | --- |",
        "| alone | 1.0 | 3.0 |",
        "| 5 ms | 2.0 | 4.0 |",
    ]
