"""What a caller hands to the kernels, checked: arrays become tensors; what cannot be meant is a ValueError."""

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

Values = Tensor | np.ndarray | Sequence
# Images' largest pixels, for which squares, their sums and reciprocals stay finite; the fused kernels scale images.
LARGEST_PIXEL: dict[str | torch.dtype, float] = {"fused": 1e36, torch.float32: 1e17, torch.float64: 1e150}


def as_tensor(x: Values, name: str, axes: str, differentiable: bool = False) -> Tensor:
    """A dense, finite, floating-point tensor of these axes ("n, C, H, W"), none of them empty.

    differentiable: whether a gradient may be asked for; only then is there a graph. Takes tensors, NumPy arrays and
    nested lists; half precision becomes float32. Raises ValueError for others.
    """
    if not isinstance(x, Tensor):
        x = _from_array(x, name, axes)
    if torch.is_grad_enabled() and forward_ad.unpack_dual(x).tangent is not None:
        raise ValueError(f"{name} asks for a gradient in forward mode: the kernels have them in reverse mode alone")
    asked = torch.is_grad_enabled() and x.requires_grad
    if asked and not differentiable:
        raise ValueError(f"{name} requires a gradient, which `cntk` alone gives: pass {name}.detach()")
    if x.layout != torch.strided or x.is_nested or x.is_quantized or x.device.type == "meta":
        raise ValueError(f"{name} must be a dense tensor ({axes}) with values, not {x.layout} on {x.device}")
    if x.ndim != axes.count(",") + 1 or 0 in x.shape:
        raise ValueError(f"{name} must be a non-empty floating-point tensor ({axes}), not {x.dtype} {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(
            f"{name} must be a floating-point tensor ({axes}), not {x.dtype}: normalise it, or pass {name}.float()"
        )
    if x.dtype.itemsize < 4:
        x = x.float()
    if not bool(x.detach().isfinite().all()):
        raise ValueError(f"{name} holds NaN or infinite entries")
    return x if asked else x.detach()


def as_image_sets(
    x1: Values, x2: Values | None, diagonal: bool = False, differentiable: bool = False
) -> tuple[Tensor, Tensor | None]:
    """x1 (n1, C, H, W) and x2 (n2, C, H, W), or None for x1 with itself: see `as_tensor`.

    Raises ValueError too where they differ in shape, and where x2 is given though `diagonal` pairs each image of x1
    with itself.
    """
    x1 = as_tensor(x1, "x1", "n1, C, H, W", differentiable)
    x2 = None if x2 is None else as_tensor(x2, "x2", "n2, C, H, W", differentiable)
    if as_flag(diagonal, "diagonal") and x2 is not None:
        raise ValueError("diagonal=True pairs each image of x1 with itself: leave x2 out")
    if x2 is not None and x1.shape[1:] != x2.shape[1:]:
        raise ValueError(f"x1 and x2 must hold images of one shape, not {tuple(x1.shape)} and {tuple(x2.shape)}")
    return x1, x2


def _from_array(x: Values, name: str, axes: str) -> Tensor:
    try:
        array = np.asarray(x)
        # In this machine's byte order, and with memory that torch may share: writable, strides not negative.
        return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name} must be a tensor, an array or nested lists of numbers ({axes}), not {type(x).__name__}: {error}"
        ) from error


def as_device(device: torch.device | str | None, x: Tensor) -> torch.device:
    """The device to compute on, x's where none is named. Raises ValueError for one that is not there."""
    try:
        found = x.device if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be cpu, cuda or cuda:N, not {device!r}") from error
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu, cuda or cuda:N, not {found}")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {found}: torch sees {torch.cuda.device_count()} GPUs here")
    return found


def as_integers(values: Any, name: str) -> tuple[int, ...]:
    """A sequence of integers, of any integer type. Raises ValueError for others."""
    try:
        return tuple(map(operator.index, values))
    except TypeError as error:
        raise ValueError(f"{name} must be a sequence of integers, such as (3,), not {values!r}") from error


def as_names(values: Any, name: str) -> tuple[str, ...]:
    """A sequence of names. Raises ValueError for others, a single name among them."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"{name} must be a sequence of names, such as ('gap',), not {values!r}")
    return tuple(values)


def require_range(x: Tensor, name: str, backend: str, dtype: torch.dtype) -> None:
    """Raise ValueError for images (n, ...) whose largest pixel is too large for a resolved backend in this arithmetic,
    or too small and not 0."""
    most = LARGEST_PIXEL["fused" if backend.startswith("fused") else dtype]
    size = x.detach().flatten(1).abs().amax(1)
    bad = (size > most) | ((size > 0) & (size < 1 / most))
    if bool(bad.any()):
        image = int(bad.nonzero()[0])
        raise ValueError(
            f"{name}: the largest pixel of image {image} is {float(size[image]):.1e}, outside what {backend} takes, "
            f"{1 / most:.0e} to {most:.0e}: rescale it, and the kernels by the same factors"
        )


def as_flag(value: Any, name: str) -> bool | None:
    """True, False or None. Raises ValueError for others."""
    if value is None or isinstance(value, bool | np.bool_):
        return None if value is None else bool(value)
    raise ValueError(f"{name} must be True, False or None, not {value!r}")
