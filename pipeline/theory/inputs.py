"""The experiments' inputs, scikit-learn's handwritten digits as unit vectors or normalised images, and seeds."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from exact_ntk.config import Digits
from exact_ntk.data import load_dataset, normalisation, normalise


def seed_of(*names: int) -> int:
    """A seed of its own for each experiment, width and so on."""
    return int(np.random.SeedSequence(names).generate_state(1)[0])


@dataclass(frozen=True)
class Problem:
    """Two classes of digits: x_train (n, ...), targets y (n,) of -1 and 1, x_test (m, ...); float64."""

    x_train: Tensor
    y: Tensor
    x_test: Tensor


def _unit_vectors(x: np.ndarray, mean: np.ndarray) -> Tensor:
    """Images (n, H, W, 1) less the mean image, as vectors of norm 1: theorem 3.1 asks for norms of at most 1."""
    flat = torch.from_numpy((x - mean).reshape(len(x), -1)).double()
    return flat / flat.norm(dim=1, keepdim=True)


def _first_of_each(labels: np.ndarray, classes: tuple[int, ...], each: int) -> np.ndarray:
    return np.concatenate([np.flatnonzero(labels == c)[:each] for c in classes])


def vectors(count: int) -> Tensor:
    """The first `count` training digits as unit vectors (count, 64), float64."""
    digits = load_dataset(Digits(dataset="digits"))
    return _unit_vectors(digits.x_train[:count], digits.x_train.mean(0))


def images(count: int) -> Tensor:
    """The first `count` training digits, normalised as in the tables: (count, 1, 8, 8), float64."""
    digits = load_dataset(Digits(dataset="digits"))
    return torch.from_numpy(normalise(digits.x_train[:count], *normalisation(digits.x_train))).double()


def two_classes(each: int, test_each: int, classes: tuple[int, int] = (3, 8)) -> Problem:
    """The first `each` training and `test_each` test digits of two classes, as unit vectors (n, 64)."""
    digits = load_dataset(Digits(dataset="digits"))
    mean = digits.x_train.mean(0)
    return _problem(lambda x: _unit_vectors(x, mean), each, test_each, classes)


def two_classes_of_images(each: int, test_each: int, classes: tuple[int, int] = (3, 8)) -> Problem:
    """The same as images of 4 x 4 pixels (n, 1, 4, 4): less the mean image, means of 2 x 2, of mean square 1.

    CNTK-GAP matrices of few plain digits are so ill-conditioned that training takes thousands of steps.
    """
    centre = load_dataset(Digits(dataset="digits")).x_train.mean(0)

    def prepare(x: np.ndarray) -> Tensor:
        pooled = F.avg_pool2d(torch.from_numpy(x - centre).double().permute(0, 3, 1, 2), 2)
        return pooled / pooled.square().mean((1, 2, 3), keepdim=True).sqrt()

    return _problem(prepare, each, test_each, classes)


def _problem(prepare: Callable[[np.ndarray], Tensor], each: int, test_each: int, classes: tuple[int, int]) -> Problem:
    digits = load_dataset(Digits(dataset="digits"))
    train, test = _first_of_each(digits.y_train, classes, each), _first_of_each(digits.y_test, classes, test_each)
    y = torch.where(torch.from_numpy(digits.y_train[train]) == classes[1], 1.0, -1.0).double()
    return Problem(prepare(digits.x_train[train]), y, prepare(digits.x_test[test]))
