"""The fused kernels on a GPU: compiled by NVRTC at first use, cached, launched on torch's stream and tensors."""

import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exact_ntk.kernels.fused import values_of
from exact_ntk.kernels.fused.build import CUDA_HINT, HERE, CompileError, build_cubin, cache_folder
from exact_ntk.kernels.fused.layout import LANES, Layout, find_layout
from exact_ntk.kernels.passes import Pass, pooling_of, window_of
from exact_ntk.kernels.reference import deviations

# As in images.h: patch norms below this share of the image's largest count as 0.
SMALLEST_NORM = 1e-18
# Never free memory: tables of a strip of images, at most this share of the device's memory and so many images; what is
# made of them at once; partial sums of a launch.
STRIP_BYTES, STRIP_SHARE, STRIP_IMAGES = 1536 << 20, 12, 1 << 13
BUILD_BYTES, PARTIAL_BYTES = 256 << 20, 256 << 20
AGAIN_BLOCKS, COLLECT_THREADS = 1024, 256
# Vanilla: blocks across a panel. Blocks at work together then span about as many first images as second ones, so that
# few tables come from memory: see NOTES-gpu.md.
PANEL = 16
# A launch lasts about this long: a card that also drives a display stops one of seconds.
LAUNCH_SECONDS, MOST_ENTRY_LAYERS = 0.3, 10**11
# Guesses on the slow side: an entry-layer lasts so many multiply-adds, one in double as long as so many in float.
ENTRY_LAYER_COST, DOUBLE_COST = 48, 128
# As in gpu.cu: of a multiply-add's chains, and poolings that one launch has room for.
CHAINS, CHAIN_STEPS = 8, 32
EVERY_PAIR, MOST_POOLINGS = -1, 4
OLDEST = 7, 5  # compute capability

log = logging.getLogger("ntk")


def source(layout: Layout, ntk: bool, train_first: bool, windows: bool = False) -> str:
    """gpu.cu with its constants; it includes warp.cuh. windows: whether it sums over windows of pixels too."""
    flags = {"WITH_NTK": ntk, "TRAIN_FIRST": train_first, "WINDOWS": windows, "PANEL": PANEL}
    return (
        layout.macros()
        + "".join(f"#define {name} {int(value)}\n" for name, value in flags.items())
        + (HERE / "gpu.cu").read_text()
    )


def _source_of(job: Pass, layout: Layout) -> str:
    return source(layout, job.ntk, job.train_first, any(window_of(pooling) is not None for pooling in job.poolings))


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


def launcher(device: torch.device, code: str) -> Launch:
    """How to launch the kernels of `code` on torch's current stream of `device`. Raises CompileError."""
    from cuda.core import Device, LaunchConfig, launch

    device = _indexed(device)

    def run(name: str, blocks: int, threads: int, *arguments: int) -> None:
        with torch.cuda.device(device):  # and back to the caller's
            on = Device(device.index)
            on.set_current()
            stream = on.create_stream(_TorchStream(device))
            launch(stream, LaunchConfig(grid=blocks, block=threads), _kernel(device, code, name), *arguments)

    return run


def _indexed(device: torch.device) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if device.index is None else device


@functools.cache
def unavailable(device: torch.device, height: int, width: int) -> str | None:
    """Why the fused kernels cannot run on `device`, or None.

    Compiles them for images of this size if not yet done, and runs each on one image: some of what a driver refuses it
    reports only then, or only when waited for.
    """

    def run(x: Tensor) -> None:
        for family in ("vanilla", "gap"):
            cntk_pass(x, None, Pass(family, (3,), (family,), False, False))
            torch.cuda.synchronize(x.device)

    return why_not_running(device, [source(find_layout(height, width), True, False)], run, height, width)


