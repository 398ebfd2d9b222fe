"""The CNTK recursion in plain torch: the definition that every faster backend is tested against.

Vanilla kernels read only pixel pairs p = p', so their tensors are (pairs, H, W) and always float64; global average
pooling needs all pixel pairs: (pairs, H, W, H, W) in the dtype asked for. Readout sums are float64. Torch
differentiates the recursion as it stands (see `gradients`); what it cannot has its derivative here.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from exact_ntk.kernel_names import window_of
from exact_ntk.kernels.arccos import relu_duals, snap_to_unit
from exact_ntk.kernels.passes import Padding, Pass
from exact_ntk.kernels.windows import local_mean

FILTER_PIXELS = 9  # q^2 of the 3 x 3 filters; c_sigma = 2 lives in the duals
# Axes that move together under `box`, for (pairs, H, W) and (pairs, H, W, H, W).
SAME_PIXEL = ((1,), (2,))
PIXEL_PAIRS = ((1, 3), (2, 4))
# Enough to fill the vector units, small enough to stay near a CPU's last-level cache. Fixed: never free memory.
BYTE_BUDGET = {"cpu": 24 << 20, "cuda": 2 << 30}
TENSORS_ALIVE = 8
# At the peak of a pass over one pair, normalisers included; measured at 64 x 64 (gap) and 2,000 x 2,000 pixels.
TENSORS_AT_PEAK = {"vanilla": 56, "gap": 12}


def _narrow(m: Tensor, axes: Sequence[int], start: int, length: int) -> Tensor:
    for axis in axes:
        m = m.narrow(axis, start, length)
    return m


def box(m: Tensor, groups: Sequence[Sequence[int]], padding: Padding = "zero") -> Tensor:
    """Sum over the 3 x 3 neighbourhood, the axes of each group moving together; outside the image is 0, or it again.

    With `PIXEL_PAIRS`, out[p, p'] = sum over a in {-1, 0, 1}^2 of m[p + a, p' + a].
    """
    return _Box.apply(m, groups, padding)


class _Box(Function):
    """`box`, its own adjoint."""

    @staticmethod
    def forward(m: Tensor, groups: Sequence[Sequence[int]], padding: Padding) -> Tensor:
        return _box(m, groups, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, ctx.groups, ctx.padding = inputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _box(gradient, ctx.groups, ctx.padding), None, None


def _box(m: Tensor, groups: Sequence[Sequence[int]], padding: Padding) -> Tensor:
    for axes in groups:
        if padding == "circular":
            m = m + m.roll([1] * len(axes), tuple(axes)) + m.roll([-1] * len(axes), tuple(axes))
            continue
        out = m.clone()
        inner = m.shape[axes[0]] - 1
        if inner:
            _narrow(out, axes, 1, inner).add_(_narrow(m, axes, 0, inner))
            _narrow(out, axes, 0, inner).add_(_narrow(m, axes, 1, inner))
        m = out
    return m


def deviations(x: Tensor, layers: int, padding: Padding = "zero") -> list[Tensor]:
    """sqrt(S_h(x, x)[p, p]) for h = 0 .. layers - 1, each (n, H, W) in float64, from each image alone.

    On the diagonal lam = 1, so the recursion is linear: S_{h+1} = box(S_h / 9).
    """
    norms = torch.zeros_like(x[:, 0], dtype=torch.float64)
    for channel in x.unbind(1):  # one by one: a sum over an axis may be cut by how many images there are
        norms += channel.double().square()
    s = box(norms, SAME_PIXEL, padding)
    tables = []
    for _ in range(layers):
        # A black patch has no derivative: 0 stands for it, where sqrt alone would give infinity.
        tables.append(torch.where(s > 0, torch.where(s > 0, s, 1.0).sqrt(), 0.0))
        s = box(s / FILTER_PIXELS, SAME_PIXEL, padding)
    return tables


def equal_images(x1: Tensor, x2: Tensor) -> Tensor:
    """Which images are the same, pixel for pixel: (pairs, 1, 1)."""
    return (x1 == x2).flatten(1).all(1)[:, None, None]


def _reciprocal(d: Tensor) -> Tensor:
    """1 / d, and 0 where d = 0: a correlation with an empty patch is defined as 0."""
    return torch.where(d > 0, 1.0 / d, 0.0)


class _Vanilla:
    """Pixel pairs p = p': tensors (pairs, H, W), readout by the sum over p."""

    axes = SAME_PIXEL

    def __init__(self, dtype: torch.dtype):
        self.dtype = torch.float64  # 1 / (H W) of the pooled cost, and nearly equal images need it

    def inner_products(self, x1: Tensor, x2: Tensor) -> Tensor:
        return (x1 * x2).sum(1)

    def spread(self, d1: Tensor, d2: Tensor) -> tuple[Tensor, Tensor]:
        return d1, d2

    def zero_offset(self, m: Tensor) -> Tensor:
        return m

    def readout(self, m: Tensor, zero_offset: Tensor, name: str, padding: Padding) -> Tensor:
        return m.sum((1, 2))


