"""The one seeded order of the images, the draws that are blocks of it, and the images each draw is tested on.

Every position here is a row of the Gram store: the training images in order, then the test images in order.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from exact_ntk.config import CnnColumn, Config, KernelColumn, Zca
from exact_ntk.copies import ZERO, Alike, find_alike
from exact_ntk.data import Dataset, load_dataset, normalisation, normalise
from exact_ntk.errors import ConfigError, DataError
from exact_ntk.grids import named
from exact_ntk.images import OrderedImages
from exact_ntk.kernel_names import DIVISOR
from exact_ntk.notices import warn_once


@dataclass(frozen=True)
class Draw:
    """Training and test positions of one draw; `overlaps` says that it shares training images with another."""

    train: np.ndarray
    test: np.ndarray
    overlaps: bool


def count_held_out(n: int, share: float, what: str) -> int:
    """How many of n training images are held out of training to choose by, the first ones, a fair sample as a draw is.

    Raises ConfigError, saying what chooses, where a part would be empty.
    """
    held = round(n * share)
    if held in (0, n):
        raise ConfigError(f"{what}: holdout {share:g} of {n} images leaves none to train on or none to choose by")
    return held


def permutation(n: int, seed: tuple[int, ...]) -> np.ndarray:
    """A seeded permutation of range(n), from raw PCG64 output, whose stream NumPy promises to keep."""
    keys = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(n)
    return np.argsort(keys, kind="stable")


def shuffled(labels: np.ndarray, seed: tuple[int, ...], balanced: bool) -> np.ndarray:
    """A seeded permutation of range(len(labels)); balanced interleaves the classes, an exhausted one drops out."""
    order = permutation(len(labels), seed)
    if not balanced:
        return order
    rank = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    return order[np.argsort(rank[order], kind="stable")]


def order_images(dataset: Dataset, config: Config) -> OrderedImages:
    """Preprocess as `data.preprocess` says, drop copies, order.

    Of training images that are equal up to float32's rounding and have one label, the first is kept; under a ZCA as
    they are in the data set. Raises DataError for a channel that a column needs normalised and that is constant.
    """
    n, how = len(dataset.x_train), config.data.preprocess
    plain = "none" if isinstance(how, Zca) else how
    used = {plain, *(how for column in config.columns if isinstance(how := config.preprocess_of(column), str))}
    statistics: dict[str, Any] = {how: normalisation(dataset.x_train, how) for how in sorted(used)}

    def raw(at: np.ndarray) -> np.ndarray:
        return np.concatenate([dataset.x_train[at[at < n]], dataset.x_test[at[at >= n] - n]])

    alike = find_alike(lambda at: normalise(raw(at), *statistics[plain]).reshape(len(at), -1), n + len(dataset.x_test))
    dropped = _repeated(alike.copy[:n], dataset.y_train)
    kept = np.setdiff1d(np.arange(n), [i for i, _ in dropped])
    seed, balanced = config.order.seed, config.order.balanced
    train = kept[shuffled(dataset.y_train[kept], (seed, 0), balanced)]
    test = shuffled(dataset.y_test, (seed, 1), False)
    order = np.concatenate([train, test + n])
    return OrderedImages(
        pixels=raw(order),
        at=np.arange(len(order)),
        y=np.concatenate([dataset.y_train[train], dataset.y_test[test]]),
        n_train=len(train),
        classes=dataset.classes,
        image_index=np.concatenate([train, test]),
        dropped=dropped,
        order_seed=seed,
        balanced=balanced,
        statistics=statistics,
        preprocess=plain,
        found_alike={plain: Alike(alike.direction[order], alike.copy[order], alike.norm[order])},
    )


def _repeated(copy: np.ndarray, labels: np.ndarray) -> tuple[tuple[int, int], ...]:
    """(index, index of the first) of every image that repeats an earlier one with its label."""
    _, first, of = np.unique(np.stack([copy, labels]), axis=1, return_index=True, return_inverse=True)
    earlier = first[of.reshape(-1)]
    return tuple((int(i), int(earlier[i])) for i in np.flatnonzero(earlier != np.arange(len(copy))))


def load_images(config: Config) -> OrderedImages:
    """The images of a config, in store order, with every column's draws checked to exist.

    Raises DataError, naming the images, where a draw of a kernel column without a ridge has a singular Gram matrix.
    Logs a warning where draws hold no image of a class: in the balanced order those after a small one is exhausted.
    """
    images = order_images(load_dataset(config.data, config.tested), config)
    lacking: dict[str, str] = {}
    for name, column in zip(config.column_names, config.columns, strict=True):
        _refuse_odd_sides(images, column, name)
        prepared = images.under(config.preprocess_of(column))
        for k in range(column.train.draws):
            found = draw(images, column, name, k)
            for label in _missing_classes(images, found):
                lacking[name] = images.classes[label]
            if isinstance(column, KernelColumn) and not column.ridge:
                _refuse_singular(prepared, found, name, column.flips)
            if isinstance(column, KernelColumn) and column.unit_diagonal:
                _refuse_zero(prepared, found, name)
    if lacking:
        what = "order: {balanced: false} draws classes by their share" if images.balanced else "take larger draws"
        warn_once(
            f"{named(list(lacking))}: some draws train on no image of a class, such as {next(iter(lacking.values()))}, "
            f"and differ by more than luck: {what}"
        )
    return images


def _missing_classes(images: OrderedImages, found: Draw) -> np.ndarray:
    """The classes of which a draw trains on no image, though it has room for one of each."""
    classes = np.unique(images.y[: images.n_train])
    room = len(found.train) >= len(classes)
    return np.setdiff1d(classes, images.y[found.train]) if room else classes[:0]


def _refuse_odd_sides(images: OrderedImages, column: KernelColumn | CnnColumn, name: str) -> None:
    """Raises DataError for Myrtle networks of images that two 2 x 2 pools do not divide."""
    _, height, width = images.shape
    if column.readout == "myrtle" and (height % DIVISOR or width % DIVISOR):
        raise DataError(
            f"column {name}: Myrtle networks pool twice, so sides must be divisible by {DIVISOR}, and the images are "
            f"{height} x {width}: crop or pad them, or leave the column out"
        )


def _refuse_singular(images: OrderedImages, found: Draw, name: str, flips: bool) -> None:
    """Raises DataError for a draw with a zero image, or with two that are multiples of one another.

    flips: or of the other's mirror image.
    """
    direction = (images.alike_or_mirrored if flips else images.alike).direction[found.train]
    zero = found.train[direction == ZERO]
    if len(zero):
        raise _singular(name, f"image {images.image_index[zero[0]]} is zero once preprocessed", len(zero))
    order = np.argsort(direction, kind="stable")
    pairs = np.flatnonzero(np.diff(direction[order]) == 0)
    if len(pairs):
        one, two = sorted(found.train[order[pairs[0] : pairs[0] + 2]], key=lambda at: images.image_index[at])
        i, j = images.image_index[one], images.image_index[two]
        if images.alike.direction[one] != images.alike.direction[two]:
            how = "mirror images of one another, up to a factor, and flips takes them for one"
        elif images.alike.copy[one] == images.alike.copy[two]:
            how = f"equal but labelled {images.classes[images.y[one]]} and {images.classes[images.y[two]]}"
        else:
            ratio = images.alike.norm[two] / images.alike.norm[one]
            how = f"proportional once preprocessed ({j} is {ratio:.3g} times {i})"
        raise _singular(name, f"images {i} and {j} are {how}", len(pairs))


def _refuse_zero(images: OrderedImages, found: Draw, name: str) -> None:
    """Raises DataError for a draw with a zero image, or tested on one: its kernel has no unit diagonal."""
    used = np.concatenate([found.train, found.test])
    zero = used[images.alike.direction[used] == ZERO]
    if len(zero):
        part = "training" if zero[0] < images.n_train else "test"
        raise DataError(
            f"column {name}: {part} image {images.image_index[zero[0]]} is zero once preprocessed, so its kernel has "
            "no unit diagonal: leave such images out, or unit_diagonal"
        )


def _singular(name: str, what: str, cases: int) -> DataError:
    more = f" (and {cases - 1} more such)" if cases > 1 else ""
    return DataError(
        f"column {name}: training {what}{more}, so the Gram matrix is singular: give the column a ridge, such as "
        "ridge: 1.0e-6, or leave such images out"
    )


def draw(images: OrderedImages, column: KernelColumn | CnnColumn, name: str, k: int) -> Draw:
    """Draw k of a column: the k-th block of n training positions and the positions it is tested on.

    Once the blocks are used up, a draw is a fresh seeded one. Raises ConfigError, naming the column `name`, for more
    images than there are.
    """
    n = images.n_train if column.train.n == "all" else int(column.train.n)
    if n > images.n_train:
        gone = f" ({len(images.dropped)} copies were dropped)" if images.dropped else ""
        raise ConfigError(f"column {name}: train.n is {n}, but there are {images.n_train} training images{gone}")
    overlaps = (k + 1) * n > images.n_train
    if overlaps:
        labels = images.y[: images.n_train]
        train = np.sort(shuffled(labels, (images.order_seed, 2, n, k), images.balanced)[:n])
    else:
        train = np.arange(k * n, (k + 1) * n)
    return Draw(train, _tested(images, column, name, train), overlaps)


def copies_tested(images: OrderedImages, found: Draw) -> int:
    """How many images that a draw is tested on equal one of its training images."""
    copy = images.alike.copy
    return int(np.isin(copy[found.test], copy[found.train]).sum())


def _tested(images: OrderedImages, column: KernelColumn | CnnColumn, name: str, train: np.ndarray) -> np.ndarray:
    sources = []
    if column.test.source != "test":
        sources.append(np.setdiff1d(np.arange(images.n_train), train))
    if column.test.source != "undrawn":
        sources.append(np.arange(images.n_train, images.n_train + images.n_test))
    # Merging prefixes in proportion keeps each source's own order, so few tiles serve a small n.
    place = np.concatenate([(np.arange(len(s)) + 0.5) / max(1, len(s)) for s in sources])
    merged = np.concatenate(sources)[np.argsort(place, kind="stable")]
    n = len(merged) if column.test.n == "all" else int(column.test.n)
    if n > len(merged) or n == 0:
        raise ConfigError(
            f"column {name}: test.n is {column.test.n}, but there are {len(merged)} images from {column.test.source!r}"
        )
    return np.sort(merged[:n])
