"""What is right and wrong class by class: confusion matrices and accuracies, from the outputs kept of each draw."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from exact_ntk.records import ColumnHead
from exact_ntk.report.collect import Collected

# More classes than these are counted one by one, and no matrix of them is shown.
MOST_CLASSES = 20


@dataclass(frozen=True)
class ByClass:
    """A column at its best depth.

    right, tested (K,): tested images of each class over all draws or runs, right ones as shares of a run's last epochs.
    confusion (K, K): images of class i taken for class j; None for networks, which keep no outputs.
    """

    column: str
    depth: int
    right: np.ndarray
    tested: np.ndarray
    confusion: np.ndarray | None

    @property
    def accuracy(self) -> np.ndarray:
        """In percent, NaN for a class that is not tested."""
        return 100 * np.divide(self.right, self.tested, out=np.full(len(self.right), np.nan), where=self.tested > 0)


def by_class(columns: Iterable[ColumnHead], collected: Collected, most: int | None = None) -> list[ByClass]:
    """One for each column that has a finished cell, or for the first `most` of these."""
    found: list[ByClass] = []
    for column in columns:
        records = [r for r in collected.results.of_column(column.name) if collected.arrays.get((r.column, r.depth))]
        if records and len(found) != most:
            depth = max(records, key=lambda r: r.accuracy).depth
            found.append(_count(column.name, depth, collected.arrays[column.name, depth], len(collected.classes)))
    return found


def _count(name: str, depth: int, draws: list[dict[str, np.ndarray]], k: int) -> ByClass:
    label = np.concatenate([d["label"] for d in draws])
    right = np.bincount(label, np.concatenate([d["right"] for d in draws]), minlength=k)
    confusion = None
    if all("outputs" in d for d in draws):
        confusion = np.zeros((k, k), dtype=int)
        np.add.at(confusion, (label, np.concatenate([d["outputs"].argmax(1) for d in draws])), 1)
    return ByClass(name, depth, right, np.bincount(label, minlength=k), confusion)
