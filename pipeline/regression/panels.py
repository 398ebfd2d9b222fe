"""The lower trapezoid of a symmetric matrix in panels of fixed width, and files to resume it from."""

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from exact_ntk.disk import free_space
from exact_ntk.errors import StoreError
from exact_ntk.files import write_atomic

# Fixed, for it decides the last bits of a factor. Wide enough for matrix products at the processor's full speed.
WIDTH = 512

log = logging.getLogger("ntk")


@dataclass(frozen=True)
class Trapezoid:
    """Panel k holds columns k * WIDTH to (k + 1) * WIDTH of an n x n matrix, from its diagonal block down."""

    n: int

    def __len__(self) -> int:
        return -(-self.n // WIDTH)

    def columns(self, k: int) -> slice:
        return slice(k * WIDTH, min((k + 1) * WIDTH, self.n))

    def shape(self, k: int) -> tuple[int, int]:
        """Rows and columns of panel k."""
        columns = self.columns(k)
        return self.n - columns.start, columns.stop - columns.start

    def size(self, *ks: int) -> int:
        """Numbers in these panels."""
        return sum(rows * columns for rows, columns in map(self.shape, ks))

    @property
    def bytes(self) -> int:
        """Of all panels."""
        return 8 * self.size(*range(len(self)))

    def view(self, k: int, flat: Tensor) -> Tensor:
        """Panel k in column-major order on the numbers of `flat`."""
        rows, columns = self.shape(k)
        return flat[: rows * columns].view(columns, rows).T

    def update_flops(self, i: int, j: int) -> int:
        """Floating-point operations of taking panel i into panel j."""
        rows, columns = self.shape(j)
        return 2 * rows * columns * self.shape(i)[1]

    def panel_flops(self, k: int) -> int:
        """Of panel k: taking in all before it, and its own factorisation."""
        rows, columns = self.shape(k)
        return 2 * rows * columns * self.columns(k).start + rows * columns**2

    @property
    def flops(self) -> int:
        """Of all panels: n^3 / 3 and a little."""
        return sum(map(self.panel_flops, range(len(self))))

    def groups(self, budget: int) -> list[range]:
        """Consecutive panels that fit in so many bytes together, the last group as large as can be.

        A panel that does not fit by itself is a group nevertheless.
        """
        groups: list[range] = []
        last = len(self)
        while last:
            first = last - 1
            while first and 8 * self.size(*range(first - 1, last)) <= budget:
                first -= 1
            groups.append(range(first, last))
            last = first
        return groups[::-1]


@dataclass(frozen=True)
class PanelFiles:
    """Finished panels of one factor, a file each: a line of JSON with whose they are and a digest, then the numbers.

    fingerprint: of all that the factor depends on.
    """

    folder: Path
    fingerprint: str
    trapezoid: Trapezoid

    def path(self, k: int) -> Path:
        return self.folder / f"{k:05d}.panel"

    def write(self, k: int, flat: Tensor) -> None:
        """Keep a finished panel. Raises NtkError, naming the file, where that cannot be written."""
        numbers = flat.cpu().numpy().view(np.uint8).data
        head = json.dumps(self._head(k, hashlib.sha256(numbers).hexdigest())).encode() + b"\n"

        def write(file: BinaryIO) -> None:
            file.write(head)
            file.write(numbers)

        write_atomic(self.path(k), write)

    def _head(self, k: int, digest: str) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint, "panel": k, "shape": list(self.trapezoid.shape(k)), "digest": digest}

    def read(self, k: int, flat: Tensor) -> None:
        """Fill `flat` with a finished panel. Raises StoreError, naming the file, where it is damaged or another's."""
        path = self.path(k)
        host = flat if flat.device.type == "cpu" else torch.empty_like(flat, device="cpu")
        numbers = host.numpy().view(np.uint8).data
        try:
            with path.open("rb") as file:
                head = file.readline(4096)
                whole = file.readinto(numbers) == len(numbers) and not file.read(1)
            good = whole and json.loads(head) == self._head(k, hashlib.sha256(numbers).hexdigest())
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot read {path}: {error}: run the same command again to have it made anew") from error
        if not good:
            raise StoreError(f"{path} is damaged or another factor's: run the same command again to have it made anew")
        if host is not flat:
            flat.copy_(host)

    def fetch(self, k: int, flat: Tensor) -> bool:
        """`read`, if the panel is there and whole; one that is not is removed, and said."""
        if not self.path(k).exists():
            return False
        try:
            self.read(k, flat)
        except StoreError:
            log.warning(f"{self.path(k)} is damaged or another factor's: it is made anew")
            self.path(k).unlink(missing_ok=True)
            return False
        return True

    def space_missing(self) -> int:
        """How many bytes the disk lacks for the panels that are not there yet; 0 or less if it has room."""
        self.folder.mkdir(parents=True, exist_ok=True)
        there = sum(self.path(k).stat().st_size for k in range(len(self.trapezoid)) if self.path(k).exists())
        return self.trapezoid.bytes - there - free_space(self.folder)[0]

    def remove(self) -> None:
        """The files go."""
        shutil.rmtree(self.folder, ignore_errors=True)


def damaged_panels(folder: Path) -> list[Path]:
    """The panels under a folder, of any factors, that are not whole; reads them all."""
    return [path for path in sorted(folder.glob("*.panels/**/*.panel")) if not _is_whole(path)]


def _is_whole(path: Path) -> bool:
    sha = hashlib.sha256()
    try:
        with path.open("rb") as file:
            head = json.loads(file.readline(4096))
            size = 0
            while part := file.read(1 << 20):
                sha.update(part)
                size += len(part)
        rows, columns = head["shape"]
        cell = next(folder.stem for folder in path.parents if folder.suffix == ".panels")
        of_a_ridge = path.parent.name.removeprefix("ridge-") if path.parent.name.startswith("ridge-") else None
        whose = f"{cell} {of_a_ridge}" if of_a_ridge else cell
        found = head["fingerprint"], head["panel"], head["digest"], 8 * rows * columns
        return found == (whose, int(path.stem), sha.hexdigest(), size)
    except FileNotFoundError:
        return True  # its factor has just been finished
    except (OSError, ValueError, LookupError, TypeError):
        return False
