"""Computing Gram matrices: which stores and tiles a config needs, which are missing, and filling them in."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import store as stores
from pipeline.config import Config, Gram, KernelColumn
from pipeline.draws import OrderedImages, draw
from pipeline.errors import ConfigError, Incomplete
from pipeline.kernels import KERNEL_VERSION, RESOLVED_BACKENDS, Pass, cntk_pass, resolve_backend
from pipeline.progress import progress
from pipeline.store import GramStore, Shape, Tile, TileLock

# (a store's name, facts of its provenance) -> None
Record = Callable[[str, dict[str, Any]], None]
DTYPES = {"float32": torch.float32, "float64": torch.float64}
SECONDS_A_TILE = 30.0
LARGEST_TILE_BYTES = 256 << 20
SMALLEST_TILE = 16  # a file a tile: smaller ones cost more to handle than to lose
FEWEST_TILES_A_SIDE = 4
WRITES_IN_FLIGHT = 2
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_BETWEEN_RECORDS = 20.0


@dataclass(frozen=True)
class GramJob:
    """One store to fill: a pass of the recursion, where its values come from, and the blocks that columns read."""

    job: Pass
    backend: str
    dtype: str
    fields: dict[str, Any]
    blocks: tuple[tuple[np.ndarray, np.ndarray], ...]
    columns: tuple[str, ...]

    def path(self, folder: Path) -> Path:
        """Where its store lies in a run's folder."""
        return stores.store_path(folder, self.fields)

    def tiles(self, shape: Shape) -> set[Tile]:
        """The tiles that hold the blocks."""
        return set().union(*(shape.covering(rows, columns) for rows, columns in self.blocks))


def plan(config: Config, images: OrderedImages, device: torch.device) -> list[GramJob]:
    """One job for each readout family and choice of trained ends among the kernel columns.

    Raises ConfigError where the backend asked for cannot run.
    """
    kernels = [(n, c) for n, c in zip(config.column_names, config.columns, strict=True) if isinstance(c, KernelColumn)]
    ends = {
        (c.readout, c.trains_first, c.trains_last): None
        for _, c in sorted(kernels, key=lambda item: item[1].model != "cntk")
    }
    grouped: dict[tuple, list[tuple[str, KernelColumn]]] = {key: [] for key in ends}
    for name, c in kernels:
        # An NNGP kernel does not depend on the trained ends: it rides along with the first pass of its family.
        key = next(
            k for k in grouped if k[0] == c.readout and (c.model == "nngp" or k[1:] == (c.trains_first, c.trains_last))
        )
        grouped[key].append((name, c))
    return [_job(config.gram, images, device, key, members) for key, members in grouped.items() if members]


def _job(
    gram: Gram,
    images: OrderedImages,
    device: torch.device,
    ends: tuple[str, bool, bool],
    members: list[tuple[str, KernelColumn]],
) -> GramJob:
    family, first, last = ends
    depths = tuple(sorted({depth for _, c in members for depth in c.depths}))
    job = Pass(family, depths, tuple(sorted({c.kernel for _, c in members})), first, last)
    height, width = images.x.shape[2:]
    try:
        backend = resolve_backend(gram.backend, device, DTYPES[gram.dtype], height, width)
    except ValueError as error:
        raise ConfigError(f"gram.backend: {error}") from error
    fields = {
        **images.fields,
        "family": family,
        "readouts": list(job.readouts),
        "depths": list(depths),
        "train_first": first,
        "train_last": last,
        "backend": backend,
        "dtype": gram.dtype,
        "kernel_version": KERNEL_VERSION,
    }
    blocks = []
    for name, column in members:
        for k in range(column.train.draws):
            d = draw(images, column, name, k)
            blocks += [(d.train, d.train), (d.test, d.train)]
    return GramJob(job, backend, gram.dtype, fields, tuple(blocks), tuple(name for name, _ in members))


def stored(config: Config, images: OrderedImages, folder: Path, device: torch.device) -> list[GramJob]:
    """The jobs of `plan`; one whose store is not there gives way to the store that another device has computed."""
    return [_where_stored(job, config.gram.backend, folder) for job in plan(config, images, device)]


def _where_stored(job: GramJob, asked: str, folder: Path) -> GramJob:
    others = [
        replace(job, backend=backend, fields={**job.fields, "backend": backend})
        for backend in RESOLVED_BACKENDS
        if asked in ("auto", backend.split("-")[0])
    ]
    return next((found for found in [job, *others] if found.path(folder).exists()), job)


def open_store(job: GramJob, folder: Path) -> GramStore | None:
    """The job's store, or None where nothing has been computed. Raises StoreError where it is not what it says."""
    path = job.path(folder)
    return stores.open(path, job.fields) if path.exists() else None


class Computer:
    """A job's images on its device, and the kernel values of a tile of them."""

    def __init__(self, job: GramJob, images: OrderedImages, device: torch.device):
        self.job = job
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


