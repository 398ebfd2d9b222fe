"""The kernel values of a block of images from one source, in as many parts as memory takes."""

import logging
import math
import time
from collections.abc import Iterator, Sequence

import torch

from exact_ntk.gram.plan import LARGEST_TILE_BYTES
from exact_ntk.gram.sources import Source
from exact_ntk.gram.tiles import Array, is_mirrored, is_self_kernel, kernel_of
from exact_ntk.kernel_names import family_of
from exact_ntk.kernels import Pass, cntk_pass, self_pass

SECONDS_TO_TELL = 0.25  # a block this long tells how fast the next ones are
DTYPES = {"float32": torch.float32, "float64": torch.float64}  # by the config's words

log = logging.getLogger("ntk")


def passes_of(source: Source, arrays: Sequence[Array]) -> list[Pass]:
    """The passes that give every one of `arrays`: one for each group of `by_pass`."""
    return [pass_of(source, same) for same in by_pass(arrays)]


def pass_of(source: Source, arrays: Sequence[Array]) -> Pass:
    """One pass that gives every one of `arrays`, which are a group of `by_pass`."""
    readouts, depths = {kernel_of(array) for array in arrays}, {d for _, d in arrays}
    return Pass(source.family, tuple(sorted(depths)), tuple(sorted(readouts)), source.train_first, source.train_last)


def by_pass(arrays: Sequence[Array]) -> list[list[Array]]:
    """The arrays of K(x, x'), those of K(x, Fx') and those of K(x, x), each as far as there are any.

    Of Myrtle networks each depth by itself: no two of them share a layer.
    """
    kinds: dict[tuple[bool, bool, int | None], list[Array]] = {}
    for array in arrays:
        depth = array[1] if family_of(kernel_of(array)) == "myrtle" else None
        kinds.setdefault((is_mirrored(array), is_self_kernel(array), depth), []).append(array)
    return list(kinds.values())


class TileComputer:
    """Images on a device, and the kernel values of their blocks from one source."""

    def __init__(self, source: Source, device: torch.device):
        self.source, self.device = source, device
        self.x = source.images.passing().to(device)
        self.most = max(1, len(self.x))  # side of the largest block that memory was not found too short for

    def block(self, rows: slice, columns: slice, arrays: Sequence[Array]) -> torch.Tensor:
        """(arrays, rows, columns) in float64; on the diagonal, what lies above is that below, mirrored.

        In one pass, or where memory is short in several, of parts of half the side; values of fused backends are the
        same. Raises torch.OutOfMemoryError or MemoryError where not even a pair fits.
        """
        if rows.start == columns.start and rows.stop > columns.stop:  # test images follow the last training images
            below = slice(columns.stop, rows.stop)
            square, rest = (self.block(r, columns, arrays) for r in (columns, below))
            return torch.cat([square.to(rest.device), rest], 1)
        passes = by_pass(arrays)
        if len(passes) > 1:
            found = {a: v for same in passes for a, v in zip(same, self.block(rows, columns, same), strict=True)}
            return torch.stack([found[array].to(found[arrays[0]].device) for array in arrays])
        side = max(rows.stop - rows.start, columns.stop - columns.start)
        if side <= self.most:
            try:
                return self._pass(rows, columns, arrays)
            except (torch.OutOfMemoryError, MemoryError):
                if side == 1:
                    raise
                self.most = -(-side // 2)
            log.warning(
                f"{self.device} is out of memory for a block of {side} x {side} images: going on in blocks of "
                f"{self.most} x {self.most}"
            )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        shape = len(arrays), rows.stop - rows.start, columns.stop - columns.start
        values = torch.empty(shape, dtype=torch.float64)
        size = self.most  # which a part may find too large as well
        for r in _parts(rows, size):
            for c in _parts(columns, size):
                if rows == columns and c.start > r.start:
                    continue
                i, j = (slice(p.start - of.start, p.stop - of.start) for p, of in ((r, rows), (c, columns)))
                values[:, i, j] = part = self.block(r, c, arrays).cpu()
                if rows == columns:
                    values[:, j, i] = part.mT
        return values

    def _pass(self, rows: slice, columns: slice, arrays: Sequence[Array]) -> torch.Tensor:
        flipped, on_diagonal = is_mirrored(arrays[0]), rows == columns
        other = self.x[columns].flip(-1) if flipped else None if on_diagonal else self.x[columns]
        job, dtype = pass_of(self.source, arrays), DTYPES[self.source.dtype]
        values = _chosen(cntk_pass(self.x[rows], other, job, backend=self.source.backend, dtype=dtype), job, arrays)
        # K(x, Fx') is K(x', Fx) up to rounding: one of the two is taken for both.
        return values.tril() + values.tril(-1).mT if flipped and on_diagonal else values

    def self_kernels(self, rows: slice, arrays: Sequence[Array]) -> torch.Tensor:
        """K(x, x), (arrays, rows, 1) in float64."""
        found: dict[Array, torch.Tensor] = {}
        dtype = DTYPES[self.source.dtype]
        for same in by_pass(arrays):
            job = pass_of(self.source, same)
            values = self_pass(self.x[rows], job, backend=self.source.backend, dtype=dtype)
            found |= dict(zip(same, _chosen(values, job, same), strict=True))
        return torch.stack([found[array] for array in arrays])[:, :, None]

    def pairs_per_second(self, arrays: Sequence[Array]) -> float:
        """Measured on growing blocks until one takes long enough to tell; the better of two tries each."""
        # No larger than a tile, whose size says how much memory is used.
        side, most = 1, max(1, min(len(self.x) // 2, math.isqrt(LARGEST_TILE_BYTES // (8 * len(arrays)))))
        self._seconds(slice(0, 1), slice(0, 1), arrays)
        while True:
            seconds = min(self._seconds(slice(0, side), slice(most, most + side), arrays) for _ in range(2))
            if seconds > SECONDS_TO_TELL or 2 * side > most:
                return side**2 / seconds
            side *= 2

    def _seconds(self, rows: slice, columns: slice, arrays: Sequence[Array]) -> float:
        start = time.perf_counter()
        self.block(rows, columns, arrays).sum().item()
        return time.perf_counter() - start


def _chosen(values: torch.Tensor, job: Pass, arrays: Sequence[Array]) -> torch.Tensor:
    """Of what a pass gives (readouts, depths, ...) that of each array."""
    return torch.stack([values[job.readouts.index(kernel_of(a)), job.depths.index(a[1])] for a in arrays])


def _parts(whole: slice, size: int) -> Iterator[slice]:
    return (slice(k, min(k + size, whole.stop)) for k in range(whole.start, whole.stop, size))
