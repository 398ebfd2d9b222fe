"""What scikit-learn's users pass as X: images, or rows of numbers, checked and with channels last."""

from typing import Any

import numpy as np
from torch import Tensor

from exact_ntk.data.arrays import ARGUMENTS, Layout, channels_last
from exact_ntk.errors import DataError


def as_array(x: Any) -> Any:
    """A tensor as a NumPy array; anything else as it is."""
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else x


def checked_image_shape(shape: Any) -> tuple[int, int, int] | None:
    """(H, W) or (H, W, C) -> (H, W, C). Raises ValueError for others."""
    if shape is None:
        return None
    try:
        height, width, channels = (*(int(size) for size in shape), 1)[:3] if len(shape) in (2, 3) else (0, 0, 0)
    except (TypeError, ValueError):
        height = width = channels = 0
    if min(height, width, channels) < 1:
        raise ValueError(f"image_shape must be (H, W) or (H, W, C), not {shape!r}")
    return height, width, channels


def as_images(x: np.ndarray, image_shape: Any, layout: Layout | None) -> np.ndarray:
    """Images (n, H, W, C): uint8 where they came as images of uint8, else floating point.

    x: images N x H x W (x C), or N x C x H x W with layout "nchw"; or rows, which are images of `image_shape` (H, W, C)
    flattened in the order of the layout, or without one a pixel of d channels each. Raises ValueError for a shape that
    leaves doubt, naming the axes.
    """
    if layout not in (None, "nhwc", "nchw"):
        raise ValueError(f"layout must be None, 'nhwc' or 'nchw', not {layout!r}")
    shape = checked_image_shape(image_shape)
    if x.ndim == 2 and shape is None:
        return x.reshape(len(x), 1, 1, -1).astype(np.float64, copy=False)
    if x.ndim == 2:
        assert shape is not None
        height, width, channels = shape
        if height * width * channels != x.shape[1]:
            raise ValueError(f"X holds rows of {x.shape[1]} numbers, not the {height * width * channels} of {shape}")
        first = layout == "nchw"
        x = x.reshape(-1, channels, height, width) if first else x.reshape(-1, *shape)
        x = np.moveaxis(x, 1, -1) if first else x
    else:
        try:
            x = channels_last("X", "X", x, 0, layout, ARGUMENTS)
        except DataError as error:
            raise ValueError(str(error)) from error
        if shape is not None and x.shape[1:] != shape:
            raise ValueError(f"X holds images of H x W x C {x.shape[1:]}, not of image_shape {shape}")
    return x if x.dtype == np.uint8 or x.dtype.kind == "f" else x.astype(np.float64)
