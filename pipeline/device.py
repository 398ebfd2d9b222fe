"""Which device computes and how much of it may be used, and what it is called in a record's provenance."""

import math
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from exact_ntk import cgroup
from exact_ntk.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """One of auto, cpu, cuda, cuda:1, ..., -> a device that is there. Raises ConfigError otherwise."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    there = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
    full = "cuda:0" if name == "cuda" else name
    if full not in there:
        raise ConfigError(f"--device {name}: no such device here; there is {', '.join(there)}")
    return torch.device(full)


def resolve_devices(name: str) -> list[torch.device]:
    """The devices to spread work over: one, as `resolve_device` takes it, or cuda:0,2 or cuda:all or cpu,cpu.

    Several times the CPU are as many processes that share its cores. Raises ConfigError for one that is not there.
    """
    if name == "cuda:all":
        name = ",".join(f"cuda:{k}" for k in range(torch.cuda.device_count())) or name
    first, *others = (part.strip() for part in name.split(","))
    kind = first.split(":")[0]
    words = [first, *(f"{kind}:{part}" if part.isdigit() else part for part in others)]
    devices = [resolve_device(word) for word in words]
    twice = next((d for d in devices if d.type == "cuda" and devices.count(d) > 1), None)
    if twice is not None or (len(devices) > 1 and len({d.type for d in devices}) > 1):
        raise ConfigError(f"--device {name}: should name each GPU once, as in cuda:0,2, or all of them, cuda:all")
    return devices


def keep_to_cores() -> None:
    """Compute on no more threads than affinity and control groups leave cores; what OMP_NUM_THREADS asks for stays."""
    if os.environ.get("OMP_NUM_THREADS") or os.environ.get("MKL_NUM_THREADS"):
        return
    cores = min(len(os.sched_getaffinity(0)), cgroup.cpu_quota() or math.inf)
    torch.set_num_threads(max(1, min(torch.get_num_threads(), math.ceil(cores))))


def available_memory(device: torch.device) -> int:
    """Bytes that a computation on `device` can still get."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else cgroup.memory_left()


def _cpu_info(*keys: str) -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() in keys), None)


def cpu_model() -> str:
    """The processor's name as the kernel gives it."""
    return _cpu_info("model name") or platform.processor() or platform.machine()


def cpu_vendor() -> str | None:
    """GenuineIntel, AuthenticAMD, ..., or None where the kernel does not say."""
    return _cpu_info("vendor_id")


def cpu_features() -> str:
    """The processor's instruction sets as the kernel gives them: machines of one name may differ in them."""
    return _cpu_info("flags", "Features") or ""


def describe(device: torch.device) -> dict[str, Any]:
    """Device, threads, cores by affinity, processors by quota and versions, for provenance."""

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model(),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
        "cpu_quota": cgroup.cpu_quota(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {p: v for p in ("exact-ntk", "torch", "torchvision", "numpy", "zarr") if (v := installed(p))},
    }
