"""A kernel column at a depth: the draws it is the mean of, the kernel blocks they read, and its record."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exact_ntk.config import KernelColumn, RidgeChoice
from exact_ntk.draws import Draw, copies_tested, count_held_out
from exact_ntk.files import digest, fingerprint
from exact_ntk.gram.shelf import Request, Shelf
from exact_ntk.gram.sources import Source, preferring
from exact_ntk.gram.store import GramStore
from exact_ntk.gram.tiles import Array, mirrored, self_kernel
from exact_ntk.images import OrderedImages
from exact_ntk.kept import read_kept, read_kept_npz, require_whole, set_damaged_aside
from exact_ntk.records import LARGEST_RESIDUAL, EarlyStopped, EarlyStoppedCell, KernelRecord, MissingCell, SolvedDraw
from exact_ntk.standard_error import standard_error

if TYPE_CHECKING:
    from exact_ntk.regression.matrix import Matrix

# Bump by hand when the same kernel and draw are solved another way: earlier draws are not reused.
SOLVE_VERSION = 3


def _identity(ridge: float | RidgeChoice) -> Any:
    """What a result depends on of a column's ridge."""
    if not isinstance(ridge, RidgeChoice):
        return ridge
    share = {"holdout": ridge.holdout} if ridge.select == "holdout" else {}
    return {"select": ridge.select, "grid": list(ridge.grid), **share}


@dataclass(frozen=True)
class Place:
    """A draw's positions among `images`, and every source that may hold its kernel.

    backend: resolves what this machine computes with, which takes torch and may compile kernels.
    """

    images: OrderedImages
    train: np.ndarray
    test: np.ndarray
    known: tuple[Source, ...]
    backend: Callable[[], str | None]

    @cached_property
    def sources(self) -> tuple[Source, ...]:
        """Those known, in order of preference."""
        return preferring(self.known, self.backend())

    @property
    def shared(self) -> bool:
        """Whether other draws read the same stores."""
        return not self.images.of_a_draw


