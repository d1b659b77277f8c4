"""Recorded forwards: which are recorded, reused and given up, by a recorder that only notes; replays on CUDA."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from prompted_clip import graphs
from prompted_clip.backbone import load_backbone
from prompted_clip.fused_vision import FusedImageTower
from prompted_clip.graphs import GraphedTower, batch_sizes
from prompted_clip.prompts import collate_grids, join_groups
from prompted_clip.transfers import map_tensors
from tests.tiny import random_pixels, register_tiny_models, tiny_backbone


class NotingRecorder:
    """Replays by running again, after the failures it was told to have."""

    def __init__(self, fails=()):
        self.n_recorded = 0
        self.fails = list(fails)

    def __call__(self, work):
        self.n_recorded += 1
        if self.fails:
            raise self.fails.pop(0)
        return work


@pytest.fixture
def tower():
    return FusedImageTower(tiny_backbone())


def graphed(tower, recorder, **options):
    return GraphedTower(tower, tiny_backbone(), max_rows=8, record=recorder, **options)


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
        (50, (1, 2, 4, 8, 12, 16, 24, 32, 48, 50)),
    ],
)
def test_sizes_grow_by_doubling_with_a_step_between_and_end_at_the_largest(max_rows, sizes):
    assert batch_sizes(max_rows) == sizes


def test_rows_are_padded_to_the_next_size_and_never_cut(tower):
    runs = graphed(tower, NotingRecorder())
    assert [runs.padded_batch_size(n_rows) for n_rows in (1, 2, 3, 5, 8, 9, 100)] == [1, 2, 4, 8, 8, 9, 100]


@pytest.mark.parametrize("n_rows", [1, 3, 8, 9])
def test_answers_are_the_towers_own_whatever_was_run_before(tower, n_rows):
    runs = graphed(tower, NotingRecorder())
    runs(random_pixels(8, seed=9), collate_grids([grid(row, (3, 2)) for row in range(8)]))
    pixels = random_pixels(n_rows)
    for prompts in (
        None,
        grid(1, (2, 1), (1, 1)),
        collate_grids([grid(row, (1 + row % 3, 1), (2, 1)) for row in range(n_rows)]),
    ):
        torch.testing.assert_close(runs(pixels, prompts), tower(pixels, prompts), rtol=0, atol=1e-5)


def test_one_recording_serves_all_mixtures_of_its_size_and_positions_and_one_those_of_each_even_depth(tower):
    recorder = NotingRecorder()
    runs = graphed(tower, recorder)
    mixtures = (grid(1, (3, 1), (1, 1)), collate_grids([grid(2, (3, 2)), grid(3, (1, 2))]))
    for prompts in (*mixtures, grid(4, (2, 1), (1, 1)), *mixtures):
        pixels = random_pixels(2)
        torch.testing.assert_close(runs(pixels, prompts), tower(pixels, prompts), rtol=0, atol=1e-5)
    assert recorder.n_recorded == 1
    for seed in (0, 1):
        runs(random_pixels(2), grid(seed, (3, 2)))
    assert recorder.n_recorded == 2
    runs(random_pixels(2), grid(0, (2, 2)))
    runs(random_pixels(2), grid(0, (3, 1)))
    runs(random_pixels(3), grid(0, (3, 2)))
    runs(random_pixels(2))
    assert recorder.n_recorded == 6


def test_what_is_prepared_for_a_stack_is_not_recorded_again_whatever_joins_it(tower):
    recorder = NotingRecorder()
    runs = graphed(tower, recorder)
    even, shallower = grid(1, (3, 2)), grid(2, (1, 1), (2, 1))
    for prepare in runs.capture_steps(even):
        prepare()
    assert recorder.n_recorded == 2 * len(batch_sizes(8)), "alone, and in mixtures with shallower ones"
    assert runs.capture_steps(even) == runs.capture_steps(grid(3, (3, 2))) == []
    for n_rows in range(1, 9):
        mixed = collate_grids([(even, shallower)[row % 2] for row in range(n_rows)])
        for prompts in (even, mixed):
            pixels = random_pixels(n_rows)
            torch.testing.assert_close(runs(pixels, prompts), tower(pixels, prompts), rtol=0, atol=1e-5)
    assert recorder.n_recorded == 2 * len(batch_sizes(8))


@pytest.mark.parametrize("shapes", [(), ((3, 1), (1, 1))], ids=["without prompts", "of two depths"])
def test_a_stack_without_an_even_depth_needs_one_recording_of_each_size(tower, shapes):
    recorder = NotingRecorder()
    runs = graphed(tower, recorder)
    for prepare in runs.capture_steps(grid(1, *shapes)):
        prepare()
    for n_rows in range(1, 9):
        runs(random_pixels(n_rows), grid(2, *shapes))
    assert recorder.n_recorded == len(batch_sizes(8))


def test_what_cannot_be_recorded_is_not_prepared_again(tower):
    runs = graphed(tower, NotingRecorder(fails=[RuntimeError("operation not permitted")] * 4))
    for prepare in runs.capture_steps(None):
        prepare()
    assert runs.capture_steps(None) == []


def test_threads_that_call_at_once_get_their_own_answers(tower):
    runs = graphed(tower, NotingRecorder())
    batches = [(random_pixels(1 + seed % 4, seed=seed), grid(seed, (1 + seed % 3, 2))) for seed in range(8)]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda batch: runs(*batch), batches * 8))
    for answer, batch in zip(answers, batches * 8, strict=True):
        torch.testing.assert_close(answer, tower(*batch), rtol=0, atol=1e-5)


def test_an_answer_is_not_overwritten_by_the_next(tower):
    runs = graphed(tower, NotingRecorder())
    first = runs(random_pixels(2, seed=1))
    kept = first.clone()
    runs(random_pixels(2, seed=2))
    assert torch.equal(first, kept)


def test_the_recording_used_least_recently_goes_first(tower):
    recorder = NotingRecorder()
    runs = graphed(tower, recorder, max_graphs=2)
    for n_rows in (1, 2, 1, 4):
        runs(random_pixels(n_rows))
    assert recorder.n_recorded == 3
    runs(random_pixels(1))
    assert recorder.n_recorded == 3
    runs(random_pixels(2))
    assert recorder.n_recorded == 4


def test_batches_larger_than_the_largest_size_are_not_recorded(tower):
    recorder = NotingRecorder()
    assert len(graphed(tower, recorder)(random_pixels(9))) == 9
    assert recorder.n_recorded == 0


@pytest.mark.parametrize("failure", [RuntimeError("operation not permitted"), torch.OutOfMemoryError("full")])
def test_what_cannot_be_recorded_runs_as_it_is_and_is_not_tried_again(tower, failure):
    recorder = NotingRecorder(fails=[failure])
    runs, pixels = graphed(tower, recorder), random_pixels(2)
    for _ in range(2):
        torch.testing.assert_close(runs(pixels), tower(pixels), rtol=0, atol=1e-5)
    assert recorder.n_recorded == 1
    runs(random_pixels(1))
    assert recorder.n_recorded == 2


def test_a_recording_that_found_no_memory_is_tried_again_later(tower, monkeypatch):
    monkeypatch.setattr(graphs, "RETRY_FULL_S", 0.0)
    recorder = NotingRecorder(fails=[torch.OutOfMemoryError("full")])
    runs, pixels = graphed(tower, recorder), random_pixels(2)
    for n_recorded in (1, 2, 2):
        torch.testing.assert_close(runs(pixels), tower(pixels), rtol=0, atol=1e-5)
        assert recorder.n_recorded == n_recorded


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
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


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second GPU")
def test_a_tower_on_another_gpu_records_there():
    register_tiny_models()
    backbone = load_backbone("tiny", random_seed=0, device="cuda:1")
    tower = FusedImageTower(backbone)
    pixels = random_pixels(3).to("cuda:1")
    torch.testing.assert_close(GraphedTower(tower, backbone, max_rows=8)(pixels), tower(pixels), rtol=0, atol=1e-5)
