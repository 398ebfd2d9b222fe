"""Data sets: raw images and labels, checked in full when they are loaded, and their normalisation."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from exact_ntk.config import Cifar10, Digits, Npz
from exact_ntk.errors import DataError

KEYS = ("x_train", "y_train", "x_test", "y_test")
DIGITS_TRAIN = 1000


@dataclass(frozen=True)
class Dataset:
    """Images (n, H, W, C), uint8 or float in [0, 1]; labels (n,) int64 in 0 .. len(classes) - 1."""

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: tuple[str, ...]


def load_dataset(spec: Digits | Cifar10 | Npz) -> Dataset:
    """Load and check the data set of a config. Raises DataError, naming the array at fault."""
    if isinstance(spec, Digits):
        return _checked("digits", _digits())
    if isinstance(spec, Npz):
        return _checked(str(spec.path), _npz(spec.path))
    return _checked("cifar10", _cifar10(spec.root))


def fetch(spec: Digits | Cifar10 | Npz) -> str:
    """Fetch what is not there yet, verify checksums, and say where it lies. Raises DataError without a network."""
    if isinstance(spec, Digits):
        return "digits come with scikit-learn: nothing to download"
    if isinstance(spec, Npz):
        load_dataset(spec)
        return f"{spec.path} is in place: nothing to download"
    from torchvision.datasets import CIFAR10

    try:
        CIFAR10(str(spec.root), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"cannot download CIFAR-10 into {spec.root.absolute()} ({error}): check the network, or put "
            "cifar-10-python.tar.gz there yourself and run this again"
        ) from error
    return f"CIFAR-10 is in {spec.root.absolute()}, checksums verified"


def normalisation(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel of images (n, H, W, C), in units of [0, 1], float64 (C,).

    Raises DataError for a channel without deviation.
    """
    scale = 255.0 if x.dtype == np.uint8 else 1.0
    channels = [x[..., c].astype(np.float64) / scale for c in range(x.shape[-1])]
    mean, std = np.array([c.mean() for c in channels]), np.array([c.std() for c in channels])
    for channel, deviation in enumerate(std):
        if not deviation > 1e-12:
            raise DataError(f"x_train: channel {channel} is constant, so it cannot be normalised: drop it")
    return mean, std


def normalise(x: np.ndarray, mean: np.ndarray, std: np.ndarray) -> Tensor:
    """Images (n, H, W, C) -> float32 tensor (n, C, H, W), each channel minus its mean, over its deviation."""
    scale = 255.0 if x.dtype == np.uint8 else 1.0
    out = np.empty((len(x), x.shape[3], x.shape[1], x.shape[2]), np.float32)
    for channel in range(x.shape[3]):
        out[:, channel] = (x[..., channel].astype(np.float64) / scale - mean[channel]) / std[channel]
    return torch.from_numpy(out)


def _digits() -> dict[str, np.ndarray]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 16).astype(np.float32)
    n = DIGITS_TRAIN
    return {"x_train": images[:n], "y_train": labels[:n], "x_test": images[n:], "y_test": labels[n:]}


def _cifar10(root: Path) -> dict[str, np.ndarray]:
    from torchvision.datasets import CIFAR10

    try:
        train, test = (CIFAR10(str(root), train=part) for part in (True, False))
    except (OSError, RuntimeError) as error:
        raise DataError(f"no CIFAR-10 in {root.absolute()}, or it is damaged: run `ntk download`") from error
    return {
        "x_train": train.data,
        "y_train": np.array(train.targets),
        "x_test": test.data,
        "y_test": np.array(test.targets),
    }


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in KEYS if key not in archive]
            if missing:
                raise DataError(f"{path}: no array {missing[0]}; it needs {', '.join(KEYS)}")
            return {key: archive[key] for key in KEYS}
    except FileNotFoundError:
        raise DataError(f"data.path: no file {path.absolute()}") from None
    except ValueError as error:
        if "pickle" in str(error):
            raise DataError(f"{path}: holds pickled objects, which are never loaded: save plain arrays") from None
        raise DataError(f"{path}: damaged or not an npz archive ({error})") from error
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError, TypeError) as error:
        raise DataError(f"{path}: damaged or not an npz archive ({error})") from error


def _images(name: str, x: np.ndarray) -> np.ndarray:
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4 or 0 in x.shape:
        raise DataError(f"{name} should hold images N x H x W or N x H x W x C, not an array of shape {x.shape}")
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind != "f":
        raise DataError(f"{name} should be uint8, or floating point in [0, 1], not {x.dtype}")
    if not np.isfinite(x).all():
        bad = int(np.argmax(~np.isfinite(x).all(axis=(1, 2, 3))))
        raise DataError(f"{name}: image {bad} holds NaN or infinite pixels")
    if x.min() < 0 or x.max() > 1:
        raise DataError(f"{name} should lie in [0, 1], not in [{x.min():g}, {x.max():g}]: divide it first")
    return x


def _labels(name: str, y: np.ndarray, images: int) -> np.ndarray:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise DataError(f"{name} should hold one integer class an image, not {y.dtype} of shape {y.shape}")
    if len(y) != images:
        raise DataError(f"{name} holds {len(y)} labels for {images} images")
    return y.astype(np.int64)


def _checked(name: str, arrays: dict[str, np.ndarray]) -> Dataset:
    x_train, x_test = (_images(f"{name}: {key}", arrays[key]) for key in ("x_train", "x_test"))
    if x_train.shape[1:] != x_test.shape[1:] or x_train.dtype != x_test.dtype:
        raise DataError(
            f"{name}: x_train holds {x_train.dtype} images of shape {x_train.shape[1:]}, x_test {x_test.dtype} "
            f"images of shape {x_test.shape[1:]}: they should be alike"
        )
    y_train = _labels(f"{name}: y_train", arrays["y_train"], len(x_train))
    y_test = _labels(f"{name}: y_test", arrays["y_test"], len(x_test))
    classes, y_train = np.unique(y_train, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"{name}: y_train holds only class {classes[0]}: a table needs at least two")
    strange = np.setdiff1d(y_test, classes)
    if len(strange):
        raise DataError(f"{name}: y_test holds class {strange[0]}, which y_train has no image of")
    y_test = np.searchsorted(classes, y_test)
    return Dataset(name, x_train, y_train.astype(np.int64), x_test, y_test, tuple(str(c) for c in classes))
