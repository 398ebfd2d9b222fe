"""The fused kernels on a GPU: pairs of images, strip by strip, through gpu.cu's kernels."""

import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from exact_ntk.kernel_names import pooling_of, window_of
from exact_ntk.kernels.fused import values_of
from exact_ntk.kernels.fused.gpu_images import ImageTables, strips, turned
from exact_ntk.kernels.fused.gpu_launch import (
    Launch,
    entry_layers_a_launch,
    launcher,
    share_of_memory,
    source,
    why_not_running,
)
from exact_ntk.kernels.fused.layout import LANES, Layout, find_layout
from exact_ntk.kernels.passes import Pass

# Never free memory: tables of a strip of images, at most this share of the device's memory and so many images; partial
# sums of a launch.
STRIP_BYTES, STRIP_SHARE, STRIP_IMAGES = 1536 << 20, 12, 1 << 13
PARTIAL_BYTES = 256 << 20
AGAIN_BLOCKS, COLLECT_THREADS = 1024, 256
# Vanilla: blocks across a panel. Blocks at work together then span about as many first images as second ones, so that
# few tables come from memory: see NOTES-gpu.md.
PANEL = 16
DOUBLE_COST = 128  # a guess on the slow side: an entry-layer in double lasts as long as so many in float
EVERY_PAIR, MOST_POOLINGS = -1, 4  # as in gpu.cu

log = logging.getLogger("ntk")


def _source_of(job: Pass, layout: Layout) -> str:
    windows = any(window_of(pooling) is not None for pooling in job.poolings)
    return source(layout, job.ntk, job.train_first, windows, PANEL)


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

    return why_not_running(device, [source(find_layout(height, width), True, False, panel=PANEL)], run, height, width)


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
    def total(self) -> int:
        """Pairs."""
        n1 = len(self.first)
        return n1 if self.own else n1 * (n1 + 1) // 2 if self.symmetric else n1 * self.n2

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
        chunks, down = self.poolings.chunks, self.poolings.down
        each = (chunks + 1) * 2 * self.slots
        most = min(self.total, max(1, PARTIAL_BYTES // (8 * each)))
        partial = torch.empty((most, each), dtype=torch.float64, device=self.corner.device)
        pairs_of = self.n2, int(self.symmetric)
        planes = min(self.pixels, chunks * self.layout.group * down)
        for first, pairs in self.parts(self.total, self.pixels * (planes + DOUBLE_COST), most):
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
        again = torch.empty(1 + 2 * self.total, dtype=torch.int32, device=self.corner.device)
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
        for first, count in self.parts(self.total, DOUBLE_COST * self.pixels):
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


def _strip_size(x: Tensor, layout: Layout, layers: int, at_most: int | None) -> int:
    at_most = at_most or share_of_memory(x.device, STRIP_BYTES, STRIP_SHARE)
    return max(1, min(STRIP_IMAGES, at_most // ImageTables.bytes_each(layout, x.shape[1], layers)))
