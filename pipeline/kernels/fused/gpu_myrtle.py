"""The fused Myrtle kernels on a GPU: level by level, in batches of pairs whose pooled planes keep to a budget.

float32 with float64 sums; equal and nearly equal pairs, which the float pass lists, again in float64.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exact_ntk.kernels.fused.build import HERE
from exact_ntk.kernels.fused.gpu import COLLECT_THREADS, DOUBLE_COST, STRIP_BYTES, STRIP_IMAGES, STRIP_SHARE
from exact_ntk.kernels.fused.gpu_images import SMALLEST_NORM, hashes, normalisers, power_of_two, strips, turned
from exact_ntk.kernels.fused.gpu_launch import Launch, entry_layers_a_launch, launcher, share_of_memory, why_not_running
from exact_ntk.kernels.fused.layout import LANES, Layout, find_level_layouts
from exact_ntk.kernels.fused.self_planes import self_deviations

LEVELS = 3
PARTS = 3  # as in gpu_myrtle.cu
EXACT_THREADS = 256  # as in gpu_myrtle_exact.cu
# Never free memory: pooled planes of a batch of pairs, and those that the float64 kernel's blocks keep, each at most
# this share of the device's memory.
POOLED_BYTES, EXACT_BYTES, MEMORY_SHARE = 1 << 30, 512 << 20, 16
EXACT_BLOCKS = 1024

log = logging.getLogger("ntk")
MakeLauncher = Callable[[torch.device, str], Launch]


@functools.cache
def unavailable(device: torch.device, height: int, width: int) -> str | None:
    """Why the fused Myrtle kernels cannot run on `device`, or None: as `gpu.unavailable`."""

    def run(x: Tensor) -> None:
        myrtle_pass(x, None, (1, 1, 1), ntk=True, train_first=True, train_last=True)
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


class LevelTables:
    """A strip of images as the kernels of every level read them, scaled as in `gpu_images.ImageTables`.

    tables: of each level (n, stages, 2, padded rows, padded columns) in float32; exact (n, doubles) in float64:
    channels, then of each level its layers' deviations and reciprocals; scale, hash (n). An image's do not depend on
    the others.
    """

    def __init__(self, x: Tensor, layouts: Sequence[Layout], blocks: Sequence[int]):
        n, self.channels = x.shape[:2]
        self.channel_stages = -(-self.channels // 2)
        shapes = [(b, layout.rows, layout.columns) for b, layout in zip(blocks, layouts, strict=True)]
        deviations = self_deviations(x, blocks)
        largest = deviations[:, : layouts[0].rows * layouts[0].columns].amax(1)
        exponent = torch.where(largest > 0, torch.frexp(largest).exponent - 1, 0)
        self.scale, self.hash = power_of_two(exponent), hashes(x)
        factor = power_of_two(-exponent)[:, None]
        deviations *= factor
        pixels = x.double() * factor[..., None, None]
        self.tables, exact = [], [pixels.flatten(1)]
        split = deviations.split([b * rows * columns for b, rows, columns in shapes], 1)
        for level, (layout, shape, d) in enumerate(zip(layouts, shapes, split, strict=True)):
            both = normalisers(d.unflatten(1, shape))
            channel_stages = 0 if level else self.channel_stages
            tables = torch.zeros((n, channel_stages + shape[0], 2, *layout.padded), device=x.device)
            inside = tables[..., : layout.rows, : layout.columns]
            if not level:
                inside[:, :channel_stages].flatten(1, 2)[:, : self.channels] = pixels.float()
            inside[:, channel_stages:] = torch.where(both[:, :, :1] >= SMALLEST_NORM, both, 0.0)
            self.tables.append(tables)
            exact.append(both.flatten(1))
        self.exact = torch.cat(exact, 1)

    @staticmethod
    def bytes_each(layouts: Sequence[Layout], blocks: Sequence[int], channels: int) -> int:
        """Of one image."""
        stages = -(-channels // 2) + blocks[0], *blocks[1:]
        floats = sum(layout.stage * count for layout, count in zip(layouts, stages, strict=True))
        doubles = sum(2 * b * layout.rows * layout.columns for layout, b in zip(layouts, blocks, strict=True))
        return 4 * floats + 8 * (doubles + channels * layouts[0].rows * layouts[0].columns)

    def __len__(self) -> int:
        return len(self.scale)


def _scales(first: LevelTables, second: LevelTables) -> tuple[int, int]:
    return first.scale.data_ptr(), second.scale.data_ptr()


def _hashes(first: LevelTables, second: LevelTables) -> tuple[int, int]:
    return first.hash.data_ptr(), second.hash.data_ptr()


@dataclass(frozen=True)
class _Work:
    """What all pairs of a call share: how to launch each level's kernel and the float64 one, and what they work in.

    pooled: what levels 2 and 3 start from, (pairs, floats); padding is 0 and stays so.  most: entry-layers of a launch.
    """

    levels: Sequence[Launch]
    exact: Launch
    layouts: Sequence[Layout]
    blocks: Sequence[int]
    pooled: Sequence[Tensor]
    partial: Tensor
    near: Tensor
    kept: Tensor
    most: int

    def pairs(self, first: LevelTables, second: LevelTables, symmetric: bool, sums: Tensor) -> None:
        """sums (2, n1, n2): of R and of K, of every pair or, where symmetric, those of the lower triangle."""
        n1, n2 = len(first), len(second)
        total = n1 * (n1 + 1) // 2 if symmetric else n1 * n2
        again = torch.zeros(1 + total, dtype=torch.int32, device=sums.device)
        out = sums.data_ptr(), sums.stride(1), sums.stride(0)
        for first_pair, pairs in self._parts(total, len(self.partial)):
            for level, (launch, layout) in enumerate(zip(self.levels, self.layouts, strict=True)):
                before, after = (self.pooled[k].data_ptr() if 0 <= k < LEVELS - 1 else 0 for k in (level - 1, level))
                launch(
                    level_name(level),
                    pairs * layout.chunks,
                    LANES * layout.warps,
                    *(first.tables[level].data_ptr(), second.tables[level].data_ptr()),
                    *(n2, int(symmetric), first_pair, first.channel_stages, self.blocks[level]),
                    *(before, after, self.partial.data_ptr(), self.near.data_ptr()),
                )
            self.exact(
                "ntk_myrtle_collect",
                -(-pairs // COLLECT_THREADS),
                COLLECT_THREADS,
                *(self.partial.data_ptr(), self.layouts[-1].chunks, self.near.data_ptr()),
                *(*_scales(first, second), *_hashes(first, second), n2, int(symmetric), first_pair, pairs),
                *(again.data_ptr(), *out),
            )
        # How many there are only the device knows: launches that find none return at once.
        self._in_double(first, second, n2, again, total, out)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%d nearly equal pairs were computed in float64", int(again[0]))

    def own(self, images: LevelTables, sums: Tensor) -> None:
        """Each image with itself, all in float64, as such pairs are among others. sums (2, n)."""
        n = len(images)
        again = torch.arange(-1, n, dtype=torch.int32, device=sums.device)
        again[0] = n
        self._in_double(images, images, 0, again, n, (sums.data_ptr(), 0, sums.stride(0)))

    def _in_double(
        self, first: LevelTables, second: LevelTables, n2: int, again: Tensor, most: int, out: tuple[int, int, int]
    ) -> None:
        for first_entry, count in self._parts(most, cost=DOUBLE_COST):
            self.exact(
                "ntk_myrtle_exact",
                min(len(self.kept), count),
                EXACT_THREADS,
                *(first.exact.data_ptr(), second.exact.data_ptr(), *_hashes(first, second)),
                *(n2, first.channels, *self.blocks, again.data_ptr(), first_entry, count),
                *(*_scales(first, second), self.kept.data_ptr(), *out),
            )

    def _parts(self, total: int, at_most: int | None = None, cost: int = 1) -> Iterator[tuple[int, int]]:
        """(first, count) of launches that together do `total` pairs, each as long as `cost` in float."""
        each = sum(b * (layout.rows * layout.columns) ** 2 for b, layout in zip(self.blocks, self.layouts, strict=True))
        size = max(1, self.most // (each * cost))
        return ((part.start, part.stop - part.start) for part in strips(total, min(size, at_most or size)))


def pooled_floats(layouts: Sequence[Layout], ntk: bool) -> list[int]:
    """Of a pair, what the second and the third level start from."""
    return [PARTS * (1 + ntk) * layout.rows * layout.columns * layout.stage // 2 for layout in layouts[1:]]


def _prepare(
    device: torch.device,
    layouts: Sequence[Layout],
    blocks: Sequence[int],
    ntk: bool,
    train_first: bool,
    make_launcher: MakeLauncher,
    most_pairs: int,
) -> _Work:
    *levels, exact = (make_launcher(device, code) for code in sources(layouts, ntk, train_first))
    floats, budget = pooled_floats(layouts, ntk), share_of_memory(device, POOLED_BYTES, MEMORY_SHARE)
    pairs = max(1, min(most_pairs, budget // (4 * sum(floats))))
    small = [layout.rows * layout.columns for layout in layouts[1:]]
    doubles = 2 * sum(pixels**2 for pixels in small)
    kept = max(1, min(EXACT_BLOCKS, share_of_memory(device, EXACT_BYTES, MEMORY_SHARE) // (8 * doubles)))
    return _Work(
        levels,
        exact,
        layouts,
        blocks,
        [torch.zeros((pairs, count), device=device) for count in floats],
        torch.empty((pairs, layouts[-1].chunks, 2), dtype=torch.float64, device=device),
        torch.zeros(pairs, dtype=torch.int32, device=device),
        torch.empty((kept, doubles), dtype=torch.float64, device=device),
        entry_layers_a_launch(device),
    )


def myrtle_pass(
    x1: Tensor,
    x2: Tensor | None,
    blocks: Sequence[int],
    *,
    ntk: bool,
    train_first: bool,
    train_last: bool,
    diagonal: bool = False,
    make_launcher: MakeLauncher = launcher,
    strip_images: int = STRIP_IMAGES,
) -> tuple[Tensor | None, Tensor]:
    """As `cpu.myrtle_pass`, on the images' GPU: works on torch's current stream and returns without waiting for it.

    A pair's value depends on its two images alone: not on the batch, the strip, the launch or the other images. Raises
    CompileError.
    """
    layouts = find_level_layouts(*x1.shape[2:])
    a, b = turned(x1, layouts[0]), None if x2 is None else turned(x2, layouts[0])
    n1, n2 = len(a), len(a if b is None else b)
    work = _prepare(a.device, layouts, blocks, ntk, train_first, make_launcher, 1 if diagonal else n1 * n2)
    bytes_each = LevelTables.bytes_each(layouts, blocks, a.shape[1])
    size = max(1, min(strip_images, share_of_memory(a.device, STRIP_BYTES, STRIP_SHARE) // bytes_each))
    sums = torch.zeros((2, n1) if diagonal else (2, n1, n2), dtype=torch.float64, device=a.device)
    for rows in strips(n1, size):
        first = LevelTables(a[rows], layouts, blocks)
        if diagonal:
            work.own(first, sums[:, rows])
            continue
        for columns in strips(n2, size):
            if b is None and columns.start > rows.start:
                break  # above the diagonal: mirrored
            same = b is None and columns == rows
            second = first if same else LevelTables((a if b is None else b)[columns], layouts, blocks)
            corner = sums[:, rows, columns]
            work.pairs(first, second, same, corner)
            if same:
                corner.copy_(corner.tril() + corner.tril(-1).mT)
            elif b is None:
                sums[:, columns, rows] = corner.mT
    r, k = sums / (layouts[-1].rows * layouts[-1].columns) ** 2
    return (r if train_last else r - k) if ntk else None, k
