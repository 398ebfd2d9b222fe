"""scikit-learn estimators: regression with the kernels of infinitely wide CNNs on images or rows of numbers."""

from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from exact_ntk.estimators.base import KernelMachine
from exact_ntk.estimators.uncertainty import largest_probabilities
from exact_ntk.regression.solve import targets

__all__ = ["CNTKClassifier", "CNTKRegressor"]


class CNTKClassifier(ClassifierMixin, KernelMachine):
    """Classification by kernel regression on one-hot targets minus 1 / classes (Arora et al. 2019)."""

    _arrays: ClassVar[tuple[str, ...]] = (*KernelMachine._arrays, "classes_")

    def fit(self, X: Any, y: Any) -> Self:
        """X: images or rows; y (n,): labels of at least two classes."""
        X, y = self._training_set(X, y)
        check_classification_targets(y)
        self.classes_, labels = np.unique(column_or_1d(y, warn=True), return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y holds only one class, {self.classes_[0]!r}: a classifier needs at least two")
        self._fit_images(X, targets(labels, len(self.classes_)).numpy(), labels)
        self.prior_variance_ = np.full_like(self.prior_variance_, self.prior_variance_.mean())
        return self

    def outputs(self, X: Any) -> np.ndarray:
        """The net's outputs, (n, classes)."""
        return self._outputs(X)

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability that a class's output is the largest, (n, classes); `predict` takes the likeliest."""
        outputs, deviations = self._outputs_and_deviations(X)
        return largest_probabilities(outputs, np.sqrt(self.prior_variance_[0]) * deviations)

    def predict(self, X: Any) -> np.ndarray:
        """The class of the largest output, (n,)."""
        best = self._outputs(X).argmax(1)
        return self.classes_[best]


class CNTKRegressor(RegressorMixin, KernelMachine):
    """Kernel regression on one or several targets, soft labels among them; their means are kept apart."""

    _arrays: ClassVar[tuple[str, ...]] = (*KernelMachine._arrays, "intercept_")
    _values: ClassVar[tuple[str, ...]] = (*KernelMachine._values, "one_target_")

    def fit(self, X: Any, y: Any) -> Self:
        """X: images or rows; y (n,) or (n, targets): numbers."""
        X, y = self._training_set(X, y, multi_output=True, y_numeric=True)
        y = y.astype(np.float64)
        self.one_target_ = y.ndim == 1
        sides = y.reshape(len(y), -1)
        self.intercept_ = sides.mean(0)
        self._fit_images(X, sides - self.intercept_, None)
        return self

    def predict(self, X: Any, return_std: bool = False) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """(n,) or (n, targets), as y was; with `return_std` also the standard deviations, of the same shape."""
        if not return_std:
            return self._shaped(self._outputs(X) + self.intercept_)
        outputs, deviations = self._outputs_and_deviations(X)
        spread = deviations[:, None] * np.sqrt(self.prior_variance_)
        return self._shaped(outputs + self.intercept_), self._shaped(spread)

    def _shaped(self, outputs: np.ndarray) -> np.ndarray:
        return outputs[:, 0] if self.one_target_ else outputs

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
