"""How offset planes lie in the warps of a GPU: tiles of a plane in registers, chosen by a count of instructions."""

import functools
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields, replace

LANES, MOST_WARPS = 32, 8
# Entries of a plane in one lane's registers: twice as many floats leave room for 16 warps a multiprocessor.
TILE_ENTRIES, LARGE_TILE_ENTRIES = 32, 64
SHARED_BYTES = 46 << 10  # of the 48 KB that every GPU gives a block
# Instructions: an entry without its shuffles and loads, and a float copied to shared memory.
ENTRY_COST, COPY_COST = 28, 3


@dataclass(frozen=True)
class Layout:
    """How planes of rows x columns lie in warps: the constants that the GPU kernels are compiled with.

    A lane holds lane_rows x lane_columns entries; a block has `warps` warps and takes `group` offsets d2 at a time.
    """

    rows: int
    columns: int
    lane_rows: int
    lane_columns: int
    warps: int = 1
    group: int = 1

    @property
    def tiles(self) -> tuple[int, int]:
        """Lanes down and across a plane."""
        return -(-self.rows // self.lane_rows), -(-self.columns // self.lane_columns)

    @property
    def planes(self) -> int:
        """Planes in a warp."""
        down, across = self.tiles
        return LANES // (down * across)

    @property
    def padded(self) -> tuple[int, int]:
        """Rows and columns of an image's tables."""
        down, across = self.tiles
        return down * self.lane_rows, across * self.lane_columns

    @property
    def stage(self) -> int:
        """Floats of one stage, two tables, of an image."""
        height, width = self.padded
        return 2 * height * width

    @property
    def buffer(self) -> int:
        """Floats of one stage of a pair in shared memory."""
        return self.stage + self.group * 2 * (self.rows + self.lane_rows - 1) * self.padded[1]

    @property
    def chunks(self) -> int:
        """Blocks a pair."""
        return -(-self.columns // self.group)

    @property
    def zero_offset_threads(self) -> int:
        """Threads of a block that computes a pair's zero offset in float64."""
        return min(256, -(-self.rows * self.columns // LANES) * LANES)

    def cost_of_entry(self) -> float:
        """Instructions an entry-layer of a pair, where warps are full."""
        down, across = self.tiles
        r, c = self.lane_rows, self.lane_columns
        shuffles = 4 * (r * (across > 1) + c * (down > 1)) / (r * c)
        loads = 1 if c % 4 == 0 else 4
        busy = self.planes * self.rows * self.columns / (LANES * r * c)
        return (ENTRY_COST + shuffles + loads) / busy

    def cost_of_pair(self) -> float:
        """Lane instructions a layer of all planes of a pair."""
        return self._cost(-(-self.group * self.rows // (self.warps * self.planes)))

    def run(self, step: int) -> int:
        """Offsets d1 that some lanes go through one after another, a multiple of `step`: see gpu_myrtle.cu."""
        runs = self.warps * self.planes // self.group
        return -(-self.rows // (runs * step)) * step

    def cost_of_walk(self, step: int) -> float:
        """As `cost_of_pair` where planes of one d2 are led by the same lanes."""
        return self._cost(self.run(step))

    def _cost(self, rounds: int) -> float:
        lanes = self.warps * LANES * self.lane_rows * self.lane_columns
        busy = self.planes * self.rows * self.columns / (LANES * self.lane_rows * self.lane_columns)
        return self.chunks * rounds * (lanes * self.cost_of_entry() * busy + COPY_COST * self.buffer)

    def macros(self) -> str:
        """The constants as C++ source."""
        return "".join(f"#define {f.name.upper()} {v}\n" for f, v in zip(fields(self), astuple(self), strict=True))


def _tiles(rows: int, columns: int, entries: int, step: int = 1) -> list[Layout]:
    """Tiles of at most so many entries, their sides multiples of `step`."""
    return [
        layout
        for c in range(step, min(columns, 8) + 1, step)
        for r in range(step, min(rows, entries // c) + 1, step)
        if (layout := Layout(rows, columns, r, c)).tiles[0] * layout.tiles[1] <= LANES
    ]


def _cheapest_tile(sizes: Iterable[tuple[int, int]], step: int = 1) -> Layout:
    for entries in (TILE_ENTRIES, LARGE_TILE_ENTRIES):
        if found := [tile for size in dict.fromkeys(sizes) for tile in _tiles(*size, entries, step)]:
            return min(found, key=Layout.cost_of_entry)
    raise ValueError(f"no lanes hold a plane of {sizes}")


def _blocks(tile: Layout) -> list[Layout]:
    """How blocks may share an image pair's tables; a thread copies one column."""
    return [
        layout
        for warps in range(MOST_WARPS, 0, -1)
        for group in range(1, tile.columns + 1)
        if 4 * (layout := replace(tile, warps=warps, group=group)).buffer <= SHARED_BYTES
        and layout.padded[1] <= LANES * warps
    ]


@functools.cache
def find_layout(height: int, width: int) -> Layout:
    """The layout of least cost for height x width images, which are transposed where it says (width, height)."""
    return min(_blocks(_cheapest_tile([(height, width), (width, height)])), key=Layout.cost_of_pair)


@functools.cache
def find_level_layouts(height: int, width: int) -> tuple[Layout, ...]:
    """Those of a Myrtle network's levels, each half the side of the one before: see gpu_myrtle.cu.

    A lane pools its own tile, so tiles have even sides on all but the last level.
    """
    sizes, found = [(height, width), (width, height)], []
    for step in (2, 2, 1):
        tile = _cheapest_tile(sizes, step)
        blocks = [b for b in _blocks(tile) if b.group <= b.warps * b.planes]
        found.append(min(blocks, key=functools.partial(Layout.cost_of_walk, step=step)))
        sizes = [(tile.rows // 2, tile.columns // 2)]
    return tuple(found)
