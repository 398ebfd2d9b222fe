"""The fused kernels on a GPU: compiled by NVRTC at first use, cached, launched on torch's stream and tensors."""

import functools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exact_ntk.kernels.fused import values_of
from exact_ntk.kernels.fused.build import CUDA_HINT, HERE, CompileError, build_cubin, cache_folder
from exact_ntk.kernels.fused.layout import LANES, Layout, find_layout
from exact_ntk.kernels.passes import Pass
from exact_ntk.kernels.reference import deviations

# As in images.h: patch norms below this share of the image's largest count as 0.
SMALLEST_NORM = 1e-18
# Fixed, never free memory: tables of a strip of images, its images at most, partial sums of a launch.
STRIP_BYTES, STRIP_IMAGES, PARTIAL_BYTES = 512 << 20, 2048, 256 << 20
AGAIN_BLOCKS, COLLECT_THREADS = 1024, 256

log = logging.getLogger("ntk")


def source(layout: Layout, ntk: bool, train_first: bool) -> str:
    """gpu.cu with its constants; it includes arithmetic.h."""
    flags = f"#define WITH_NTK {int(ntk)}\n#define TRAIN_FIRST {int(train_first)}\n"
    return layout.macros() + flags + (HERE / "gpu.cu").read_text()


class _TorchStream:
    """torch's current stream, in the form that cuda.core takes."""

    def __init__(self, device: torch.device):
        self.handle = torch.cuda.current_stream(device).cuda_stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


# (kernel's name, grid, threads a block, arguments: pointers and integers) -> None
Launch = Callable[..., None]


@functools.cache
def _object_code(device: torch.device, code: str) -> Any:
    from cuda.core import ObjectCode

    major, minor = torch.cuda.get_device_capability(device)
    return ObjectCode.from_cubin(build_cubin(cache_folder(), code, f"sm_{major}{minor}"))


@functools.cache
def _kernel(device: torch.device, code: str, name: str) -> Any:
    return _object_code(device, code).get_kernel(name)


def launcher(device: torch.device, code: str) -> Launch:
    """How to launch the kernels of `code` on torch's current stream of `device`. Raises CompileError."""
    from cuda.core import Device, LaunchConfig, launch

    device = _indexed(device)

    def run(name: str, grid: tuple[int, ...], threads: int, *arguments: int) -> None:
        with torch.cuda.device(device):  # and back to the caller's
            on = Device(device.index)
            on.set_current()
            stream = on.create_stream(_TorchStream(device))
            launch(stream, LaunchConfig(grid=grid, block=threads), _kernel(device, code, name), *arguments)

    return run


def _indexed(device: torch.device) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if device.index is None else device


@functools.cache
def unavailable(device: torch.device, height: int, width: int) -> str | None:
    """Why the fused kernels cannot run on `device`, or None; compiles them for images of this size if not yet done."""
    if not torch.cuda.is_available():
        return "torch sees no NVIDIA driver or GPU"
    device = _indexed(device)
    try:
        with torch.cuda.device(device):
            torch.zeros(1, device=device)  # the context that kernels are loaded into
            _kernel(device, source(find_layout(height, width), True, False), "ntk_pooled")
    except CompileError as error:
        return str(error)
    except ImportError as error:
        return f"cuda-core cannot be imported ({error}): {CUDA_HINT}"
    except Exception as error:
        return f"the driver cannot load the kernels ({error}): update it, or install NVRTC of the CUDA that it supports"
    return None


