"""Filling Gram stores: the missing tiles of what is asked for; a kill loses only those at work."""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from exact_ntk.disk import check_space
from exact_ntk.errors import NtkError, StoreError
from exact_ntk.gram import store
from exact_ntk.gram.compute import DTYPES, TileComputer, passes_of
from exact_ntk.gram.plan import Fill, Share, plan_fills, shard_of
from exact_ntk.gram.shelf import Request, Shelf, elsewhere
from exact_ntk.gram.sources import Source
from exact_ntk.gram.spread import MeasureRate, SpreadFilling, TileBatch
from exact_ntk.gram.store import GramStore, TileLock, other_formats
from exact_ntk.gram.tiles import SELF, Array, Tile, array_name, is_self_kernel
from exact_ntk.grids import named
from exact_ntk.kernels import require_memory
from exact_ntk.progress import duration, progress
from exact_ntk.provenance import add_provenance

if TYPE_CHECKING:
    from exact_ntk.workers.crew import Crew

# On a GPU: one thread writes 0.5 GB/s or so, less than vanilla tiles are made of.
WRITERS = min(4, len(os.sched_getaffinity(0)))
# Tiles beyond the oldest one that are computed or computing, and bytes on their way from there to the disk.
COMPUTED_AHEAD, BYTES_IN_FLIGHT = 1, 1 << 30
SECONDS_BETWEEN_QUERIES = 0.002
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_BETWEEN_RECORDS = 20.0

log = logging.getLogger("ntk")


