"""Images as the kernels on a GPU read them: scaled, with their normalisers, in tiles' order."""

from collections.abc import Iterator

import torch
from torch import Tensor

from exact_ntk.kernels.fused.layout import Layout
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


class ImageTables:
    """A strip of images as the kernels read them, scaled by powers of two so that the largest patch norm is near 1.

    tables (n, stages, 2, padded rows, padded columns) in float32, where a stage is two channels or a layer's deviations
    and reciprocals; exact (n, C + 2 layers, pixels) in float64; scale (n): the power of two divided by; hash (n): equal
    for equal images. An image's do not depend on the others.
    """

    def __init__(self, x: Tensor, layout: Layout, layers: int):
        n, channels = x.shape[:2]
        self.channels, self.channel_stages = channels, -(-channels // 2)
        stages, exact = self.channel_stages + layers, channels + 2 * layers
        self.tables = torch.zeros((n, stages, 2, *layout.padded), device=x.device)
        self.exact = torch.empty((n, exact, *x.shape[2:]), dtype=torch.float64, device=x.device)
        self.scale = torch.empty(n, dtype=torch.float64, device=x.device)
        self.hash = torch.empty(n, dtype=torch.int64, device=x.device)
        # Their making takes several times the memory that they do.
        for part in strips(n, max(1, BUILD_BYTES // (8 * self.bytes_each(layout, channels, layers)))):
            self._build(part, x[part], layers)

    def _build(self, part: slice, x: Tensor, layers: int) -> None:
        channels, rows, columns = x.shape[1:]
        d = torch.stack(deviations(x, layers), 1)
        largest = d[:, 0].flatten(1).amax(1)
        exponent = torch.where(largest > 0, torch.frexp(largest).exponent - 1, 0)
        factor = power_of_two(-exponent)[:, None, None, None]
        d, pixels = d * factor, x.double() * factor
        both = normalisers(d)
        self.exact[part, :channels] = pixels
        self.exact[part, channels:] = both.flatten(1, 2)
        tables = self.tables[part, ..., :rows, :columns]
        tables[:, : self.channel_stages].flatten(1, 2)[:, :channels] = pixels.float()
        present = (d >= SMALLEST_NORM)[:, :, None]
        tables[:, self.channel_stages :] = torch.where(present, both, 0.0)
        self.scale[part] = power_of_two(exponent)
        self.hash[part] = hashes(x)

    @staticmethod
    def bytes_each(layout: Layout, channels: int, layers: int) -> int:
        """Of the tables of one image."""
        return 4 * layout.stage * (-(-channels // 2) + layers) + 8 * layout.rows * layout.columns * (
            channels + 2 * layers
        )

    def __len__(self) -> int:
        return len(self.scale)
