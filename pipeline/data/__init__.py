"""Data sets: raw images and labels, checked in full when they are loaded, and their normalisation."""

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exact_ntk.config import Cifar10, Digits, Npz
from exact_ntk.data.arrays import read_images, read_labels
from exact_ntk.data.npz import read_npz_images
from exact_ntk.errors import DataError
from exact_ntk.files import expanded

DIGITS_TRAIN = 1000

log = logging.getLogger("ntk")


@dataclass(frozen=True)
class Dataset:
    """Images (n, H, W, C), uint8 or float; labels (n,) int64 in 0 .. len(classes) - 1; there may be no test images."""

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: tuple[str, ...]


def load_dataset(spec: Digits | Cifar10 | Npz, tested: bool = True) -> Dataset:
    """Load and check the data set of a config.

    tested: whether its test images are needed; where they are not, they may be missing, and are left out, with a word,
    if something is wrong with them. Raises DataError, naming the array at fault.
    """
    name, arrays = _arrays(spec, tested)
    x_train, y_train = _part(spec, name, arrays, "train")
    classes, y_train = np.unique(y_train, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"{name}: y_train holds only class {classes[0]}: a table needs at least two")
    x_test, y_test = x_train[:0], y_train[:0]
    if tested or ("x_test" in arrays and arrays["x_test"].size and arrays["y_test"].size):
        try:
            x_test, y_test = _test_part(spec, name, arrays, x_train, classes)
        except DataError as error:
            if tested:
                raise
            log.warning(f"{error} (no column is tested on them: the test images are left out)")
    return Dataset(name, x_train, y_train.astype(np.int64), x_test, y_test, tuple(str(c) for c in classes))


def fetch(spec: Digits | Cifar10 | Npz, tested: bool = True) -> str:
    """Fetch what is not there yet, verify checksums, and say where it lies. Raises DataError without a network."""
    if isinstance(spec, Digits):
        return "digits come with scikit-learn: nothing to download"
    if isinstance(spec, Npz):
        load_dataset(spec, tested)
        return f"{spec.path} is in place: nothing to download"
    from exact_ntk.data.cifar10 import download_cifar10

    root = expanded(spec.root)
    download_cifar10(root)
    return f"CIFAR-10 is in {root.absolute()}, checksums verified"


def channel_statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel of images (n, H, W, C), uint8 in units of 255; float64 (C,)."""
    scale = full_scale(x)
    channels = [x[..., c].astype(np.float64) / scale for c in range(x.shape[-1])]
    return np.array([c.mean() for c in channels]), np.array([c.std() for c in channels])


def normalisation(x: np.ndarray, how: str = "standard") -> tuple[np.ndarray, np.ndarray]:
    """What is taken from each channel of images (n, H, W, C) and what it is divided by, float64 (C,).

    how: standard is the mean and standard deviation, uint8 in units of 255; none is 0 and 1. Raises DataError for a
    channel without deviation.
    """
    if how == "none":
        return np.zeros(x.shape[-1]), np.ones(x.shape[-1])
    mean, std = channel_statistics(x)
    constant = [c for c, deviation in enumerate(std) if not deviation > 1e-12]
    if constant:
        others = [c for c in range(len(std)) if c not in constant]
        mend = f", such as x_train[..., {others}]," if others else ""
        raise DataError(
            f"x_train: channel {constant[0]} is constant, so it cannot be normalised: drop it{mend} or set "
            "data.preprocess: none"
        )
    return mean, std


def normalise(x: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Images (n, H, W, C) -> float32 (n, C, H, W), each channel minus its mean, over its deviation."""
    scale = full_scale(x)
    out = np.empty((len(x), x.shape[3], x.shape[1], x.shape[2]), np.float32)
    for channel in range(x.shape[3]):
        out[:, channel] = (x[..., channel].astype(np.float64) / scale - mean[channel]) / std[channel]
    return out


