"""Threads within the cores that a process may use, and what provenance says of them."""

import os

import pytest
import torch

from exact_ntk import cgroup
from exact_ntk.device import available_memory, describe, keep_to_cores


@pytest.fixture(autouse=True)
def four_threads(monkeypatch):
    """torch on four threads of eight cores, and nothing asked for in the environment."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("quota", "cores", "threads"), [(None, 8, 4), (None, 2, 2), (0.3, 8, 1), (1.5, 8, 2), (6.0, 8, 4), (3.0, 1, 1)]
)
def test_threads_keep_to_quota_and_affinity(quota: float | None, cores: int, threads: int, monkeypatch):
    monkeypatch.setattr(cgroup, "cpu_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    keep_to_cores()
    assert torch.get_num_threads() == threads
    found = describe(torch.device("cpu"))
    assert (found["threads"], found["cores"], found["cpu_quota"]) == (threads, cores, quota)


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_what_the_user_asks_for_stays(variable: str, monkeypatch):
    monkeypatch.setenv(variable, "4")
    monkeypatch.setattr(cgroup, "cpu_quota", lambda: 1.0)
    keep_to_cores()
    assert torch.get_num_threads() == 4


def test_memory_of_the_host_is_the_control_groups(monkeypatch):
    monkeypatch.setattr(cgroup, "memory_left", lambda: 123)
    assert available_memory(torch.device("cpu")) == 123
