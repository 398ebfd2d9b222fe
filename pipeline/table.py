"""A table: a config with its images on a device. Backends are resolved here, and every cell is made here."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from exact_ntk.config import CnnColumn, Config, KernelColumn, Zca
from exact_ntk.draws import Draw, draw
from exact_ntk.errors import ConfigError
from exact_ntk.files import digest
from exact_ntk.gram.shelf import Request, Shelf
from exact_ntk.gram.sources import Source, sources_of
from exact_ntk.images import OrderedImages
from exact_ntk.kernel_names import FAMILIES, family_of, trained_by_default
from exact_ntk.networks.cell import NetworkCell
from exact_ntk.records import MissingCell
from exact_ntk.regression.cell import KernelCell, Place

if TYPE_CHECKING:
    import torch

    from exact_ntk.workers.crew import Crew


class Cell(Protocol):
    """A column at a depth, of kernel regression or of networks."""

    @property
    def name(self) -> str:
        """The column's name, which is no part of what the cell is."""
        ...

    @property
    def column(self) -> KernelColumn | CnnColumn: ...

    @property
    def depth(self) -> int: ...

    def lacks(self) -> MissingCell | None:
        """What it needs to be finished, or why all that there is to compute gives it no record; None where `record`
        gives one. Reads what is kept of it once. Raises StoreError for a damaged file."""
        ...

    def record(self) -> tuple[Any, dict[str, Any]] | None:
        """Its record and provenance, or None while it is not finished."""
        ...

    def arrays(self) -> list[dict[str, np.ndarray]]:
        """Of each draw or run: `right` and `label` of its test images, and what else its stage keeps."""
        ...

    def set_damaged_aside(self) -> None:
        """Have what is damaged of it count as missing, so that its stage makes it again."""
        ...