class PixelPairs:
    """All pixel pairs: tensors (pairs, H, W, H, W), readout by the mean over p and p', or by local means."""

    axes = PIXEL_PAIRS

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype

    def inner_products(self, x1: Tensor, x2: Tensor) -> Tensor:
        n, _, h, w = x1.shape
        return torch.bmm(x1.flatten(2).transpose(1, 2), x2.flatten(2)).view(n, h, w, h, w)

    def spread(self, d1: Tensor, d2: Tensor) -> tuple[Tensor, Tensor]:
        return d1[:, :, :, None, None], d2[:, None, None, :, :]

    def zero_offset(self, m: Tensor) -> Tensor:
        n, h, w = m.shape[:3]
        return m.view(n, h * w, h * w).diagonal(dim1=1, dim2=2).unflatten(1, (h, w))

    def readout(self, m: Tensor, zero_offset: Tensor, name: str, padding: Padding) -> Tensor:
        c = window_of(name)
        if c is not None:
            zero = zero_offset - self.zero_offset(m)
            return local_mean(m, c, padding) + local_mean(zero, c, padding)
        others = m.sum((1, 2, 3, 4), dtype=torch.float64) - self.zero_offset(m).sum((1, 2), dtype=torch.float64)
        return (others + zero_offset.sum((1, 2))) / m[0].numel()


FAMILIES: dict[str, type[_Vanilla] | type[PixelPairs]] = {"vanilla": _Vanilla, "gap": PixelPairs}


