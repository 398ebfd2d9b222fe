"""Pooling against vanilla on the same images: the paired difference has a smaller error than two accuracies."""

import zipfile
from pathlib import Path

import numpy as np

from exact_ntk.config import Config, KernelColumn
from exact_ntk.errors import StoreError
from exact_ntk.records import PairedDifference
from exact_ntk.standard_error import standard_error

# What two counterparts may differ in: it does not choose images or change how they are used.
UNPAIRED = {"readout": "gap", "depths": (), "name": "", "paper": ()}


def counterparts(config: Config) -> list[tuple[str, str]]:
    """Names (global average pooling, vanilla) of kernel columns that the config lets differ in the readout alone."""
    named = zip(config.column_names, config.columns, strict=True)
    kernels = [(name, c) for name, c in named if isinstance(c, KernelColumn)]
    return [
        (pooled, vanilla)
        for pooled, p in kernels
        for vanilla, v in kernels
        if (p.readout, v.readout) == ("gap", "vanilla")
        and p.model_copy(update=UNPAIRED) == v.model_copy(update=UNPAIRED)
    ]


def difference(pooled: Path, vanilla: Path) -> tuple[float, float]:
    """Accuracy of the first saved predictions minus that of the second, the mean over draws, and its standard error.

    Both in points. Raises StoreError, naming the file, for predictions that cannot be read.
    """
    images, first = _right(pooled)
    _, second = _right(vanilla)
    scores = [a - b for a, b in zip(first, second, strict=True)]
    return 100.0 * float(np.mean([s.mean() for s in scores])), standard_error(images, scores)


def _right(path: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each draw, numbers that name its test images, and 1 where they are classified right, else 0."""
    try:
        with np.load(path, allow_pickle=False) as saved:
            draws = range(sum(key.startswith("label_") for key in saved))
            images = [2 * saved[f"image_index_{k}"] + saved[f"from_test_set_{k}"] for k in draws]
            return images, [(saved[f"outputs_{k}"].argmax(1) == saved[f"label_{k}"]).astype(float) for k in draws]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise StoreError(f"cannot read {path}: {error}; delete it to have its cell solved again") from error


def paired_differences(config: Config, predictions: dict[tuple[str, int], Path]) -> list[PairedDifference]:
    """One record for each pair of counterparts and each depth at which both are solved.

    predictions: (column, depth) -> where its saved predictions lie.
    """
    found = []
    for pooled, vanilla in counterparts(config):
        for name, depth in predictions:
            if name == pooled and (vanilla, depth) in predictions:
                points, error = difference(predictions[pooled, depth], predictions[vanilla, depth])
                found.append(
                    PairedDifference(column=pooled, minus=vanilla, depth=depth, difference=points, standard_error=error)
                )
    return found
