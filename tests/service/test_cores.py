"""Cores a process may use: its own, and no more than its container pays for."""

import os

import pytest

from service.cores import SPINS, spin_between_steps, usable_cores

N_CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize("text", ["max 100000\n", "", "nonsense", f"{(N_CORES + 5) * 100000} 100000\n", "0 0"])
def test_without_a_quota_or_with_a_larger_one_all_cores_count(tmp_path, text):
    (tmp_path / "cpu.max").write_text(text)
    assert usable_cores(tmp_path) == N_CORES
    assert usable_cores(tmp_path / "nothing") == N_CORES


@pytest.mark.parametrize("text", ["100000 100000\n", "50000 100000\n", "1 100000\n"])
def test_a_quota_of_one_core_or_less_is_one_core(tmp_path, text):
    (tmp_path / "cpu.max").write_text(text)
    assert usable_cores(tmp_path) == 1


@pytest.mark.parametrize(("text", "n_cores"), [("-1", N_CORES), ("100000", 1), ("25000", 1)])
def test_older_kernels_tell_quota_and_period_apart(tmp_path, text, n_cores):
    folder = tmp_path / "cpu"
    folder.mkdir()
    (folder / "cpu.cfs_quota_us").write_text(f"{text}\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores(tmp_path) == n_cores


def test_a_quota_between_whole_numbers_is_rounded_up(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert usable_cores(tmp_path) == 3


def test_compute_threads_wait_awake_unless_told_otherwise(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    spin_between_steps()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    spin_between_steps()
    assert os.environ["GOMP_SPINCOUNT"] == SPINS
