"""Fused kernels: a whole offset plane stays close to the arithmetic from the first layer to the last.

`arithmetic.h` is one recursion step for one lane type, shared by the loops over planes. On a CPU (`cpu.cpp`) those are
in `planes.h`, with images and normalisers in `images.h`, and `pooled.h`, `vanilla.h` and `myrtle.h` lead pairs through
them; on a GPU planes are in `warp.cuh`, and `gpu.cu` and `gpu_myrtle.cu` lead pairs through them. float32 arithmetic
with float64 sums and a float64 zero offset; any number of channels, any H x W with min(H, W) <= 32 and
max(H, W) <= 64, and on a CPU vanilla kernels of any size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from exact_ntk.kernel_names import family_of, pooling_of, window_of
from exact_ntk.kernels.passes import Padding, Pass

SHORT_SIDE, LONG_SIDE = 32, 64


def why_not(device: torch.device, readouts: Sequence[str], padding: Padding, height: int, width: int) -> str | None:
    """Why there are no kernels with these readouts for images of this size on such a device, or None."""
    if device.type not in ("cpu", "cuda"):
        return f"there are no fused kernels for device {device.type}"
    if padding != "zero":
        return "the fused kernels pad with zeros only"
    if min(height, width) <= SHORT_SIDE and max(height, width) <= LONG_SIDE:
        return None
    if device.type == "cpu" and all(family_of(readout) == "vanilla" for readout in readouts):
        return None
    which = "pooled kernels" if device.type == "cpu" else "kernels on a GPU"
    instead = "make them smaller" + (", or take readout vanilla" if device.type == "cpu" else "")
    limit = f"{SHORT_SIDE} x {LONG_SIDE}"
    return f"the fused {which} cover images up to {limit} pixels, not {height} x {width}: {instead}"


def values_of(sums: Tensor, job: Pass, pixels: int) -> Tensor:
    """Sums (2, poolings, depths, n1, n2) of R and of K -> the job's kernels (readouts, depths, n1, n2)."""
    found = []
    for name in job.readouts:
        pooling = pooling_of(name)
        c = window_of(name)
        share = (2 * c + 1) ** 4 if c is not None else pixels**2 if job.family == "gap" else 1
        r, k = sums[:, job.poolings.index(pooling)] / share
        found.append(k if name != pooling else r if job.train_last else r - k)
    return torch.stack(found)
