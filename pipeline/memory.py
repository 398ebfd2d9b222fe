"""How much memory a stage may take: what the user gives, or a share of what the machine or its cgroup allows."""

import math
import re
from pathlib import Path

import torch

from exact_ntk import cgroup
from exact_ntk.errors import ConfigError

# Of the limit, never of what happens to be free: the same machine then always goes the same way.
SHARE = 0.8
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_bytes(text: str, option: str) -> int:
    """8GB (8e9 bytes), 7.5GiB (of 2^30) or a plain number of bytes. Raises ConfigError, naming the option."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?|)B?\s*", text.upper())
    size = float(match[1]) * UNITS[match[2]] if match else 0.0
    if not 1 <= size < math.inf:
        raise ConfigError(f"{option} {text}: should be a size such as 8GB or 7.5GiB")
    return int(size)


def gigabytes(count: float) -> str:
    """12,345,678,901 -> 12.4 GB, rounded up, so that what is given in return is enough."""
    unit, name = (1e9, "GB") if count >= 1e9 else (1e6, "MB")
    return f"{math.ceil(count / unit * 10) / 10:,.1f} {name}"


def installed_memory(device: torch.device) -> int:
    """The GPU's memory, or the host's as far as its cgroup lets this process have it, in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return cgroup.memory_limit()


def default_memory(device: torch.device) -> int:
    """What a stage may take unless the user says otherwise: a share of the limit, in bytes."""
    return int(SHARE * installed_memory(device))


def peak_resident() -> int:
    """The most bytes that this process has held at once since it began."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
