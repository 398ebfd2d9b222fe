"""Which kernels compute: the fused ones where they can run, else the reference; and whether a pair of images fits."""

from collections.abc import Callable, Sequence

import torch

from exact_ntk.device import available_memory
from exact_ntk.kernel_names import family_of
from exact_ntk.kernels import fused, gradients, reference
from exact_ntk.kernels.fused import cpu as fused_cpu
from exact_ntk.kernels.fused import gpu as fused_gpu
from exact_ntk.kernels.fused import gpu_myrtle as fused_gpu_myrtle
from exact_ntk.kernels.passes import Padding
from exact_ntk.notices import warn_once

BACKENDS = ("auto", "reference", "fused")
SLOWER = "30 (gap) to 90 (vanilla)"  # measured: README, Speed


def resolve_backend(
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    height: int,
    width: int,
    *readouts: str,
    padding: Padding = "zero",
    gradient: bool = False,
) -> str:
    """The backend that will run these readouts, with its device: "reference-cpu", "fused-cpu", ... Never "auto".

    gradient: whether the images' is asked for. float32 for Myrtle networks, which go alone, is what their backend has:
    the reference computes them in float64. "auto" is fused where it can run (compiling it at first use), else
    reference, and a warning is logged once that says why. Raises ValueError for a name that is not a backend, and for
    "fused" where it cannot run.
    """
    if "myrtle" in map(family_of, readouts):
        return resolve_myrtle(backend, device, None if dtype == torch.float32 else dtype, "relu", height, width)

    def why_not_fused() -> str | None:
        if gradient:
            return "the fused kernels give no gradients, which the reference kernels do"
        return _why_not_fused(device, dtype, readouts, padding, height, width)

    instead = ": give backend='reference', or detached images" if gradient else ""
    resolved, reason = _choose(backend, device, why_not_fused, instead)
    # float64 is asked for to have the reference's precision: nothing is lost that needs saying.
    if reason and dtype == torch.float32:
        slower = f"{SLOWER} times slower" if device.type == "cpu" else "slower"
        warn_once(f"computing with the reference kernels, {slower}: {reason}")
    return resolved


def resolve_myrtle(
    backend: str, device: torch.device, dtype: torch.dtype | None, activation: str, height: int, width: int
) -> str:
    """As `resolve_backend`, for Myrtle networks. dtype: None is what their backend has.

    Raises ValueError too for another activation or dtype than the backend has.
    """
    if dtype not in (None, torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, not {dtype}")

    def why_not_fused() -> str | None:
        if activation != "relu":
            return "the fused Myrtle kernels are those of the ReLU"
        return _why_not_fused(device, dtype, ("myrtle",), "zero", height, width)

    resolved, reason = _choose(backend, device, why_not_fused)
    if dtype == torch.float32 and resolved.startswith("reference"):
        why = f": {reason}" if reason else ""
        raise ValueError(f"the reference computes Myrtle kernels in float64 only, so leave dtype out{why}")
    if reason and dtype is None:
        warn_once(f"computing Myrtle kernels with the reference, in float64 and many times slower: {reason}")
    return resolved


def _choose(
    backend: str, device: torch.device, why_not_fused: Callable[[], str | None], instead: str = ""
) -> tuple[str, str | None]:
    """The backend that will run, with its device, and where "auto" is the reference why.

    instead: what else to do where it is to be fused and cannot.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    reason = None if backend == "reference" else why_not_fused()
    if reason and backend == "fused":
        raise ValueError(f"backend fused cannot run: {reason}{instead}")
    return f"{'reference' if reason or backend == 'reference' else 'fused'}-{device.type}", reason


def _why_not_fused(
    device: torch.device,
    dtype: torch.dtype | None,
    readouts: Sequence[str],
    padding: Padding,
    height: int,
    width: int,
) -> str | None:
    if dtype == torch.float64:
        return "the fused kernels compute in float32 only"
    reason = fused.why_not(device, readouts, padding, height, width)
    if reason or device.type == "cpu":
        return reason or fused_cpu.unavailable()
    kernels = fused_gpu_myrtle if "myrtle" in readouts else fused_gpu
    return kernels.unavailable(device, height, width)


def require_memory(
    backend: str, device: torch.device, family: str, dtype: torch.dtype, height: int, width: int, layers: int = 0
) -> None:
    """Raise MemoryError unless one pair of images fits, on a resolved backend. Fused kernels need next to nothing.

    layers: that are kept for a gradient.
    """
    if backend.startswith("fused"):
        return
    # A Myrtle network is at full size what global average pooling is, in float64.
    like = ("gap", torch.float64) if family == "myrtle" else (family, dtype)
    need, there = reference.bytes_a_pair(*like, height, width), available_memory(device)
    if layers:
        need = gradients.gradient_bytes(family, layers, dtype, height, width)
    if need > there:
        side = int((there / need) ** (0.5 if family == "vanilla" else 0.25) * (height * width) ** 0.5)
        raise MemoryError(
            f"one pair of {height} x {width} images takes {need / 1e9:,.1f} GB with {family} readouts "
            f"{'and their gradient ' if layers else ''}in {backend}, "
            f"and {there / 1e9:,.1f} GB are free: images up to {side} x {side} fit"
            + (f", or vanilla readouts, which take a {height * width:,}th" if family == "gap" else "")
        )
