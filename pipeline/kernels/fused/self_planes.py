"""The normalisers of Myrtle networks: each image with itself, on the few offset planes that its zero offset depends on.

Without pools S(x, x)[p, p] depends on itself alone. A pool adds up neighbouring offsets: the zero offset of the third
level needs those up to 1 on the second, and they those up to 3 on the first.
"""

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from exact_ntk.kernels.arccos import relu_duals, snap_to_unit
from exact_ntk.kernels.reference import FILTER_PIXELS, box

SAME_PIXEL = ((-2,), (-1,))  # as in `reference`, of (n, offsets, H, W)
BYTES_AT_ONCE = 64 << 20  # of planes of some images on a GPU, several times that with temporaries
REACH = (3, 1, 0)  # largest offset along an axis, level by level


def _around(m: Tensor, reach: int) -> Tensor:
    """m[p + d] for every offset d, row by row, 0 where p + d is outside: (n, H, W) -> (n, offsets, H, W)."""
    return F.pad(m, [reach] * 4).unfold(1, m.shape[1], 1).unfold(2, m.shape[2], 1).flatten(1, 2)


def _level(planes: Tensor, convolutions: int, reach: int) -> tuple[Tensor, list[Tensor]]:
    """Planes of K (n, offsets, H, W) through the convolutions of a level, and the deviations before each ReLU."""
    tables = []
    zero, inside = planes.shape[1] // 2, _around(torch.ones_like(planes[:1, 0]), reach)
    for _ in range(convolutions):
        s = box(planes, SAME_PIXEL) * inside
        deviation = s[:, zero].sqrt()
        inverse = torch.where(deviation > 0, 1 / deviation, 0.0)
        kappa_1, _ = relu_duals(snap_to_unit(s * (inverse[:, None] * _around(inverse, reach))))
        planes = kappa_1 * (deviation[:, None] * _around(deviation, reach)) / FILTER_PIXELS
        planes[:, zero] = s[:, zero] / FILTER_PIXELS
        tables.append(deviation)
    return planes, tables


def _pooled(planes: Tensor, reach: int) -> Tensor:
    """The mean over the 2 x 2 pixels of both, at offsets D up to `reach`: of planes 2 D + b - a from pixels 2 P + a."""
    side = 2 * reach + 1
    square = planes.unflatten(1, (2 * side + 1, 2 * side + 1))
    out = torch.zeros_like(square[:, :side, :side, ::2, ::2])
    for (a0, a1), (b0, b1) in product(product((0, 1), repeat=2), repeat=2):
        down, across = (slice(1 + b - a, 1 + b - a + 2 * side, 2) for a, b in ((a0, b0), (a1, b1)))
        out += square[:, down, across, a0::2, a1::2][:, :side, :side]
    return out.flatten(1, 2) / 16


def self_deviations(x: Tensor, blocks: Sequence[int]) -> Tensor:
    """sqrt(S(x, x)[p, p]) before each ReLU of a Myrtle network, layer after layer: (n, all their pixels) in float64.

    x (n, C, H, W), both sides divisible by 4.  blocks: convolutions in each of the three. On a CPU image by image:
    torch's vectors would let an image's last bits depend on its place among others. A GPU's threads take an entry each.
    """
    size = 1 if x.device.type == "cpu" else max(1, BYTES_AT_ONCE // (8 * (2 * REACH[0] + 1) ** 2 * x[0, 0].numel()))
    out = []
    for part in x.double().split(size):
        planes = torch.zeros(())
        for k, channel in enumerate(part.unbind(1)):
            products = channel[:, None] * _around(channel, REACH[0])
            planes = planes + products if k else products
        tables: list[Tensor] = []
        for level, convolutions in enumerate(blocks):
            if level:
                planes = _pooled(planes, REACH[level])
            planes, found = _level(planes, convolutions, REACH[level])
            tables += found
        out.append(torch.cat([table.flatten(1) for table in tables], 1))
    return torch.cat(out)
