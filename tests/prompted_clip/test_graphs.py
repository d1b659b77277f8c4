"""CUDA graphs: captures, replays, evictions and failures with a stand-in for the capture; replays on CUDA."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from prompted_clip import graphs
from prompted_clip.backbone import load_backbone
from prompted_clip.fused_tower import FusedImageTower
from prompted_clip.graphs import GraphedTower, batch_sizes
from prompted_clip.prompts import collate_grids, join_groups
from prompted_clip.transfers import map_tensors
from tests.tiny import random_pixels, register_tiny_models, tiny_backbone


class FakeCapture:
    """Replays by running again; the first captures raise the given errors."""

    def __init__(self, fails=()):
        self.n_captured = 0
        self.fails = list(fails)

    def __call__(self, work):
        self.n_captured += 1
        if self.fails:
            raise self.fails.pop(0)
        return work


@pytest.fixture
def tower():
    return FusedImageTower(tiny_backbone())


def graphed(tower, capture):
    runs = GraphedTower(tower, tiny_backbone(), max_rows=8)
    runs.capture = capture
    return runs


def grid(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return join_groups([torch.randn(*shape, 32, generator=generator) for shape in shapes])


@pytest.mark.parametrize(
    ("max_rows", "sizes"),
    [
        (1, (1,)),
        (6, (1, 2, 4, 6)),
        (8, (1, 2, 4, 8)),
        (32, (1, 2, 4, 8, 12, 16, 24, 32)),
        (50, (1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 50)),
    ],
)
def test_batch_sizes_are_multiples_of_eight_up_to_the_largest(max_rows, sizes):
    assert batch_sizes(max_rows) == sizes


@pytest.mark.parametrize("max_rows", [128, 256])
def test_padding_adds_at_most_five_percent_to_batches_of_all_sizes(max_rows):
    n_rows = range(1, max_rows + 1)
    runs = GraphedTower(None, tiny_backbone(), max_rows=max_rows)
    assert sum(map(runs.padded_batch_size, n_rows)) <= 1.05 * sum(n_rows)


@pytest.mark.parametrize("max_rows", [128, 256])
def test_graphs_of_seven_numbers_of_prompts_are_kept_at_once(max_rows):
    assert 7 * len(batch_sizes(max_rows)) <= graphs.MAX_GRAPHS


def test_rows_are_padded_to_the_next_size_and_never_cut(tower):
    runs = graphed(tower, FakeCapture())
    assert [runs.padded_batch_size(n_rows) for n_rows in (1, 2, 3, 5, 8, 9, 100)] == [1, 2, 4, 8, 8, 9, 100]


@pytest.mark.parametrize("n_rows", [1, 3, 8, 9])
def test_replays_give_the_towers_answers_whatever_ran_before(tower, n_rows):
    runs = graphed(tower, FakeCapture())
    runs(random_pixels(8, seed=9), collate_grids([grid(row, (3, 2)) for row in range(8)]))
    pixels = random_pixels(n_rows)
    for prompts in (
        None,
        grid(1, (2, 1), (1, 1)),
        collate_grids([grid(row, (1 + row % 3, 1), (2, 1)) for row in range(n_rows)]),
    ):
        torch.testing.assert_close(runs(pixels, prompts), tower(pixels, prompts), rtol=0, atol=1e-5)


def test_one_graph_serves_all_prompts_of_its_size_and_positions(tower):
    capture = FakeCapture()
    runs = graphed(tower, capture)
    mixed = collate_grids([grid(2, (3, 2)), grid(3, (1, 2))])
    for prompts in (grid(1, (3, 1), (1, 1)), mixed, grid(4, (2, 1), (1, 1)), grid(0, (3, 2)), grid(1, (2, 2)), mixed):
        pixels = random_pixels(2)
        torch.testing.assert_close(runs(pixels, prompts), tower(pixels, prompts), rtol=0, atol=1e-5)
    assert capture.n_captured == 1
    runs(random_pixels(2), grid(0, (3, 1)))
    runs(random_pixels(3), grid(0, (3, 2)))
    runs(random_pixels(2))
    assert capture.n_captured == 4


@pytest.mark.parametrize("shapes", [(), ((3, 2),), ((1, 1), (2, 1))], ids=["plain", "one depth", "two depths"])
def test_graphs_captured_before_a_stack_goes_live_serve_all_batch_sizes(tower, shapes):
    capture = FakeCapture()
    runs = graphed(tower, capture)
    for step in runs.capture_steps(grid(1, *shapes)):
        step()
    assert runs.capture_steps(grid(3, *shapes)) == []
    for n_rows in range(1, 9):
        pixels, prompts = random_pixels(n_rows), grid(2, *shapes)
        torch.testing.assert_close(runs(pixels, prompts), tower(pixels, prompts), rtol=0, atol=1e-5)
    assert capture.n_captured == len(batch_sizes(8))


def test_a_failed_capture_is_not_repeated(tower):
    runs = graphed(tower, FakeCapture(fails=[RuntimeError("operation not permitted")] * 4))
    for step in runs.capture_steps(None):
        step()
    assert runs.capture_steps(None) == []


def test_threads_that_call_at_once_get_their_own_answers(tower):
    runs = graphed(tower, FakeCapture())
    batches = [(random_pixels(1 + seed % 4, seed=seed), grid(seed, (1 + seed % 3, 2))) for seed in range(8)]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda batch: runs(*batch), batches * 8))
    for answer, batch in zip(answers, batches * 8, strict=True):
        torch.testing.assert_close(answer, tower(*batch), rtol=0, atol=1e-5)


@pytest.fixture
def slow_capture():
    """A capture that goes on until `end` is set."""
    return SlowCapture()


class SlowCapture:
    def __init__(self):
        self.begun, self.end = threading.Event(), threading.Event()

    def __call__(self, work):
        self.begun.set()
        self.end.wait(20)
        return work


def test_batches_are_answered_while_another_thread_captures(tower, slow_capture):
    runs = graphed(tower, FakeCapture())
    runs(random_pixels(2))
    runs.capture = slow_capture
    with ThreadPoolExecutor(3) as threads:
        capture = threads.submit(runs, random_pixels(4))
        assert slow_capture.begun.wait(10)
        try:
            for n_rows in (2, 4, 8):  # with a graph, with the one being captured, with none
                pixels = random_pixels(n_rows)
                answer = threads.submit(runs, pixels).result(10)
                torch.testing.assert_close(answer, tower(pixels), rtol=0, atol=1e-5)
            assert not capture.done()
        finally:
            slow_capture.end.set()
    assert runs.capture_steps(None)[0].args == (graphs.Shape(1, 0),)
    assert len(runs.capture_steps(None)) == 2, "sizes 1 and 8"


def test_threads_that_miss_the_same_graph_capture_it_once(tower, slow_capture):
    runs = graphed(tower, FakeCapture())
    steps = [runs.capture_steps(None)[0] for _ in range(3)]
    n_captured = []
    runs.capture = lambda work: n_captured.append(1) or slow_capture(work)
    with ThreadPoolExecutor(3) as threads:
        done = [threads.submit(step) for step in steps]
        assert slow_capture.begun.wait(10)
        slow_capture.end.set()
        for one in done:
            one.result(10)
    assert len(n_captured) == 1


def test_an_answer_is_not_overwritten_by_the_next(tower):
    runs = graphed(tower, FakeCapture())
    first = runs(random_pixels(2, seed=1))
    kept = first.clone()
    runs(random_pixels(2, seed=2))
    assert torch.equal(first, kept)


def test_the_least_recently_used_graph_is_dropped_first(tower, monkeypatch):
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 2)
    capture = FakeCapture()
    runs = graphed(tower, capture)
    for n_rows in (1, 2, 1, 4):
        runs(random_pixels(n_rows))
    assert capture.n_captured == 3
    runs(random_pixels(1))
    assert capture.n_captured == 3
    runs(random_pixels(2))
    assert capture.n_captured == 4


def test_batches_larger_than_the_largest_size_run_without_a_graph(tower):
    capture = FakeCapture()
    assert len(graphed(tower, capture)(random_pixels(9))) == 9
    assert capture.n_captured == 0


@pytest.mark.parametrize("failure", [RuntimeError("operation not permitted"), torch.OutOfMemoryError("full")])
def test_a_forward_that_cannot_be_captured_runs_without_a_graph(tower, failure):
    capture = FakeCapture(fails=[failure])
    runs, pixels = graphed(tower, capture), random_pixels(2)
    for _ in range(2):
        torch.testing.assert_close(runs(pixels), tower(pixels), rtol=0, atol=1e-5)
    assert capture.n_captured == 1
    runs(random_pixels(1))
    assert capture.n_captured == 2


def test_a_capture_without_memory_is_tried_again_later(tower, monkeypatch):
    monkeypatch.setattr(graphs, "RETRY_S", 0.0)
    capture = FakeCapture(fails=[torch.OutOfMemoryError("full")])
    runs, pixels = graphed(tower, capture), random_pixels(2)
    for n_captured in (1, 2, 2):
        torch.testing.assert_close(runs(pixels), tower(pixels), rtol=0, atol=1e-5)
        assert capture.n_captured == n_captured


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16], ids=str)
def test_on_cuda_replays_in_any_order_give_the_towers_own_answers(dtype):
    register_tiny_models()
    backbone = load_backbone("tiny", random_seed=0, device="cuda", dtype=dtype)
    tower = FusedImageTower(backbone)
    runs = GraphedTower(tower, backbone, max_rows=8)
    batches = []
    for n_rows in (1, 8, 3, 2):
        pixels = random_pixels(n_rows, seed=n_rows).to("cuda")
        mixed = collate_grids([grid(row, (1 + row % 3, 1), (2, 1)) for row in range(n_rows)])
        even = collate_grids([grid(row, (3, 2)) for row in range(n_rows)])
        there = [
            None,
            *(
                map_tensors(one, lambda t: t.to("cuda", dtype if t.is_floating_point() else None))
                for one in (mixed, even)
            ),
        ]
        batches += [(pixels, prompts) for prompts in there]
    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(lambda batch: runs(*batch), batches * 3))
    torch.cuda.synchronize()
    for answer, batch in zip(answers, batches * 3, strict=True):
        torch.testing.assert_close(answer, tower(*batch), rtol=0, atol=1e-5 if dtype == torch.float32 else 5e-2)


@pytest.mark.gpu(real_only="a second one")
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second GPU")
def test_a_tower_on_another_gpu_is_captured_there():
    register_tiny_models()
    backbone = load_backbone("tiny", random_seed=0, device="cuda:1")
    tower = FusedImageTower(backbone)
    pixels = random_pixels(3).to("cuda:1")
    torch.testing.assert_close(GraphedTower(tower, backbone, max_rows=8)(pixels), tower(pixels), rtol=0, atol=1e-5)
