"""LU factorisation of a symmetric matrix that is not positive definite."""

import torch
from torch import Tensor

from exact_ntk.errors import NtkError
from exact_ntk.regression.matrix import Matrix, place


class LU:
    """P (K + shift I) = L U in one buffer of n x n, which K is mirrored into and which the factors overwrite.

    Raises NtkError if K is singular, also in float64.
    """

    def __init__(self, matrix: Matrix, shift: float, device: torch.device):
        n = matrix.shape[0]
        # Column-major: only then is the factorisation in place.
        self._factors = torch.empty((n, n), dtype=torch.float64, device=device).T
        for i, j, values in matrix.pieces(slice(0, n), slice(0, n)):
            place(self._factors, i, j, values)
        self._factors.diagonal().add_(shift)
        self._swaps = torch.empty(n, dtype=torch.int32, device=device)
        info = torch.empty((), dtype=torch.int32, device=device)
        torch.linalg.lu_factor_ex(self._factors, out=(self._factors, self._swaps, info))
        if int(info):
            raise NtkError(f"the Gram matrix is singular (pivot {int(info)}): give the column a ridge")

    @property
    def pivots(self) -> Tensor:
        """(n,) the pivots, each in the place of the row that it was found in."""
        rows = list(range(len(self._swaps)))
        for k, other in enumerate((self._swaps - 1).tolist()):
            rows[k], rows[other] = rows[other], rows[k]
        pivots = torch.empty_like(self._factors.diagonal())
        pivots[torch.tensor(rows, device=pivots.device)] = self._factors.diagonal()
        return pivots

    def solve(self, b: Tensor) -> Tensor:
        """(K + shift I)^-1 b for b (n, columns)."""
        return torch.linalg.lu_solve(self._factors, self._swaps, b)
