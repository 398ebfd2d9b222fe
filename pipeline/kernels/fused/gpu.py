"""The fused kernels on a GPU: pairs of images, strip by strip, through gpu.cu's kernels."""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from exact_ntk.kernel_names import pooling_of, window_of
from exact_ntk.kernels.fused import values_of
from exact_ntk.kernels.fused.gpu_launch import (
    Launch,
    MakeLauncher,
    entry_layers_a_launch,
    launcher,
    launches,
    source,
    why_not_running,
)
from exact_ntk.kernels.fused.gpu_strips import STRIP_IMAGES, StripPair, strip_pairs
from exact_ntk.kernels.fused.layout import LANES, Layout, find_layout
from exact_ntk.kernels.passes import Pass

PARTIAL_BYTES = 256 << 20  # partial sums of a launch; never free memory
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
class _Work:
    """What all pairs of a pass share: how to launch its kernels, and what is summed up after which layers.

    reads: layers that are read out, in `read` a bit a layer, 32 a word.  most: entry-layers of a launch.
    """

    launch: Launch
    layout: Layout
    layers: int
    reads: int
    read: Tensor
    poolings: _Poolings
    most: int

    @property
    def slots(self) -> int:
        """Of a pair: its depths for each pooling."""
        return self.reads * len(self.poolings.windows)

    @property
    def pixels(self) -> int:
        return self.layout.rows * self.layout.columns

    def out(self, pair: StripPair) -> tuple[int, int, int]:
        """Pointer to sums (2, slots, n1, n2), and strides, in doubles, of rows and of readouts."""
        return pair.sums.data_ptr(), pair.sums.stride(2), pair.sums.stride(1)  # (2, slots) are one run

    def zero_offset(self, pair: StripPair, blocks: int, first: int, count: int, partial: int, again: int) -> None:
        self.launch(
            "ntk_zero_offset",
            blocks,
            self.layout.zero_offset_threads,
            *(*pair.exact, *pair.hashes),
            *(pair.n2, int(pair.symmetric), first, count, pair.first.channels, self.layers),
            *(self.read.data_ptr(), self.reads, partial, *self.poolings.arguments, self.poolings.chunks),
            *(again, *pair.scales, *self.out(pair)),
        )

    def pooled(self, pair: StripPair) -> None:
        chunks, down = self.poolings.chunks, self.poolings.down
        each = (chunks + 1) * 2 * self.slots
        most = min(pair.total, max(1, PARTIAL_BYTES // (8 * each)))
        partial = torch.empty((most, each), dtype=torch.float64, device=pair.sums.device)
        pairs_of = pair.n2, int(pair.symmetric)
        planes = min(self.pixels, chunks * self.layout.group * down)
        work = self.pixels * (planes + DOUBLE_COST) * self.layers
        for first, pairs in launches(pair.total, min(most, self.most // work)):
            self.zero_offset(pair, pairs, first, pairs, partial.data_ptr(), 0)
            self.launch(
                "ntk_pooled",
                pairs * chunks,
                LANES * self.layout.warps,
                *(*pair.tables(), *pairs_of, first, pair.first.channel_stages, self.layers),
                *(self.read.data_ptr(), self.reads, partial.data_ptr()),
                *(*self.poolings.arguments, down, chunks, self.poolings.low),
            )
            self.launch(
                "ntk_collect",
                -(-pairs * 2 * self.slots // COLLECT_THREADS),
                COLLECT_THREADS,
                *(partial.data_ptr(), *pair.scales, *pairs_of, first, pairs, self.slots, chunks, *self.out(pair)),
            )

    def vanilla(self, pair: StripPair) -> None:
        n1, n2, layout = len(pair.first), len(pair.second), self.layout
        again = torch.empty(1 + 2 * pair.total, dtype=torch.int32, device=pair.sums.device)
        again[0] = 0
        down = 1 if layout.warps % 2 else 2
        across = layout.warps // down * layout.planes
        blocks = -(-n2 // (across * PANEL)) * PANEL * -(-n1 // down)
        for first, count in launches(blocks, self.most // (down * across * self.pixels * self.layers)):
            self.launch(
                "ntk_vanilla",
                count,
                LANES * layout.warps,
                *(*pair.tables(), *pair.scales, *pair.hashes),
                *(n1, n2, int(pair.symmetric), pair.first.channel_stages, self.layers),
                *(self.read.data_ptr(), self.reads, *self.out(pair), again.data_ptr(), first),
            )
        # How many there are only the device knows: launches that find none return at once.
        self._in_double(pair, again)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%d nearly equal pairs were computed in float64", int(again[0]))

    def own_vanilla(self, pair: StripPair) -> None:
        """Each image with itself, all in float64, as such pairs are among others."""
        every = torch.arange(pair.total, dtype=torch.int32, device=pair.sums.device)
        listed = torch.stack([every, torch.zeros_like(every)], 1).flatten()
        self._in_double(pair, torch.cat([every.new_full((1,), len(every)), listed]))

    def _in_double(self, pair: StripPair, again: Tensor) -> None:
        """again: how many pairs, and of each its number and from which readout on."""
        for first, count in launches(pair.total, self.most // (DOUBLE_COST * self.pixels * self.layers)):
            self.zero_offset(pair, min(AGAIN_BLOCKS, count), first, count, 0, again.data_ptr())


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
    make_launcher: MakeLauncher = launcher,
    strip_images: int = STRIP_IMAGES,
) -> Tensor:
    """One readout family at all depths: as `reference.cntk_pass`, float32, on the images' GPU.

    Works on torch's current stream and returns without waiting for it. A pair's value depends on its two images
    alone: not on the block, the strip, the launch or the other images. Raises CompileError.
    """
    return _pass(x1, x2, job, False, make_launcher, strip_images)


def self_pass(x: Tensor, job: Pass, make_launcher: MakeLauncher = launcher, strip_images: int = STRIP_IMAGES) -> Tensor:
    """Each image with itself: as `reference.self_pass`, float32, on the images' GPU, the diagonal of `cntk_pass`."""
    return _pass(x, None, job, True, make_launcher, strip_images)


def _pass(
    x1: Tensor, x2: Tensor | None, job: Pass, own: bool, make_launcher: MakeLauncher, strip_images: int
) -> Tensor:
    if len(job.poolings) > MOST_POOLINGS:
        return _in_parts(job, lambda part: _pass(x1, x2, part, own, make_launcher, strip_images))
    layers, layout, device = max(job.depths) - 1, find_layout(*x1.shape[2:]), x1.device
    launch, poolings = make_launcher(device, _source_of(job, layout)), _Poolings.of(job, layout, device)
    work = _Work(launch, layout, layers, len(job.depths), _bits(job, device), poolings, entry_layers_a_launch(device))
    shape = (len(x1),) if own else (len(x1), len(x1 if x2 is None else x2))
    sums = torch.zeros((2, work.slots, *shape), dtype=torch.float64, device=device)
    for pair in strip_pairs(x1, x2, [layout], [layers], sums, own, strip_images):
        if job.family == "gap":
            work.pooled(pair)
        elif own:
            work.own_vanilla(pair)
        else:
            work.vanilla(pair)
    return values_of(sums.unflatten(1, (len(job.poolings), -1)), job, work.pixels)
