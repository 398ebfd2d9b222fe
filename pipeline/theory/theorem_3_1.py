"""Theorem 3.1: at initialisation the NTK of a wide network is near its limit, layer by layer."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import ks_2samp
from torch import Tensor

from exact_ntk.kernels import cntk, ntk_layers
from exact_ntk.theory.convolutional import empirical_ntk, paper_net
from exact_ntk.theory.inputs import images, seed_of, vectors
from exact_ntk.theory.networks import Signals, draw_weights, propagate
from exact_ntk.theory.sampling import sample_signals

# So many numbers of one signal at once: seeds are run in groups that keep memory small.
NUMBERS_AT_ONCE = 1 << 22
LAW_WIDTH, LAW_LAYERS, LAW_INPUTS = 24, 3, 3

Watch = Callable[[int], object]


@dataclass(frozen=True)
class InitialisationSize:
    """How much is measured: networks of 1 .. deepest hidden layers at each width, `seeds` of each."""

    widths: tuple[int, ...]
    seeds: int
    inputs: int = 10
    deepest: int = 5
    law_seeds: int = 1000

    @property
    def networks(self) -> int:
        """How many networks that is."""
        return len(self.widths) * self.deepest * self.seeds


@dataclass(frozen=True)
class CnnInitialisationSize:
    """The same for convolutional networks of one depth, vanilla and GAP."""

    widths: tuple[int, ...]
    seeds: int
    images: int = 6
    depth: int = 3

    @property
    def networks(self) -> int:
        """How many networks that is."""
        return 2 * len(self.widths) * self.seeds


@dataclass(frozen=True)
class Initialisation:
    """Absolute errors at initialisation, an array (seeds, pairs of inputs) a width.

    ntk: by L, of the NTK.  forward, backward: of the deepest network, by h from 1 to L, of <g^(h), g^(h)'> and of
    <b^(h), b^(h)'>.
    """

    widths: tuple[int, ...]
    ntk: dict[int, list[np.ndarray]]
    forward: dict[int, list[np.ndarray]]
    backward: dict[int, list[np.ndarray]]


def _pairs(difference: Tensor) -> np.ndarray:
    """Absolute values of the lower triangles of (S, n, n), diagonal included: (S, n (n + 1) / 2)."""
    i, j = torch.tril_indices(*difference.shape[-2:])
    return difference[:, i, j].abs().cpu().numpy()


def measure_initialisation(size: InitialisationSize, device: torch.device, watch: Watch) -> Initialisation:
    """Sample every network (`sample_signals`, float64) and compare with `ntk_layers`; `watch` counts networks."""
    x = vectors(size.inputs).to(device)
    ntk: dict[int, list[np.ndarray]] = {}
    layers = range(1, size.deepest + 1)
    forward: dict[int, list[np.ndarray]] = {h: [] for h in layers}
    backward: dict[int, list[np.ndarray]] = {h: [] for h in layers}
    for hidden_layers in layers:
        limit = ntk_layers(x, hidden_layers=hidden_layers)
        ntk[hidden_layers] = []
        for width in size.widths:
            generator = torch.Generator(device).manual_seed(seed_of(1, hidden_layers, width))
            seeds = [len(s) for s in torch.arange(size.seeds).split(max(1, NUMBERS_AT_ONCE // (width * size.inputs)))]
            found = []
            for count in seeds:
                s = sample_signals(x, width, hidden_layers, count, generator, torch.float64)
                found.append((s.ntk, s.forward_grams, s.backward_grams))
                watch(count)
            kernels, g, b = (
                torch.cat(parts, dim=k) for k, parts in zip((0, 1, 1), zip(*found, strict=True), strict=True)
            )
            ntk[hidden_layers].append(_pairs(kernels - limit.ntk))
            if hidden_layers == size.deepest:
                for h in layers:
                    forward[h].append(_pairs(g[h] - limit.sigma[h]))
                    backward[h].append(_pairs(b[h - 1] - limit.backward[h - 1]))
    return Initialisation(size.widths, ntk, forward, backward)


def measure_cnn(size: CnnInitialisationSize, device: torch.device, watch: Watch) -> dict[str, list[np.ndarray]]:
    """By readout: |error| / mean of the kernel's diagonal of the CNN's NTK, an array (seeds, pairs) a width."""
    x = images(size.images).to(device)
    found: dict[str, list[np.ndarray]] = {}
    for number, readout in enumerate(("vanilla", "gap")):
        limit = cntk(x, depths=(size.depth,), readouts=(readout,), dtype=torch.float64)[0, 0]
        found[readout] = []
        for width in size.widths:
            kernels = []
            for k in range(size.seeds):
                net = paper_net(x, size.depth, width, readout, seed_of(2, number, width, k))
                kernels.append(empirical_ntk(net, x.float()).double())
                watch(1)
            found[readout].append(_pairs((torch.stack(kernels) - limit) / limit.diagonal().mean()))
    return found


def law_p_value(size: InitialisationSize, device: torch.device) -> float:
    """Whether `sample_signals` has the law of `propagate` on drawn weights.

    The smallest two-sample Kolmogorov-Smirnov p-value over entries of the NTK and of every layer's Gram matrices,
    times their number (Bonferroni). Uniform draws of it are rarely small.
    """
    x = vectors(LAW_INPUTS).to(device)
    generator = torch.Generator(device).manual_seed(seed_of(3))
    options = (LAW_LAYERS, size.law_seeds, generator, torch.float64)
    weights = draw_weights(x.shape[1], LAW_WIDTH, *options)
    drawn, sampled = propagate(weights, x)[1], sample_signals(x, LAW_WIDTH, *options)
    return compare_laws(entries(drawn), entries(sampled))


def entries(signals: Signals) -> np.ndarray:
    """What the laws are compared by: random entries of the Gram matrices and the NTK, (S, statistics)."""
    i, j = torch.tril_indices(*signals.ntk.shape[-2:])
    grams = [*signals.forward_grams[1:], *signals.backward_grams[:-1], signals.ntk]
    return torch.cat([g[:, i, j] for g in grams], dim=1).cpu().numpy()


def compare_laws(one: np.ndarray, other: np.ndarray) -> float:
    """Bonferroni-corrected smallest KS p-value over the columns of two samples (S, statistics), at most 1."""
    p = [ks_2samp(a, b).pvalue for a, b in zip(one.T, other.T, strict=True)]
    return min(1.0, len(p) * float(min(p)))
