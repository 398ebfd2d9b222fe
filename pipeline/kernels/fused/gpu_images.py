"""Images as the kernels on a GPU read them: scaled, with their normalisers, in tiles' order."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from exact_ntk.kernels.fused.layout import Layout
from exact_ntk.kernels.fused.self_planes import self_deviations
from exact_ntk.kernels.reference import deviations

# As in images.h: patch norms below this share of the image's largest count as 0.
SMALLEST_NORM = 1e-18
BUILD_BYTES = 256 << 20  # of tables that are made at once


def strips(n: int, size: int) -> Iterator[slice]:
    return (slice(k, min(k + size, n)) for k in range(0, n, size))


def turned(x: Tensor, layout: Layout) -> Tensor:
    """Contiguous float32 images, transposed where the layout is."""
    transposed = (layout.rows, layout.columns) != tuple(x.shape[2:])
    return (x.mT if transposed else x).to(torch.float32).contiguous()


def power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent in float64, by its bits: exact on any device, as torch.ldexp is not."""
    return (exponent.long() + 1023 << 52).view(torch.float64)


def hashes(x: Tensor) -> Tensor:
    """(n) integers that are equal for images of equal pixels."""
    bits = (x + 0.0).flatten(1).view(torch.int32).long()  # + 0: -0 and 0 are equal
    weights = torch.arange(1, bits.shape[1] + 1, device=x.device) * 0x1E3779B97F4A7C15
    weights = (weights ^ (weights >> 29)) * 0x3F58476D1CE4E5B9
    return (bits * (weights | 1)).sum(1)


def normalisers(d: Tensor) -> Tensor:
    """Deviations (n, layers, H, W) -> (n, layers, 2, H, W): they, and their reciprocals or 0."""
    return torch.stack([d, torch.where(d > 0, 1 / d, 0.0)], 2)


def _sizes(layouts: Sequence[Layout], layers: Sequence[int], channels: int) -> tuple[list[int], int]:
    """Of an image's tables: stages of each level, and doubles."""
    pixels = [layout.rows * layout.columns for layout in layouts]
    doubles = channels * pixels[0] + sum(2 * count * each for count, each in zip(layers, pixels, strict=True))
    return [-(-channels // 2) + layers[0], *layers[1:]], doubles


class ImageTables:
    """A strip of images as the kernels read them, scaled by powers of two so that the largest patch norm is near 1.

    layouts, layers: one of each, or those of a Myrtle network's levels.  tables: of each level (n, stages, 2, padded
    rows, padded columns) in float32, where a stage is two channels, on the first level, or a layer's deviations and
    reciprocals; exact (n, doubles) in float64: channels, then of each level its layers' deviations and reciprocals;
    scale (n): the power of two divided by; hash (n): equal for equal images. An image's do not depend on the others.
    """

    def __init__(self, x: Tensor, layouts: Sequence[Layout], layers: Sequence[int]):
        n, self.channels = x.shape[:2]
        self.channel_stages = -(-self.channels // 2)
        stages, doubles = _sizes(layouts, layers, self.channels)
        levels = zip(layouts, stages, strict=True)
        self.tables = [torch.zeros((n, count, 2, *layout.padded), device=x.device) for layout, count in levels]
        self.exact = torch.empty((n, doubles), dtype=torch.float64, device=x.device)
        self.scale = torch.empty(n, dtype=torch.float64, device=x.device)
        self.hash = torch.empty(n, dtype=torch.int64, device=x.device)
        # Their making takes several times the memory that they do.
        for part in strips(n, max(1, BUILD_BYTES // (8 * self.bytes_each(layouts, layers, self.channels)))):
            self._build(part, x[part], layouts, layers)

    def _build(self, part: slice, x: Tensor, layouts: Sequence[Layout], layers: Sequence[int]) -> None:
        shapes = [(count, layout.rows, layout.columns) for count, layout in zip(layers, layouts, strict=True)]
        # Without pools an image with itself is a recursion of the zero offset alone.
        d = self_deviations(x, layers) if len(layers) > 1 else torch.stack(deviations(x, layers[0]), 1).flatten(1)
        largest = d[:, : x[0, 0].numel()].amax(1)
        exponent = torch.where(largest > 0, torch.frexp(largest).exponent - 1, 0)
        factor = power_of_two(-exponent)[:, None]
        d, pixels = d * factor, x.double() * factor[..., None, None]
        self.scale[part], self.hash[part] = power_of_two(exponent), hashes(x)
        channels = self.tables[0][part, : self.channel_stages, :, : x.shape[2], : x.shape[3]].flatten(1, 2)
        channels[:, : self.channels] = pixels.float()
        exact = [pixels.flatten(1)]
        of_levels = d.split([math.prod(shape) for shape in shapes], 1)
        for tables, shape, of_level in zip(self.tables, shapes, of_levels, strict=True):
            both = normalisers(of_level.unflatten(1, shape))
            count, rows, columns = shape
            tables[part, -count:, :, :rows, :columns] = torch.where(both[:, :, :1] >= SMALLEST_NORM, both, 0.0)
            exact.append(both.flatten(1))
        self.exact[part] = torch.cat(exact, 1)

    @staticmethod
    def bytes_each(layouts: Sequence[Layout], layers: Sequence[int], channels: int) -> int:
        """Of the tables of one image."""
        stages, doubles = _sizes(layouts, layers, channels)
        return 4 * sum(layout.stage * count for layout, count in zip(layouts, stages, strict=True)) + 8 * doubles

    def __len__(self) -> int:
        return len(self.scale)