class _ActivationLayer(Function):
    """K = a b kappa_1(lam) / 9 and Kdot = kappa_0(lam) / 9 of covariances S = a b lam; differentiable for the ReLU.

    a, b: standard deviations, which broadcast to S's shape.  lam: correlations, snapped to +-1, which K and Kdot are
    computed from: S is there to be differentiated by.
    """

    @staticmethod
    def forward(
        s: Tensor, a: Tensor, b: Tensor, lam: Tensor, duals: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        kappa_1, kappa_0 = duals(lam)
        return kappa_1.mul_(a * b).div_(FILTER_PIXELS), kappa_0.div_(FILTER_PIXELS)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        _, a, b, lam, ctx.duals = inputs
        ctx.save_for_backward(a, b, lam, output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_k: Tensor, of_kdot: Tensor) -> tuple[Tensor | None, ...]:
        """kappa_1' = kappa_0 and kappa_0' = 1 / (pi sqrt(1 - lam^2)), which counts as 0 where lam is snapped to 1.

        By S, and not by way of lam: for a black patch dK/dS is then 1/18, half of what it is on either side.
        """
        assert ctx.duals is relu_duals
        a, b, lam, kdot = ctx.saved_tensors
        sine = ((1.0 - lam) * (1.0 + lam)).sqrt_()
        cusp = of_kdot / (FILTER_PIXELS * math.pi) * _reciprocal(sine) * _reciprocal(a) * _reciprocal(b)
        of_s = torch.addcmul(cusp, of_k, kdot)
        of_ab = sine.mul_(of_k).div_(FILTER_PIXELS * math.pi).sub_(cusp.mul_(lam))
        return of_s, (of_ab * b).sum_to_size(a.shape), (of_ab * a).sum_to_size(b.shape), None, None


def activation_layer(
    s: Tensor,
    t: Tensor | None,
    a: Tensor,
    b: Tensor,
    equal: Tensor,
    family: "_Vanilla | PixelPairs",
    duals: Callable[[Tensor], tuple[Tensor, Tensor]] = relu_duals,
) -> tuple[Tensor, Tensor]:
    """K = n kappa_1(lam) / q^2 and R = kappa_0(lam) T / q^2 + K; R is K where t is None.

    a, b: the images' deviations, (pairs, H, W) in float64, n being their outer product.  equal: (pairs, 1, 1), whether
    both images are the same, so that lam = 1 at p = p'.
    """
    a, b = family.spread(a, b)
    with torch.no_grad():
        lam = s * (_reciprocal(a).to(s) * _reciprocal(b).to(s))
        diagonal = family.zero_offset(lam)
        diagonal.masked_fill_(equal & (diagonal > 0), 1.0)
        snap_to_unit(lam)
    k, kdot = _ActivationLayer.apply(s, a.to(s), b.to(s), lam, duals)
    del lam
    return k, k if t is None else torch.addcmul(k, kdot, t)


def _layers(
    x1: Tensor, x2: Tensor, d1: list[Tensor], d2: list[Tensor], family: _Vanilla | PixelPairs, job: Pass
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (K, R) after each ReLU, h = 1 .. L - 1, for pairs (x1[i], x2[i]); R is K where no NTK is asked for."""
    equal = equal_images(x1, x2)
    s = box(family.inner_products(x1.double(), x2.double()), family.axes, job.padding).to(family.dtype)
    t = s if job.train_first else torch.zeros_like(s)
    for a, b in zip(d1, d2, strict=True):
        k, r = activation_layer(s, t if job.ntk else None, a, b, equal, family)
        yield k, r
        s = box(k, family.axes, job.padding)
        t = box(r, family.axes, job.padding) if job.ntk else s


def pairs_at_once(bytes_each: int, device: torch.device, budget: int | None) -> int:
    """How many pairs, at least one, keep within the budget, by default that of the device."""
    return max(1, (budget or BYTE_BUDGET[device.type]) // bytes_each)


def bytes_a_pair(family: str, dtype: torch.dtype, height: int, width: int) -> int:
    """What a pass over one pair of images takes at least."""
    return TENSORS_AT_PEAK[family] * bytes_a_tensor(family, dtype, height, width)


def bytes_a_tensor(family: str, dtype: torch.dtype, height: int, width: int) -> int:
    """What one of the recursion's tensors takes for a pair of images."""
    pixels = height * width
    return FAMILIES[family](dtype).dtype.itemsize * pixels ** (2 if family == "gap" else 1)


def cntk_pass(x1: Tensor, x2: Tensor | None, job: Pass, dtype: torch.dtype, byte_budget: int | None = None) -> Tensor:
    """One readout family at all depths in one pass.

    x1 (n1, C, H, W), x2 (n2, C, H, W) or None for x1 with itself, which computes each pair once.
    Returns (len(job.readouts), len(job.depths), n1, n2) in float64 on x1's device. Pairs are split so that working
    memory stays near `byte_budget` bytes (at least one pair at a time).
    """
    n1, n2 = len(x1), len(x1 if x2 is None else x2)
    if x2 is None:
        rows, columns = torch.tril_indices(n1, n1, device=x1.device)
    else:
        rows, columns = torch.cartesian_prod(torch.arange(n1, device=x1.device), torch.arange(n2, device=x1.device)).T
    out = x1.new_empty((len(job.readouts), len(job.depths), n1, n2), dtype=torch.float64)
    for slot, place, part, value in pair_values(x1, x2, rows, columns, job, dtype, byte_budget):
        i, j = rows[part], columns[part]
        out[slot, place, i, j] = value
        if x2 is None:
            out[slot, place, j, i] = value
    return out


def self_pass(x: Tensor, job: Pass, dtype: torch.dtype, byte_budget: int | None = None) -> Tensor:
    """Each image with itself: (len(job.readouts), len(job.depths), n), the diagonal of `cntk_pass(x, None, ...)`."""
    every = torch.arange(len(x), device=x.device)
    out = x.new_empty((len(job.readouts), len(job.depths), len(x)), dtype=torch.float64)
    for slot, place, part, value in pair_values(x, None, every, every, job, dtype, byte_budget):
        out[slot, place, part] = value
    return out


def pair_values(
    x1: Tensor,
    x2: Tensor | None,
    rows: Tensor,
    columns: Tensor,
    job: Pass,
    dtype: torch.dtype,
    byte_budget: int | None,
) -> Iterator[tuple[int, int, slice, Tensor]]:
    """The kernels of the pairs (x1[rows], x2[columns]), some at a time: places of readout, depth and pairs, values."""
    other = x1 if x2 is None else x2
    layers = max(job.depths) - 1
    d1 = deviations(x1, layers, job.padding)
    d2 = d1 if x2 is None else deviations(other, layers, job.padding)
    step = pairs_at_once(TENSORS_ALIVE * bytes_a_tensor(job.family, dtype, *x1.shape[2:]), x1.device, byte_budget)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        i, j = rows[part], columns[part]
        pairs = x1[i], other[j], [d[i] for d in d1], [d[j] for d in d2]
        for slot, place, value in kernels_of(*pairs, job, dtype):
            yield slot, place, part, value


def kernels_of(
    x1: Tensor, x2: Tensor, d1: list[Tensor], d2: list[Tensor], job: Pass, dtype: torch.dtype
) -> Iterator[tuple[int, int, Tensor]]:
    """The kernels of pairs (x1[i], x2[i]) with their `deviations`, all at once: places of readout and depth, values."""
    family, same_pixel = FAMILIES[job.family](dtype), _Vanilla(dtype)
    # Nearly equal images have correlations near 1 at p = p', where float32 loses arccos: that part is float64.
    both = zip(*(_layers(x1, x2, d1, d2, which, job) for which in (family, same_pixel)), strict=True)
    for depth, layer in enumerate(both, start=2):
        if depth in job.depths:
            ntk, ntk_same = (r if job.train_last else r - k for k, r in layer)
            nngp, nngp_same = (k for k, _ in layer)
            for slot, name in enumerate(job.readouts):
                parts = (nngp, nngp_same) if name.endswith("-nngp") else (ntk, ntk_same)
                yield slot, job.depths.index(depth), family.readout(*parts, name, job.padding)