@dataclass(frozen=True)
class Table:
    """on: the device that computes, or its name, which is looked up where something depends on it.  folder: of the run,
    where Gram stores, solved draws and training runs lie.

    crew: workers on other machines than this, whose backends compute.
    """

    config: Config
    images: OrderedImages
    on: "torch.device | str"
    folder: Path
    crew: "Crew | None" = None

    @cached_property
    def device(self) -> "torch.device":
        """The device that computes. Raises ConfigError for a name of none that is there."""
        from exact_ntk.device import resolve_device

        return resolve_device(self.on) if isinstance(self.on, str) else self.on

    @cached_property
    def shelf(self) -> Shelf:
        """The Gram stores of the run."""
        return Shelf(self.folder)

    @cached_property
    def backends(self) -> dict[str, str]:
        """For each readout of the table's kernel columns, the kernel backend that computes it here.

        Raises ConfigError where the one asked for cannot run.
        """
        from exact_ntk.gram.compute import DTYPES
        from exact_ntk.gram.spread import Backends
        from exact_ntk.kernels import resolve_backend

        if self.crew:
            return self.crew.ask(Backends())
        gram, (_, height, width) = self.config.gram, self.images.shape
        readouts = dict.fromkeys(c.readout for c in self.config.columns if isinstance(c, KernelColumn))
        try:
            return {
                readout: resolve_backend(gram.backend, self.device, DTYPES[gram.dtype], height, width, readout)
                for readout in readouts
            }
        except ValueError as error:
            raise ConfigError(f"gram.backend: {error}") from error

    @cached_property
    def _backends_if_any(self) -> dict[str, str]:
        """What is finished, or lies in a store, needs no backend that runs here."""
        try:
            return self.backends
        except ConfigError:
            return {}

    @cached_property
    def cells(self) -> list[Cell]:
        """Every cell, in the table's order: columns, and of each its depths."""
        named = zip(self.config.column_names, self.config.columns, strict=True)
        return [cell for name, column in named for cell in self._cells(name, column)]

    def _cells(self, name: str, column: KernelColumn | CnnColumn) -> list[Cell]:
        """A column's cells, which share its images and draws."""
        draws = tuple(draw(self.images, column, name, k) for k in range(column.train.draws))
        how = self.config.preprocess_of(column)
        each = isinstance(how, Zca) and how.fit == "draw"
        if isinstance(column, CnnColumn):
            images = self._images(how, draws[0].train if each else None)
            return [NetworkCell(name, column, depth, images, draws[0], self.folder) for depth in column.depths]
        images = self._images(how)
        if each:
            alone = [self._alone(images, d) for d in draws]
            places = tuple(self._place(column, i, *_in_halves(i)) for i in alone)
        else:
            places = tuple(self._place(column, images, d.train, d.test) for d in draws)
        return [KernelCell(name, column, depth, images, draws, places, self.shelf) for depth in column.depths]

    def _images(self, how: str | Zca, fitted_on: np.ndarray | None = None) -> OrderedImages:
        """The config's images under a preprocessing, made once."""
        key = str(how), None if fitted_on is None else digest(fitted_on)
        if key not in self._made:
            same = how == self.images.preprocess
            self._made[key] = self.images if same else self.images.under(how, fitted_on)
        return self._made[key]

    def _alone(self, images: OrderedImages, d: Draw) -> OrderedImages:
        """A draw's images, made once."""
        key = str(images.preprocess), digest(d.train) + digest(d.test)
        if key not in self._made:
            self._made[key] = images.alone(d.train, d.test)
        return self._made[key]

    @cached_property
    def _made(self) -> dict[tuple[str, str | None], OrderedImages]:
        return {}

    def _place(self, column: KernelColumn, images: OrderedImages, train: np.ndarray, test: np.ndarray) -> Place:
        rides_with = self._ends[family_of(column.readout)]
        ends = (column.trains_first, column.trains_last) if column.model == "cntk" else rides_with
        key = column.kernel, ends, images
        if key not in self._sources:
            self._sources[key] = sources_of(column.kernel, ends, self.config.gram, images)
        return Place(images, train, test, self._sources[key], lambda: self._backends_if_any.get(column.readout))

    @cached_property
    def _sources(self) -> dict[tuple[str, tuple[bool, bool], OrderedImages], tuple[Source, ...]]:
        """Those of a kernel and its trained ends: columns that read the same stores share them, and their names."""
        return {}

    @cached_property
    def _ends(self) -> dict[str, tuple[bool, bool]]:
        """For each family the trained ends of its first CNTK column: an NNGP kernel rides along with its passes."""
        found = {family: (trained_by_default(family), trained_by_default(family)) for family in FAMILIES}
        for column in reversed(self.config.columns):
            if isinstance(column, KernelColumn) and column.model == "cntk":
                found[family_of(column.readout)] = (column.trains_first, column.trains_last)
        return found

    @cached_property
    def kernel_cells(self) -> list[KernelCell]:
        """The kernel cells, columns of little work first."""
        cells = [cell for cell in self.cells if isinstance(cell, KernelCell)]
        _, height, width = self.images.shape

        def work(cell: KernelCell) -> int:
            pairs = sum(len(d.train) * (len(d.train) // 2 + len(d.test)) for d in cell.draws)
            return pairs * (1 if cell.column.readout == "vanilla" else height * width)

        return sorted(cells, key=work)

    @cached_property
    def network_cells(self) -> list[NetworkCell]:
        """The network cells, in the table's order."""
        return [cell for cell in self.cells if isinstance(cell, NetworkCell)]

    def requests(self, every: bool = False) -> list[Request]:
        """The kernel blocks that draws still to solve read, small columns first; every: those of solved draws too."""
        wanted = [(cell, list(range(len(cell.draws))) if every else cell.missing()) for cell in self.kernel_cells]
        return [cell.request(k) for cell, draws in wanted for k in draws]


def _in_halves(images: OrderedImages) -> tuple[np.ndarray, np.ndarray]:
    """Positions of a draw's training and test images, where its images are alone."""
    return np.arange(images.n_train), np.arange(images.n_train, images.n_train + images.n_test)
