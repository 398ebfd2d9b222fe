"""Images and labels as others store them: taken where there is no doubt, else refused with the line that mends it."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from exact_ntk.errors import DataError

Layout = Literal["nhwc", "nchw"]

SURE_CHANNELS = (1, 3, 4)
MOST_CHANNELS = 16
SMALLEST_FLAT_SIDE = 8
# Rounding to float32 or float16, and interpolation, pass the bounds of [0, 1] by a little; this much is taken as it is.
HAIR = 1e-6
# What a filter leaves outside [0, 1]: by so much, and in so small a share of the pixels; more is another scale.
OVERSHOOT, OVERSHOT = 0.25, 0.05
# The kernels sum squares in float32: their range is about 1e-38 to 1e38.
LARGEST, SMALLEST = 1e15, 1e-15
LARGEST_CLASS = 2**53


@dataclass(frozen=True)
class Wording:
    """How a refusal says what to do: with arrays in a file and a config, or with arguments."""

    verb: str
    layout: str


FILE, ARGUMENTS = Wording("save", "data.layout: "), Wording("pass", "layout=")


def read_images(
    file: str, key: str, x: np.ndarray, labels: int, layout: Layout | None = None, as_they_are: bool = False
) -> np.ndarray:
    """Images (n, H, W, C), uint8 or floating point, from the array `key` of a file, with `labels` labels beside it.

    layout: the axes of a 4-d array; None is nhwc, unless the shape speaks against it. as_they_are: of any scale, not
    only in [0, 1]. Raises DataError, naming file and array.
    """
    name = f"{file}: {key}"
    x = channels_last(name, key, x, labels, layout)
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind != "f":
        raise DataError(f"{name} should be uint8 or floating point, not {x.dtype}: {_as_pixels(key, x)}")
    if not np.isfinite(x).all():
        bad = int(np.argmax(~np.isfinite(x).all(axis=(1, 2, 3))))
        raise DataError(f"{name}: image {bad} holds NaN or infinite pixels")
    low, high = x.min(), x.max()
    if as_they_are:
        largest = max(-float(low), float(high))
        if largest and not SMALLEST < largest < LARGEST:
            raise DataError(f"{name}: its largest value is {largest:.3g}, too far from 1 for float32: scale the images")
        return x
    hair = max(HAIR, 4 * float(np.finfo(x.dtype).eps))
    if low < -hair or high > 1 + hair:
        worst = low if -low > high - 1 else high
        image = int(np.argmax((x == worst).any(axis=(1, 2, 3))))
        raise DataError(
            f"{name} should lie in [0, 1], not in [{low!s}, {high!s}] (image {image} holds {worst!s}): "
            f"{_in_unit_range(key, float(low), float(high), float(((x < 0) | (x > 1)).mean()))}"
        )
    return x


def channels_last(
    name: str, key: str, x: np.ndarray, labels: int, layout: Layout | None, words: Wording = FILE
) -> np.ndarray:
    """Images (n, H, W, C) from N x H x W (x C), or N x C x H x W where `layout` says so; as in `read_images`.

    labels: how many there are beside the images, 0 where that is not known. Raises DataError for a shape in doubt.
    """
    shape = x.shape
    if 0 in shape:
        raise DataError(f"{name} holds no images: its shape is {shape}")
    if x.ndim in (3, 4) and 1 < labels == shape[-1] != shape[0]:
        raise DataError(
            f"{name}: the {labels} images lie along the last axis of {shape}: {words.verb} np.moveaxis({key}, -1, 0)"
        )
    if x.ndim == 3:
        _refuse_flat_channels(name, key, shape, words)
        return x[..., None]
    if x.ndim == 4 and not _is_volume(shape):
        chosen = layout or "nhwc"
        other: Layout = "nchw" if chosen == "nhwc" else "nhwc"
        if not _likely_axes(shape, chosen) and (layout is None or _likely_axes(shape, other)):
            raise DataError(f"{name}: {_why_not(shape, chosen, other, words)}")
        if layout is None and _likely_axes(shape, other) and _is_square(shape, other) and not _is_square(shape, chosen):
            raise DataError(
                f"{name}: shape {shape} may be {_spelled(shape, 'nhwc')} or {_spelled(shape, 'nchw')}: say which by "
                f"{words.layout}nhwc, or nchw"
            )
        return np.ascontiguousarray(np.moveaxis(x, 1, -1)) if chosen == "nchw" else x
    if x.ndim in (4, 5):
        middle = shape[1] // 2
        raise DataError(
            f"{name} holds volumes, N x D x H x W{' x C' * (x.ndim == 5)} {shape}; the kernels take images of two "
            f"dimensions: {words.verb} slices, such as {key}[:, {middle}]"
        )
    flat = f"flat ones of shape {shape}: {words.verb} {_unflattened(key, shape[1])}" if x.ndim == 2 else ""
    raise DataError(f"{name} should hold images N x H x W or N x H x W x C, not {flat or f'an array of shape {shape}'}")


def _refuse_flat_channels(name: str, key: str, shape: tuple[int, ...], words: Wording) -> None:
    """Raises DataError for N x C x pixels or N x pixels x C, which would pass for very narrow grey images."""
    channels, pixels = min(shape[1:]), max(shape[1:])
    side = math.isqrt(pixels)
    if channels in SURE_CHANNELS and side**2 == pixels and side >= SMALLEST_FLAT_SIDE:
        first = shape[1] == channels
        square = f"-1, {channels}, {side}, {side}" if first else f"-1, {side}, {side}, {channels}"
        how = f"{words.verb} {key}.reshape({square})" + (
            f" and set {words.layout}nchw" if first and channels > 1 else ""
        )
        raise DataError(
            f"{name}: shape {shape} looks like flat images of {channels} channel{'s' * (channels > 1)}: {how}, or, if "
            f"they are {shape[1]} x {shape[2]} pixels, {key}[..., None]"
        )


def _sizes(shape: tuple[int, ...], layout: Layout) -> tuple[int, int, int]:
    """Height, width and channels of a 4-d array read as `layout`."""
    return (shape[1], shape[2], shape[3]) if layout == "nhwc" else (shape[2], shape[3], shape[1])


def _likely_axes(shape: tuple[int, ...], layout: Layout) -> bool:
    height, width, channels = _sizes(shape, layout)
    return channels in SURE_CHANNELS or (channels <= MOST_CHANNELS and channels < min(height, width))


def _is_square(shape: tuple[int, ...], layout: Layout) -> bool:
    height, width, _ = _sizes(shape, layout)
    return height == width


def _is_volume(shape: tuple[int, ...]) -> bool:
    return shape[1] == shape[2] == shape[3] and shape[1] not in SURE_CHANNELS


def _spelled(shape: tuple[int, ...], layout: Layout) -> str:
    height, width, channels = _sizes(shape, layout)
    return f"{height} x {width} pixels of {channels} channel{'s' * (channels > 1)}"


def _why_not(shape: tuple[int, ...], chosen: Layout, other: Layout, words: Wording) -> str:
    axes = {"nhwc": "N x H x W x C", "nchw": "N x C x H x W"}
    read = f"shape {shape} read as {axes[chosen]} is {_spelled(shape, chosen)}"
    if _likely_axes(shape, other):
        return f"{read}: if its axes are {axes[other]}, set {words.layout}{other}"
    return (
        f"{read}, but channels are 1, 3, 4, or at most {MOST_CHANNELS} and fewer than height and width: if they are "
        f"channels, set {words.layout}{chosen}; if slices of a volume, {words.verb} each as an image"
    )


def _unflattened(key: str, pixels: int) -> str:
    side = math.isqrt(pixels)
    if side**2 == pixels:
        return f"{key}.reshape(-1, {side}, {side})"
    side = math.isqrt(pixels // 3)
    if 3 * side**2 == pixels:
        return (
            f"{key}.reshape(-1, {side}, {side}, 3), or, where the channels come one after another, "
            f"{key}.reshape(-1, 3, {side}, {side}) and set data.layout: nchw"
        )
    return f"{key}.reshape(-1, H, W, C)"


def _as_pixels(key: str, x: np.ndarray) -> str:
    if x.dtype.kind == "b":
        return f"save {key}.astype(np.float32)"
    if x.dtype.kind not in "iu":
        return "save pixels as numbers"
    low, high = int(x.min()), int(x.max())
    if low < 0:
        mend = f"{key}.astype(np.float32) and set data.preprocess: none"
    else:
        mend = f"{key}.astype(np.uint8)" if high <= 255 else f"({key} / {high}).astype(np.float32)"
    return f"it lies in [{low}, {high}]: save {mend}"


def _in_unit_range(key: str, low: float, high: float, share_outside: float) -> str:
    as_they_are = "data.preprocess: none takes images as they are"
    if low >= -OVERSHOOT and high <= 1 + OVERSHOOT and share_outside <= OVERSHOT:
        return f"save np.clip({key}, 0, 1), or {as_they_are}"
    if low >= 0:
        largest = next((scale for scale in (255, 65535) if scale / 8 < high <= scale), high)
        return f"save {key} / {largest:g}, or {as_they_are}"
    if low >= -1 - HAIR and high <= 1 + HAIR:
        return f"save ({key} + 1) / 2, or {as_they_are}"
    return f"if they are standardised or whitened, {as_they_are}"


def read_labels(file: str, key: str, y: np.ndarray, images: int) -> np.ndarray:
    """One class an image (images,), int64 or text, from integers, whole floats, names or one-hot rows.

    Raises DataError, naming the file and its array `key`, where there is doubt.
    """
    name, shape = f"{file}: {key}", y.shape
    if y.ndim == 2 and 1 in shape and images == y.size:
        y = y.reshape(-1)
    if y.ndim not in (1, 2) or y.dtype.kind not in "biufUS":
        raise DataError(f"{name} should hold one class an image, not {y.dtype} of shape {shape}")
    if len(y) != images:
        raise DataError(f"{name} holds {len(y)} labels for {images} images")
    if y.dtype.kind in "US":
        if y.ndim == 2:
            raise DataError(f"{name} should hold one class an image, not {y.dtype} of shape {shape}")
        return np.char.decode(y, "utf-8", "backslashreplace") if y.dtype.kind == "S" else y
    if y.ndim == 2:
        return _hot(name, key, y)
    if y.dtype.kind == "f":
        wide = y.astype(np.float64)
        bad = ~(np.abs(wide) < LARGEST_CLASS) | (wide != np.round(wide))
        if bad.any():
            image = int(np.argmax(bad))
            raise DataError(
                f"{name} should hold one class an image, but image {image} has {y[image]!s}: save whole numbers, such "
                f"as {key}.round().astype(int), or names"
            )
    return y.astype(np.int64)


def _hot(name: str, key: str, y: np.ndarray) -> np.ndarray:
    """The class of each one-hot row: of two values, the larger once a row, whatever they are (-0.1 and 0.9, too)."""
    values = np.unique(y)
    hot = y == values[-1]
    if len(values) == 2 and (hot.sum(1) == 1).all():
        return hot.argmax(1)
    row = int(np.argmax(hot.sum(1) != 1)) if len(values) == 2 else 0
    shown = ", ".join(str(value) for value in y[row, :6]) + (", ..." if y.shape[1] > 6 else "")
    raise DataError(
        f"{name} of shape {y.shape} should hold one class an image, or one-hot rows, but row {row} is [{shown}]: save "
        f"{key}.argmax(1) if the largest entry is the class"
    )