def why_not_running(
    device: torch.device, codes: Sequence[str], run: Callable[[Tensor], None], height: int, width: int
) -> str | None:
    """Why `codes` cannot be compiled for `device`, or `run` fails on an image of this size on it, or None."""
    if not torch.cuda.is_available():
        return "torch sees no NVIDIA driver or GPU"
    device = _indexed(device)
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        name, (has, needs) = torch.cuda.get_device_name(device), (".".join(map(str, c)) for c in (capability, OLDEST))
        return f"{name} is too old: it has compute capability {has}, and they need {needs}"
    try:
        for code in codes:
            _cubin(capability, code)
        run(torch.ones((1, 1, height, width), device=device))
    except CompileError as error:
        return str(error)
    except ImportError as error:
        return f"cuda-core cannot be imported ({error}): {CUDA_HINT}"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        what = str(error).strip().partition("\n")[0]
        return f"the driver cannot run the kernels ({what}): update it, or install NVRTC of the CUDA that it supports"
    return None


def power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent in float64, by its bits: exact on any device, as torch.ldexp is not."""
    return (exponent.long() + 1023 << 52).view(torch.float64)


def hashes(x: Tensor) -> Tensor:
    """(n) integers that are equal for images of equal pixels."""
    bits = (x + 0.0).flatten(1).view(torch.int32).long()  # + 0: -0 and 0 are equal
    weights = torch.arange(1, bits.shape[1] + 1, device=x.device) * 0x1E3779B97F4A7C15
    weights = (weights ^ (weights >> 29)) * 0x3F58476D1CE4E5B9
    return (bits * (weights | 1)).sum(1)


def normalisers(d: Tensor) -> Tensor:
    """Deviations (n, layers, H, W) -> (n, layers, 2, H, W): they, and their reciprocals or 0."""
    return torch.stack([d, torch.where(d > 0, 1 / d, 0.0)], 2)


class ImageTables:
    """A strip of images as the kernels read them, scaled by powers of two so that the largest patch norm is near 1.

    tables (n, stages, 2, padded rows, padded columns) in float32, where a stage is two channels or a layer's deviations
    and reciprocals; exact (n, C + 2 layers, pixels) in float64; scale (n): the power of two divided by; hash (n): equal
    for equal images. An image's do not depend on the others.
    """

    def __init__(self, x: Tensor, layout: Layout, layers: int):
        n, channels = x.shape[:2]
        self.channels, self.channel_stages = channels, -(-channels // 2)
        stages, exact = self.channel_stages + layers, channels + 2 * layers
        self.tables = torch.zeros((n, stages, 2, *layout.padded), device=x.device)
        self.exact = torch.empty((n, exact, *x.shape[2:]), dtype=torch.float64, device=x.device)
        self.scale = torch.empty(n, dtype=torch.float64, device=x.device)
        self.hash = torch.empty(n, dtype=torch.int64, device=x.device)
        # Their making takes several times the memory that they do.
        for part in strips(n, max(1, BUILD_BYTES // (8 * self.bytes_each(layout, channels, layers)))):
            self._build(part, x[part], layers)

    def _build(self, part: slice, x: Tensor, layers: int) -> None:
        channels, rows, columns = x.shape[1:]
        d = torch.stack(deviations(x, layers), 1)
        largest = d[:, 0].flatten(1).amax(1)
        exponent = torch.where(largest > 0, torch.frexp(largest).exponent - 1, 0)
        factor = power_of_two(-exponent)[:, None, None, None]
        d, pixels = d * factor, x.double() * factor
        both = normalisers(d)
        self.exact[part, :channels] = pixels
        self.exact[part, channels:] = both.flatten(1, 2)
        tables = self.tables[part, ..., :rows, :columns]
        tables[:, : self.channel_stages].flatten(1, 2)[:, :channels] = pixels.float()
        present = (d >= SMALLEST_NORM)[:, :, None]
        tables[:, self.channel_stages :] = torch.where(present, both, 0.0)
        self.scale[part] = power_of_two(exponent)
        self.hash[part] = hashes(x)

    @staticmethod
    def bytes_each(layout: Layout, channels: int, layers: int) -> int:
        """Of the tables of one image."""
        return 4 * layout.stage * (-(-channels // 2) + layers) + 8 * layout.rows * layout.columns * (
            channels + 2 * layers
        )

    def __len__(self) -> int:
        return len(self.scale)


@dataclass(frozen=True)
class _Poolings:
    """What sums up a pass: windows (poolings) in int64, c of each or EVERY_PAIR, on the device.

    down: offsets d1 that some window reaches, those nearest 0.  chunks: groups of offsets d2 that some reaches, the
    first `low` of a pair's and the last.
    """

    windows: Tensor
    down: int
    chunks: int
    low: int

    @classmethod
    def of(cls, job: Pass, layout: Layout, device: torch.device) -> "_Poolings":
        found = [window_of(pooling) for pooling in job.poolings]
        windows = torch.empty(len(found), dtype=torch.int64, device=device)
        for slot, c in enumerate(found):
            windows[slot] = EVERY_PAIR if c is None else c  # a fill, as in `_bits`
        reach = max(layout.rows + layout.columns if c is None else 2 * c for c in found)
        reached = [
            any(
                min(d2, layout.columns - d2) <= reach
                for d2 in range(chunk * layout.group, layout.columns)[: layout.group]
            )
            for chunk in range(layout.chunks)
        ]
        low = reached.index(False) if False in reached else len(reached)
        return cls(windows, min(layout.rows, 2 * reach + 1), sum(reached), low)

    @property
    def arguments(self) -> tuple[int, int]:
        return self.windows.data_ptr(), len(self.windows)


@dataclass(frozen=True)
class _Job:
    """A strip pair's work: its images, whether they are the same, where sums go and which layers'.

    corner: the strips' part of sums (2, poolings * depths, n1, n2) in float64.  read: a bit a layer, 32 a word.  most:
    entry-layers of a launch.  own: each image with itself alone, and the corner's rows have stride 0.
    """

    launch: Launch
    layout: Layout
    first: ImageTables
    second: ImageTables
    symmetric: bool
    layers: int
    corner: Tensor
    read: Tensor
    poolings: _Poolings
    most: int
    own: bool = False

    @property
    def n2(self) -> int:
        """Second images of a first one, 0 where it is paired with itself: see find_pair in gpu.cu."""
        return 0 if self.own else len(self.second)

    @property
    def slots(self) -> int:
        """Of a pair: its depths for each pooling."""
        return self.corner.shape[1]

    @property
    def reads(self) -> int:
        return self.slots // len(self.poolings.windows)

    @property
    def pixels(self) -> int:
        return self.layout.rows * self.layout.columns

    @property
    def scales(self) -> tuple[int, int]:
        return self.first.scale.data_ptr(), self.second.scale.data_ptr()

    @property
    def tables(self) -> tuple[int, int]:
        return self.first.tables.data_ptr(), self.second.tables.data_ptr()

    @property
    def hashes(self) -> tuple[int, int]:
        return self.first.hash.data_ptr(), self.second.hash.data_ptr()

    @property
    def out(self) -> tuple[int, int, int]:
        """Pointer and strides, in doubles, of rows and of readouts."""
        return self.corner.data_ptr(), self.corner.stride(2), self.corner.stride(1)  # (2, slots) are one run

    def parts(self, total: int, entries: int, at_most: int | None = None) -> Iterator[tuple[int, int]]:
        """(first, count) of launches that together do `total` items of so many entries a layer each."""
        size = max(1, self.most // (entries * self.layers))
        return ((part.start, part.stop - part.start) for part in strips(total, min(size, at_most or size)))

    def zero_offset(self, blocks: int, first: int, count: int, symmetric: bool, partial: int, again: int) -> None:
        self.launch(
            "ntk_zero_offset",
            blocks,
            self.layout.zero_offset_threads,
            *(self.first.exact.data_ptr(), self.second.exact.data_ptr(), *self.hashes),
            *(self.n2, int(symmetric), first, count, self.first.channels, self.layers),
            *(self.read.data_ptr(), self.reads, partial, *self.poolings.arguments, self.poolings.chunks),
            *(again, *self.scales, *self.out),
        )

    def pooled(self) -> None:
        n1, n2 = len(self.first), self.n2
        total = n1 if self.own else n1 * (n1 + 1) // 2 if self.symmetric else n1 * n2
        chunks, down = self.poolings.chunks, self.poolings.down
        each = (chunks + 1) * 2 * self.slots
        most = min(total, max(1, PARTIAL_BYTES // (8 * each)))
        partial = torch.empty((most, each), dtype=torch.float64, device=self.corner.device)
        pairs_of = n2, int(self.symmetric)
        planes = min(self.pixels, chunks * self.layout.group * down)
        for first, pairs in self.parts(total, self.pixels * (planes + DOUBLE_COST), most):
            self.zero_offset(pairs, first, pairs, self.symmetric, partial.data_ptr(), 0)
            self.launch(
                "ntk_pooled",
                pairs * chunks,
                LANES * self.layout.warps,
                *(*self.tables, *pairs_of, first, self.first.channel_stages, self.layers),
                *(self.read.data_ptr(), self.reads, partial.data_ptr()),
                *(*self.poolings.arguments, down, chunks, self.poolings.low),
            )
            self.launch(
                "ntk_collect",
                -(-pairs * 2 * self.slots // COLLECT_THREADS),
                COLLECT_THREADS,
                *(partial.data_ptr(), *self.scales, *pairs_of, first, pairs, self.slots, chunks, *self.out),
            )

    def vanilla(self) -> None:
        n1, n2, layout = len(self.first), len(self.second), self.layout
        again = torch.empty(1 + 2 * n1 * n2, dtype=torch.int32, device=self.corner.device)
        again[0] = 0
        down = 1 if layout.warps % 2 else 2
        across = layout.warps // down * layout.planes
        blocks = -(-n2 // (across * PANEL)) * PANEL * -(-n1 // down)
        for first, count in self.parts(blocks, down * across * self.pixels):
            self.launch(
                "ntk_vanilla",
                count,
                LANES * layout.warps,
                *(*self.tables, *self.scales, *self.hashes),
                *(n1, n2, int(self.symmetric), self.first.channel_stages, self.layers),
                *(self.read.data_ptr(), self.reads, *self.out, again.data_ptr(), first),
            )
        # How many there are only the device knows: launches that find none return at once.
        for first, count in self.parts(n1 * n2, DOUBLE_COST * self.pixels):
            self.zero_offset(min(AGAIN_BLOCKS, count), first, count, False, 0, again.data_ptr())
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%d nearly equal pairs were computed in float64", int(again[0]))

    def own_vanilla(self) -> None:
        """Each image with itself, all in float64, as such pairs are among others."""
        every = torch.arange(len(self.first), dtype=torch.int32, device=self.corner.device)
        listed = torch.stack([every, torch.zeros_like(every)], 1).flatten()
        again = torch.cat([every.new_full((1,), len(every)), listed])
        for first, count in self.parts(len(every), DOUBLE_COST * self.pixels):
            self.zero_offset(min(AGAIN_BLOCKS, count), first, count, False, 0, again.data_ptr())


def strips(n: int, size: int) -> Iterator[slice]:
    return (slice(k, min(k + size, n)) for k in range(0, n, size))


def _bits(job: Pass, device: torch.device) -> Tensor:
    """Which layers a pass reads out: a bit each, 32 a word, int32."""
    words = np.zeros(-(-(job.depths[-1] - 1) // 32), dtype=np.uint32)
    for layer in (depth - 2 for depth in job.depths):
        words[layer // 32] |= np.uint32(1 << layer % 32)
    read = torch.empty(len(words), dtype=torch.int32, device=device)
    for k, word in enumerate(words.view(np.int32).tolist()):
        read[k] = word  # a fill: a copy from memory that is not pinned, or pinning some, would wait for the device
    return read


def _in_parts(job: Pass, compute: Callable[[Pass], Tensor]) -> Tensor:
    """A pass with more poolings than a launch has room for, as several."""
    found: dict[str, Tensor] = {}
    for begin in range(0, len(job.poolings), MOST_POOLINGS):
        poolings = job.poolings[begin : begin + MOST_POOLINGS]
        part = replace(job, readouts=tuple(r for r in job.readouts if pooling_of(r) in poolings))
        found |= zip(part.readouts, compute(part), strict=True)
    return torch.stack([found[readout] for readout in job.readouts])


def cntk_pass(
    x1: Tensor,
    x2: Tensor | None,
    job: Pass,
    make_launcher: Callable[[torch.device, str], Launch] = launcher,
    strip_bytes: int | None = None,
) -> Tensor:
    """One readout family at all depths: as `reference.cntk_pass`, float32, on the images' GPU.

    Works on torch's current stream and returns without waiting for it. A pair's value depends on its two images
    alone: not on the block, the strip, the launch or the other images. Raises CompileError.
    """
    if len(job.poolings) > MOST_POOLINGS:
        return _in_parts(job, lambda part: cntk_pass(x1, x2, part, make_launcher, strip_bytes))
    layers, layout = max(job.depths) - 1, find_layout(*x1.shape[2:])
    launch = make_launcher(x1.device, _source_of(job, layout))
    poolings = _Poolings.of(job, layout, x1.device)
    a, b = turned(x1, layout), None if x2 is None else turned(x2, layout)
    size = _strip_size(a, layout, layers, strip_bytes)
    read, most = _bits(job, a.device), entry_layers_a_launch(a.device)
    n1, n2 = len(a), len(a if b is None else b)
    slots = len(job.poolings) * len(job.depths)
    sums = torch.zeros((2, slots, n1, n2), dtype=torch.float64, device=a.device)
    for rows in strips(n1, size):
        first = ImageTables(a[rows], layout, layers)
        for columns in strips(n2, size):
            if b is None and columns.start > rows.start:
                break  # above the diagonal: mirrored
            diagonal = b is None and columns == rows
            second = first if diagonal else ImageTables((a if b is None else b)[columns], layout, layers)
            corner = sums[:, :, rows, columns]
            work = _Job(launch, layout, first, second, diagonal, layers, corner, read, poolings, most)
            work.vanilla() if job.family == "vanilla" else work.pooled()
            if diagonal:
                corner.copy_(corner.tril() + corner.tril(-1).mT)
            elif b is None:
                sums[:, :, columns, rows] = corner.mT
    return values_of(sums.unflatten(1, (len(job.poolings), -1)), job, layout.rows * layout.columns)


def self_pass(
    x: Tensor,
    job: Pass,
    make_launcher: Callable[[torch.device, str], Launch] = launcher,
    strip_bytes: int | None = None,
) -> Tensor:
    """Each image with itself: as `reference.self_pass`, float32, on the images' GPU, the diagonal of `cntk_pass`."""
    if len(job.poolings) > MOST_POOLINGS:
        return _in_parts(job, lambda part: self_pass(x, part, make_launcher, strip_bytes))
    layers, layout = max(job.depths) - 1, find_layout(*x.shape[2:])
    launch = make_launcher(x.device, _source_of(job, layout))
    poolings = _Poolings.of(job, layout, x.device)
    x = turned(x, layout)
    read, most = _bits(job, x.device), entry_layers_a_launch(x.device)
    sums = torch.zeros((2, len(job.poolings) * len(job.depths), len(x)), dtype=torch.float64, device=x.device)
    for part in strips(len(x), _strip_size(x, layout, layers, strip_bytes)):
        tables = ImageTables(x[part], layout, layers)
        corner = sums[:, :, None, part].expand(-1, -1, len(tables), -1)
        work = _Job(launch, layout, tables, tables, False, layers, corner, read, poolings, most, own=True)
        work.own_vanilla() if job.family == "vanilla" else work.pooled()
    return values_of(sums.unflatten(1, (len(job.poolings), -1)), job, layout.rows * layout.columns)


def turned(x: Tensor, layout: Layout) -> Tensor:
    """Contiguous float32 images, transposed where the layout is."""
    transposed = (layout.rows, layout.columns) != tuple(x.shape[2:])
    return (x.mT if transposed else x).to(torch.float32).contiguous()


def _strip_size(x: Tensor, layout: Layout, layers: int, at_most: int | None) -> int:
    at_most = at_most or share_of_memory(x.device, STRIP_BYTES, STRIP_SHARE)
    return max(1, min(STRIP_IMAGES, at_most // ImageTables.bytes_each(layout, x.shape[1], layers)))


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
