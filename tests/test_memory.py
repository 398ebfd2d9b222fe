"""Sizes as users write them, and the share of the machine that is taken by default."""

import pytest
import torch

from exact_ntk import memory
from exact_ntk.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "count"),
    [("8GB", 8 * 10**9), ("7.5 GiB", int(7.5 * 2**30)), ("500mb", 5 * 10**8), ("1T", 10**12), ("4096", 4096)],
)
def test_sizes(text: str, count: int):
    assert memory.parse_bytes(text, "--memory") == count


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "8 potatoes", "0", "0.1", "9" * 400, "1e9", "nan"])
def test_what_is_no_size_is_named(text: str):
    with pytest.raises(ConfigError, match=f"--memory {text}: should be a size such as 8GB"):
        memory.parse_bytes(text, "--memory")


def test_what_is_said_is_enough():
    assert memory.gigabytes(12_345_678_901) == "12.4 GB"
    assert memory.gigabytes(2_000_000) == "2.0 MB"


def test_the_default_is_a_share_of_the_limit(monkeypatch):
    monkeypatch.setattr(memory.cgroup, "memory_limit", lambda: 10**9)
    assert memory.default_memory(torch.device("cpu")) == memory.SHARE * 10**9
    assert memory.peak_resident() > 50e6
