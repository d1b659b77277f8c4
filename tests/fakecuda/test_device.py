"""The simulated device: late work, unwritten memory, races, freed memory, graphs, captures, errors."""

import threading

import pytest
import torch

from tests.fakecuda.simulation import simulated_cuda

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the simulated device is for machines without a GPU")
LATE = {"eagerness": 0.0}


def numbers():
    return torch.arange(6.0)


def test_results_are_those_of_the_cpu():
    with simulated_cuda(eagerness=0.5) as simulated:
        there = numbers().to("cuda").reshape(2, 3)
        there[1] *= 2
        found = (there @ there.T).softmax(dim=-1).topk(1)
        here = numbers().reshape(2, 3)
        here[1] *= 2
        expected = (here @ here.T).softmax(dim=-1).topk(1)
        assert found.indices.tolist() == expected.indices.tolist()
        torch.testing.assert_close(found.values.cpu(), expected.values)
    assert simulated.violations == []


def test_memory_that_was_not_written_is_nan():
    with simulated_cuda():
        assert torch.empty(3, device="cuda").cpu().isnan().all()


def test_an_asynchronous_copy_arrives_only_when_the_host_waits():
    with simulated_cuda(**LATE):
        there = numbers().to("cuda") * 2
        here = torch.empty(6, pin_memory=True).copy_(there, non_blocking=True)
        assert here.isnan().all()
        torch.cuda.current_stream().synchronize()
        assert torch.equal(here, numbers() * 2)


@pytest.mark.parametrize("waits", [True, False])
def test_streams_that_do_not_wait_for_each_other_race(waits):
    with simulated_cuda(eagerness=1.0) as simulated:  # so eager that the values are right in either case
        shared, side = numbers().to("cuda"), torch.cuda.Stream()
        with torch.cuda.stream(side):
            shared.add_(1)
        if waits:
            torch.cuda.current_stream().wait_stream(side)
        assert torch.equal(shared.cpu(), numbers() + 1)
    assert bool(simulated.violations) is not waits


@pytest.mark.parametrize("is_recorded", [True, False])
def test_memory_freed_while_another_stream_reads_it_is_found(is_recorded):
    with simulated_cuda(**LATE) as simulated:
        shared, side = numbers().to("cuda"), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            total = shared.sum()
        if is_recorded:
            shared.record_stream(side)
        del shared
        torch.cuda.synchronize()
        assert total.item() == 15 or not is_recorded
    assert bool(simulated.violations) is not is_recorded


def captured(work, **options):
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(side):
        graph.capture_begin(**options)
        try:
            output = work()
        finally:
            graph.capture_end()
    return graph, output


def test_a_replay_reads_its_inputs_anew():
    with simulated_cuda() as simulated:
        x = torch.zeros(6, device="cuda")
        graph, output = captured(lambda: x * 2)
        x.copy_(numbers().to("cuda"))
        graph.replay()
        assert torch.equal(output.cpu(), numbers() * 2)
    assert simulated.violations == []


def test_the_output_of_a_graph_is_lost_with_the_next_replay_of_any_graph_of_its_pool():
    with simulated_cuda() as simulated:
        pool, x = torch.cuda.graph_pool_handle(), torch.ones(6, device="cuda")
        (first, output), (second, _) = captured(lambda: x * 2, pool=pool), captured(lambda: x * 3, pool=pool)
        first.replay()
        kept = output[:2]
        second.replay()
        assert kept.cpu().isnan().all()
    assert simulated.violations == ["stale: a graph's output is read after a later replay, by device to host copy"]


def test_inputs_that_are_freed_before_a_replay_are_found():
    with simulated_cuda() as simulated:
        inputs = [torch.ones(6, device="cuda")]
        graph, _ = captured(lambda: inputs[0] * 2)
        inputs.clear()
        graph.replay()
    assert "A replay uses memory that was freed after the capture." in simulated.violations


FORBIDDEN = {
    "a copy to pageable memory": lambda x: x.cpu(),
    "a value": lambda x: x[0].item(),
    "pinned memory": lambda x: numbers().pin_memory(),
    "synchronizing": lambda x: torch.cuda.synchronize(),
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_cuda_forbids_during_a_capture_ends_it(name):
    with simulated_cuda():
        x = torch.ones(6, device="cuda")
        with pytest.raises(torch.AcceleratorError, match="capture"):
            captured(lambda: FORBIDDEN[name](x), capture_error_mode="thread_local")
        assert torch.equal(x.cpu(), torch.ones(6))


@pytest.mark.parametrize(("mode", "is_valid"), [("thread_local", True), ("global", False)])
def test_waits_of_other_threads_end_captures_in_global_mode_only(mode, is_valid):
    with simulated_cuda():
        x = torch.ones(6, device="cuda")

        def work():
            other = threading.Thread(target=lambda: outcomes.append(outcome(lambda: x.cpu())))
            other.start()
            other.join()
            return x * 2

        outcomes = []
        assert (outcome(lambda: captured(work, capture_error_mode=mode)) is None) is is_valid
        assert (outcomes == [None]) is is_valid


def outcome(call):
    """The error of a call, or None."""
    try:
        call()
    except RuntimeError as error:
        return error


def test_a_sticky_error_fails_every_later_call():
    with simulated_cuda() as simulated:
        x = torch.ones(6, device="cuda")
        simulated.sticky = "unspecified launch failure"
        for call in (lambda: x + 1, lambda: torch.empty(1, device="cuda"), torch.cuda.synchronize, x.cpu):
            with pytest.raises(torch.AcceleratorError, match="unspecified launch failure"):
                call()


def test_an_index_out_of_range_is_a_sticky_error_at_the_next_wait():
    with simulated_cuda(**LATE) as simulated:
        found = numbers().to("cuda")[torch.tensor([9]).to("cuda")]
        with pytest.raises(torch.AcceleratorError, match="device-side assert"):
            found.cpu()
    assert len(simulated.violations) == 1
