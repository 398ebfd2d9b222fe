"""The signals of random wide networks, sampled exactly in law without their weight matrices.

A d x d Gaussian W meets only n forward and n backward vectors. With G = Q R (Q orthonormal, d x n), Z = W Q has
independent N(0, 1) entries and F = W G = Z R is the whole forward pass; given it, W = Z Q^T + W~ (I - Q Q^T) with W~
an independent copy of W. The backward vectors B of the layer above do not depend on W~, so W~^T B has independent
N(0, B^T B) rows and W^T B = Q Z^T B + (I - Q Q^T) W~^T B. The cost is O(d n^2) a layer in the place of O(d^2 n), and
nothing is approximated; `networks.propagate` on drawn weights is the definition it is tested against.
"""

import torch
from torch import Tensor

from exact_ntk.theory.networks import Signals, relu_layer


def sample_signals(
    x: Tensor, width: int, hidden_layers: int, seeds: int, generator: torch.Generator, dtype: torch.dtype
) -> Signals:
    """Signals of `seeds` independent networks on inputs x (n, d_0), in the law of `propagate` on `draw_weights`.

    Needs width >= n and d_0 >= n, so that Q has n orthonormal columns: ValueError otherwise.
    """
    n, device = len(x), generator.device
    if min(width, x.shape[1]) < n:
        raise ValueError(f"{n} inputs need a width and an input dimension of at least {n}")

    def normal(rows: int, columns: int) -> Tensor:
        return torch.randn((seeds, rows, columns), generator=generator, device=device, dtype=dtype)

    g, slopes, bases, seen = [x.to(device, dtype).expand(seeds, -1, -1)], [], [], []
    for _ in range(hidden_layers):
        q, r = torch.linalg.qr(g[-1].mT)
        z = normal(width, n)
        activated, slope = relu_layer((z @ r).mT)
        g.append(activated)
        slopes.append(slope)
        bases.append(q)
        seen.append(z)
    # The output layer is one row, the same for every input; its product with g^(L), the output, is not asked for.
    b = [torch.ones((seeds, n, 1), device=device, dtype=dtype), slopes[-1] * normal(1, width)]
    for q, z, slope in zip(reversed(bases[1:]), reversed(seen[1:]), reversed(slopes[:-1]), strict=True):
        above = b[-1].mT
        fresh = normal(width, n) @ torch.linalg.qr(above, mode="r")[1]
        b.append(slope * (fresh + q @ (z.mT @ above - q.mT @ fresh)).mT)
    return Signals(g, b[::-1])
