"""Images from a folder of files, a folder a class: every file is taken or named, and nothing is guessed."""

import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from exact_ntk.device import available_memory
from exact_ntk.errors import DataError
from exact_ntk.files import expanded
from exact_ntk.memory import gigabytes
from exact_ntk.progress import progress

READ = {".png", ".jpg", ".jpeg"}
FORMATS = ("PNG", "JPEG")
# Images that would go missing without a word.
NOT_READ = {".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".ppm", ".pgm", ".tga", ".tif", ".tiff", ".webp"}
GREY, OTHERS = {"1", "L", "LA"}, {"P", "PA", "RGB", "RGBA"}
OPAQUE = 255
PNG_DEPTH = 24  # the byte of a PNG file that says how many bits a channel has
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class Folder(NamedTuple):
    """Images of a folder.

    images: uint8 (N, H, W, C), C = 1 where all are grey, else 3.  labels: int64 (N,), places in `classes`, or -1 where
    there are no classes.  classes: their names, in alphabetical order.  files: where each image came from.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    files: tuple[Path, ...]


def load_folder(path: Path | str, size: int | tuple[int, int] | None = None, channels: int | None = None) -> Folder:
    """Every PNG and JPEG file CLASS/NAME.png in a folder; or NAME.png, without classes, where it holds no folders.

    Classes and the files of a class come in alphabetical order. Photographs are turned as their camera says. Hidden
    files and files of other kinds are passed over, images of other formats refused.

    Arguments:
        size: a side, or (H, W), in pixels: images are cropped about their centre to that shape and resized (bicubic,
            smoothed where they shrink). None takes them as they are, all of one size.
        channels: 1 makes all images grey (0.299 R + 0.587 G + 0.114 B), 3 all coloured. None is 1 where all are grey,
            else 3, grey ones with three equal channels.

    Raises DataError, naming the file or class, for a folder that is not there or holds none, an empty class, images in
    and beside class folders, unequal sizes without `size`, files that are broken, transparent or of more than 8 bits a
    channel, and images that do not fit in memory; ValueError for a size or channels that cannot be meant.
    """
    folder, shape = expanded(Path(path)), _checked_size(size)
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be None, 1 or 3, not {channels!r}")
    classes, files, labels = _listed(folder)
    heads = _heads(files)
    for file, head in zip(files, heads, strict=True):
        if shape is None and sorted(head.shape) != sorted(heads[0].shape):
            raise _of_two_sizes(files[0], heads[0].shape, file, head.shape)
    grey = all(head.grey for head in heads) if channels is None else channels == 1
    height, width = shape or heads[0].shape
    need, there = len(files) * height * width * (1 if grey else 3), available_memory(torch.device("cpu"))
    if need > there:
        raise DataError(
            f"{folder}: {len(files):,} images of {height} x {width} pixels take {gigabytes(need)}, and "
            f"{gigabytes(there)} are free: give a smaller size, such as size=32"
        )
    first = _pixels(files[0], shape, grey)
    images = np.empty((len(files), *first.shape), np.uint8)
    with progress(f"reading {folder.name}", len(files), "image", delay=2.0) as bar:
        for i, file in enumerate(files):
            pixels = _pixels(file, shape, grey) if i else first
            if pixels.shape != first.shape:
                raise _of_two_sizes(files[0], first.shape, file, pixels.shape)
            images[i] = pixels
            bar.update()
    return Folder(images, np.array(labels, np.int64), classes, tuple(files))


def _of_two_sizes(file: Path, shape: tuple[int, ...], other: Path, another: tuple[int, ...]) -> DataError:
    one, two = (f"{height} x {width}" for height, width, *_ in (shape, another))
    return DataError(f"{file} has {one} pixels and {other} {two}: give a size, such as size=32, for all of them")


def _checked_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = (size, size) if isinstance(size, int) and not isinstance(size, bool) else size
    if not (isinstance(sides, tuple | list) and len(sides) == 2 and all(isinstance(s, int) and s > 0 for s in sides)):
        raise ValueError(f"size must be a side or (H, W) in pixels, not {size!r}")
    return sides[0], sides[1]


def _listed(folder: Path) -> tuple[tuple[str, ...], list[Path], list[int]]:
    """Classes, files and their labels."""
    entries = _visible(folder)
    classes = [entry for entry in entries if entry.is_dir()]
    loose = _images_among(entries)
    if not classes:
        if not loose:
            raise DataError(f"{folder} holds no PNG or JPEG files, nor folders of them")
        return (), loose, [-1] * len(loose)
    if loose:
        raise DataError(
            f"{folder} holds images, such as {loose[0].name}, beside the folder {classes[0].name}: move one"
        )
    files: list[Path] = []
    labels: list[int] = []
    for label, place in enumerate(classes):
        inside = _visible(place)
        nested = next((entry for entry in inside if entry.is_dir()), None)
        if nested:
            raise DataError(f"{nested} is a folder in a class: images should be CLASS/NAME.png; did you mean {place}?")
        found = _images_among(inside)
        if not found:
            raise DataError(f"class {place.name} is empty: {place} holds no PNG or JPEG files: delete it, or fill it")
        files += found
        labels += [label] * len(found)
    return tuple(place.name for place in classes), files, labels


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot read the folder {folder.absolute()}: {error.strerror or error}") from error


def _images_among(entries: Sequence[Path]) -> list[Path]:
    other = next((entry for entry in entries if entry.suffix.lower() in NOT_READ), None)
    if other:
        raise DataError(f"{other}: only PNG and JPEG files are read: convert it, or move it away")
    return [entry for entry in entries if entry.suffix.lower() in READ and not entry.is_dir()]


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """An image whose pixels are not read yet. Raises DataError, naming the file, also for what is read within."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            yield image
    except UnidentifiedImageError as error:
        raise DataError(f"{file}: not a PNG or JPEG file, or broken: mend it, or move it away") from error
    except BROKEN as error:
        raise DataError(f"{file}: broken ({error}): mend it, or move it away") from error


@dataclass(frozen=True)
class _Head:
    """What is known of an image before its pixels are read. shape: height and width as stored: whether a PNG is to be
    turned may stand behind its pixels."""

    shape: tuple[int, int]
    grey: bool


def _heads(files: Sequence[Path]) -> list[_Head]:
    """Of every file. Raises DataError for the first that is refused, which says how many others are."""
    heads, refused = [], []
    for file in files:
        try:
            heads.append(_head(file))
        except DataError as error:
            refused.append((file, error))
    if refused:
        (_, first), *others = refused
        more = f" ({len(others)} other{'s' * (len(others) > 1)} refused as well, next {others[0][0]})" if others else ""
        raise DataError(f"{first}{more}") from first
    return heads


def _head(file: Path) -> _Head:
    with _opened(file) as image:
        with file.open("rb") as raw:
            wide = image.format == "PNG" and raw.read(PNG_DEPTH + 1)[PNG_DEPTH] > 8
        if wide or image.mode not in GREY | OTHERS:
            kind = "more than 8 bits a channel" if wide else f"{image.mode} pixels"
            raise DataError(f"{file}: has {kind}: save it as 8-bit grey or RGB")
        width, height = image.size
        return _Head((height, width), image.mode in GREY)


def _pixels(file: Path, shape: tuple[int, int] | None, grey: bool) -> np.ndarray:
    """(H, W, C) in uint8, turned as its camera says; of another size only where one is given."""
    with _opened(file) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            if np.asarray(image)[..., 3].min() < OPAQUE:
                raise DataError(f"{file}: is transparent in places: save it on the background that you mean")
        image = image.convert("L" if grey else "RGB")
        if shape and image.size != shape[::-1]:
            image = ImageOps.fit(image, shape[::-1], Image.Resampling.BICUBIC)
        return np.asarray(image).reshape(image.height, image.width, -1)
