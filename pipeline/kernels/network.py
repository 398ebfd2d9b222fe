"""The kernels of any network that is a list of layers: a definition apart from `reference`, to check and to try with.

A network is convolutions, activations (`duals.Activation`), mean pools and blurs in any order, and a readout:

    [Conv(3), RELU, Conv(5, bias=0.1), leaky_relu(0.1), Pool(2), Conv(3, padding="circular"), RELU, Readout("gap")]

In the NTK parametrisation: every weight and bias from N(0, 1), a convolution of q x q filters over C channels divided
by sqrt(C q^2), an activation multiplied by sqrt(c_sigma), the readout divided by sqrt(C); the images' own channels
are summed, not averaged (C = 1 there). With 3 x 3 filters and ReLUs that is the scale of `cntk`. Where an activation is
not homogeneous the images' scale matters: divide them by sqrt(C) for a mean over channels.

The covariances of all pixel pairs are held at once, in float64: for small images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from exact_ntk.device import available_memory
from exact_ntk.kernels.duals import Activation
from exact_ntk.kernels.inputs import Values, as_image_sets
from exact_ntk.kernels.passes import PADDINGS, Padding

BYTES_AT_ONCE, TENSORS_ALIVE = 64 << 20, 10


@dataclass(frozen=True)
class Conv:
    """size x size filters, 3 or 5, stride 1, as many pixels out as in.

    padding: "zero", or "circular", where opposite edges meet.  bias: the standard deviation beta of the bias, 0 for
    none.  trained: the filters and the bias.
    """

    size: int = 3
    padding: Padding = "zero"
    bias: float = 0.0
    trained: bool = True


@dataclass(frozen=True)
class Pool:
    """The mean over window x window pixels, the windows side by side."""

    window: int = 2


@dataclass(frozen=True)
class Blur:
    """The mean over the (2 c + 1)^2 pixels around each one, always divided by that many (Li et al. 2019, BBlur)."""

    c: int
    padding: Padding = "zero"


@dataclass(frozen=True)
class Readout:
    """The output: "vanilla", a weight for each pixel and channel, or "gap", one for each channel's mean."""

    kind: Literal["vanilla", "gap"]
    trained: bool = True


Layer = Conv | Activation | Pool | Blur | Readout


class NetworkKernels(NamedTuple):
    """The NTK, and the NNGP kernel: (n1, n2) each."""

    ntk: Tensor
    nngp: Tensor


def require_network(layers: Sequence[Layer], height: int, width: int) -> None:
    """Raise ValueError, with the layer's place, unless the layers make a network with a Gaussian limit."""
    gaussian = False  # whether the layer so far is a linear map with random weights: what an activation takes
    for place, layer in enumerate(layers):
        wrong = None
        if isinstance(layer, Readout) != (place == len(layers) - 1):
            wrong = "a Readout comes last, and nowhere else"
        elif isinstance(layer, Conv) and (layer.size not in (3, 5) or not 0 <= layer.bias < float("inf")):
            wrong = "filters are 3 x 3 or 5 x 5, and a bias has a standard deviation of at least 0"
        elif isinstance(layer, Activation) and not gaussian:
            wrong = "an activation needs a Conv between it and the images or the activation before"
        elif isinstance(layer, Pool):
            if layer.window < 1 or height % layer.window or width % layer.window:
                wrong = f"{height} x {width} pixels do not divide into such windows"
            else:
                height, width = height // layer.window, width // layer.window
        elif isinstance(layer, Blur) and layer.c < 0:
            wrong = "c is at least 0"
        if isinstance(layer, Conv | Blur) and layer.padding not in PADDINGS:
            wrong = "padding is zero or circular"
        if isinstance(layer, Readout) and layer.kind not in ("vanilla", "gap"):
            wrong = "a readout is vanilla or gap"
        if wrong:
            raise ValueError(f"layer {place}, {layer}: {wrong}")
        gaussian = isinstance(layer, Conv) or (gaussian and not isinstance(layer, Activation))
    if not layers:
        raise ValueError("a network has at least a Readout")


def _convolved(m: Tensor, conv: Conv) -> Tensor:
    """(1 / q^2) sum over a of m[p + a, p' + a]."""
    reach, (height, width) = conv.size // 2, m.shape[1:3]
    if conv.padding == "zero":
        wide = F.pad(m, (reach, reach) * 4)
    else:
        wide = m
        for axis in (1, 2, 3, 4):
            n = m.shape[axis]
            wide = wide.index_select(axis, torch.arange(-reach, n + reach, device=m.device) % n)
    out = torch.zeros_like(m)
    for i, j in product(range(conv.size), repeat=2):
        out += wide[:, i : i + height, j : j + width, i : i + height, j : j + width]
    return out / conv.size**2


