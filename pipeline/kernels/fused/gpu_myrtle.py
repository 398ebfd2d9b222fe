"""The fused Myrtle kernels on a GPU: level by level, in batches of pairs whose pooled planes keep to a budget.

float32 with float64 sums; equal and nearly equal pairs, which the float pass lists, again in float64.
"""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exact_ntk.kernels.fused.build import HERE
from exact_ntk.kernels.fused.gpu import COLLECT_THREADS, DOUBLE_COST
from exact_ntk.kernels.fused.gpu_launch import (
    Launch,
    MakeLauncher,
    entry_layers_a_launch,
    launcher,
    launches,
    share_of_memory,
    why_not_running,
)
from exact_ntk.kernels.fused.gpu_strips import STRIP_IMAGES, StripPair, strip_pairs
from exact_ntk.kernels.fused.layout import LANES, Layout, find_level_layouts
from exact_ntk.kernels.passes import Pass

LEVELS = 3
PARTS = 3  # as in gpu_myrtle.cu
EXACT_THREADS = 256  # as in gpu_myrtle_exact.cu
# Never free memory: pooled planes of a batch of pairs, and those that the float64 kernel's blocks keep, each at most
# this share of the device's memory.
POOLED_BYTES, EXACT_BYTES, MEMORY_SHARE = 1 << 30, 512 << 20, 16
EXACT_BLOCKS = 1024

log = logging.getLogger("ntk")


@functools.cache
def unavailable(device: torch.device, height: int, width: int) -> str | None:
    """Why the fused Myrtle kernels cannot run on `device`, or None: as `gpu.unavailable`."""

    def run(x: Tensor) -> None:
        myrtle_pass(x, None, Pass("myrtle", (5,), ("myrtle",), True, True))
        torch.cuda.synchronize(x.device)

    return why_not_running(device, sources(find_level_layouts(height, width), True, True), run, height, width)


def sources(layouts: Sequence[Layout], ntk: bool, train_first: bool) -> list[str]:
    """gpu_myrtle.cu with the constants of each level, then gpu_myrtle_exact.cu; they include warp.cuh."""
    found, text = [], (HERE / "gpu_myrtle.cu").read_text()
    for level, (layout, after) in enumerate(zip(layouts, [*layouts[1:], layouts[-1]], strict=True)):
        rows, columns = after.padded
        constants: dict[str, int | str] = {"LEVEL": level + 1, "LEVEL_NAME": level_name(level)}
        constants |= {"NEXT_PADDED_ROWS": rows, "NEXT_PADDED_COLUMNS": columns}
        found.append(
            _constants(layout, WITH_NTK=int(ntk), TRAIN_FIRST=int(train_first or level > 0), **constants) + text
        )
    exact = _constants(layouts[0], WITH_NTK=1, TRAIN_FIRST=int(train_first))
    return [*found, exact + (HERE / "gpu_myrtle_exact.cu").read_text()]


def _constants(layout: Layout, **others: int | str) -> str:
    return layout.macros() + "".join(f"#define {name} {value}\n" for name, value in others.items())


def level_name(level: int) -> str:
    """The kernel's, levels counted from 0."""
    return f"ntk_myrtle_level_{level + 1}"