class Filler:
    """Fills the stores of one table: measures each source once, and says what it is about to do.

    crew: the workers that compute, where this process does not.
    """

    def __init__(self, shelf: Shelf, device: torch.device, side: int | str, crew: "Crew | None" = None):
        self.shelf, self.device, self.side, self.crew = shelf, device, side, crew
        self._rates: dict[tuple, float] = {}
        self._computers: dict[str, TileComputer] = {}
        self._own: set[Path] = set()  # stores of this table, as far as it has asked for them
        self._others: dict[Path, dict[str, Any] | None] = {}
        self._said: set[str] = set()

    def fill(
        self,
        requests: Sequence[Request],
        first: Sequence[Request] | None = None,
        shard: tuple[int, int] = (1, 1),
        repair: Sequence[Request] | None = None,
    ) -> int:
        """Compute what `first` (by default everything) still lacks; returns how many files other shards have left.

        requests: all that the table reads: a tile is computed once, for every request that reads it. shard: (k, n)
        takes its share of all tiles. On one host any number of processes may run this at once. repair: requests whose
        finished tiles are read first, and set aside and computed anew where damaged. What was done is added to the
        provenance, also when an error ends it early.
        """
        if repair:
            known = {id(request) for request in requests}
            requests = [*requests, *(r for r in self._discard_damaged(repair) if id(r) not in known)]
        wanted = list(requests if first is None else first)
        self.shelf.folder.mkdir(parents=True, exist_ok=True)
        fills = plan_fills(requests, self.shelf, self.rate, self.side)
        self._own.update(fill.store.path for fill in fills)
        mine = [self._share(fill, wanted, shard) for fill in fills]
        check_space(self.shelf.folder, sum(share.bytes for share in mine), sum(share.files for share in mine))
        for share in mine:
            self._say(share)
            if share.tiles:
                for array in share.fill.needed:
                    share.fill.store.add(array)
                self._run(share)
        return sum(share.fill.files - share.files for share in mine if first is None)

    def _run(self, share: Share) -> None:
        total, title = share.pairs, f"Gram {named(share.fill.columns)}"
        with progress(title, total, "pair") as bar:
            if self.crew:
                self.crew.work(SpreadFilling(share.fill, share.tiles, len(self.crew), bar))
            else:
                _Filling(share.fill, share.tiles, self._computer(share.fill.source), self.shelf, bar).run()

    def fill_batch(self, batch: TileBatch, source: Source, tell: Callable[[int], None]) -> list[Tile]:
        """Fill some tiles of a store that is there; returns those that other processes hold. tell: pairs done."""
        gram, work = store.open(batch.store, source.fields), {tile: list(arrays) for tile, arrays in batch.work}
        fill, shelf = Fill(source, gram, work, columns=list(batch.columns)), self.shelf
        return _Filling(fill, list(work), self._computer(source), shelf, _Told(tell), waits=False).run()

    def plan(self, requests: Sequence[Request]) -> list[Fill]:
        """What `fill` would do. Makes nothing: a store that is not there yet can only be asked for its place."""
        shelf = Shelf(self.shelf.folder, read_only=True)
        return plan_fills(requests, shelf, self.rate, self.side)

    def entry_layers(self, share: Share) -> int:
        """The work in a share's pairs."""
        source, shape = share.fill.source, share.fill.store.shape
        _, height, width = source.images.shape
        return sum(
            job.entry_layers(shape.pairs(tile), height, width)
            for tile in share.tiles
            for job in passes_of(source, share.fill.work[tile])
        )

    def _share(self, fill: Fill, wanted: Sequence[Request], shard: tuple[int, int]) -> Share:
        asked = {id(request) for request in wanted}
        mine = [r for r in fill.requests if id(r) in asked] if fill.work else []
        reads = set().union(*(r.tiles(fill.store.shape) for r in mine))
        return Share(fill, [tile for tile in fill.work if tile in reads and shard_of(tile, shard[1]) == shard[0]])

    def _computer(self, source: Source) -> TileComputer:
        if source.name not in self._computers:
            # A draw's own images are done with when its store is.
            self._computers = {k: c for k, c in self._computers.items() if not c.source.images.of_a_draw}
            self._computers[source.name] = TileComputer(source, self.device)
        return self._computers[source.name]

    def rate(self, source: Source, requests: Sequence[Request]) -> float:
        """Pairs/s of a source on one device, over every array that the requests read."""
        asked = {array for r in requests for array in r.arrays}
        arrays = sorted(array for array in asked if not is_self_kernel(array))
        ends = source.train_first, source.train_last
        key = (source.family, *ends, source.backend, source.dtype, source.images.shape, *arrays)
        if key not in self._rates:
            columns = tuple(dict.fromkeys(r.column for r in requests))
            question = MeasureRate(source.name, tuple(arrays), columns)
            self._rates[key] = self.crew.ask(question) if self.crew else self.measure(source, arrays, columns)
        return self._rates[key]

    def seconds(self, share: Share) -> float:
        """How long a share takes, all workers together."""
        return share.seconds / (len(self.crew) if self.crew else 1)

    def measure(self, source: Source, arrays: Sequence[Array], columns: Sequence[str]) -> float:
        """Pairs/s of one source here. Raises NtkError, naming the columns, where not even a pair fits in memory."""
        self._require_memory(source, columns)
        return self._computer(source).pairs_per_second(arrays)

    def _require_memory(self, source: Source, columns: Sequence[str]) -> None:
        try:
            _, *size = source.images.shape
            require_memory(source.backend, self.device, source.family, DTYPES[source.dtype], *size)
        except MemoryError as error:
            raise NtkError(f"{named(columns)}: {error}") from error

    def _discard_damaged(self, requests: Sequence[Request]) -> list[Request]:
        """Set damaged tiles aside, in every store that may serve the requests; returns the requests that read them."""
        look, found = self.shelf.look(), []
        served: dict[Path, tuple[GramStore, list[Request]]] = {}
        for request in requests:
            for gram in (gram for source in request.sources for gram in look.stores(source)):
                served.setdefault(gram.path, (gram, []))[1].append(request)
        for gram, readers in served.values():
            there: dict[Array, set[Tile]] = {}
            for request in readers:
                missing = look.missing(request, gram)
                for array, tiles in request.reads(gram.shape).items():
                    there.setdefault(array, set()).update(tiles - missing[array])
            bad = [(array, tile) for array, tile in gram.damaged(there) if gram.discard(array, tile)]
            for array, tile in bad:
                log.warning(
                    f"{gram.path.name}: tile {tile} of {array_name(array)} is damaged: set aside, to be computed anew"
                )
            found += [r for r in readers if any(t in r.reads(gram.shape).get(a, ()) for a, t in bad)]
        return found

    def _say(self, mine: Share) -> None:
        """One line a store, and once which other stores there are."""
        fill = mine.fill
        shape, source = fill.store.shape, fill.source
        tiles = set().union(*fill.needed.values())
        line = (
            f"{named(fill.columns)}: {fill.store.path.name}, {source.backend} {source.dtype}, {len(tiles)} tiles of "
            f"{shape.side} x {shape.side} images stored in {shape.stored}, {len(tiles) - len(fill.work)} done"
        )
        if mine.tiles:
            line += f"; {mine.pairs:,} pairs and {mine.files:,} files left, about {duration(self.seconds(mine))} at "
            line += f"{fill.pace:.3g} pairs/s" + (f" on each of {len(self.crew)} workers" if self.crew else "")
        self._once(line)
        if mine.tiles and not any(fill.store.finished(array) for array in fill.needed):
            self._say_where_else(fill)

    def _say_where_else(self, fill: Fill) -> None:
        """Name the stores of earlier settings, which stay as they are, and runs of other names with the same tiles."""
        for other in other_formats(self.shelf.folder):
            self._once(f"{other.name} is of an earlier format and is left as it is: nothing reads it")
        for path in sorted(self.shelf.folder.glob("gram-*-*")):
            if path in self._own:
                continue  # of another draw or column
            if path not in self._others:
                self._others[path] = _fields(path)
            found = self._others[path]
            if found and found["family"] == fill.source.family and found != fill.store.fields:
                changed = [k for k, v in fill.store.fields.items() if found.get(k) != v]
                self._once(f"a new store: {path.name} was computed with another {', '.join(changed)}: left as it is")
        for run in elsewhere(self.shelf.folder, fill.source):
            self._once(
                f"{run} holds Gram matrices of the same images: move its gram-* folders into {self.shelf.folder} to go "
                "on with them"
            )

    def _once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            log.info(line)


