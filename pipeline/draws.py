"""The one seeded order of the images, the draws that are blocks of it, and the images each draw is tested on.

Every position here is a row of the Gram store: the training images in order, then the test images in order.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from exact_ntk.config import CnnColumn, Config, KernelColumn
from exact_ntk.data import Dataset, load_dataset, normalisation, normalise
from exact_ntk.errors import ConfigError, DataError
from exact_ntk.files import digest


@dataclass(frozen=True)
class OrderedImages:
    """Images in store order.

    x: normalised, float32 (n_train + n_test, C, H, W).  y: labels (n_train + n_test,).
    image_index: position -> index in the data set's own training, then test images.
    dropped: (index, index of the kept copy) of exact duplicates among the training images.
    fields: what names these images in a fingerprint.
    """

    x: Tensor
    y: np.ndarray
    n_train: int
    classes: tuple[str, ...]
    image_index: np.ndarray
    dropped: tuple[tuple[int, int], ...]
    order_seed: int
    balanced: bool
    fields: dict[str, Any]

    @property
    def n_test(self) -> int:
        return len(self.x) - self.n_train


@dataclass(frozen=True)
class Draw:
    """Training and test positions of one draw; `overlaps` says that it shares training images with another."""

    train: np.ndarray
    test: np.ndarray
    overlaps: bool


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


def duplicates(x: np.ndarray) -> list[tuple[int, int]]:
    """(index, index of the first copy) of every image (n, H, W, C) that repeats an earlier one exactly."""
    first: dict[bytes, int] = {}
    found = []
    for index, image in enumerate(x):
        earlier = first.setdefault(image.tobytes(), index)
        if earlier != index:
            found.append((index, earlier))
    return found


def _may_keep_conflicts(config: Config) -> bool:
    return all(c.ridge > 0 for c in config.columns if isinstance(c, KernelColumn))


def order_images(dataset: Dataset, config: Config) -> OrderedImages:
    """Drop duplicates, order, normalise with the statistics of the full training set.

    Of exact copies with one label the first is kept. Copies with different labels make a Gram matrix singular, so
    they raise DataError unless every kernel column has a ridge.
    """
    repeats = duplicates(dataset.x_train)
    conflicts = [(i, j) for i, j in repeats if dataset.y_train[i] != dataset.y_train[j]]
    if conflicts and not _may_keep_conflicts(config):
        i, j = conflicts[0]
        raise DataError(
            f"{dataset.name}: training images {j} and {i} are equal but labelled {dataset.classes[dataset.y_train[j]]} "
            f"and {dataset.classes[dataset.y_train[i]]} ({len(conflicts)} such pairs), so their Gram matrix is "
            "singular: give the kernel columns a ridge, or mend the data"
        )
    conflicting = set(conflicts)
    dropped = tuple(pair for pair in repeats if pair not in conflicting)
    kept = np.setdiff1d(np.arange(len(dataset.x_train)), [i for i, _ in dropped])
    seed, balanced = config.order.seed, config.order.balanced
    train = kept[shuffled(dataset.y_train[kept], (seed, 0), balanced)]
    test = shuffled(dataset.y_test, (seed, 1), False)
    mean, std = normalisation(dataset.x_train)
    raw = np.concatenate([dataset.x_train[train], dataset.x_test[test]])
    fields = {
        "images": digest(raw),
        "train_images": len(train),
        "test_images": len(test),
        "image_shape": list(raw.shape[1:]),
        "normalisation": {"mean": mean.tolist(), "std": std.tolist()},
    }
    return OrderedImages(
        x=normalise(raw, mean, std),
        y=np.concatenate([dataset.y_train[train], dataset.y_test[test]]),
        n_train=len(train),
        classes=dataset.classes,
        image_index=np.concatenate([train, test]),
        dropped=dropped,
        order_seed=seed,
        balanced=balanced,
        fields=fields,
    )


def load_images(config: Config) -> OrderedImages:
    """The images of a config, in store order, with every column's draws checked to exist."""
    images = order_images(load_dataset(config.data), config)
    for name, column in zip(config.column_names, config.columns, strict=True):
        for k in range(column.train.draws):
            draw(images, column, name, k)
    return images


def draw(images: OrderedImages, column: KernelColumn | CnnColumn, name: str, k: int) -> Draw:
    """Draw k of a column: the k-th block of n training positions and the positions it is tested on.

    Once the blocks are used up, a draw is a fresh seeded one. Raises ConfigError, naming the column `name`, for more
    images than there are.
    """
    n = images.n_train if column.train.n == "all" else int(column.train.n)
    if n > images.n_train:
        gone = f" ({len(images.dropped)} exact duplicates were dropped)" if images.dropped else ""
        raise ConfigError(f"column {name}: train.n is {n}, but there are {images.n_train} training images{gone}")
    overlaps = (k + 1) * n > images.n_train
    if overlaps:
        labels = images.y[: images.n_train]
        train = np.sort(shuffled(labels, (images.order_seed, 2, n, k), images.balanced)[:n])
    else:
        train = np.arange(k * n, (k + 1) * n)
    return Draw(train, _tested(images, column, name, train), overlaps)


def _tested(images: OrderedImages, column: KernelColumn | CnnColumn, name: str, train: np.ndarray) -> np.ndarray:
    undrawn = np.setdiff1d(np.arange(images.n_train), train)
    test = np.arange(images.n_train, len(images.x))
    sources = {"test": [test], "undrawn": [undrawn], "both": [undrawn, test]}[column.test.source]
    # Merging prefixes in proportion keeps each source's own order, so few tiles serve a small n.
    place = np.concatenate([(np.arange(len(s)) + 0.5) / max(1, len(s)) for s in sources])
    merged = np.concatenate(sources)[np.argsort(place, kind="stable")]
    n = len(merged) if column.test.n == "all" else int(column.test.n)
    if n > len(merged) or n == 0:
        raise ConfigError(
            f"column {name}: test.n is {column.test.n}, but there are {len(merged)} images from {column.test.source!r}"
        )
    return np.sort(merged[:n])
