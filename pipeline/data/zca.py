"""ZCA whitening of contrast-normalised images, as of Coates and Ng and in Shankar et al. 2020 and Lee et al. 2020.

Each image, all its channels flattened into f, is contrast-normalised: f - mean(f), over its norm. With M = U diag(lam)
U^T the mean of f f^T over the images fitted on, which is not centred, an image becomes f U diag((lam + e)^-1/2) U^T.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from exact_ntk.config import Zca
from exact_ntk.errors import DataError

CHUNK = 1024
# |f - mean(f)| over |f| below which an image is constant: rounding of float32 leaves 1e-7, a grey level of one pixel of
# 224 x 224 x 3 at least 1e-5.
CONSTANT = 1e-6

# Positions (m,) -> images (m, C, H, W), float64.
Images = Callable[[np.ndarray], Tensor]


def contrast_normalised(x: Tensor) -> Tensor:
    """Images (n, C, H, W) -> rows (n, C H W) of mean 0 and norm 1; a constant image is 0."""
    flat = x.double().flatten(1)
    rows = flat - flat.mean(1, keepdim=True)
    norm = rows.norm(dim=1, keepdim=True)
    return torch.where(norm > CONSTANT * flat.norm(dim=1, keepdim=True), rows / norm.clamp_min(1e-300), 0.0)


@dataclass(frozen=True)
class Whitening:
    """vectors (D, k): eigenvectors of M; gains (k,): what becomes of their components; rest: of all others."""

    vectors: Tensor
    gains: Tensor
    rest: float

    def __call__(self, rows: Tensor) -> Tensor:
        """Contrast-normalised rows (n, D), whitened."""
        return self.rest * rows + ((rows @ self.vectors) * (self.gains - self.rest)) @ self.vectors.T


def fit(how: Zca, images: Images, at: np.ndarray) -> Whitening:
    """The whitening of the images at positions `at`, and of their mirror images where `how` says so.

    Raises DataError where every one of them is constant.
    """
    count = len(at) * (2 if how.flips else 1)
    dimension = images(at[:1])[0].numel()
    if count < dimension:
        # The right singular vectors: orthonormal to rounding however small their values are.
        rows = torch.cat(list(_fitted(how, images, at)))
        _, values, transposed = torch.linalg.svd(rows, full_matrices=False)
        eigenvalues, vectors = values.square() / count, transposed.T
        seen = values > dimension * torch.finfo(values.dtype).eps * values.max()
    else:
        moment = torch.zeros((dimension, dimension), dtype=torch.float64)
        for rows in _fitted(how, images, at):
            moment.addmm_(rows.T, rows, alpha=1 / count)
        eigenvalues, vectors = torch.linalg.eigh(moment)
        seen = eigenvalues > dimension * torch.finfo(eigenvalues.dtype).eps * eigenvalues.max()
    eigenvalues, vectors = eigenvalues[seen], vectors[:, seen]
    if not len(eigenvalues):
        raise DataError("preprocess: zca: every image that it would be fitted on is constant")
    mean = float(eigenvalues.sum()) / dimension
    e = (how.relative or 0.0) * mean if how.epsilon is None else how.epsilon
    return Whitening(vectors, (eigenvalues + e).rsqrt(), 1.0 if how.rank_control else e**-0.5)


def _fitted(how: Zca, images: Images, at: np.ndarray) -> Iterator[Tensor]:
    """The rows that M is the mean of, some at a time."""
    for start in range(0, len(at), CHUNK):
        x = images(at[start : start + CHUNK])
        yield contrast_normalised(x)
        if how.flips:
            yield contrast_normalised(x.flip(-1))


def whitened(images: Images, n: int, how: Zca, fitted_on: np.ndarray) -> Tensor:
    """n images, whitened by those at the positions `fitted_on`: float32 (n, C, H, W). Raises DataError as `fit`."""
    whiten = fit(how, images, fitted_on)
    out = torch.empty((n, *images(fitted_on[:1]).shape[1:]), dtype=torch.float32)
    for start in range(0, n, CHUNK):
        x = images(np.arange(start, min(n, start + CHUNK)))
        out[start : start + len(x)] = whiten(contrast_normalised(x)).view(x.shape)
    return out