@dataclass(frozen=True)
class _Work:
    """What all pairs of a call share: how to launch each level's kernel and the float64 one, and what they work in.

    work: entry-layers of a pair.  most: those of a launch.  pooled: what levels 2 and 3 start from, (pairs, floats);
    padding is 0 and stays so.
    """

    levels: Sequence[Launch]
    exact: Launch
    layouts: Sequence[Layout]
    blocks: Sequence[int]
    work: int
    most: int
    pooled: Sequence[Tensor]
    partial: Tensor
    near: Tensor
    kept: Tensor

    def pairs(self, pair: StripPair) -> None:
        """Sums (2, n1, n2): of R and of K."""
        again = torch.zeros(1 + pair.total, dtype=torch.int32, device=pair.sums.device)
        pairs_of = pair.n2, int(pair.symmetric)
        for first, pairs in launches(pair.total, min(len(self.partial), self.most // self.work)):
            for level, (launch, layout) in enumerate(zip(self.levels, self.layouts, strict=True)):
                before, after = (self.pooled[k].data_ptr() if 0 <= k < LEVELS - 1 else 0 for k in (level - 1, level))
                launch(
                    level_name(level),
                    pairs * layout.chunks,
                    LANES * layout.warps,
                    *(*pair.tables(level), *pairs_of, first, pair.first.channel_stages, self.blocks[level]),
                    *(before, after, self.partial.data_ptr(), self.near.data_ptr()),
                )
            self.exact(
                "ntk_myrtle_collect",
                -(-pairs // COLLECT_THREADS),
                COLLECT_THREADS,
                *(self.partial.data_ptr(), self.layouts[-1].chunks, self.near.data_ptr()),
                *(*pair.scales, *pair.hashes, *pairs_of, first, pairs, again.data_ptr(), *_out(pair)),
            )
        # How many there are only the device knows: launches that find none return at once.
        self._in_double(pair, again)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%d nearly equal pairs were computed in float64", int(again[0]))

    def own(self, pair: StripPair) -> None:
        """Each image with itself, all in float64, as such pairs are among others."""
        again = torch.arange(-1, pair.total, dtype=torch.int32, device=pair.sums.device)
        again[0] = pair.total
        self._in_double(pair, again)

    def _in_double(self, pair: StripPair, again: Tensor) -> None:
        """again: how many pairs, and their numbers."""
        for first, count in launches(pair.total, self.most // (self.work * DOUBLE_COST)):
            self.exact(
                "ntk_myrtle_exact",
                min(len(self.kept), count),
                EXACT_THREADS,
                *(*pair.exact, *pair.hashes, pair.n2, pair.first.channels, *self.blocks),
                *(again.data_ptr(), first, count, *pair.scales, self.kept.data_ptr(), *_out(pair)),
            )


def _out(pair: StripPair) -> tuple[int, int, int]:
    """Pointer to sums (2, n1, n2), and strides, in doubles, of rows and of R and K."""
    return pair.sums.data_ptr(), pair.sums.stride(1), pair.sums.stride(0)


def pooled_floats(layouts: Sequence[Layout], ntk: bool) -> list[int]:
    """Of a pair, what the second and the third level start from."""
    return [PARTS * (1 + ntk) * layout.rows * layout.columns * layout.stage // 2 for layout in layouts[1:]]


def _prepare(
    device: torch.device, layouts: Sequence[Layout], job: Pass, make_launcher: MakeLauncher, most_pairs: int
) -> _Work:
    *levels, exact = (make_launcher(device, code) for code in sources(layouts, job.ntk, job.train_first))
    floats, budget = pooled_floats(layouts, job.ntk), share_of_memory(device, POOLED_BYTES, MEMORY_SHARE)
    pairs = max(1, min(most_pairs, budget // (4 * sum(floats))))
    small = [layout.rows * layout.columns for layout in layouts[1:]]
    doubles = 2 * sum(pixels**2 for pixels in small)
    kept = max(1, min(EXACT_BLOCKS, share_of_memory(device, EXACT_BYTES, MEMORY_SHARE) // (8 * doubles)))
    return _Work(
        levels,
        exact,
        layouts,
        job.blocks,
        job.entry_layers(1, layouts[0].rows, layouts[0].columns),
        entry_layers_a_launch(device),
        [torch.zeros((pairs, count), device=device) for count in floats],
        torch.empty((pairs, layouts[-1].chunks, 2), dtype=torch.float64, device=device),
        torch.zeros(pairs, dtype=torch.int32, device=device),
        torch.empty((kept, doubles), dtype=torch.float64, device=device),
    )


def myrtle_pass(
    x1: Tensor,
    x2: Tensor | None,
    job: Pass,
    diagonal: bool = False,
    make_launcher: MakeLauncher = launcher,
    strip_images: int = STRIP_IMAGES,
) -> tuple[Tensor | None, Tensor]:
    """As `cpu.myrtle_pass`, on the images' GPU: works on torch's current stream and returns without waiting for it.

    A pair's value depends on its two images alone: not on the batch, the strip, the launch or the other images. Raises
    CompileError.
    """
    layouts, n1, n2 = find_level_layouts(*x1.shape[2:]), len(x1), len(x1 if x2 is None else x2)
    work = _prepare(x1.device, layouts, job, make_launcher, 1 if diagonal else n1 * n2)
    sums = torch.zeros((2, n1) if diagonal else (2, n1, n2), dtype=torch.float64, device=x1.device)
    for pair in strip_pairs(x1, x2, layouts, job.blocks, sums, diagonal, strip_images):
        work.own(pair) if diagonal else work.pairs(pair)
    r, k = sums / (layouts[-1].rows * layouts[-1].columns) ** 2
    return (r if job.train_last else r - k) if job.ntk else None, k