def _means(layer: Pool | Blur, n: int) -> Tensor:
    """What a pool or a blur does along an axis of n pixels, as a matrix (pixels out, n)."""
    if isinstance(layer, Pool):
        return torch.eye(n // layer.window, dtype=torch.float64).repeat_interleave(layer.window, 1) / layer.window
    out = torch.zeros(n, n, dtype=torch.float64)
    for i, d in product(range(n), range(-layer.c, layer.c + 1)):
        if layer.padding == "circular" or 0 <= i + d < n:
            out[i, (i + d) % n] += 1
    return out / (2 * layer.c + 1)


def _averaged(m: Tensor, layer: Pool | Blur) -> Tensor:
    """Both pixel indices through a pool or a blur, which have no weights."""
    rows, columns = (_means(layer, n).to(m.device) for n in m.shape[1:3])
    return torch.einsum("pi,qj,rk,sl,nijkl->npqrs", rows, columns, rows, columns, m)


def _variances(m: Tensor) -> Tensor:
    """m[p, p], (pairs, H, W)."""
    return torch.einsum("nijij->nij", m)


def _summed(m: Tensor, readout: Readout) -> Tensor:
    return _variances(m).sum((1, 2)) if readout.kind == "vanilla" else m.mean((1, 2, 3, 4))


class _Pairs:
    """Image pairs on their way through a network.

    k, t: covariances of pixel pairs, and their NTK, (pairs, H, W, H, W).  seen: the variances before each activation so
    far, (pairs, H, W).
    """

    def __init__(self, x1: Tensor, x2: Tensor):
        # Channel by channel: equal images then have equal entries, whatever else is in the batch.
        channels = zip(x1.unbind(1), x2.unbind(1), strict=True)
        self.k = sum((a[:, :, :, None, None] * b[:, None, None] for a, b in channels), torch.zeros(()))
        self.t = torch.zeros_like(self.k)
        self.seen: list[Tensor] = []

    def through(
        self, layers: Sequence[Layer], variances: tuple[Sequence[Tensor], Sequence[Tensor]] | None
    ) -> NetworkKernels:
        """variances: before each activation, of the first and of the second images; None for images with themselves."""
        for layer in layers:
            if isinstance(layer, Conv):
                self.k = _convolved(self.k, layer) + layer.bias**2
                self.t = _convolved(self.t, layer) + (self.k if layer.trained else 0)
            elif isinstance(layer, Pool | Blur):
                self.k, self.t = _averaged(self.k, layer), _averaged(self.t, layer)
            elif isinstance(layer, Activation):
                place = len(self.seen)
                self.seen.append(_variances(self.k))
                a, b = (v[place] for v in variances) if variances else (self.seen[place], self.seen[place])
                self.k, derivative = layer.duals(a[:, :, :, None, None], b[:, None, None], self.k)
                self.t = derivative * self.t
            else:
                nngp = _summed(self.k, layer)
                return NetworkKernels(_summed(self.t, layer) + (nngp if layer.trained else 0), nngp)
        raise AssertionError("require_network was not called")


def network_kernels(x1: Values, x2: Values | None = None, *, layers: Sequence[Layer]) -> NetworkKernels:
    """The NTK and the NNGP kernel of the infinitely wide network of these layers, in float64, on x1's device.

    Arguments:
        x1: images (n1, C, H, W), as a tensor, a NumPy array or nested lists.
        x2: images (n2, C, H, W), or None for x1 with itself: symmetric.
        layers: first to last; the last is a `Readout`.

    At an activation of (u, v): K = c_sigma E[sigma(u) sigma(v)] and T <- c_sigma E[sigma'(u) sigma'(v)] T. At a
    convolution: S = beta^2 + (1 / q^2) sum_a K[p + a, p' + a], and T the same sum over T, plus S where it is trained.
    Raises ValueError for malformed images and for layers that make no network, MemoryError where not one pair fits.
    """
    x1, x2 = as_image_sets(x1, x2)
    x1 = x1.double()
    other = x1 if x2 is None else x2.to(x1)
    height, width = x1.shape[2:]
    require_network(layers, height, width)
    bytes_a_pair = TENSORS_ALIVE * 8 * (height * width) ** 2
    if bytes_a_pair > available_memory(x1.device):
        raise MemoryError(f"one pair of {height} x {width} images takes {bytes_a_pair / 1e9:,.1f} GB")
    step = max(1, BYTES_AT_ONCE // bytes_a_pair)

    def variances(x: Tensor) -> list[Tensor]:
        parts = []
        for part in x.split(step):
            own = _Pairs(part, part)
            own.through(layers, None)
            parts.append(own.seen)
        return [torch.cat(of_layer) for of_layer in zip(*parts, strict=True)]

    first = variances(x1)
    second = first if x2 is None else variances(other)
    every = torch.ones(len(x1), len(other), dtype=torch.bool, device=x1.device)
    rows, columns = torch.nonzero(every.tril() if x2 is None else every, as_tuple=True)
    out = x1.new_empty((2, len(x1), len(other)))
    for i, j in zip(rows.split(step), columns.split(step), strict=True):
        found = _Pairs(x1[i], other[j]).through(layers, ([v[i] for v in first], [v[j] for v in second]))
        out[:, i, j] = torch.stack(found)
        if x2 is None:
            out[:, j, i] = out[:, i, j]
    return NetworkKernels(*out)
