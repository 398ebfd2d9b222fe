"""Filling Gram stores: the missing tiles of a config, computed and written so that a kill loses only those begun."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exact_ntk.config import Config
from exact_ntk.draws import OrderedImages
from exact_ntk.gram import store
from exact_ntk.gram.plan import DTYPES, GramJob, gram_jobs
from exact_ntk.gram.store import GramStore, Shape, Tile, TileLock
from exact_ntk.kernels import cntk_pass
from exact_ntk.progress import progress
from exact_ntk.provenance import add_provenance

SECONDS_A_TILE = 30.0
LARGEST_TILE_BYTES = 256 << 20
SMALLEST_TILE = 16  # a file a tile: smaller ones cost more to handle than to lose
FEWEST_TILES_A_SIDE = 4
WRITES_IN_FLIGHT = 2
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_BETWEEN_RECORDS = 20.0

log = logging.getLogger("ntk")


class TileComputer:
    """A job's images on its device, and the kernel values of a tile of them."""

    def __init__(self, job: GramJob, images: OrderedImages, device: torch.device):
        self.job, self.device = job, device
        self.x = images.x.to(device)

    def block(self, rows: slice, columns: slice) -> torch.Tensor:
        """(readouts, depths, rows, columns) in float64; a block on the diagonal is computed once and mirrored."""
        other = None if rows == columns else self.x[columns]
        return cntk_pass(self.x[rows], other, self.job.job, backend=self.job.backend, dtype=DTYPES[self.job.dtype])

    def pairs_per_second(self) -> float:
        """Measured on growing blocks until one takes long enough to tell; the better of two tries each."""
        side, most = 1, len(self.x) // 2
        self.block(slice(0, 1), slice(0, 1))
        while True:
            seconds = min(self._seconds(slice(0, side), slice(most, most + side)) for _ in range(2))
            if seconds > 0.25 or 2 * side > most:
                return side**2 / seconds
            side *= 2

    def _seconds(self, rows: slice, columns: slice) -> float:
        start = time.perf_counter()
        self.block(rows, columns).sum().item()
        return time.perf_counter() - start


