"""The 1-norm of a symmetric matrix's inverse, estimated from below in two solves.

The method of Hager (1984) in the block form of Higham and Tisseur (2000), started where the factor's pivots are
smallest. Those columns of the inverse are nearly its largest, so that one step is enough: two solves, of which the
first is that of the right-hand sides, which the columns are carried beside.
"""

import torch
from torch import Tensor

COLUMNS = 4


def smallest_pivots(pivots: Tensor) -> Tensor:
    """Unit vectors (n, columns) at the smallest pivots (n,): what to solve for beside the right-hand sides."""
    chosen = pivots.abs().topk(min(len(pivots), COLUMNS), largest=False).indices
    units = torch.zeros((len(pivots), len(chosen)), dtype=pivots.dtype, device=pivots.device)
    units[chosen, torch.arange(len(chosen), device=pivots.device)] = 1.0
    return units


def signs(columns: Tensor) -> Tensor:
    """The signs of columns of the inverse (n, columns): what to solve for next."""
    return torch.where(columns < 0, -1.0, 1.0).to(columns)


def inverse_norm(columns: Tensor, of_signs: Tensor) -> float:
    """The estimate of |A^-1|_1 from A^-1 units and A^-1 signs.

    Both bound it from below: the first by the norms of columns, the second since |A^-1|_1 is |A^-1|_inf and signs are
    no larger than 1.
    """
    return max(float(columns.abs().sum(0).max()), float(of_signs.abs().max()))
