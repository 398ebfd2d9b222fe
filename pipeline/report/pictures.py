"""Images that one column gets right and another wrong, and what the wrong one takes them for."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from exact_ntk.canvas import picture_png
from exact_ntk.data import full_scale
from exact_ntk.images import OrderedImages
from exact_ntk.networks.cell import NetworkCell
from exact_ntk.records import Results
from exact_ntk.regression.cell import KernelCell
from exact_ntk.report.paired import surest

MOST_PICTURES = 8
LARGEST_SIDE = 64  # of a picture: larger images are shown by every second, third, ... pixel

Key = tuple[str, int]


class Picture(NamedTuple):
    """words: its class, and what it was taken for where that is known.  place: where it lies in the data set."""

    png: bytes
    words: str
    place: str


class Apart(NamedTuple):
    """right, wrong: two cells, by column and depth.  total: images that tell them apart in this way.  tested: all that
    both were tested on.  pictures: of some of these, the surest first."""

    right: Key
    wrong: Key
    total: int
    tested: int
    pictures: list[Picture]


class _Seen(NamedTuple):
    """A cell's test images, as positions (m,); score (m,): 1 right, 0 wrong, or the share of runs and last epochs.

    taken_for (m,): the class of the largest output; None for networks, which keep no outputs.
    """

    at: np.ndarray
    score: np.ndarray
    taken_for: np.ndarray | None


def told_apart(
    results: Results,
    kernel_cells: Sequence[KernelCell],
    network_cells: Sequence[NetworkCell],
    arrays: dict[Key, list[dict[str, np.ndarray]]],
    images: OrderedImages,
) -> list[Apart]:
    """Both ways for the two cells worth comparing, as far as there are such images; of draws the first.

    arrays: of these cells, see `collect`.  images: the table's.
    """
    keys = _worth_comparing(results)
    if keys is None:
        return []
    cells: list[KernelCell | NetworkCell] = [*kernel_cells, *network_cells]
    by_key = {(cell.name, cell.depth): cell for cell in cells}
    seen = [_seen(by_key[key], arrays[key]) for key in keys]
    both = [_one_way(keys[i], keys[1 - i], seen[i], seen[1 - i], images) for i in (0, 1)]
    return [apart for apart in both if apart.total]


def _worth_comparing(results: Results) -> tuple[Key, Key] | None:
    """The best cell of kernel regression and that of networks; where there are none, the surest paired difference."""
    kernels, nets = ([r for r in results.records if (r.model == "cnn") == net] for net in (False, True))
    if kernels and nets:
        one, other = (max(found, key=lambda r: r.accuracy) for found in (kernels, nets))
        return (one.column, one.depth), (other.column, other.depth)
    if not results.paired:
        return None
    pair = surest(results.paired)
    return (pair.column, pair.depth), (pair.minus, pair.depth)


def _seen(cell: KernelCell | NetworkCell, kept: list[dict[str, np.ndarray]]) -> _Seen:
    if isinstance(cell, NetworkCell):
        return _Seen(cell.draw.test, np.mean([run["right"] for run in kept], axis=0), None)
    return _Seen(cell.draws[0].test, kept[0]["right"], kept[0]["outputs"].argmax(1))


def _one_way(right: Key, wrong: Key, good: _Seen, bad: _Seen, images: OrderedImages) -> Apart:
    at, i, j = np.intersect1d(good.at, bad.at, assume_unique=True, return_indices=True)
    gain = good.score[i] - bad.score[j]
    apart = np.flatnonzero((good.score[i] > 0.5) & (bad.score[j] < 0.5))
    shown = apart[np.argsort(-gain[apart], kind="stable")][:MOST_PICTURES]
    pixels = _shades(images.pixels[images.at[at[shown]]])
    pictures = []
    for k, image in zip(shown, pixels, strict=True):
        words = images.classes[images.y[at[k]]]
        if bad.taken_for is not None:
            words += f", taken for {images.classes[bad.taken_for[j[k]]]}"
        part = "training" if at[k] < images.n_train else "test"
        pictures.append(Picture(picture_png(image), words, f"{part} image {images.image_index[at[k]]}"))
    return Apart(right, wrong, len(apart), len(at), pictures)


def _shades(pixels: np.ndarray) -> np.ndarray:
    """Images (n, H, W, C) as red, green and blue from 0 to 1, (n, h, w, 3); other channels than three are averaged."""
    step = -(-max(pixels.shape[1:3]) // LARGEST_SIDE)
    values = pixels[:, ::step, ::step].astype(np.float64) / full_scale(pixels)
    if values.size and (values.min() < 0 or values.max() > 1):
        values = (values - values.min()) / (np.ptp(values) or 1.0)
    return values if values.shape[-1] == 3 else np.repeat(values.mean(-1, keepdims=True), 3, axis=-1)
