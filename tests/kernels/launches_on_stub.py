"""What test_fused_launches.py runs in a process whose libcuda.so.1 is stub_driver.c."""

import contextlib
import ctypes
import functools
import json
import os
import sys
from collections.abc import Callable

import torch

from exact_ntk.kernels.fused import gpu, gpu_launch, gpu_myrtle
from exact_ntk.kernels.passes import Pass

CAPABILITY = (9, 0)
FAILING = ("load", "ntk_zero_offset", "ntk_myrtle_exact")
JOBS = [Pass("vanilla", (2, 3), ("vanilla",), False, True), Pass("gap", (3,), ("gap",), False, False)]
MYRTLE = Pass("myrtle", (5,), ("myrtle", "myrtle-nngp"), True, True)


class Stream:
    cuda_stream = 0


@contextlib.contextmanager
def entered(device):
    print(f"torch enters {device}", file=sys.stderr)
    yield
    print(f"torch leaves {device}", file=sys.stderr)


def values(index: int) -> list[float]:
    """Of a few images in the host's memory, by kernels launched on a device of the stub."""

    def on_device(_, code: str) -> gpu_launch.Launch:
        return gpu_launch.launcher(torch.device("cuda", index), code)

    x = torch.randn(3, 1, 3, 2, generator=torch.Generator().manual_seed(0))
    found = [v for job in JOBS for v in gpu.cntk_pass(x, None, job, on_device).flatten().tolist()]
    return found + myrtle_values(on_device)


def myrtle_values(make_launcher: gpu_myrtle.MakeLauncher) -> list[float]:
    """Of a few images in the host's memory."""
    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.stack(gpu_myrtle.myrtle_pass(x, None, MYRTLE, make_launcher=make_launcher)).flatten().tolist()


def why_not() -> str | None:
    for cache in (gpu.unavailable, gpu_myrtle.unavailable, gpu_launch._object_code, gpu_launch._kernel):
        cache.cache_clear()
    return gpu.unavailable(torch.device("cuda", 0), 3, 2) or gpu_myrtle.unavailable(torch.device("cuda", 0), 4, 4)


def without_memory(launches: int, compute: Callable[[], object]) -> object:
    """What it gives where so many launches, one after another, find no memory."""
    left = ctypes.c_int.in_dll(ctypes.CDLL("libcuda.so.1"), "short_of_memory")
    left.value = launches
    try:
        return compute()
    except torch.OutOfMemoryError as error:
        return f"out of memory: {error}"
    finally:
        left.value = 0


def main() -> None:
    # torch itself has no driver here: images stay in the host's memory, where the stub's kernels read them.
    for name, stand_in in {
        "is_available": lambda: True,
        "get_device_capability": lambda _: CAPABILITY,
        "get_device_name": lambda _: "Stub",
        "current_stream": lambda _: Stream,
        "synchronize": lambda _: None,
        "empty_cache": lambda: print("torch empties its cache", file=sys.stderr),
        "device": entered,
    }.items():
        setattr(torch.cuda, name, stand_in)
    ones = torch.ones
    torch.ones = lambda shape, device: ones(shape)
    found = {"values": [values(0)]}
    Stream.cuda_stream = 0x7700
    found["values"].append(values(1))
    found["short of memory"] = [without_memory(launches, lambda: values(0)) for launches in (1, 2)]
    on_first = dict(make_launcher=lambda _, code: gpu_launch.launcher(torch.device("cuda", 0), code))
    gpu.cntk_pass = functools.partial(gpu.cntk_pass, **on_first)
    gpu_myrtle.myrtle_pass = functools.partial(gpu_myrtle.myrtle_pass, **on_first)
    found["fine"] = why_not()
    for failing in FAILING:
        os.environ["STUB_FAIL"] = failing
        found[failing] = why_not()
    del os.environ["STUB_FAIL"]
    found["no memory"] = without_memory(2, why_not)
    gpu_launch._TorchStream = None  # a mistake of the package's own
    try:
        found["mistake"] = why_not()
    except TypeError as error:
        found["mistake"] = f"raised: {error}"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