def full_scale(x: np.ndarray) -> float:
    """What images hold for 1: 255 in uint8, 1 in floats."""
    return 255.0 if x.dtype == np.uint8 else 1.0


def _arrays(spec: Digits | Cifar10 | Npz, tested: bool) -> tuple[str, dict[str, np.ndarray]]:
    """The data set's name, and its arrays as they are, by our names."""
    if isinstance(spec, Digits):
        return "digits", _digits()
    if isinstance(spec, Npz):
        return str(spec.path), read_npz_images(spec, tested)
    from exact_ntk.data.cifar10 import read_cifar10

    return "cifar10", read_cifar10(expanded(spec.root))


def _digits() -> dict[str, np.ndarray]:
    rows = _digits_rows()
    images, labels = (rows[:, :-1].reshape(-1, 8, 8, 1) / 16).astype(np.float32), rows[:, -1].astype(np.int64)
    n = DIGITS_TRAIN
    return {"x_train": images[:n], "y_train": labels[:n], "x_test": images[n:], "y_test": labels[n:]}


def _digits_rows() -> np.ndarray:
    """(1797, 65): pixels, label. From scikit-learn's file; importing scikit-learn would take a second."""
    package = importlib.util.find_spec("sklearn")
    file = Path(package.origin).parent / "datasets/data/digits.csv.gz" if package and package.origin else None
    if file and file.exists():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    return np.column_stack(load_digits(return_X_y=True))


def _part(
    spec: Digits | Cifar10 | Npz, name: str, arrays: dict[str, np.ndarray], part: str
) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of train or test."""
    x, y = (arrays[f"{kind}_{part}"] for kind in "xy")
    keys, layout = (spec.keys.model_dump(), spec.layout) if isinstance(spec, Npz) else ({}, None)
    x_key, y_key = (keys.get(f"{kind}_{part}", f"{kind}_{part}") for kind in "xy")
    one_hot_row = x.shape[:1] == y.shape[:1] == (1,)
    labels = max(y.shape) if 1 in y.shape and not one_hot_row else len(y) if y.ndim else 0
    x = read_images(name, x_key, x, labels, layout, spec.preprocess == "none")
    return x, read_labels(name, y_key, y, len(x))


def _test_part(
    spec: Digits | Cifar10 | Npz,
    name: str,
    arrays: dict[str, np.ndarray],
    x_train: np.ndarray,
    classes: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Test images, which should be like the training images, and labels, by their place in `classes`."""
    if not arrays["x_test"].size:
        none = f"x_test holds no images: its shape is {arrays['x_test'].shape}"
        raise DataError(f"{name}: {none}; where there are none, give every column test: undrawn")
    x, y = _part(spec, name, arrays, "test")
    one_scale = full_scale(x) == full_scale(x_train)
    if x.shape[1:] != x_train.shape[1:] or not one_scale:
        mend = "" if one_scale else f", save x_{'test' if x.dtype == np.uint8 else 'train'} / 255"
        raise DataError(
            f"{name}: x_train holds {x_train.dtype} images of shape {x_train.shape[1:]}, x_test {x.dtype} images of "
            f"shape {x.shape[1:]}: they should be alike{mend}"
        )
    # Entries a label: more than one in one-hot rows.
    if arrays["y_train"].size // len(x_train) != arrays["y_test"].size // len(x):
        shapes = f"y_train has shape {arrays['y_train'].shape}, y_test {arrays['y_test'].shape}"
        raise DataError(f"{name}: {shapes}: they should be alike")
    if (y.dtype.kind == "U") != (classes.dtype.kind == "U"):
        raise DataError(f"{name}: of y_train and y_test one holds names and the other numbers: they should be alike")
    strange = np.setdiff1d(y, classes)
    if len(strange):
        raise DataError(f"{name}: y_test holds class {strange[0]}, which y_train has no image of")
    return x, np.searchsorted(classes, y)
