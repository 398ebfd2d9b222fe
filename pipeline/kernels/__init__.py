"""Kernels of infinitely wide networks, as pure functions of images: no files, data sets or tables."""

from collections.abc import Sequence

import torch
from torch import Tensor

from exact_ntk.kernels import fused, reference
from exact_ntk.kernels.fused import cpu as fused_cpu
from exact_ntk.kernels.fused import gpu as fused_gpu
from exact_ntk.kernels.ntk import nngp, ntk, ntk_layers
from exact_ntk.kernels.passes import READOUTS, Pass, plan_passes
from exact_ntk.notices import warn_once

__all__ = [
    "KERNEL_VERSION",
    "READOUTS",
    "RESOLVED_BACKENDS",
    "Pass",
    "cntk",
    "cntk_pass",
    "nngp",
    "ntk",
    "ntk_layers",
    "resolve_backend",
]

# Bump by hand when any backend's values change beyond rounding: stores of another version are not reused.
KERNEL_VERSION = 2
BACKENDS = ("auto", "reference", "fused")
SLOWER = "30 (gap) to 90 (vanilla)"  # measured: README, Speed
RESOLVED_BACKENDS = ("fused-cuda", "fused-cpu", "reference-cuda", "reference-cpu")


def _why_not_fused(device: torch.device, dtype: torch.dtype, height: int, width: int) -> str | None:
    if dtype != torch.float32:
        return "the fused kernels compute in float32 only"
    if not fused.covers(height, width):
        largest = f"{fused.SHORT_SIDE} x {fused.LONG_SIDE}"
        return f"the fused kernels cover images up to {largest} pixels, not {height} x {width}"
    if device.type == "cuda":
        return fused_gpu.unavailable(device, height, width)
    if device.type != "cpu":
        return f"there are no fused kernels for device {device.type}"
    return fused_cpu.unavailable()


def resolve_backend(backend: str, device: torch.device, dtype: torch.dtype, height: int, width: int) -> str:
    """The backend that will run, with its device: "reference-cpu", "fused-cpu", ... Never "auto".

    "auto" is fused where it can run (compiling it at first use), else reference, and a warning is logged once that
    says why. Raises ValueError for a name that is not a backend, and for "fused" where it cannot run.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    if backend != "reference":
        reason = _why_not_fused(device, dtype, height, width)
        if reason is None:
            return f"fused-{device.type}"
        if backend == "fused":
            raise ValueError(f"backend fused cannot run: {reason}")
        # float64 is asked for to have the reference's precision: nothing is lost that needs saying.
        if dtype == torch.float32:
            slower = f"{SLOWER} times slower" if device.type == "cpu" else "slower"
            warn_once(f"computing with the reference kernels, {slower}: {reason}")
    return f"reference-{device.type}"


def _checked(x: Tensor, name: str, device: torch.device) -> Tensor:
    if x.ndim != 4 or not x.is_floating_point() or 0 in x.shape:
        raise ValueError(
            f"{name} must be a non-empty floating-point tensor (n, C, H, W), not {x.dtype} {tuple(x.shape)}"
        )
    if not bool(x.isfinite().all()):
        raise ValueError(f"{name} holds NaN or infinite pixels")
    return x.to(device)


def cntk_pass(x1: Tensor, x2: Tensor | None, job: Pass, *, backend: str, dtype: torch.dtype) -> Tensor:
    """One pass on a resolved backend (see `resolve_backend`): (readouts, depths, n1, n2) in float64."""
    if backend == "fused-cpu":
        assert dtype == torch.float32
        return fused_cpu.cntk_pass(x1, x2, job)
    if backend == "fused-cuda":
        assert dtype == torch.float32
        return fused_gpu.cntk_pass(x1, x2, job)
    return reference.cntk_pass(x1, x2, job, dtype)


def cntk(
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    depths: Sequence[int],
    readouts: Sequence[str] = ("vanilla", "gap"),
    train_first: bool | None = None,
    train_last: bool | None = None,
    backend: str = "auto",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The exact kernels of infinitely wide ReLU CNNs with 3 x 3 filters (Arora et al. 2019, section 4).

    Arguments:
        x1: normalised images (n1, C, H, W).
        x2: normalised images (n2, C, H, W), or None for x1 with itself: symmetric, with an exact diagonal.
        depths: depths L, each at least 2: L - 1 convolutions, each followed by a ReLU, then the readout.
        readouts: out of "vanilla" (NTK, fully connected readout: the trace over pixels), "gap" (NTK, global average
            pooling: the mean over pixel pairs), and "vanilla-nngp", "gap-nngp" (the Gaussian process of the net at
            initialisation).
        train_first, train_last: whether the first convolution and the readout layer are trained. None is the
            paper's setting: both for vanilla, neither for gap. The NNGP readouts do not depend on them.
        backend: "auto", "fused" or "reference".
        device: where to compute; None is x1's device.
        dtype: arithmetic, torch.float32 (the default) or torch.float64; sums over pixels are always float64.

    Returns (len(readouts), len(depths), n1, n2) in float64, on `device`, readouts and depths in the order given.
    Raises ValueError for malformed images, depths below 2, unknown names, and where nothing would be trained.
    """
    target = torch.device(device) if device is not None else x1.device
    x1 = _checked(x1, "x1", target)
    if x2 is not None:
        x2 = _checked(x2, "x2", target)
        if x1.shape[1:] != x2.shape[1:]:
            raise ValueError(f"x1 and x2 must hold images of one shape, not {tuple(x1.shape)} and {tuple(x2.shape)}")
    dtype = torch.float32 if dtype is None else dtype
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, not {dtype}")
    resolved = resolve_backend(backend, target, dtype, x1.shape[2], x1.shape[3])
    found = {}
    for job in plan_passes(depths, readouts, train_first, train_last):
        values = cntk_pass(x1, x2, job, backend=resolved, dtype=dtype)
        order = [job.depths.index(depth) for depth in depths]
        for slot, name in enumerate(job.readouts):
            found[name] = values[slot, order]
    return torch.stack([found[name] for name in readouts])