def _fields(path: Path) -> dict[str, Any] | None:
    """The fields of a store, or None where it is not one."""
    try:
        return store.open(path).fields
    except StoreError:
        return None


class _Filling:
    """Computes and writes the tiles of one store; writing overlaps computing, tiles that others hold come last.

    bar: told the pairs as they are done.  waits: for tiles that other processes hold; else `run` returns them.
    """

    def __init__(
        self,
        fill: Fill,
        tiles: Sequence[Tile],
        computer: TileComputer,
        shelf: Shelf,
        bar: "tqdm | _Told",
        waits: bool = True,
    ):
        self.fill, self.tiles, self.computer, self.shelf = fill, tiles, computer, shelf
        self.bar, self.waits, self.held = bar, waits, list[Tile]()
        self.start = self.since = time.perf_counter()
        self.finished = self.work = self.files = 0
        self.in_all = sum(len(fill.work[tile]) for tile in tiles)
        self.computing: deque[_AtWork] = deque()
        self.writing: deque[_AtWork] = deque()

    @property
    def on_gpu(self) -> bool:
        """Whether tiles are computed while this process goes on."""
        return self.computer.device.type == "cuda"

    def run(self) -> list[Tile]:
        """Fill, and record what was done every so often, so that a kill loses little of the record."""
        shape = self.fill.store.shape
        with ThreadPoolExecutor(WRITERS if self.on_gpu else 1) as self.pool:
            try:
                for tile, arrays, lock in self._claim():
                    item = _AtWork(tile, arrays, lock)
                    self.computing.append(item)
                    item.values = _Copy(self._computed(tile, arrays))
                    self._hand_over(COMPUTED_AHEAD if self.on_gpu else 0)
                    most = max(2, BYTES_IN_FLIGHT // (shape.chunk_bytes(tile) * len(arrays)))
                    self._finish_writes(min(most, WRITERS + 1) - 1)
                self._hand_over(0)
                self._finish_writes(0)
            finally:
                with ExitStack() as last:  # each of these, whatever the others raise, from the last one on
                    last.callback(self._record)
                    for item in self.computing:
                        last.callback(item.lock.release)
                    for item in reversed(self.writing):
                        last.callback(self._finish, item)
        return self.held

    def _computed(self, tile: Tile, arrays: list[Array]) -> torch.Tensor:
        rows, columns = self.fill.store.shape.bounds(tile)
        if tile[1] == SELF:
            return self.computer.self_kernels(rows, arrays)
        return self.computer.block(rows, columns, arrays)

    def _hand_over(self, ahead: int) -> None:
        """Give the writers what is on the host, waiting until at most `ahead` tiles are still to be computed."""
        while self.computing and (len(self.computing) > ahead or self.computing[0].values.done()):
            item = self.computing[0]
            while not item.values.done():
                time.sleep(SECONDS_BETWEEN_QUERIES)  # not a wait of the driver's, which Ctrl-C could not end
            item.written = self.pool.submit(self._write, item)
            self.writing.append(self.computing.popleft())

    def _finish_writes(self, left: int) -> None:
        """Take note of what is written, waiting until at most `left` tiles are not."""
        while self.writing and (len(self.writing) > left or self.writing[0].written.done()):
            self._finish(self.writing.popleft())

    def _claim(self) -> Iterator[tuple[Tile, list[Array], TileLock]]:
        """Yield (tile, its missing arrays, its lock) until none is left; the receiver releases the lock."""
        gram, left = self.fill.store, list(self.tiles)
        while left:
            busy = []
            for tile in left:
                lock = gram.claim(tile)
                if lock is None:
                    busy.append(tile)
                    continue
                missing = [array for array in self.fill.work[tile] if not gram.has(array, tile)]
                if missing:
                    yield tile, missing, lock
                else:
                    lock.release()
                    self.bar.update(gram.shape.pairs(tile))
            left = busy
            if left and not self.waits:
                self.held = left
                return
            if left:
                self._hand_over(0)  # who waits for another process holds nothing that it may be waiting for
                self._finish_writes(0)
                time.sleep(SECONDS_BETWEEN_LOOKS)

    def _write(self, item: "_AtWork") -> None:
        self.fill.store.write(item.tile, dict(zip(item.arrays, item.values.numpy(), strict=True)))

    def _finish(self, item: "_AtWork") -> None:
        try:
            item.written.result()
        finally:
            wait([item.written])  # also where a signal ended the wait above: the tile is this process's until then
            item.lock.release()
        pairs, (height, width) = self.fill.store.shape.pairs(item.tile), self.computer.x.shape[2:]
        jobs = passes_of(self.fill.source, item.arrays)
        self.work += sum(job.entry_layers(pairs, height, width) for job in jobs)
        self.files += len(item.arrays)
        rate = self.work / (time.perf_counter() - self.start)
        self.bar.set_postfix_str(f"{rate:.2g} entry-layers/s, {self.files} of {self.in_all} files", refresh=False)
        self.bar.update(pairs)
        self.finished += 1
        if time.perf_counter() - self.since > SECONDS_BETWEEN_RECORDS:
            self._record()

    def _record(self) -> None:
        """Add what has been finished since the last record to the provenance."""
        now = time.perf_counter()
        if self.finished:
            add_provenance(
                self.shelf.folder,
                self.fill.store.path.name,
                self.computer.device,
                columns=list(self.fill.columns),
                tiles_computed=self.finished,
                seconds=round(now - self.since, 2),
            )
        self.since, self.finished = now, 0


class _Told:
    """In place of a bar, where another process shows it."""

    def __init__(self, tell: Callable[[int], None]):
        self.update = tell

    def set_postfix_str(self, text: str, refresh: bool) -> None:
        pass


def host_memory(values: torch.Tensor) -> torch.Tensor:
    """Where a GPU's values go on the host: into page-locked memory, or where there is none into any.

    A copy into any other keeps the caller waiting; the values are the same.
    """
    try:
        return torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    except RuntimeError:
        return torch.empty(values.shape, dtype=values.dtype)


class _Copy:
    """A tile on its way to the host: begun at once, finished while the device computes the next tile."""

    def __init__(self, values: torch.Tensor):
        self.host, self.copied = values, None
        if values.device.type == "cuda":
            self.host = host_memory(values)
            copies = torch.cuda.Stream(values.device)
            copies.wait_stream(torch.cuda.current_stream(values.device))
            with torch.cuda.stream(copies):
                self.host.copy_(values, non_blocking=True)
                values.record_stream(copies)
                self.copied = copies.record_event()

    def done(self) -> bool:
        """Whether it is on the host."""
        return self.copied is None or self.copied.query()

    def numpy(self) -> np.ndarray:
        """The tile, once it is on the host."""
        assert self.done()
        return self.host.numpy()


@dataclass
class _AtWork:
    """A tile that this process has claimed: being computed until `written` is the future of its writing."""

    tile: Tile
    arrays: list[Array]
    lock: TileLock
    values: _Copy = field(init=False)
    written: Future = field(init=False)
