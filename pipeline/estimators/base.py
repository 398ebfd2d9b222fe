"""What the classifier and the regressor share: images in, kernel, solve, outputs; saved without pickle."""

import json
import sys
from collections.abc import Sequence
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
from exact_ntk.draws import count_held_out
from exact_ntk.errors import NtkError, StoreError
from exact_ntk.estimators.blocks import in_blocks
from exact_ntk.estimators.images import as_array, as_images
from exact_ntk.estimators.uncertainty import Posterior, by_cholesky, by_flow
from exact_ntk.files import read_npz, write_npz
from exact_ntk.kernels import cntk
from exact_ntk.memory import default_memory, parse_bytes
from exact_ntk.records import LARGEST_RESIDUAL
from exact_ntk.regression.gradient_flow import GradientFlow
from exact_ntk.regression.plan import DoesNotFit, plan_solve
from exact_ntk.regression.ridge import EIGEN_MATRICES, leave_one_out
from exact_ntk.regression.solve import kernel_regression

FORMAT = 2
BLOCK_IMAGES = 512
# K or its factor, what the factorisation works on, and the NNGP kernel.
POSTERIOR_MATRICES = 3
SPLIT_SEED = 0


class KernelMachine(BaseEstimator):
    """Kernel regression with the kernels of infinitely wide CNNs: what both estimators take and keep.

    Parameters:
        depth: L: L - 1 convolutions and the readout. At least 2; 3 where both end layers are fixed, as for gap.
        readout: "gap" (global average pooling), "vanilla" (fully connected over all pixels) or "lap-4", ... (fully
            connected over local averages of 9 x 9 pixels, ...).
        kernel: "ntk", of the trained net, or "nngp", of the net at initialisation.
        ridge: K + ridge mean(diag K) I is solved (0 in the paper); "loo" takes, out of powers of ten from 1e-8 to 100,
            the one of least squared leave-one-out error.
        early_stopping: None, or the share of images to hold out: gradient flow on the others is stopped where it does
            best on these.
        train_first, train_last: whether an end layer is trained; None is both, for gap neither.
        kappa: the nets' outputs are multiplied by it; their spread over initialisations is proportional to it.
        preprocess: "standard" (each channel minus its mean, by its deviation) or "none". uint8 counts in units of 255.
        image_shape: (H, W) or (H, W, C) of rows; without it a row of d numbers is one pixel of d channels.
        layout: "nhwc" or "nchw"; None is nhwc, and a shape that leaves doubt is refused.
        device: "cpu", "cuda", "cuda:1", ...; None is the first GPU where there is one.
        memory: how much a fit may take, such as "8GB"; None is 80 % of the device's.
        verbose: whether to show how far kernels are and how long they take; their values are the same.

    X is images N x H x W (x C), or rows N x d, as arrays or tensors. Fitted: X_fit_ (n, C, H, W) normalised images,
    dual_coef_ (n, outputs), ridge_, stopping_time_ (None: to the end), mean_ and scale_ (C,), image_shape_ (H, W, C),
    prior_variance_ (outputs,): by which the NNGP kernel is multiplied.

    How sure a prediction is: of kernel "nngp" by the posterior of the Gaussian process whose noise is the ridge and
    whose scale maximises the marginal likelihood; of others by the variance over initialisations of the trained nets
    (Lee et al. 2019). The first such prediction after a fit takes as long as the fit; noise of targets is not in it.

    Raises ValueError for what cannot be meant, MemoryError for what does not fit.
    """

    # Fitted attributes that are arrays, and those that are plain values.
    _arrays: ClassVar[tuple[str, ...]] = ("X_fit_", "dual_coef_", "prior_variance_", "mean_", "scale_")
    _values: ClassVar[tuple[str, ...]] = ("n_features_in_", "image_shape_", "pixels_", "ridge_", "stopping_time_")
    _kept: "Kept"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Of an estimator `help` says all of it; the pages say what both share once.
        if cls.__doc__:
            cls.__doc__ += f"\n{(KernelMachine.__doc__ or '').partition(chr(10))[2]}"

    def __init__(
        self,
        depth: int = 4,
        readout: str = "gap",
        kernel: str = "ntk",
        ridge: float | str = 1e-6,
        early_stopping: float | None = None,
        train_first: bool | None = None,
        train_last: bool | None = None,
        kappa: float = 1.0,
        preprocess: str = "standard",
        image_shape: tuple[int, ...] | None = None,
        layout: Layout | None = None,
        device: str | None = None,
        memory: str | None = None,
        verbose: bool = False,
    ):
        self.depth = depth
        self.readout = readout
        self.kernel = kernel
        self.ridge = ridge
        self.early_stopping = early_stopping
        self.train_first = train_first
        self.train_last = train_last
        self.kappa = kappa
        self.preprocess = preprocess
        self.image_shape = image_shape
        self.layout = layout
        self.device = device
        self.memory = memory
        self.verbose = verbose

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
            model._kept = Kept()
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
        kappa: Any = self.kappa
        if not (isinstance(kappa, Real) and 0 <= float(kappa) < np.inf):
            raise ValueError(f"kappa must be a number of at least 0, not {kappa!r}")
        images = as_images(x, self.image_shape, self.layout)
        channels = images.shape[-1]
        self.mean_, self.scale_ = np.zeros(channels), np.ones(channels)
        if self.preprocess == "standard":
            self.mean_, deviation = channel_statistics(images)
            self.scale_ = np.where(deviation > 1e-12, deviation, 1.0)  # a channel that never varies says nothing
        self.image_shape_, self.pixels_ = images.shape[1:], images.dtype.kind
        self.X_fit_ = normalise(images, self.mean_, self.scale_)
        self.ridge_: float = 0.0
        self.stopping_time_: float | None = None
        try:
            self.dual_coef_ = self._solved(targets, early).cpu().numpy()
        except NtkError as error:
            raise _as_usual(error) from error
        self._kept = Kept()
        self.prior_variance_ = np.full(targets.shape[1], float(kappa) ** 2)
        if self._is_process():
            # Where the marginal likelihood of N(0, scale A) is largest, in each output's closed form.
            self.prior_variance_ = (targets * self.dual_coef_).sum(0) / len(targets)

    def _solved(self, targets: np.ndarray, early: np.ndarray | None) -> Tensor:
        device, n, outputs = self._device(), *targets.shape
        budget = self._budget()
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
        held, fit = (torch.from_numpy(part).to(k.device) for part in stopping_split(n, holdout))
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

    def _budget(self) -> int:
        return default_memory(self._device()) if self.memory is None else parse_bytes(self.memory, "memory")

    def _is_process(self) -> bool:
        """Whether the model is a Gaussian process, rather than the mean of trained nets."""
        return self.kernel == "nngp" and self.early_stopping is None

    def _readouts(self) -> tuple[str, str]:
        """Of the model's kernel and of the nets at initialisation, which may be the same."""
        if self.kernel not in ("ntk", "nngp"):
            raise ValueError(f"kernel must be 'ntk' or 'nngp', not {self.kernel!r}")
        prior = f"{self.readout}-nngp"
        return self.readout if self.kernel == "ntk" else prior, prior

    def _kernels(self, x1: Tensor, x2: Tensor | None, readouts: Sequence[str], diagonal: bool = False) -> Tensor:
        """In one pass: (readouts, n1, n2), or the diagonals (readouts, n1)."""
        device = self._device()

        def compute(x1: Tensor, x2: Tensor | None) -> Tensor:
            return cntk(
                x1,
                x2,
                depths=(self.depth,),
                readouts=tuple(dict.fromkeys(readouts)),
                train_first=self.train_first,
                train_last=self.train_last,
                device=device,
                diagonal=diagonal,
            )[:, 0]

        return in_blocks(compute, x1, x2, device) if self.verbose and not diagonal else compute(x1, x2)

    def _kernel(self, x1: Tensor, x2: Tensor | None = None) -> Tensor:
        return self._kernels(x1, x2, self._readouts()[:1])[0]

    def _posterior(self) -> Posterior:
        """Computed anew after a fit, when first asked for: at the cost of another."""
        if self._kept.posterior is None:
            n = len(self.X_fit_)
            need = 8 * n * n * (POSTERIOR_MATRICES if self.early_stopping is None else EIGEN_MATRICES + 1)
            try:
                budget = self._budget()
                if need > budget:
                    raise DoesNotFit(f"the variance given {n:,} images", need, budget)
                self._kept.posterior = self._made_posterior()
            except NtkError as error:
                raise _as_usual(error) from error
        return self._kept.posterior

    def _made_posterior(self) -> Posterior:
        kernels = self._kernels(torch.from_numpy(self.X_fit_), None, self._readouts())
        if self.early_stopping is None:
            prior = None if self._is_process() else kernels[-1]
            return Posterior(by_cholesky(kernels[0], self.ridge_), prior)
        fit = torch.from_numpy(stopping_split(len(self.X_fit_), self.early_stopping)[1]).to(kernels.device)
        k_fit = kernels[0][fit][:, fit]
        k_fit.diagonal().add_(self.ridge_ * k_fit.diagonal().mean())
        time = np.inf if self.stopping_time_ is None else self.stopping_time_
        return Posterior(by_flow(k_fit, fit, time), kernels[-1])

    def _new_images(self, X: Any) -> Tensor:
        """Images to predict, normalised as those that were fitted. Raises ValueError where they are not alike."""
        check_is_fitted(self)
        x = validate_data(self, as_array(X), reset=False, allow_nd=True)
        images = as_images(x, self.image_shape, self.layout)
        if images.shape[1:] != self.image_shape_:
            raise ValueError(f"X holds images of H x W x C {images.shape[1:]}, and was fitted on {self.image_shape_}")
        if images.dtype.kind != self.pixels_:
            raise ValueError("X was uint8 when fitted and is not now, or the other way round: pass images of one type")
        return torch.from_numpy(normalise(images, self.mean_, self.scale_))

    def _outputs(self, X: Any) -> np.ndarray:
        """ker(x, X) alpha, float64 (n, outputs), some images at a time."""
        x, fitted = self._new_images(X), torch.from_numpy(self.X_fit_)
        alpha = torch.from_numpy(self.dual_coef_).to(self._device())
        return np.concatenate([(self._kernel(part, fitted) @ alpha).cpu().numpy() for part in x.split(BLOCK_IMAGES)])

    def _outputs_and_deviations(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """ker(x, X) alpha (n, outputs), and the standard deviation of an output where that of the prior is 1, (n,)."""
        x, fitted = self._new_images(X), torch.from_numpy(self.X_fit_)
        posterior, readouts = self._posterior(), self._readouts()
        alpha = torch.from_numpy(self.dual_coef_).to(self._device())
        outputs, deviations = [], []
        for part in x.split(BLOCK_IMAGES):
            kernels = self._kernels(part, fitted, readouts)
            own = self._kernels(part, None, readouts[1:], diagonal=True)[0]
            outputs.append((kernels[0] @ alpha).cpu().numpy())
            deviations.append(posterior.variance(own, kernels[0], kernels[-1]).sqrt().cpu().numpy())
        return np.concatenate(outputs), np.concatenate(deviations)


class Kept:
    """What a fitted model computes once, when first asked for; neither saved nor pickled."""

    posterior: Posterior | None = None

    def __getstate__(self) -> dict:
        return {}


def stopping_split(n: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Which of n images are held out for early stopping, and which are not."""
    order = np.random.default_rng(SPLIT_SEED).permutation(n)
    held_out = count_held_out(n, share, "early_stopping")
    return order[:held_out], order[held_out:]


def _as_usual(error: NtkError) -> Exception:
    """As scikit-learn's users expect it."""
    return (MemoryError if isinstance(error, DoesNotFit) else ValueError)(str(error))