def _power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent in float64, by its bits: exact on any device, as torch.ldexp is not."""
    return (exponent.long() + 1023 << 52).view(torch.float64)


def _hashes(x: Tensor) -> Tensor:
    """(n) integers that are equal for images of equal pixels."""
    bits = (x + 0.0).flatten(1).view(torch.int32).long()  # + 0: -0 and 0 are equal
    weights = torch.arange(1, bits.shape[1] + 1, device=x.device) * 0x1E3779B97F4A7C15
    weights = (weights ^ (weights >> 29)) * 0x3F58476D1CE4E5B9
    return (bits * (weights | 1)).sum(1)


class ImageTables:
    """A strip of images as the kernels read them, scaled by powers of two so that the largest patch norm is near 1.

    tables (n, stages, 2, padded rows, padded columns) in float32, where a stage is two channels or a layer's deviations
    and reciprocals; exact (n, C + 2 layers, pixels) in float64; scale (n): the power of two divided by; hash (n): equal
    for equal images.
    """

    def __init__(self, x: Tensor, layout: Layout, layers: int):
        channels, rows, columns = x.shape[1:]
        d = torch.stack(deviations(x, layers), 1)
        largest = d[:, 0].flatten(1).amax(1)
        exponent = torch.where(largest > 0, torch.frexp(largest).exponent - 1, 0)
        self.scale = _power_of_two(exponent)
        factor = _power_of_two(-exponent)[:, None, None, None]
        d, pixels = d * factor, x.double() * factor
        normalisers = torch.stack([d, torch.where(d > 0, 1 / d, 0.0)], 2)
        self.exact = torch.cat([pixels, normalisers.flatten(1, 2)], 1).contiguous()
        channel_pairs = F.pad(pixels, (0, 0, 0, 0, 0, channels % 2)).unflatten(1, (-1, 2))
        present = (d >= SMALLEST_NORM)[:, :, None]
        stages = torch.cat([channel_pairs, torch.where(present, normalisers, 0.0)], 1).float()
        height, width = layout.padded
        self.tables = F.pad(stages, (0, width - columns, 0, height - rows)).contiguous()
        self.hash = _hashes(x)
        self.channel_stages = channel_pairs.shape[1]

    @staticmethod
    def bytes_each(layout: Layout, channels: int, layers: int) -> int:
        """Of the tables of one image."""
        return 4 * layout.stage * (-(-channels // 2) + layers) + 8 * layout.rows * layout.columns * (
            channels + 2 * layers
        )

    def __len__(self) -> int:
        return len(self.scale)


@dataclass(frozen=True)
class _Output:
    """Where sums go: a strip pair's corner of sums (2, reads, n1, n2) in float64, and which layers are read out."""

    corner: Tensor
    read: Tensor
    reads: int

    def arguments(self) -> tuple[int, int, int]:
        """Pointer and strides, in doubles, of rows and of readouts."""
        return self.corner.data_ptr(), self.corner.stride(2), self.corner.stride(1)  # (2, reads) are one run