def compute(
    config: Config,
    images: OrderedImages,
    folder: Path,
    device: torch.device,
    shard: tuple[int, int] = (1, 1),
    repair: bool = False,
    say: Any = print,
    record: Record = lambda name, facts: None,
) -> None:
    """Fill every store that the config's columns need.

    shard: (k, n) takes every n-th of the tiles needed from the k-th on, for hosts that share a folder. On one host any
    number of processes may run this at once. repair: first set aside the tiles whose checksum fails. record: called
    with a store's name and what was done in it, also when an error or a signal handler ends the work early.
    """
    work = [
        _prepare(job, config.gram.tile, images, folder, device, shard, repair, say)
        for job in plan(config, images, device)
    ]
    if work:
        stores.check_space(folder, sum(len(mine) * gram.shape.tile_bytes for gram, _, mine in work))
    for gram, computer, mine in work:
        if mine:
            _fill(gram, computer, mine, record)


def _prepare(
    job: GramJob,
    tile: int | str,
    images: OrderedImages,
    folder: Path,
    device: torch.device,
    shard: tuple[int, int],
    repair: bool,
    say: Any,
) -> tuple[GramStore, Computer, list[Tile]]:
    """The job's store, made if it is not there, and this process's missing tiles; says how long they take."""
    gram, computer = open_store(job, folder), Computer(job, images, device)
    rate = None
    if gram is None:
        rate = computer.pairs_per_second()
        _say_where_else(job, folder, say)
        folder.mkdir(parents=True, exist_ok=True)
        side = tile_side(job, rate) if isinstance(tile, str) else tile
        gram = stores.create(job.path(folder), job.fields, side, images.image_index)
    needed = job.tiles(gram.shape)
    if repair:
        for bad in gram.damaged(needed - set(gram.missing(needed))):
            say(f"{gram.path.name}: tile {bad} is damaged: set aside, to be computed anew")
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
    say(line)
    return gram, computer, mine


def _say_where_else(job: GramJob, folder: Path, say: Any) -> None:
    """Name the stores of earlier settings, which stay as they are."""
    others = [p for p in sorted(folder.glob("gram-*")) if p != job.path(folder)]
    for other in others:
        try:
            found = stores.open(other).fields
        except Exception:
            continue
        if found["family"] == job.job.family:
            changed = [k for k in job.fields if found.get(k) != job.fields[k]]
            say(f"a new store: {other.name} was computed with another {', '.join(changed)} and is left as it is")


def _pairs(shape: Shape, tile: Tile) -> int:
    rows, columns = shape.bounds(tile)
    r, c = rows.stop - rows.start, columns.stop - columns.start
    return r * (r + 1) // 2 if rows == columns else r * c


def _fill(gram: GramStore, computer: Computer, tiles: list[Tile], record: Record) -> None:
    """Compute and write `tiles`; writing overlaps computing, and tiles that other processes hold come last."""
    shape, job = gram.shape, computer.job.job
    height, width = computer.x.shape[2:]
    total = sum(_pairs(shape, t) for t in tiles)
    with progress(f"Gram {job.family}", total, "pair") as bar, ThreadPoolExecutor(1) as pool:
        start, computed = time.perf_counter(), 0
        pending: deque[tuple[TileLock, Future]] = deque()
        tally = _Tally(gram.path.name, computer.job.columns, record)
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

    def __init__(self, store: str, columns: tuple[str, ...], record: Record):
        self.store, self.columns, self.record = store, columns, record
        self.since, self.tiles = time.perf_counter(), 0

    def add(self) -> None:
        self.tiles += 1
        if time.perf_counter() - self.since > SECONDS_BETWEEN_RECORDS:
            self.close()

    def close(self) -> None:
        """Record what has been finished since the last record."""
        now = time.perf_counter()
        if self.tiles:
            seconds = round(now - self.since, 2)
            self.record(self.store, {"columns": list(self.columns), "tiles_computed": self.tiles, "seconds": seconds})
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


def missing_tiles(job: GramJob, folder: Path) -> tuple[int, int]:
    """(missing, needed) tiles of a job; needed is 0 while there is no store, for then no tile size is chosen."""
    gram = open_store(job, folder)
    if gram is None:
        return 0, 0
    needed = job.tiles(gram.shape)
    return len(gram.missing(needed)), len(needed)


def require(job: GramJob, folder: Path) -> GramStore:
    """The job's store with every tile in place. Raises Incomplete otherwise."""
    gram = open_store(job, folder)
    if gram is None:
        raise Incomplete(f"{'/'.join(job.columns)}: no Gram matrix yet: run `ntk compute-gram` first")
    needed = job.tiles(gram.shape)
    missing = gram.missing(needed)
    if missing:
        raise Incomplete(
            f"{gram.path}: {len(missing)} of {len(needed)} tiles are missing: run `ntk compute-gram` to finish them"
        )
    return gram
