"""Pairs of images on a GPU, strip by strip: as many images at once as there is room for their tables."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from exact_ntk.kernels.fused.gpu_images import ImageTables, strips, turned
from exact_ntk.kernels.fused.gpu_launch import share_of_memory
from exact_ntk.kernels.fused.layout import Layout

# Never free memory: tables of a strip of images, at most this share of the device's memory and so many images.
STRIP_BYTES, STRIP_SHARE, STRIP_IMAGES = 1536 << 20, 12, 1 << 13


@dataclass(frozen=True)
class StripPair:
    """Two strips of images, and where the sums of their pairs go: (..., n1, n2) in float64.

    symmetric: a strip with itself, of which the pairs of the lower triangle count.  own: a strip with itself, of which
    each image with itself counts alone, and sums' rows have stride 0.
    """

    first: ImageTables
    second: ImageTables
    sums: Tensor
    symmetric: bool = False
    own: bool = False

    @property
    def n2(self) -> int:
        """Second images of a first one, 0 where it is paired with itself: see find_pair in warp.cuh."""
        return 0 if self.own else len(self.second)

    @property
    def total(self) -> int:
        """Pairs that count."""
        n1 = len(self.first)
        return n1 if self.own else n1 * (n1 + 1) // 2 if self.symmetric else n1 * self.n2

    @property
    def exact(self) -> tuple[int, int]:
        return self.first.exact.data_ptr(), self.second.exact.data_ptr()

    @property
    def scales(self) -> tuple[int, int]:
        return self.first.scale.data_ptr(), self.second.scale.data_ptr()

    @property
    def hashes(self) -> tuple[int, int]:
        return self.first.hash.data_ptr(), self.second.hash.data_ptr()

    def tables(self, level: int = 0) -> tuple[int, int]:
        return self.first.tables[level].data_ptr(), self.second.tables[level].data_ptr()


def strip_pairs(
    x1: Tensor,
    x2: Tensor | None,
    layouts: Sequence[Layout],
    layers: Sequence[int],
    sums: Tensor,
    own: bool,
    most_images: int,
) -> Iterator[StripPair]:
    """All pairs of images, or with x2 None of x1 with itself, or with `own` each of x1 with itself alone.

    layouts, layers: of each level.  sums: (..., n1, n2), or with `own` (..., n1). Those of two strips are to be there
    when the next two are asked for: what is symmetric is mirrored then.
    """
    a = turned(x1, layouts[0])
    b = a if x2 is None else turned(x2, layouts[0])
    bytes_each = ImageTables.bytes_each(layouts, layers, a.shape[1])
    size = max(1, min(most_images, share_of_memory(a.device, STRIP_BYTES, STRIP_SHARE) // bytes_each))
    for rows in strips(len(a), size):
        first = ImageTables(a[rows], layouts, layers)
        if own:
            corner = sums[..., None, rows]
            yield StripPair(first, first, corner.expand(*corner.shape[:-2], len(first), -1), own=True)
            continue
        for columns in strips(len(b), size):
            if x2 is None and columns.start > rows.start:
                break  # above the diagonal: mirrored
            symmetric = x2 is None and columns == rows
            second = first if symmetric else ImageTables(b[columns], layouts, layers)
            corner = sums[..., rows, columns]
            yield StripPair(first, second, corner, symmetric)
            if symmetric:
                corner.copy_(corner.tril() + corner.tril(-1).mT)
            elif x2 is None:
                sums[..., columns, rows] = corner.mT