def _pooled(
    launch: Launch, layout: Layout, a: ImageTables, b: ImageTables, symmetric: bool, layers: int, out: _Output
) -> None:
    n1, n2 = len(a), len(b)
    total = n1 * (n1 + 1) // 2 if symmetric else n1 * n2
    each = (layout.chunks + 1) * 2 * out.reads
    most = min(total, max(1, PARTIAL_BYTES // (8 * each)))
    partial = torch.empty((most, each), dtype=torch.float64, device=a.scale.device)
    scales = a.scale.data_ptr(), b.scale.data_ptr()
    read = out.read.data_ptr(), out.reads
    channels = a.exact.shape[1] - 2 * layers
    for first in range(0, total, most):
        pairs = min(most, total - first)
        launch(
            "ntk_zero_offset",
            (pairs,),
            layout.zero_offset_threads,
            *(a.exact.data_ptr(), b.exact.data_ptr(), a.hash.data_ptr(), b.hash.data_ptr()),
            *(n2, int(symmetric), first, pairs, channels, layers),
            *read,
            *(partial.data_ptr(), 0),
            *scales,
            *(0, 0, 0),
        )
        launch(
            "ntk_pooled",
            (pairs * layout.chunks,),
            LANES * layout.warps,
            *(a.tables.data_ptr(), b.tables.data_ptr(), n2, int(symmetric), first, a.channel_stages, layers),
            *read,
            partial.data_ptr(),
        )
        launch(
            "ntk_collect",
            (-(-pairs * 2 * out.reads // COLLECT_THREADS),),
            COLLECT_THREADS,
            partial.data_ptr(),
            *scales,
            *(n2, int(symmetric), first, pairs, out.reads),
            *out.arguments(),
        )


def _vanilla(
    launch: Launch, layout: Layout, a: ImageTables, b: ImageTables, symmetric: bool, layers: int, out: _Output
) -> None:
    n1, n2 = len(a), len(b)
    again = torch.empty(1 + 2 * n1 * n2, dtype=torch.int32, device=a.scale.device)
    again[0] = 0
    scales = a.scale.data_ptr(), b.scale.data_ptr()
    hashes = a.hash.data_ptr(), b.hash.data_ptr()
    read = out.read.data_ptr(), out.reads
    down = 1 if layout.warps % 2 else 2
    across = layout.warps // down * layout.planes
    launch(
        "ntk_vanilla",
        (-(-n2 // across), -(-n1 // down)),
        LANES * layout.warps,
        *(a.tables.data_ptr(), b.tables.data_ptr()),
        *scales,
        *hashes,
        *(n1, n2, int(symmetric), a.channel_stages, layers),
        *read,
        *out.arguments(),
        again.data_ptr(),
    )
    channels = a.exact.shape[1] - 2 * layers
    launch(
        "ntk_zero_offset",
        (min(AGAIN_BLOCKS, n1 * n2),),
        layout.zero_offset_threads,
        *(a.exact.data_ptr(), b.exact.data_ptr()),
        *hashes,
        *(n2, 0, 0, 0, channels, layers),
        *read,
        *(0, again.data_ptr()),
        *scales,
        *out.arguments(),
    )
    if log.isEnabledFor(logging.DEBUG):
        log.debug("%d nearly equal pairs were computed in float64", int(again[0]))


def _strips(n: int, size: int) -> Iterator[slice]:
    return (slice(k, min(k + size, n)) for k in range(0, n, size))


def cntk_pass(
    x1: Tensor,
    x2: Tensor | None,
    job: Pass,
    make_launcher: Callable[[torch.device, str], Launch] = launcher,
    strip_bytes: int = STRIP_BYTES,
) -> Tensor:
    """One readout family at all depths: as `reference.cntk_pass`, float32, on the images' GPU.

    Works on torch's current stream and returns without waiting for it. A pair's value depends on its two images
    alone: not on the block, the strip or the other images. Raises CompileError.
    """
    layers = max(job.depths) - 1
    height, width = x1.shape[2:]
    layout = find_layout(height, width)
    transposed = (layout.rows, layout.columns) != (height, width)
    launch = make_launcher(x1.device, source(layout, job.ntk, job.train_first))
    read = torch.zeros(layers, dtype=torch.int32)
    read[[depth - 2 for depth in job.depths]] = torch.arange(1, len(job.depths) + 1, dtype=torch.int32)
    if x1.device.type == "cuda":
        read = read.pin_memory().to(x1.device, non_blocking=True)
    a, b = ((x.mT if transposed else x).to(torch.float32).contiguous() if x is not None else None for x in (x1, x2))
    assert a is not None
    run = _vanilla if job.family == "vanilla" else _pooled
    size = max(1, min(STRIP_IMAGES, strip_bytes // ImageTables.bytes_each(layout, a.shape[1], layers)))
    n1, n2 = len(a), len(a if b is None else b)
    sums = torch.zeros((2, len(job.depths), n1, n2), dtype=torch.float64, device=a.device)
    for rows in _strips(n1, size):
        first = ImageTables(a[rows], layout, layers)
        for columns in _strips(n2, size):
            if b is None and columns.start > rows.start:
                break  # above the diagonal: mirrored
            diagonal = b is None and columns == rows
            second = first if diagonal else ImageTables((a if b is None else b)[columns], layout, layers)
            corner = sums[:, :, rows, columns]
            run(launch, layout, first, second, diagonal, layers, _Output(corner, read, len(job.depths)))
            if diagonal:
                corner.copy_(corner.tril() + corner.tril(-1).mT)
            elif b is None:
                sums[:, :, columns, rows] = corner.mT
    return values_of(sums, job, height * width)


def multiply_adds_per_second(device: torch.device, seconds: float = 0.2) -> float:
    """float32 multiply-adds a second that a GPU's threads start when they do nothing else, the best of three tries."""
    device = _indexed(device)
    launch = launcher(device, source(find_layout(1, 1), False, False))
    blocks, threads, chains = 16 * torch.cuda.get_device_properties(device).multi_processor_count, 256, 8
    out = torch.empty(blocks * threads, device=device)

    def spent(rounds: int) -> float:
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        launch("ntk_multiply_adds", (blocks,), threads, rounds, out.data_ptr())
        torch.cuda.synchronize(device)
        return time.perf_counter() - start

    rounds = 1 << 12
    spent(rounds)
    rounds = max(rounds, int(rounds * seconds / spent(rounds)))
    return blocks * threads * chains * rounds / min(spent(rounds) for _ in range(3))
