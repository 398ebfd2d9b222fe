"""Kernels of infinitely wide networks, as pure functions of images: no files, data sets or tables."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from exact_ntk.kernel_names import READOUTS
from exact_ntk.kernels import gradients, reference
from exact_ntk.kernels.backends import require_memory, resolve_backend
from exact_ntk.kernels.fused import cpu as fused_cpu
from exact_ntk.kernels.fused import gpu as fused_gpu
from exact_ntk.kernels.inputs import (
    Values,
    as_device,
    as_flag,
    as_image_sets,
    as_integers,
    as_names,
    require_range,
)
from exact_ntk.kernels.myrtle import myrtle, myrtle_pass
from exact_ntk.kernels.network import network_kernels
from exact_ntk.kernels.ntk import nngp, ntk, ntk_layers
from exact_ntk.kernels.passes import Matrices, Padding, Pass, plan_passes

__all__ = [
    "READOUTS",
    "Pass",
    "cntk",
    "cntk_pass",
    "myrtle",
    "network_kernels",
    "nngp",
    "ntk",
    "ntk_layers",
    "require_memory",
    "resolve_backend",
    "self_pass",
]


def cntk_pass(x1: Tensor, x2: Tensor | None, job: Pass, *, backend: str, dtype: torch.dtype) -> Tensor:
    """One pass on a resolved backend (see `resolve_backend`): (readouts, depths, n1, n2) in float64."""
    if job.family == "myrtle":
        return _myrtle(x1, x2, job, backend)
    if backend == "fused-cpu":
        assert dtype == torch.float32
        return fused_cpu.cntk_pass(x1, x2, job)
    if backend == "fused-cuda":
        assert dtype == torch.float32
        return fused_gpu.cntk_pass(x1, x2, job)
    return reference.cntk_pass(x1, x2, job, dtype)


def self_pass(x: Tensor, job: Pass, *, backend: str, dtype: torch.dtype) -> Tensor:
    """As `cntk_pass`, each image with itself alone: (readouts, depths, n)."""
    if job.family == "myrtle":
        return _myrtle(x, None, job, backend, diagonal=True)
    if backend == "fused-cpu":
        return fused_cpu.self_pass(x, job)
    if backend == "fused-cuda":
        return fused_gpu.self_pass(x, job)
    return reference.self_pass(x, job, dtype)


def _myrtle(x1: Tensor, x2: Tensor | None, job: Pass, backend: str, diagonal: bool = False) -> Tensor:
    """As `cntk_pass`, or as `self_pass`, the one depth of a Myrtle network."""
    ntk, nngp = myrtle_pass(x1, x2, job, backend=backend, diagonal=diagonal)
    found = {"myrtle": ntk, "myrtle-nngp": nngp}
    return torch.stack([kernel for name in job.readouts if (kernel := found[name]) is not None])[:, None]


def _write(
    x1: Tensor, x2: Tensor | None, job: Pass, out: Matrices, backend: str, dtype: torch.dtype, diagonal: bool
) -> None:
    """As `cntk_pass`, each kernel into a matrix (n1, n2), or as `self_pass`, into a vector (n1)."""
    if backend == "fused-cpu" and not diagonal:
        fused_cpu.write_pass(x1, x2, job, out)
        return
    if diagonal:
        values = self_pass(x1, job, backend=backend, dtype=dtype)
    else:
        values = cntk_pass(x1, x2, job, backend=backend, dtype=dtype)
    for slot, name in enumerate(job.readouts):
        for place, depth in enumerate(job.depths):
            out[name, depth].copy_(values[slot, place])


def _differentiable(
    x1: Tensor,
    x2: Tensor | None,
    jobs: Sequence[Pass],
    depths: Sequence[int],
    readouts: Sequence[str],
    dtype: torch.dtype,
    diagonal: bool,
) -> Tensor:
    """The kernels with a graph, in the order of `readouts` and `depths`."""
    found: dict[tuple[str, int], Tensor] = {}
    for job in jobs:
        values = gradients.self_pass(x1, job, dtype) if diagonal else gradients.cntk_pass(x1, x2, job, dtype)
        found |= {(r, d): values[i, j] for i, r in enumerate(job.readouts) for j, d in enumerate(job.depths)}
    return torch.stack([torch.stack([found[readout, depth] for depth in depths]) for readout in readouts])


def _checked_out(out: Tensor | None, shape: tuple[int, ...], device: torch.device) -> Tensor:
    if out is None:
        return torch.empty(shape, dtype=torch.float64, device=device)
    if not isinstance(out, Tensor):
        raise ValueError(f"out must be a tensor, not {type(out).__name__}")
    here = out.device.type == device.type and device.index in (None, out.device.index)
    if out.shape != shape or out.dtype != torch.float64 or not here or out.stride(-1) != 1:
        raise ValueError(
            f"out must be a float64 tensor {shape} on {device} with contiguous rows, not {out.dtype} "
            f"{tuple(out.shape)} on {out.device} with strides {out.stride()}"
        )
    if any(stride == 0 for stride, size in zip(out.stride(), shape, strict=True) if size > 1):
        raise ValueError(f"out must have memory for every entry, not be expanded to strides {out.stride()}")
    return out


def cntk(
    x1: Values,
    x2: Values | None = None,
    *,
    depths: Sequence[int],
    readouts: Sequence[str] = ("vanilla", "gap"),
    train_first: bool | None = None,
    train_last: bool | None = None,
    padding: Padding = "zero",
    backend: str = "auto",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    diagonal: bool = False,
) -> Tensor:
    """The exact kernels of infinitely wide ReLU CNNs with 3 x 3 filters (Arora et al. 2019, section 4).

    Stride 1, no bias, c_sigma = 2. The scale is the paper's: channels of the images are summed, not averaged.

    Arguments:
        x1: normalised images (n1, C, H, W), as a tensor, a NumPy array or nested lists.
        x2: normalised images (n2, C, H, W), or None for x1 with itself: symmetric, with an exact diagonal.
        depths: depths L, each at least 2: L - 1 convolutions, each followed by a ReLU, then the readout.
        readouts: out of "vanilla" (NTK, fully connected readout: the trace over pixels), "gap" (NTK, global average
            pooling: the mean over pixel pairs), "lap-C" (NTK, local average pooling of Li et al. 2019: the mean over
            (2 C + 1)^2 pixels around each, zeros counted, then a fully connected readout; C from 0 to 999), and
            "vanilla-nngp", "gap-nngp", "lap-C-nngp" (the Gaussian process of the net at initialisation). All windows,
            and gap with the same trained ends, come from one pass.
        train_first, train_last: whether the first convolution and the readout layer are trained. None is the
            setting of the papers: both for vanilla and lap-C, neither for gap. The NNGP readouts do not depend on them.
        padding: "zero", or "circular", where convolutions and local averages wrap round; on the reference only.
        backend: "auto", "fused" or "reference".
        device: where to compute; None is x1's device.
        dtype: arithmetic, torch.float32 (the default) or torch.float64; sums over pixels are always float64.
        diagonal: only each image of x1 with itself, n1 pairs in place of n1 squared; x2 is then None.
        out: where the result goes, of the shape, type and device below, its last dimension contiguous. The fused
            kernels on a CPU write in place, with or without it: beside the result they hold the normalisers of some
            images of each side, 64 MiB in float32 and up to twice that in float64, or those of 64 images.

    Returns (len(readouts), len(depths), n1, n2), or with `diagonal` (len(readouts), len(depths), n1), in float64, on
    `device`, readouts and depths in the order given.

    Images that require a gradient have it, first derivatives alone, from the reference kernels, in the arithmetic of
    dtype and the memory of a few pairs (see `gradients`). The NTK has a cusp where two patches are parallel, as in
    equal images: the derivative of kappa_0 counts as 0 there, which on the diagonal of `cntk(x)` is exact, and for
    equal images given as x1 and x2 half of that. Every kernel has one where a patch is black: what its norm contributes
    counts as 0.

    Raises ValueError for malformed images, for depths below 2, unknown names and devices, where nothing would be
    trained, for gradients of backend "fused" or in forward mode, and for an `out` that does not fit; MemoryError where
    not even one pair fits, or memory runs out.
    """
    depths, readouts = as_integers(depths, "depths"), as_names(readouts, "readouts")
    first, last = as_flag(train_first, "train_first"), as_flag(train_last, "train_last")
    x1, x2 = as_image_sets(x1, x2, diagonal, differentiable=True)
    target = as_device(device, x1)
    gradient = any(x is not None and x.requires_grad for x in (x1, x2))
    if gradient and out is not None:
        raise ValueError("out holds values alone: leave it out where a gradient is asked for, or pass detached images")
    dtype = torch.float32 if dtype is None else dtype
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, not {dtype}")
    jobs = plan_passes(depths, readouts, first, last, padding)
    height, width = x1.shape[2:]
    resolve = partial(resolve_backend, backend, target, dtype, height, width)
    backends = [resolve(*job.readouts, padding=padding, gradient=gradient) for job in jobs]
    for job, resolved in zip(jobs, backends, strict=True):
        require_memory(resolved, target, job.family, dtype, height, width, gradient * (job.depths[-1] - 1))
        for name, x in (("x1", x1), ("x2", x2)):
            if x is not None:
                require_range(x, name, resolved, dtype)
    x1, x2 = x1.to(target), None if x2 is None else x2.to(target)
    if gradient:
        return _differentiable(x1, x2, jobs, depths, readouts, dtype, bool(diagonal))
    shape = (len(readouts), len(depths), len(x1), *(() if diagonal else (len(x1 if x2 is None else x2),)))
    out = _checked_out(out, shape, target)
    matrices = {(r, d): out[i, j] for i, r in enumerate(readouts) for j, d in enumerate(depths)}
    for job, resolved in zip(jobs, backends, strict=True):
        _write(x1, x2, job, matrices, resolved, dtype, bool(diagonal))
    for j, depth in enumerate(depths):
        if depth in depths[j + 1 :]:  # asked for twice: the last of them was computed
            out[:, j] = out[:, len(depths) - 1 - depths[::-1].index(depth)]
    return out
