"""What a table still takes here, before anything of it is computed: work, time, disk and memory, column by column."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from exact_ntk.disk import free_space
from exact_ntk.errors import NtkError
from exact_ntk.gram.fill import Filler
from exact_ntk.gram.plan import Share, shares
from exact_ntk.gram.shelf import Request
from exact_ntk.gram.store import GramStore
from exact_ntk.grids import Grid, named
from exact_ntk.memory import gigabytes, installed_memory
from exact_ntk.networks import lr
from exact_ntk.networks.cell import ALL, NetworkCell
from exact_ntk.networks.cost import Count, count_cost, largest_batch, measure_cost
from exact_ntk.networks.stage import FITS, Only, runs_left
from exact_ntk.networks.training import TrainingData
from exact_ntk.progress import duration
from exact_ntk.regression.cell import KernelCell
from exact_ntk.regression.plan import DoesNotFit, SolvePlan, eigen_seconds
from exact_ntk.regression.spectrum import MOST_IMAGES
from exact_ntk.regression.stage import plan_draw, plan_ridge
from exact_ntk.table import Table


class Wanted(NamedTuple):
    """A draw that is still to solve, and the kernel values it reads."""

    cell: KernelCell
    draw: int
    request: Request


@dataclass(frozen=True)
class Part:
    """What one column still takes at one stage.

    words: said of it.  seconds: at the measured rate.  files, disk: that stay.  spill: bytes on disk while it is at
    work.  disk_float32: what `disk` would be with `gram.store: float32`.  lacks: what does not fit in memory, each with
    what would make it fit.
    """

    column: str
    words: str
    seconds: float = 0.0
    files: int = 0
    disk: int = 0
    disk_float32: int = 0
    spill: int = 0
    lacks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Forecast:
    """Every column's parts: Gram matrices, solves, networks. A tile that several columns read is the first one's."""

    parts: tuple[Part, ...]

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)

    @property
    def files(self) -> int:
        return sum(part.files for part in self.parts)

    @property
    def disk(self) -> int:
        """Bytes: Gram matrices, and the largest factor that is ever beside them."""
        return sum(part.disk for part in self.parts) + self._spill

    @property
    def _spill(self) -> int:
        return max((part.spill for part in self.parts), default=0)

    def lines(self, folder: Path) -> list[str]:
        """A line for all parts that say the same, the totals, and what does not fit; folder: of the run."""
        return [*(f"{columns}: {words}" for columns, words, _ in self._alike()), *self.totals(folder)]

    def _alike(self) -> Iterator[tuple[str, str, list[Part]]]:
        """The parts that say the same, with the names of their columns, or some of them, and what they say."""
        by_words: dict[str, list[Part]] = {}
        for part in self.parts:
            by_words.setdefault(part.words, []).append(part)
        for words, parts in by_words.items():
            yield named([part.column for part in parts]) + ", each" * (len(parts) > 1), words, parts

    def totals(self, folder: Path) -> list[str]:
        """What all parts take together, and what does not fit."""
        if not self.parts:
            return ["nothing is left to compute"]
        free, _ = free_space(folder)
        total = (
            f"in all about {duration(self.seconds)}, {self.files:,} files and {gigabytes(self.disk)} on disk, "
            f"{gigabytes(free)} free"
        )
        return [total, *self.lacks(folder)]

    def lacks(self, folder: Path) -> list[str]:
        """What does not fit, and what would make it fit."""
        lacks = [f"does not fit: {part.column}: {why}" for part in self.parts for why in part.lacks]
        return [*lacks, *self._disk_lacks(folder)]

    def grid(self) -> Grid:
        """A table of the parts, those that say the same in a row: header and rows."""
        rows = []
        for columns, words, parts in self._alike():
            seconds, files = (sum(getattr(part, of) for part in parts) for of in ("seconds", "files"))
            rows.append([columns, duration(seconds) if seconds else "", f"{files:,}" if files else "", words])
        return ["column", "time", "files", "what"], rows

    def value(self, folder: Path) -> dict[str, Any]:
        """All of it for JSON: seconds and bytes."""
        total = {"seconds": self.seconds, "files": self.files, "disk": self.disk}
        return {"parts": [asdict(part) for part in self.parts], **total, "lacks": self.lacks(folder)}

    def _disk_lacks(self, folder: Path) -> Iterator[str]:
        free, inodes = free_space(folder)
        smaller = sum(part.disk_float32 for part in self.parts) + self._spill
        if self.disk > free:
            ways = ["make room", "give a folder on a larger disk with --runs"]
            if smaller <= free:
                ways = [f"--set gram.store=float32 takes {gigabytes(smaller)}", *ways]
            yield f"does not fit: {gigabytes(self.disk)} on the disk of {folder}: {', or '.join(ways)}"
        if inodes is not None and self.files > inodes:
            yield (
                f"does not fit: {self.files:,} files on the disk of {folder}, which has {inodes:,} inodes free: give a "
                "folder on another disk with --runs"
            )


def forecast(table: Table, filler: Callable[[], Filler], memory: int) -> Forecast:
    """What is not done yet of a table. Nothing is written, and only rates are measured, for seconds.

    filler: made only where a kernel value is missing or to be solved with.  memory: bytes that a solve may take. Raises
    NtkError where nothing here can compute the kernels that are missing.
    """
    wanted = [Wanted(cell, k, cell.request(k)) for cell in table.kernel_cells for k in cell.missing()]
    parts: list[Part] = []
    if wanted:
        computing = filler()
        requests = [w.request for w in wanted]
        fills = computing.plan(requests)
        missing = shares(fills, requests)
        serving = {id(request): fill.store for fill in fills for request in fill.requests}
        for column in missing:
            parts += [_gram(computing, column, share) for share in missing[column]]
            mine = [(w, serving[id(w.request)]) for w in wanted if w.cell.name == column]
            parts += _solves(column, mine, memory, table.device)
    for column in dict.fromkeys(cell.name for cell in table.network_cells):
        parts += _networks([cell for cell in table.network_cells if cell.name == column], table.device)
    return Forecast(tuple(parts))


def _gram(filler: Filler, column: str, share: Share) -> Part:
    store, seconds = share.fill.store, filler.seconds(share)
    begun = store.path.exists()  # then it is gone on with, in what it is stored in
    return Part(
        column=column,
        words=(
            f"{share.pairs:,} pairs, {filler.entry_layers(share):.2e} entry-layers, about {duration(seconds)} at "
            f"{share.fill.pace:.3g} pairs/s; {len(share.tiles):,} tiles, {share.files:,} files, "
            f"{gigabytes(share.bytes)} in {store.path.name}"
        ),
        seconds=seconds,
        files=share.files,
        disk=share.bytes,
        disk_float32=share.bytes if begun else share.bytes_in(replace(store.shape, stored="float32")),
    )


def _solves(
    column: str, wanted: Sequence[tuple[Wanted, GramStore]], memory: int, device: torch.device
) -> Iterator[Part]:
    """The solves, and how ridges are chosen: every draw of a column has the same number of images.

    wanted: each with the store that serves it.
    """
    # The store with the largest tiles, which take the most memory to read.
    (cell, k, _), store = max(wanted, key=lambda found: found[1].shape.side)
    train = cell.places[k].train
    systems = f"solve {len(wanted)} system{'s' * (len(wanted) > 1)} of "
    k_train = cell.matrix(store, train, train)
    try:
        plan = plan_draw(cell, k_train, memory)
        choosing = plan_ridge(cell, k_train, plan, device)
    except DoesNotFit as error:
        yield Part(column, f"{systems}{len(train):,} images", lacks=(f"{error}: {_more(memory, error, device)}",))
        return
    except NtkError as error:
        yield Part(column, f"{systems}{len(train):,} images", lacks=(str(error),))
        return
    # As the solve does it: for the report, of each cell's first draw.
    decomposed = sum(w.draw == 0 for w, _ in wanted) if len(train) <= MOST_IMAGES else 0
    spectra = decomposed * eigen_seconds(len(train), device)
    words = systems + plan.words(device) + f"; decompose {decomposed}, about {duration(spectra)}" * (decomposed > 0)
    yield Part(
        column=column,
        words=words + (" (early stopping is not timed)" if cell.column.early_stopping else ""),
        seconds=len(wanted) * plan.seconds(device) + spectra,
        spill=0 if plan.in_memory else plan.trapezoid.bytes,
        lacks=tuple(_lu_lacks(cell, plan, memory, device)),
    )
    if choosing:
        yield Part(
            column=column,
            words=f"choose {choosing.words(device)}" + f" each, {len(wanted)} times" * (len(wanted) > 1),
            seconds=len(wanted) * choosing.seconds(device),
        )


def _lu_lacks(cell: KernelCell, plan: SolvePlan, memory: int, device: torch.device) -> Iterator[str]:
    """What is lacking where a matrix turns out not to be positive definite, which no ridge forestalls."""
    if cell.column.ridge or cell.column.on_indefinite == "stop" or plan.lu_bytes <= plan.budget:
        return
    error = DoesNotFit("LU, for a matrix that is not positive definite,", plan.lu_bytes, plan.budget)
    yield f"{error}: give the column a ridge, such as ridge: 1.0e-6, or {_more(memory, error, device)}"


def _more(memory: int, error: DoesNotFit, device: torch.device) -> str:
    """Which --memory would do, if this machine has it."""
    would_do, there = gigabytes(memory + error.missing), installed_memory(device)
    if memory + error.missing > there:
        return f"{would_do} would do, and there are {gigabytes(there)}: lower train.n, or use a larger machine"
    return f"give --memory {would_do.replace(' ', '').replace(',', '')}"


def _networks(cells: Sequence[NetworkCell], device: torch.device) -> Iterator[Part]:
    """One part: times are scaled by FLOPs from a step of the shallowest network."""
    left = [(cell, runs) for cell in cells if (runs := runs_left(cell, Only()))]
    if not left:
        return
    cell, limit = min((cell for cell, _ in left), key=lambda cell: cell.depth), round(FITS * installed_memory(device))
    data, setting = cell.data(ALL, device), cell.setting(1.0, 0)
    counts = {cell.depth: count_cost(cell.setting(1.0, 0), data) for cell, _ in left}
    lacks = tuple(_network_lacks([cell for cell, _ in left], counts, data, limit, device))
    images = len(data.x)
    flops = sum(runs * c.column.epochs_at(c.depth) * images * counts[c.depth].flops for c, runs in left)
    steps = lr.MOST_STEPS * min(images, lr.MOST_IMAGES)
    search_flops = sum(steps * counts[c.depth].search_flops for c, _ in left if c.searches)
    words = (
        f"{sum(runs for _, runs in left)} runs, at most {flops + search_flops:.2e} FLOP, memory about "
        f"{gigabytes(max(count.memory for count in counts.values()))}"
    )
    batch = setting.batch_size if counts[cell.depth].memory <= limit else largest_batch(setting, data, limit)
    if batch is None:
        yield Part(cell.name, words, lacks=lacks)
        return
    setting = replace(setting, batch_size=batch)
    cost = measure_cost(setting, data)
    # The search is in float32, which only on a GPU is another pace than TF32.
    exact = device.type == "cuda" and setting.precision != "float32" and search_flops
    search_cost = measure_cost(replace(setting, precision="float32"), data) if exact else cost
    epochs = sum(runs * c.column.epochs_at(c.depth) * counts[c.depth].flops / cost.flops for c, runs in left)
    search = search_flops * search_cost.train_seconds / search_cost.flops
    seconds = epochs * cost.epoch_seconds(data) + search
    words += f": at most about {duration(seconds)} at {cost.flops / cost.train_seconds:.3g} FLOP/s"
    if search:
        words += f", {duration(search)} of them to find the largest stable learning rates"
    yield Part(cell.name, words, seconds=seconds, lacks=lacks)


def _network_lacks(
    cells: Sequence[NetworkCell], counts: dict[int, Count], data: TrainingData, limit: int, device: torch.device
) -> Iterator[str]:
    """The deepest network that does not fit, and the batch with which it would."""
    cell = max(cells, key=lambda cell: cell.depth)
    need = counts[cell.depth].memory
    if need <= limit:
        return
    batch = largest_batch(cell.setting(1.0, 0), data, limit)
    advice = f"batch_size: {batch} would fit" if batch else "no batch would fit: lower width"
    yield (
        f"depth {cell.depth} takes {gigabytes(need)} of memory, and {FITS:.0%} of {device}'s are {gigabytes(limit)}: "
        f"{advice}"
    )