@dataclass(frozen=True)
class KernelCell:
    """A kernel column at a depth. Its unit of work is a draw, which once solved needs no store any more.

    images: the config's, preprocessed as the column says.  draws: by number, as positions among these.  places: where
    each draw's kernel values lie.  shelf: the stores to read them from.
    """

    name: str
    column: KernelColumn
    depth: int
    images: OrderedImages
    draws: tuple[Draw, ...]
    places: tuple[Place, ...]
    shelf: Shelf

    def __post_init__(self) -> None:
        """Raises ConfigError where a draw is too small for the share that the column holds out of it."""
        ridge, early = self.column.ridge, self.column.early_stopping
        for n in {len(d.train) for d in self.draws}:
            if isinstance(ridge, RidgeChoice) and ridge.select == "holdout":
                count_held_out(n, ridge.holdout, f"column {self.name}: ridge")
            if early:
                count_held_out(n, early.holdout, f"column {self.name}: early_stopping")

    @property
    def array(self) -> Array:
        """The readout and depth of its kernel."""
        return self.column.kernel, self.depth

    def fields(self, k: int, source: Source) -> dict[str, Any]:
        """Exactly what draw k's result depends on, with kernel values of one source; never the column's name."""
        gram = source.fields if self.column.model == "cntk" else source.values
        return {"gram": gram, **self._beside_the_kernel, **self._positions[k]}

    @cached_property
    def _beside_the_kernel(self) -> dict[str, Any]:
        """What every draw's result depends on beside kernel values and positions."""
        column = self.column
        early = {"early_stopping": column.early_stopping.model_dump()} if column.early_stopping else {}
        return {
            "kernel": column.kernel,
            "depth": self.depth,
            "labels": digest(self.images.y),
            "ridge": _identity(column.ridge),
            "on_indefinite": column.on_indefinite,
            "version": SOLVE_VERSION,
            **early,
            **{key: value for key in ("flips", "unit_diagonal") if (value := getattr(column, key))},
        }

    @cached_property
    def _positions(self) -> list[dict[str, Any]]:
        """What each draw's result depends on of its own."""
        return [{"train": digest(d.train), "test": digest(d.test)} for d in self.draws]

    def path(self, k: int, source: Source) -> Path:
        """Where draw k's record lies; its arrays are beside it as npz."""
        label = f"{self.column.kernel}-L{self.depth}-n{len(self.draws[k].train)}"
        return self.shelf.folder / "solve" / f"{label}-{fingerprint(self.fields(k, source))}.json"

    def solved_path(self, k: int) -> Path | None:
        """The record of draw k from the first source that has been solved, or None."""
        there = [p for p in self._known_paths[k] if p.exists() and p.with_suffix(".npz").exists()]
        if len(there) > 1:
            there = [p for p in (self.path(k, source) for source in self.places[k].sources) if p in there]
        return there[0] if there else None

    @cached_property
    def _known_paths(self) -> list[list[Path]]:
        """For each draw the records there may be of it."""
        return [
            list(dict.fromkeys(self.path(k, source) for source in place.known)) for k, place in enumerate(self.places)
        ]

    def solved(self, k: int) -> SolvedDraw | None:
        """Draw k's record, or None while it is not solved. Raises StoreError for a damaged file."""
        path = self.solved_path(k)
        return read_kept(path, SolvedDraw) if path else None

    def set_damaged_aside(self) -> None:
        """Have damaged draws count as missing."""
        for path in filter(None, map(self.solved_path, range(len(self.draws)))):
            set_damaged_aside(path, path.with_suffix(".npz"))

    def missing(self) -> list[int]:
        """The draws that are not solved yet."""
        return [k for k in range(len(self.draws)) if self.solved_path(k) is None]

    def request(self, k: int) -> Request:
        """The kernel blocks that draw k reads."""
        place = self.places[k]
        blocks = (place.train, place.train), (place.test, place.train)
        return Request(self.name, self.reads, place.sources, blocks)

    @property
    def reads(self) -> tuple[Array, ...]:
        """What it reads: its kernel, with mirror images and of each image with itself where the column asks for it."""
        column = self.column
        return (
            self.array,
            *([mirrored(self.array)] if column.flips else []),
            *([self_kernel(self.array)] if column.unit_diagonal else []),
        )

    def matrix(self, store: GramStore, rows: np.ndarray, columns: np.ndarray) -> "Matrix":
        """The kernel that is regressed with, at positions in a store; nothing is read yet."""

        from exact_ntk.regression.matrix import Averaged, Stored, UnitDiagonal

        def of(array: Array) -> "Matrix":
            stored = Stored(store, array, rows, columns)
            unit = self.column.unit_diagonal
            return UnitDiagonal(stored, unit == "projected") if unit else stored

        return Averaged(of(self.array), of(mirrored(self.array))) if self.column.flips else of(self.array)

    def arrays(self) -> list[dict[str, np.ndarray]]:
        """What every solved draw keeps beside its record (see `stage`). Raises StoreError, naming the file."""
        paths = [self.solved_path(k) for k in range(len(self.draws))]
        return [read_kept_npz(path.with_suffix(".npz")) for path in paths if path]

    def record(self) -> tuple[KernelRecord, dict[str, Any]] | None:
        """The cell's record and provenance, or None while draws are missing or where one has no solution."""
        found = [self.solved(k) for k in range(len(self.draws))]
        draws = [d for d in found if d is not None]
        if len(draws) < len(found) or self.trouble():
            return None
        by_draw, column = [d.record for d in draws], self.column
        accuracies = [r.accuracy for r in by_draw]
        record = KernelRecord(
            model=column.model,
            column=self.name,
            readout=column.readout,
            depth=self.depth,
            accuracy=float(np.mean(accuracies)),
            standard_error=standard_error([d.test for d in self.draws], [a["right"] for a in self.arrays()]),
            std=float(np.std(accuracies, ddof=1)) if len(draws) > 1 else None,
            n_train=len(self.draws[0].train),
            n_test=len(self.draws[0].test),
            test_from=column.test.source,
            copies_tested=sum(copies_tested(self.images, d) for d in self.draws),
            preprocessed=self._preprocessed,
            draws=len(draws),
            ridge=None if isinstance(column.ridge, RidgeChoice) else column.ridge,
            flips=column.flips,
            unit_diagonal=column.unit_diagonal,
            indefinite=any(r.indefinite is not None for r in by_draw),
            backend=", ".join(dict.fromkeys(d.backend for d in draws)),
            dtype=", ".join(dict.fromkeys(d.dtype for d in draws)),
            stored=", ".join(dict.fromkeys(d.stored for d in draws)),
            dropped_duplicates=len(self.images.dropped),
            fingerprint=fingerprint({"draws": [fingerprint(d.fields) for d in draws]}),
            by_draw=by_draw,
            early_stopping=over_draws([r.early_stopping for r in by_draw]),
        )
        return record, {"draws": [d.provenance for d in draws]}

    @property
    def _preprocessed(self) -> str | None:
        place, alone = self.places[0], "; kernel values shared with no other draw"
        words = place.images.words
        return words if place.shared or words is None else words + alone

    def lacks(self) -> MissingCell | None:
        """What it needs to be finished, or why it has no solution. Raises StoreError for a damaged file."""
        paths = [self.solved_path(k) for k in range(len(self.draws))]
        for path in filter(None, paths):
            require_whole(path.with_suffix(".npz"))
        trouble, unsolved = self.trouble(), [k for k, path in enumerate(paths) if path is None]
        if trouble is None and not unsolved:
            return None
        needs = trouble or self._needs(unsolved)
        return MissingCell(column=self.name, depth=self.depth, needs=needs, failed=trouble is not None)

    def _needs(self, unsolved: Sequence[int]) -> str:
        look = self.shelf.look()
        if all(look.complete(self.request(k)) for k in unsolved):
            return "run `ntk solve`"
        return "run `ntk compute-gram` and `ntk solve`"

    def trouble(self) -> str | None:
        """Why a cell can have no record, whatever else is solved, or None."""
        for k in range(len(self.draws)):
            found = self.solved(k)
            if found and found.record.residual > LARGEST_RESIDUAL:
                condition = found.record.condition
                text = "not finite" if condition is None else f"{condition:.1e}"
                return (
                    f"the solution of draw {k} leaves a residual of {found.record.residual:.1e}, so its Gram matrix is "
                    f"singular (condition in the 1-norm {text}): give the column a ridge, such as ridge: 1.0e-6"
                )
        return None


def over_draws(draws: Sequence[EarlyStopped | None]) -> EarlyStoppedCell | None:
    """Means over the draws that have a flow, and the median of their times; None where none has one."""
    flows = [d for d in draws if d is not None]
    if not flows:
        return None
    median = statistics.median_high(math.inf if d.time is None else d.time for d in flows)
    accuracies = ("held_out", "held_out_at_infinity", "test", "test_at_infinity")
    return EarlyStoppedCell(
        time=None if math.isinf(median) else median,
        **{key: float(np.mean([getattr(d, key) for d in flows])) for key in accuracies},
        n_held_out=flows[0].n_held_out,
        draws=len(flows),
        draws_without_flow=len(draws) - len(flows),
    )
