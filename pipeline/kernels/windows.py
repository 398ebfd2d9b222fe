"""Local average pooling (Li et al. 2019): the mean over (2 c + 1)^2 pixels around each, then a vanilla readout.

The mean is always divided by (2 c + 1)^2, at the border too. As a sum over pixel pairs its kernel has a factor an axis:

    LAP_c(M) = (2 c + 1)^-4 sum over p, p' of A_H[p1, p'1] A_W[p2, p'2] M[p, p']
"""

import torch
from torch import Tensor

from exact_ntk.kernels.passes import Padding


def window_counts(n: int, c: int, padding: Padding = "zero") -> Tensor:
    """A_n[i, i'], in float64: in how many windows along an axis of n pixels both i and i' lie, copies counted apart.

    padding: what is outside the image: "zero", or "circular", the image again.
    """
    i = torch.arange(n, dtype=torch.float64)
    if padding == "zero":
        first, last = torch.minimum(i[:, None], i), torch.maximum(i[:, None], i)
        return ((first + c).clamp(max=n - 1) - (last - c).clamp(min=0) + 1).clamp(min=0)
    offsets = i - i[:, None]
    copies = range(-(2 * c // n) - 1, 2 * c // n + 2)
    return torch.stack([(2 * c + 1 - (offsets + n * copy).abs()).clamp(min=0) for copy in copies]).sum(0)


def local_mean(m: Tensor, c: int, padding: Padding) -> Tensor:
    """LAP_c of (pairs, H, W, H, W), or of its entries p = p' alone, (pairs, H, W): (pairs) in float64."""
    rows, columns = (window_counts(n, c, padding).to(m.device) for n in m.shape[1:3])
    if m.ndim == 3:
        sums = torch.einsum("nij,i,j->n", m.double(), rows.diagonal(), columns.diagonal())
    else:
        sums = torch.einsum("nijkl,ik,jl->n", m.double(), rows, columns)
    return sums / (2 * c + 1) ** 4
