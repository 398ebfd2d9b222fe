"""The kernel of two images, written out from the paper's equations, beside what `cntk` gives.

    python examples/kernel_by_hand.py [--depth 4]

Sigma and Theta are kept for every pair of pixels (p of x, p' of x'). A convolution sums both over the nine offsets of a
3 x 3 filter, the same for p and p'; a ReLU maps Sigma through the arc-cosine kernels (Arora et al. 2019, section 4).
"""

import argparse

import numpy as np
import torch
from sklearn.datasets import load_digits

from exact_ntk.kernels import cntk


def convolve(m: np.ndarray) -> np.ndarray:
    """(H, W, H, W): the sum over (p + o, p' + o), o the nine offsets, of zeros beyond the edges."""
    height, width = m.shape[:2]
    padded = np.pad(m, 1)
    offsets = [(a, b) for a in range(3) for b in range(3)]
    return sum(padded[a : a + height, b : b + width, a : a + height, b : b + width] for a, b in offsets)


def relu(sigma: np.ndarray, one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """K = c E[relu(u) relu(v)] / 9 and its derivative in Sigma, (u, v) Gaussian of covariance Sigma, c = 2.

    one, other: Sigma of x with itself and of x' with itself, whose diagonals p = p' are the variances.
    """
    variances = (np.einsum("ijij->ij", s) for s in (one, other))
    size = np.sqrt(np.multiply.outer(*variances))
    cosine = np.clip(np.divide(sigma, size, out=np.zeros_like(sigma), where=size > 0), -1, 1)
    angle = np.pi - np.arccos(cosine)
    return size * (cosine * angle + np.sqrt(1 - cosine**2)) / np.pi / 9, np.where(size > 0, angle, 0) / np.pi / 9


def by_hand(x: np.ndarray, y: np.ndarray, depth: int) -> dict[str, float]:
    """The kernels of x and y (C, H, W), every layer trained for vanilla, both end layers fixed for gap."""
    pairs = ((x, y), (x, x), (y, y))
    sigma, one, other = (convolve(np.einsum("cij,ckl->ijkl", a, b)) for a, b in pairs)
    all_trained, ends_fixed = sigma, np.zeros_like(sigma)
    for layer in range(1, depth):
        k, derivative = relu(sigma, one, other)
        all_trained, ends_fixed = derivative * all_trained + k, derivative * ends_fixed + k
        if layer < depth - 1:
            one, other = (convolve(relu(s, s, s)[0]) for s in (one, other))
            sigma, all_trained, ends_fixed = map(convolve, (k, all_trained, ends_fixed))
    return {
        "vanilla": float(np.einsum("ijij->", all_trained)),
        "vanilla-nngp": float(np.einsum("ijij->", k)),
        "gap": float((ends_fixed - k).mean()),
        "gap-nngp": float(k.mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=4, help="L: L - 1 convolutions and a readout")
    depth = parser.parse_args().depth
    zero, one = (load_digits().images[:2, None] - 4.9) / 6.0
    found = by_hand(zero, one, depth)
    for readout, value in found.items():
        k = cntk(zero[None], one[None], depths=(depth,), readouts=(readout,), dtype=torch.float64).item()
        print(f"{readout:13} by hand {value:.15g}, cntk {k:.15g}: relative difference {abs(value / k - 1):.0e}")


if __name__ == "__main__":
    main()
