"""What the classifier and the regressor share: images in, kernel, solve, outputs; saved without pickle."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from exact_ntk.data import channel_statistics, normalise
from exact_ntk.data.arrays import Layout
from exact_ntk.device import resolve_device
from exact_ntk.errors import NtkError, StoreError
from exact_ntk.estimators.images import as_array, as_images
from exact_ntk.files import read_npz, write_npz
from exact_ntk.kernels import cntk
from exact_ntk.memory import default_memory, parse_bytes
from exact_ntk.regression.early_stopping import split
from exact_ntk.regression.gradient_flow import GradientFlow
from exact_ntk.regression.plan import DoesNotFit, plan_solve
from exact_ntk.regression.ridge import EIGEN_MATRICES, leave_one_out
from exact_ntk.regression.solve import LARGEST_RESIDUAL, kernel_regression

FORMAT = 1
BLOCK_IMAGES = 512
SPLIT_SEED = 0


class KernelMachine(BaseEstimator):
    """Kernel regression on images with the kernels of infinitely wide CNNs; see CNTKClassifier and CNTKRegressor."""

    # Fitted attributes that are arrays, and those that are plain values.
    _arrays: ClassVar[tuple[str, ...]] = ("X_fit_", "dual_coef_", "mean_", "scale_")
    _values: ClassVar[tuple[str, ...]] = ("n_features_in_", "image_shape_", "pixels_", "ridge_", "stopping_time_")

    def __init__(
        self,
        depth: int = 4,
        readout: str = "gap",
        kernel: str = "ntk",
        ridge: float | str = 1e-6,
        early_stopping: float | None = None,
        train_first: bool | None = None,
        train_last: bool | None = None,
        preprocess: str = "standard",
        image_shape: tuple[int, ...] | None = None,
        layout: Layout | None = None,
        device: str | None = None,
        memory: str | None = None,
    ):
        self.depth = depth
        self.readout = readout
        self.kernel = kernel
        self.ridge = ridge
        self.early_stopping = early_stopping
        self.train_first = train_first
        self.train_last = train_last
        self.preprocess = preprocess
        self.image_shape = image_shape
        self.layout = layout
        self.device = device
        self.memory = memory

    def save(self, path: str | Path) -> None:
        """Write the fitted model to an npz file of plain arrays, whole or not at all. Raises NtkError."""
        check_is_fitted(self)
        arrays = {name: np.asarray(getattr(self, name)) for name in self._arrays}
        for name, array in arrays.items():
            if array.dtype.kind == "O":
                if not all(isinstance(entry, str) for entry in array.ravel()):
                    raise NtkError(
                        f"cannot save {name}, which holds Python objects: fit with numbers or text as labels"
                    )
                arrays[name] = array.astype(str)
        try:
            head = json.dumps(
                {
                    "format": FORMAT,
                    "estimator": type(self).__name__,
                    "parameters": self.get_params(),
                    "fitted": {name: getattr(self, name) for name in self._values},
                    "feature_names": list(getattr(self, "feature_names_in_", [])),
                }
            )
        except TypeError as error:
            raise NtkError(f"cannot save parameters that are not plain values: {error}") from error
        write_npz(Path(path), head=np.array(head), **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote; nothing in the file is executed. Raises StoreError, naming the file."""
        arrays = read_npz(Path(path), f"it should be a file that {cls.__name__}.save wrote")
        wrong = StoreError(f"{path} is no {cls.__name__} that was saved by this version: fit and save it again")
        try:
            head = json.loads(str(arrays["head"]))
            if (head["format"], head["estimator"]) != (FORMAT, cls.__name__):
                raise wrong
            # JSON knows no tuples.
            plain = {k: tuple(v) if isinstance(v, list) else v for k, v in head["parameters"].items()}
            model = cls().set_params(**plain)
            for name in cls._arrays:
                setattr(model, name, arrays[name])
            for name in cls._values:
                value = head["fitted"][name]
                setattr(model, name, tuple(value) if isinstance(value, list) else value)
            if head["feature_names"]:
                model.feature_names_in_ = np.array(head["feature_names"], dtype=object)
        except (KeyError, TypeError, ValueError) as error:
            raise wrong from error
        return model

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def _training_set(self, X: Any, y: Any, **checks: Any) -> tuple[np.ndarray, np.ndarray]:
        """X and y as arrays, by scikit-learn's own checks."""
        return validate_data(self, as_array(X), as_array(y), allow_nd=True, ensure_min_samples=2, **checks)

    def _fit_images(self, x: np.ndarray, targets: np.ndarray, early: np.ndarray | None) -> None:
        """Solve for the coefficients.

        x: as passed and validated.  targets: float64 (n, outputs).  early: (n,) labels that early stopping counts
        right or wrong, or None for the squared error.
        """
        if self.preprocess not in ("standard", "none"):
            raise ValueError(f"preprocess must be 'standard' or 'none', not {self.preprocess!r}")
        images = as_images(x, self.image_shape, self.layout)
        channels = images.shape[-1]
        self.mean_, self.scale_ = np.zeros(channels), np.ones(channels)
        if self.preprocess == "standard":
            self.mean_, deviation = channel_statistics(images)
            self.scale_ = np.where(deviation > 1e-12, deviation, 1.0)  # a channel that never varies says nothing
        self.image_shape_, self.pixels_ = images.shape[1:], images.dtype.kind
        self.X_fit_ = normalise(images, self.mean_, self.scale_).numpy()
        self.ridge_: float = 0.0
        self.stopping_time_: float | None = None
        try:
            self.dual_coef_ = self._solved(targets, early).cpu().numpy()
        except NtkError as error:
            kind = MemoryError if isinstance(error, DoesNotFit) else ValueError
            raise kind(str(error)) from error

    def _solved(self, targets: np.ndarray, early: np.ndarray | None) -> Tensor:
        device, n, outputs = self._device(), *targets.shape
        budget = default_memory(device) if self.memory is None else parse_bytes(self.memory, "memory")
        loo = self._ridge_is_chosen()
        # K is held beside what its solution takes.
        plan = replace(plan_solve(n, outputs, 8 * n * n, sys.maxsize), budget=budget)
        eigen = 8 * n * n * EIGEN_MATRICES
        need = max(plan.bytes, eigen) if loo or self.early_stopping is not None else plan.bytes
        if need > budget:
            raise DoesNotFit(f"the kernel of {n:,} images and its solution", need, budget)
        x, y = torch.from_numpy(self.X_fit_), torch.from_numpy(targets).to(device)
        k = self._kernel(x)
        if self.early_stopping is not None:
            return self._stopped(k, y, early, self.early_stopping)
        self.ridge_ = leave_one_out(k, y).ridge if loo else float(self.ridge)
        solution = kernel_regression(k, y, self.ridge_, plan=plan)
        if solution.residual > LARGEST_RESIDUAL:
            raise NtkError(
                f"the solution leaves a residual of {solution.residual:.1e}, so the Gram matrix is singular: give a "
                "ridge, such as ridge=1e-6"
            )
        return solution.alpha

    def _stopped(self, k: Tensor, y: Tensor, labels: np.ndarray | None, holdout: float) -> Tensor:
        """Gradient flow on all but a held-out share, stopped where it does best on that; coefficients 0 there."""
        if self._ridge_is_chosen():
            raise ValueError("early_stopping and ridge='loo' are two ways to do one thing: choose one")
        n, self.ridge_ = len(k), float(self.ridge)
        if not (isinstance(holdout, Real) and 0 < holdout < 1):
            raise ValueError(f"early_stopping must be a share between 0 and 1, not {holdout!r}")
        order = torch.from_numpy(np.random.default_rng(SPLIT_SEED).permutation(n)).to(k.device)
        held_out = split(n, holdout)
        held, fit = order[:held_out], order[held_out:]
        k_fit = k[fit][:, fit]
        k_fit.diagonal().add_(self.ridge_ * k_fit.diagonal().mean())
        flow, k_held = GradientFlow(k_fit, y[fit], overwrite=True), k[held][:, fit]
        if labels is None:
            time = flow.least_squares(k_held, y[held])
        else:
            time = flow.early_stopping(k_held, torch.from_numpy(labels).to(k.device)[held]).best_time
        self.stopping_time_ = None if np.isinf(time) else time
        alpha = torch.zeros_like(y)
        alpha[fit] = flow.coefficients(time)
        return alpha

    def _ridge_is_chosen(self) -> bool:
        """Whether by leave-one-out. Raises ValueError for what is no ridge."""
        if isinstance(self.ridge, str):
            if self.ridge != "loo":
                raise ValueError(f"ridge must be a number of at least 0, or 'loo', not {self.ridge!r}")
            return True
        if not (isinstance(self.ridge, Real) and 0 <= self.ridge < np.inf):
            raise ValueError(f"ridge must be a number of at least 0, or 'loo', not {self.ridge!r}")
        return False

    def _device(self) -> torch.device:
        return resolve_device("auto" if self.device is None else str(self.device))

    def _kernel(self, x1: Tensor, x2: Tensor | None = None) -> Tensor:
        if self.kernel not in ("ntk", "nngp"):
            raise ValueError(f"kernel must be 'ntk' or 'nngp', not {self.kernel!r}")
        name = f"{self.readout}-nngp" if self.kernel == "nngp" else self.readout
        return cntk(
            x1,
            x2,
            depths=(self.depth,),
            readouts=(name,),
            train_first=self.train_first,
            train_last=self.train_last,
            device=self._device(),
        )[0, 0]

    def _new_images(self, X: Any) -> Tensor:
        """Images to predict, normalised as those that were fitted. Raises ValueError where they are not alike."""
        check_is_fitted(self)
        x = validate_data(self, as_array(X), reset=False, allow_nd=True)
        images = as_images(x, self.image_shape, self.layout)
        if images.shape[1:] != self.image_shape_:
            raise ValueError(f"X holds images of H x W x C {images.shape[1:]}, and was fitted on {self.image_shape_}")
        if images.dtype.kind != self.pixels_:
            raise ValueError("X was uint8 when fitted and is not now, or the other way round: pass images of one type")
        return normalise(images, self.mean_, self.scale_)

    def _outputs(self, X: Any) -> np.ndarray:
        """ker(x, X) alpha, float64 (n, outputs), some images at a time."""
        return np.concatenate([(k @ alpha).cpu().numpy() for k, alpha in self._kernel_rows(X)])

    def _kernel_rows(self, X: Any) -> Iterator[tuple[Tensor, Tensor]]:
        x, fitted = self._new_images(X), torch.from_numpy(self.X_fit_)
        alpha = torch.from_numpy(self.dual_coef_).to(self._device())
        for part in x.split(BLOCK_IMAGES):
            yield self._kernel(part, fitted), alpha