def tile_side(job: GramJob, rate: float) -> int:
    """A side that takes about half a minute, fits the limit in bytes, and cuts the largest draw into several tiles.

    rate: pairs/s. A divisor of the smallest draw is preferred: its blocks then end where tiles end.
    """
    pixel_bytes = 8 * len(job.job.depths) * len(job.job.readouts)
    side = max(SMALLEST_TILE, (rate * SECONDS_A_TILE) ** 0.5)
    side = min(side, (LARGEST_TILE_BYTES / pixel_bytes) ** 0.5)
    draws = sorted(len(columns) for _, columns in job.blocks)
    side = max(1, int(min(side, -(-draws[-1] // FEWEST_TILES_A_SIDE))))
    return next((s for s in range(side, side // 2, -1) if draws[0] % s == 0), side)


def fill_stores(
    config: Config,
    images: OrderedImages,
    folder: Path,
    device: torch.device,
    shard: tuple[int, int] = (1, 1),
    repair: bool = False,
) -> None:
    """Fill every store that the config's columns need.

    shard: (k, n) takes every n-th of the tiles needed from the k-th on, for hosts that share a folder. On one host any
    number of processes may run this at once. repair: first set aside the tiles whose checksum fails. What was done is
    added to the provenance, also when an error ends the work early.
    """
    work = [
        _prepare(job, config.gram.tile, images, folder, device, shard, repair)
        for job in gram_jobs(config, images, device)
    ]
    if work:
        store.check_space(folder, sum(len(mine) * gram.shape.tile_bytes for gram, _, mine in work))
    for gram, computer, mine in work:
        if mine:
            _fill(gram, computer, mine, folder)


def _prepare(
    job: GramJob,
    tile: int | str,
    images: OrderedImages,
    folder: Path,
    device: torch.device,
    shard: tuple[int, int],
    repair: bool,
) -> tuple[GramStore, TileComputer, list[Tile]]:
    """The job's store, made if it is not there, and this process's missing tiles; says how long they take."""
    gram, computer = job.open(folder), TileComputer(job, images, device)
    rate = None
    if gram is None:
        rate = computer.pairs_per_second()
        _say_where_else(job, folder)
        folder.mkdir(parents=True, exist_ok=True)
        side = tile_side(job, rate) if isinstance(tile, str) else tile
        gram = store.create(job.path(folder), job.fields, side, images.image_index)
    needed = job.tiles(gram.shape)
    if repair:
        for bad in gram.damaged(needed - set(gram.missing(needed))):
            log.warning("%s: tile %s is damaged: set aside, to be computed anew", gram.path.name, bad)
            gram.discard(bad)
    missing = gram.missing(needed)
    # A share of all tiles, not of those missing now: hosts that start at different times agree on it.
    mine = sorted(set(missing) & set(sorted(needed)[shard[0] - 1 :: shard[1]]))
    line = (
        f"{'/'.join(job.columns)}: {gram.path.name}, {job.backend} {job.dtype}, {len(needed)} tiles of "
        f"{gram.shape.tile} x {gram.shape.tile} images, {len(needed) - len(missing)} done"
    )
    if mine:
        pairs = sum(_pairs(gram.shape, t) for t in mine)
        rate = rate or computer.pairs_per_second()
        seconds = timedelta(seconds=max(1, round(pairs / rate)))
        line += f"; {pairs:,} pairs left, about {seconds} at {rate:.3g} pairs/s"
    log.info("%s", line)
    return gram, computer, mine


def _say_where_else(job: GramJob, folder: Path) -> None:
    """Name the stores of earlier settings, which stay as they are."""
    others = [p for p in sorted(folder.glob("gram-*")) if p != job.path(folder)]
    for other in others:
        try:
            found = store.open(other).fields
        except Exception:
            continue
        if found["family"] == job.job.family:
            changed = [k for k in job.fields if found.get(k) != job.fields[k]]
            log.info(
                "a new store: %s was computed with another %s and is left as it is", other.name, ", ".join(changed)
            )


def _pairs(shape: Shape, tile: Tile) -> int:
    rows, columns = shape.bounds(tile)
    r, c = rows.stop - rows.start, columns.stop - columns.start
    return r * (r + 1) // 2 if rows == columns else r * c


def _fill(gram: GramStore, computer: TileComputer, tiles: list[Tile], folder: Path) -> None:
    """Compute and write `tiles`; writing overlaps computing, and tiles that other processes hold come last."""
    shape, job = gram.shape, computer.job.job
    height, width = computer.x.shape[2:]
    total = sum(_pairs(shape, t) for t in tiles)
    with progress(f"Gram {job.family}", total, "pair") as bar, ThreadPoolExecutor(1) as pool:
        start, computed = time.perf_counter(), 0
        pending: deque[tuple[TileLock, Future]] = deque()
        tally = _Tally(gram.path.name, computer, folder)
        try:
            for tile, lock in _claim(gram, tiles, bar):
                values = _start_copy(computer.block(*shape.bounds(tile)))
                pending.append((lock, pool.submit(_write, gram, tile, values)))
                if len(pending) >= WRITES_IN_FLIGHT:
                    _finish(*pending.popleft())
                    tally.add()
                computed += _pairs(shape, tile)
                rate = job.entry_layers(computed, height, width) / (time.perf_counter() - start)
                bar.set_postfix_str(f"{rate:.2g} entry-layers/s", refresh=False)
                bar.update(_pairs(shape, tile))
        finally:
            try:
                while pending:
                    _finish(*pending.popleft())
                    tally.add()
            finally:
                tally.close()


class _Tally:
    """Counts finished tiles and records them every so often, so that a kill loses little of what was done."""

    def __init__(self, name: str, computer: TileComputer, folder: Path):
        self.name, self.computer, self.folder = name, computer, folder
        self.since, self.tiles = time.perf_counter(), 0

    def add(self) -> None:
        self.tiles += 1
        if time.perf_counter() - self.since > SECONDS_BETWEEN_RECORDS:
            self.close()

    def close(self) -> None:
        """Record what has been finished since the last record."""
        now = time.perf_counter()
        if self.tiles:
            add_provenance(
                self.folder,
                self.name,
                self.computer.device,
                columns=list(self.computer.job.columns),
                tiles_computed=self.tiles,
                seconds=round(now - self.since, 2),
            )
        self.since, self.tiles = now, 0


def _start_copy(values: torch.Tensor) -> Callable[[], np.ndarray]:
    """Begin to copy a tile to the host; what is returned waits for it, once the device has been given the next tile."""
    if values.device.type != "cuda":
        return values.numpy
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    copies = torch.cuda.Stream(values.device)
    copies.wait_stream(torch.cuda.current_stream(values.device))
    with torch.cuda.stream(copies):
        host.copy_(values, non_blocking=True)
        values.record_stream(copies)
        copied = copies.record_event()

    def wait() -> np.ndarray:
        copied.synchronize()
        return host.numpy()

    return wait


def _write(gram: GramStore, tile: Tile, values: Callable[[], np.ndarray]) -> None:
    gram.write(tile, values())


def _finish(lock: TileLock, written: Future) -> None:
    try:
        written.result()
    finally:
        lock.release()


def _claim(gram: GramStore, tiles: list[Tile], bar: Any) -> Iterator[tuple[Tile, TileLock]]:
    """Yield (tile, its lock) for tiles still missing; the receiver releases the lock."""
    left = list(tiles)
    while left:
        busy = []
        for tile in left:
            if gram.has(tile):
                bar.update(_pairs(gram.shape, tile))
                continue
            lock = gram.claim(tile)
            if lock is None:
                busy.append(tile)
            elif gram.has(tile):
                lock.release()
                bar.update(_pairs(gram.shape, tile))
            else:
                yield tile, lock
        left = busy
        if left:
            time.sleep(SECONDS_BETWEEN_LOOKS)
