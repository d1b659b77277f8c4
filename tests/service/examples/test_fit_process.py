"""The process that computes fits."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from service.errors import FitFailedError
from service.examples.fit_process import FitJob, FitProcess, compute
from tests.service.processes import children, environment, eventually, is_alive


def job(n_each=6, n_classes=3, width=8, n_unlabelled=5, method="auto", **changes):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(n_classes, width))
    labels = np.repeat(np.arange(n_classes), n_each)

    def unit(rows):
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    values = {
        "features_NE": unit(centres[labels] + rng.normal(size=(len(labels), width))),
        "labels_N": labels,
        "unlabelled_ME": unit(rng.normal(size=(n_unlabelled, width))),
        "text_KE": unit(centres + rng.normal(size=centres.shape)),
        "logit_scale": 20.0,
        "class_names": [f"class {index}" for index in range(n_classes)],
        "method": method,
    }
    return FitJob(**values | changes)


@pytest.fixture
def process():
    process = FitProcess()
    yield process
    process.close()


def fit_processes():
    """Process ids of this process's fits."""
    return [pid for pid in children(os.getpid()) if b"fit_process" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_the_result_is_that_of_a_computation_here(process):
    for one in (job(), job(n_each=2, method="ridge"), job(n_unlabelled=0)):
        found, expected = process.run(one), compute(one)
        np.testing.assert_allclose(found.term.weight_KE, expected.term.weight_KE, atol=1e-9)
        np.testing.assert_array_equal(found.predicted, expected.predicted)
        np.testing.assert_allclose(found.margins, expected.margins, atol=1e-9)
        assert found.report.confusion == expected.report.confusion
        assert len(found.predicted) == len(one.labels_N) + len(one.unlabelled_ME)


def test_a_fit_after_a_change_of_labels_or_of_features_is_a_new_one(process):
    first = job(n_each=9)
    labels = first.labels_N.copy()
    labels[[0, 20]] = 2, 1
    for one in (
        first,
        job(n_each=9, labels_N=labels),
        job(n_each=9, features_NE=first.features_NE[::-1].copy()),
        first,
    ):
        found, expected = process.run(one), compute(one)
        np.testing.assert_allclose(found.term.weight_KE, expected.term.weight_KE, rtol=0, atol=1e-8)
        np.testing.assert_allclose(found.term.bias_K, expected.term.bias_K, rtol=0, atol=1e-8)
        np.testing.assert_allclose(found.margins, expected.margins, rtol=0, atol=1e-8)
        assert found.report == expected.report


def test_margins_are_differences_of_probabilities_and_labelled_examples_are_left_out():
    one = job(n_each=8, text_KE=np.eye(3, 8, dtype=np.float32))
    result = compute(one)
    assert ((result.margins >= 0) & (result.margins <= 1)).all()
    confusion = np.zeros((3, 3), dtype=int)
    np.add.at(confusion, (one.labels_N, result.predicted[: len(one.labels_N)]), 1)
    assert result.report.confusion == tuple(map(tuple, confusion.tolist()))


def test_one_process_with_one_thread_at_idle_priority_and_without_torch_serves_all_fits(process):
    process.run(job())
    (pid,) = fit_processes()
    process.run(job(n_each=200, width=300))
    assert fit_processes() == [pid]
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    assert os.sched_getscheduler(pid) == os.SCHED_IDLE
    assert int(fields[17]) == 1, "one thread"
    assert "torch" not in Path(f"/proc/{pid}/maps").read_text()
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n"


def test_after_it_was_killed_the_next_fit_starts_another(process):
    process.run(job())
    (pid,) = fit_processes()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not is_alive(pid))
    process.run(job())
    assert fit_processes() != [pid]


def test_a_fit_without_end_is_ended_and_the_next_one_works(process, monkeypatch):
    process.run(job())
    (pid,) = fit_processes()
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr("service.examples.fit_process.MAX_FIT_S", 0.2)
    with pytest.raises(FitFailedError, match="of time"):
        process.run(job(n_each=2000, width=400))  # more than the pipe holds
    monkeypatch.undo()
    assert not is_alive(pid)
    process.run(job())


def test_a_fit_that_cannot_be_computed_is_an_error_and_the_next_one_works(process, caplog):
    with pytest.raises(FitFailedError, match="log has the details"):
        process.run(job(labels_N=np.array([7])))
    (record,) = [one for one in caplog.records if one.getMessage() == "fit.failed"]
    assert "Traceback" in record.detail
    process.run(job())


def test_closing_during_a_fit_ends_it(process):
    process.run(job())
    (pid,) = fit_processes()
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.2, process.close).start()
    with pytest.raises(FitFailedError):
        process.run(job())
    eventually(lambda: not is_alive(pid))


def test_it_ends_with_its_parent():
    code = """
from tests.service.examples.test_fit_process import fit_processes, job
from service.examples.fit_process import FitProcess
process = FitProcess()
process.run(job())
print(*fit_processes(), flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    ) as parent:
        pid = int(parent.stdout.readline())
        parent.kill()
    eventually(lambda: not is_alive(pid))
