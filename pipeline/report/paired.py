"""Columns against each other on the same images: a paired difference has a smaller error than two accuracies."""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel

from exact_ntk.config import Config, KernelColumn
from exact_ntk.records import PairedDifference
from exact_ntk.standard_error import standard_error

# What two counterparts may differ in: it does not choose images or change how they are used.
UNPAIRED = {"readout": "gap", "depths": (), "name": "", "paper": ()}
# What else may be compared, where it is all that two columns differ in.
CHOICES = ("preprocess", "flips", "unit_diagonal", "ridge")
# Two columns that are right on exactly the same images differ by 0 with no error at all.
SMALLEST_ERROR = 1e-9
ENDS = {"train_first": None, "train_last": None}


def _rank(readout: str) -> int:
    """A readout's place among what is compared: each with those before it."""
    return {"vanilla": 0, "gap": 1}.get(readout, 2)


def _alike(p: KernelColumn, v: KernelColumn) -> bool:
    """Whether they differ in the readout alone, and the paper's pooled readout in the trained ends that go with it."""
    ends = [None if c.model == "nngp" else (c.trains_first, c.trains_last) for c in (p, v)]
    if ends[0] != ends[1] and _rank(p.readout) > 1:
        return False
    update = {**UNPAIRED, **(ENDS if ends[0] == ends[1] else {})}
    return p.model_copy(update=update) == v.model_copy(update=update)


def _one_apart(config: Config, a: KernelColumn, b: KernelColumn) -> tuple[int, int] | None:
    """How much was chosen for each, if they differ in one of `CHOICES` alone."""
    shown = {"depths": (), "name": "", "paper": ()}
    a, b = (c.model_copy(update={**shown, "preprocess": c.preprocess or config.data.preprocess}) for c in (a, b))
    differing = [key for key in KernelColumn.model_fields if getattr(a, key) != getattr(b, key)]
    if len(differing) != 1 or differing[0] not in CHOICES:
        return None
    return _chosen(getattr(a, differing[0])), _chosen(getattr(b, differing[0]))


def _chosen(value: object) -> int:
    """The rank of a choice: of none, of one that is a word or a number, and of one with settings."""
    return 2 if isinstance(value, BaseModel) else int(value not in (False, 0, "standard"))


def _has_more(chosen: tuple[int, int] | None, later: bool) -> bool:
    """Whether the first of two has more chosen or, of as much, is the later one."""
    return chosen is not None and (chosen[0] > chosen[1] or (chosen[0] == chosen[1] and later))


def counterparts(config: Config) -> list[tuple[str, str]]:
    """Names of kernel columns that the config lets differ in one thing alone.

    (pooled, less or not pooled) where that is the readout; else (with more chosen, with less), and of two alike in that
    (a later column, an earlier one).
    """
    named = zip(config.column_names, config.columns, strict=True)
    kernels = [(name, c) for name, c in named if isinstance(c, KernelColumn)]
    return [
        (name, other)
        for i, (name, p) in enumerate(kernels)
        for j, (other, v) in enumerate(kernels)
        if (_rank(p.readout) > _rank(v.readout) and _alike(p, v)) or _has_more(_one_apart(config, p, v), later=i > j)
    ]


def sureness(p: PairedDifference) -> float:
    """A difference in its standard errors."""
    return abs(p.difference) / max(p.standard_error, SMALLEST_ERROR)


def surest(paired: Sequence[PairedDifference]) -> PairedDifference:
    """The one that is most standard errors from 0."""
    return max(paired, key=sureness)


Predictions = list[dict[str, np.ndarray]]


def difference(pooled: Predictions, vanilla: Predictions) -> tuple[float, float]:
    """Accuracy of the first minus that of the second, the mean over draws, and its standard error, both in points.

    Of each draw: right (n_test,), 1 where a test image is classified right, else 0; test_index and from_test_set, which
    name the image.
    """
    images = [2 * draw["test_index"] + draw["from_test_set"] for draw in pooled]
    scores = [a["right"] - b["right"] for a, b in zip(pooled, vanilla, strict=True)]
    return 100.0 * float(np.mean([s.mean() for s in scores])), standard_error(images, scores)


def paired_differences(config: Config, predictions: dict[tuple[str, int], Predictions]) -> list[PairedDifference]:
    """One record for each pair of counterparts and each depth at which both are solved.

    predictions: (column, depth) -> what each of its draws predicted.
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
