"""Fused kernels: a whole offset plane stays close to the arithmetic from the first layer to the last.

`arithmetic.h` is one recursion step for one lane type, shared by the loops over planes: `cpu.cpp`, with images and
normalisers in `images.h`, and `gpu.cu`. float32 arithmetic with float64 sums and a float64 zero offset; any H x W with
min(H, W) <= 32 and max(H, W) <= 64, any number of channels.
"""

import torch
from torch import Tensor

from exact_ntk.kernels.passes import Pass

SHORT_SIDE, LONG_SIDE = 32, 64


def covers(height: int, width: int) -> bool:
    """Whether images of this size are covered."""
    return min(height, width) <= SHORT_SIDE and max(height, width) <= LONG_SIDE


def values_of(sums: Tensor, job: Pass, pixels: int) -> Tensor:
    """Sums (2, depths, n1, n2) over pixels of R and of K -> the job's kernels (readouts, depths, n1, n2)."""
    r, k = sums / pixels**2 if job.family == "gap" else sums
    kernels = {"nngp": k, "ntk": r if job.train_last else r - k}
    return torch.stack([kernels["nngp" if name.endswith("-nngp") else "ntk"] for name in job.readouts])
