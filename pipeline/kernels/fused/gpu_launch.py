"""Kernels on a GPU: compiled by NVRTC at first use, cached, launched on torch's stream; whether and how fast."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from exact_ntk.kernels.fused.build import CUDA_HINT, HERE, CompileError, build_cubin, cache_folder, cuda_refusals
from exact_ntk.kernels.fused.layout import Layout, find_layout

OLDEST = 7, 5  # compute capability
# A launch lasts about this long: a card that also drives a display stops one of seconds.
LAUNCH_SECONDS, MOST_ENTRY_LAYERS = 0.3, 10**11
# A guess on the slow side: an entry-layer lasts so many multiply-adds.
ENTRY_LAYER_COST = 48
CHAINS, CHAIN_STEPS = 8, 32  # of multiply-adds, as in gpu.cu


def source(layout: Layout, ntk: bool, train_first: bool, windows: bool = False, panel: int = 1) -> str:
    """gpu.cu with its constants; it includes warp.cuh.

    windows: whether it sums over windows of pixels too.  panel: blocks across a panel of vanilla pairs.
    """
    flags = {"WITH_NTK": ntk, "TRAIN_FIRST": train_first, "WINDOWS": windows, "PANEL": panel}
    return (
        layout.macros()
        + "".join(f"#define {name} {int(value)}\n" for name, value in flags.items())
        + (HERE / "gpu.cu").read_text()
    )


class _TorchStream:
    """torch's current stream, in the form that cuda.core takes.

    torch's default stream is the legacy one. Its handle 0 would mean the thread's own stream under
    CUDA_PYTHON_CUDA_PER_THREAD_DEFAULT_STREAM, so it is named by the handle that always means it.
    """

    LEGACY = 1

    def __init__(self, device: torch.device):
        self.handle = torch.cuda.current_stream(device).cuda_stream or self.LEGACY

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


# (kernel's name, blocks, threads a block, arguments: pointers and integers, all of 64 bits) -> None
Launch = Callable[..., None]
MakeLauncher = Callable[[torch.device, str], Launch]


@functools.cache
def _cubin(capability: tuple[int, int], code: str) -> bytes:
    return build_cubin(cache_folder(), code, "sm_{}{}".format(*capability))


@functools.cache
def _object_code(device: torch.device, code: str) -> Any:
    from cuda.core import ObjectCode

    return ObjectCode.from_cubin(_cubin(torch.cuda.get_device_capability(device), code))


@functools.cache
def _kernel(device: torch.device, code: str, name: str) -> Any:
    return _object_code(device, code).get_kernel(name)


@contextlib.contextmanager
def _lacking_memory_in_torchs_words() -> Iterator[None]:
    """A device without memory is torch.OutOfMemoryError, also where the driver says so and no allocator of torch's."""
    try:
        yield
    except cuda_refusals() as error:
        if isinstance(error, torch.OutOfMemoryError) or "out of memory" not in str(error).lower().replace("_", " "):
            raise
        raise torch.OutOfMemoryError(str(error).strip().partition("\n")[0]) from error


def launcher(device: torch.device, code: str) -> Launch:
    """How to launch the kernels of `code` on torch's current stream of `device`.

    Raises CompileError; torch.OutOfMemoryError where the driver has no memory for them.
    """
    from cuda.core import Device, LaunchConfig, launch

    device = _indexed(device)

    def once(name: str, blocks: int, threads: int, *arguments: int) -> None:
        with _lacking_memory_in_torchs_words(), torch.cuda.device(device):  # and back to the caller's
            on = Device(device.index)
            on.set_current()
            stream = on.create_stream(_TorchStream(device))
            launch(stream, LaunchConfig(grid=blocks, block=threads), _kernel(device, code, name), *arguments)

    def run(name: str, blocks: int, threads: int, *arguments: int) -> None:
        try:
            once(name, blocks, threads, *arguments)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()  # what torch keeps is not the driver's to give
            once(name, blocks, threads, *arguments)

    return run


def _indexed(device: torch.device) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if device.index is None else device


def why_not_running(
    device: torch.device, codes: Sequence[str], run: Callable[[Tensor], None], height: int, width: int
) -> str | None:
    """Why `codes` cannot be compiled for `device`, or `run` fails on an image of this size on it, or None.

    Raises torch.OutOfMemoryError: another program may have the memory now, and not in a minute.
    """
    if not torch.cuda.is_available():
        return "torch sees no NVIDIA driver or GPU"
    device = _indexed(device)
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        name, (has, needs) = torch.cuda.get_device_name(device), (".".join(map(str, c)) for c in (capability, OLDEST))
        return f"{name} is too old: it has compute capability {has}, and they need {needs}"
    try:
        refusals = cuda_refusals()
    except ImportError as error:
        return f"cuda-core cannot be imported ({error}): {CUDA_HINT}"
    try:
        for code in codes:
            _cubin(capability, code)
        with _lacking_memory_in_torchs_words():
            run(torch.ones((1, 1, height, width), device=device))
    except CompileError as error:
        return str(error)
    except torch.OutOfMemoryError:
        raise
    except refusals as error:
        what = str(error).strip().partition("\n")[0]
        return f"the driver cannot run the kernels ({what}): update it, or install NVRTC of the CUDA that it supports"
    return None


def share_of_memory(device: torch.device, most: int, share: int) -> int:
    """So many bytes, on a GPU at most one part in `share` of its memory, of all and not of what is free."""
    if device.type != "cuda":
        return most
    return min(most, torch.cuda.get_device_properties(device).total_memory // share)


@functools.cache
def entry_layers_a_launch(device: torch.device) -> int:
    """About `LAUNCH_SECONDS` of work on a device, by the rate of its multiply-adds. No value depends on it."""
    if device.type != "cuda":
        return MOST_ENTRY_LAYERS
    rate = multiply_adds_per_second(device, seconds=0.01) / ENTRY_LAYER_COST
    return min(MOST_ENTRY_LAYERS, max(1, int(LAUNCH_SECONDS * rate)))


def launches(total: int, most: int) -> Iterator[tuple[int, int]]:
    """(first, count) of launches that together take `total` items, each at most so many, and at least one."""
    most = max(1, most)
    return ((first, min(most, total - first)) for first in range(0, total, most))


def multiply_adds_per_second(device: torch.device, seconds: float = 0.2) -> float:
    """float32 multiply-adds a second that a GPU's threads start when they do nothing else, the best of three tries."""
    device = _indexed(device)
    launch = launcher(device, source(find_layout(1, 1), False, False))
    blocks, threads = 16 * torch.cuda.get_device_properties(device).multi_processor_count, 256
    out = torch.empty(blocks * threads, device=device)

    def spent(rounds: int) -> float:
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        launch("ntk_multiply_adds", blocks, threads, rounds, out.data_ptr())
        torch.cuda.synchronize(device)
        return time.perf_counter() - start

    spent(1)  # compiled and loaded
    rounds = 1 << 7
    rounds = max(rounds, int(rounds * seconds / spent(rounds)))
    return blocks * threads * CHAINS * CHAIN_STEPS * rounds / min(spent(rounds) for _ in range(3))
