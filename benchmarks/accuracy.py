"""Errors of the fused kernels against the float64 reference, by readout and depth, on an npz of images or the digits.

    python benchmarks/accuracy.py [IMAGES.npz] [N]

Of N images against N others, errors over sqrt(K(x, x) K(x', x')) times 1e7: the largest; the root mean square; that of
the systematic part, a cubic in K fitted over all pairs and linear in log K(x, x) K(x', x'); and that of the rest.
"""

import sys

import numpy as np
import torch
from sklearn.datasets import load_digits

from exact_ntk.kernels import READOUTS, cntk

DEPTHS = (3, 4, 6, 11, 21)


def load(path: str | None) -> torch.Tensor:
    """Normalised images (n, C, H, W) in float32."""
    if path is None:
        x = torch.from_numpy(load_digits().images)[:, None]
    else:
        x = torch.from_numpy(np.load(path, allow_pickle=False)["x_train"]).double().permute(0, 3, 1, 2)
    return ((x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)).float()


def split(error: np.ndarray, cosine: np.ndarray, scale: np.ndarray) -> tuple[float, float, float, float]:
    """(largest, rms, rms of the smooth part, rms of the rest)."""
    c, s, e = cosine.ravel(), np.log(scale.ravel()), error.ravel()
    smooth = np.stack([np.ones_like(c), c, c**2, c**3, s, s * c], 1)
    fitted = smooth @ np.linalg.lstsq(smooth, e, rcond=None)[0]
    return np.abs(e).max(), *(float(np.sqrt(np.mean(v**2))) for v in (e, fitted, e - fitted))


def main() -> None:
    """Print one line a readout and depth."""
    path, n = (sys.argv[1] if len(sys.argv) > 1 else None), int(sys.argv[2]) if len(sys.argv) > 2 else 40
    x = load(path)[: 2 * n]
    first, second = x[:n], x[n:]
    options = dict(depths=DEPTHS, readouts=READOUTS)
    found = cntk(first, second, backend="fused", **options).numpy()
    truth = cntk(first, second, backend="reference", dtype=torch.float64, **options).numpy()
    own = [
        torch.cat([cntk(i[None], backend="reference", dtype=torch.float64, **options)[..., 0] for i in z], -1).numpy()
        for z in (first, second)
    ]
    scale = np.sqrt(own[0][..., :, None] * own[1][..., None, :])
    print(f"{'readout':14}{'depth':>6}{'largest':>9}{'rms':>7}{'smooth':>8}{'random':>8}   (1e-7; {n} x {n} pairs)")
    for r, readout in enumerate(READOUTS):
        for d, depth in enumerate(DEPTHS):
            parts = split(
                (found[r, d] - truth[r, d]) / scale[r, d], truth[r, d] / scale[r, d], scale[r, d] / scale[r, d].mean()
            )
            print(
                f"{readout:14}{depth:>6}"
                + "".join(f"{1e7 * p:>{w}.2f}" for p, w in zip(parts, (9, 7, 8, 8), strict=True))
            )


if __name__ == "__main__":
    main()
