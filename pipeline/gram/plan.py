"""Which Gram stores a config needs, which of their tiles, and where they lie."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exact_ntk.config import Config, Gram, KernelColumn
from exact_ntk.draws import OrderedImages, draw
from exact_ntk.errors import ConfigError, Incomplete
from exact_ntk.gram import store
from exact_ntk.gram.store import GramStore, Shape, Tile
from exact_ntk.kernels import KERNEL_VERSION, RESOLVED_BACKENDS, Pass, resolve_backend

DTYPES = {"float32": torch.float32, "float64": torch.float64}


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
        return store.store_path(folder, self.fields)

    def tiles(self, shape: Shape) -> set[Tile]:
        """The tiles that hold the blocks."""
        return set().union(*(shape.covering(rows, columns) for rows, columns in self.blocks))

    def open(self, folder: Path) -> GramStore | None:
        """Its store, or None where nothing has been computed. Raises StoreError where it is not what it says."""
        path = self.path(folder)
        return store.open(path, self.fields) if path.exists() else None

    def missing(self, folder: Path) -> tuple[int, int]:
        """(missing, needed) tiles; needed is 0 while there is no store, for then no tile size is chosen."""
        gram = self.open(folder)
        if gram is None:
            return 0, 0
        needed = self.tiles(gram.shape)
        return len(gram.missing(needed)), len(needed)

    def require(self, folder: Path) -> GramStore:
        """Its store with every tile in place. Raises Incomplete otherwise."""
        gram = self.open(folder)
        if gram is None:
            raise Incomplete(f"{'/'.join(self.columns)}: no Gram matrix yet: run `ntk compute-gram` first")
        needed = self.tiles(gram.shape)
        missing = gram.missing(needed)
        if missing:
            raise Incomplete(
                f"{gram.path}: {len(missing)} of {len(needed)} tiles are missing: run `ntk compute-gram` to finish them"
            )
        return gram


def gram_jobs(config: Config, images: OrderedImages, device: torch.device) -> list[GramJob]:
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


def stored_jobs(config: Config, images: OrderedImages, folder: Path, device: torch.device) -> list[GramJob]:
    """The jobs of `gram_jobs`; one whose store is not there gives way to the store that another device has computed."""
    return [_where_stored(job, config.gram.backend, folder) for job in gram_jobs(config, images, device)]


def _where_stored(job: GramJob, asked: str, folder: Path) -> GramJob:
    others = [
        replace(job, backend=backend, fields={**job.fields, "backend": backend})
        for backend in RESOLVED_BACKENDS
        if asked in ("auto", backend.split("-")[0])
    ]
    return next((found for found in [job, *others] if found.path(folder).exists()), job)
