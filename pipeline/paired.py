"""Pooling against vanilla on the same images: the paired difference has a smaller error than two accuracies."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import Config, KernelColumn
from pipeline.errors import StoreError

# What two counterparts may differ in: it does not choose images or change how they are used.
APART = {"readout": "gap", "depths": (), "name": "", "paper": ()}


def counterparts(config: Config) -> list[tuple[str, str]]:
    """Names (global average pooling, vanilla) of kernel columns that the config lets differ in the readout alone."""
    named = zip(config.column_names, config.columns, strict=True)
    kernels = [(name, c) for name, c in named if isinstance(c, KernelColumn)]
    return [
        (pooled, vanilla)
        for pooled, p in kernels
        for vanilla, v in kernels
        if (p.readout, v.readout) == ("gap", "vanilla") and p.model_copy(update=APART) == v.model_copy(update=APART)
    ]


def difference(pooled: Path, vanilla: Path) -> dict[str, float]:
    """Accuracy of the first saved predictions minus that of the second, in points, with its standard error.

    The mean over draws. The error is that of one draw's test images: draws are tested on the same ones, or nearly.
    Raises StoreError, naming the file, for predictions that cannot be read.
    """
    first, second = _right(pooled), _right(vanilla)
    each = [100.0 * (a.astype(float) - b) for a, b in zip(first, second, strict=True)]
    variance = np.mean([d.var(ddof=1) if len(d) > 1 else 0.0 for d in each])
    return {
        "difference": float(np.mean([d.mean() for d in each])),
        "standard_error": float(np.sqrt(variance / len(each[0]))),
    }


def _right(path: Path) -> list[np.ndarray]:
    """For each draw, which test images are classified right."""
    try:
        with np.load(path, allow_pickle=False) as saved:
            draws = sum(key.startswith("label_") for key in saved)
            return [saved[f"outputs_{k}"].argmax(1) == saved[f"label_{k}"] for k in range(draws)]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise StoreError(f"cannot read {path}: {error}; delete it to have its cell solved again") from error


def differences(config: Config, predictions: dict[tuple[str, int], Path]) -> list[dict[str, Any]]:
    """One record for each pair of counterparts and each depth at which both are solved.

    predictions: (column, depth) -> where its saved predictions lie.
    """
    return [
        {
            "column": pooled,
            "minus": vanilla,
            "depth": depth,
            **difference(predictions[pooled, depth], predictions[vanilla, depth]),
        }
        for pooled, vanilla in counterparts(config)
        for name, depth in predictions
        if name == pooled and (vanilla, depth) in predictions
    ]
