"""The finite networks whose infinite-width limits the kernels are: same depth, readout and trained ends."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

C_SIGMA = 2.0
FILTER_PIXELS = 9


class CNN(nn.Module):
    """A depth-L network in the NTK parametrisation, every weight drawn from N(0, 1).

    u^(1) = conv3x3(x; W^(1)) and u^(h+1) = conv3x3(g^(h); W^(h+1)) with g^(h) = sqrt(c_sigma / (width 9)) relu(u^(h))
    for h = 1 .. L - 1, stride 1, zero padding, no bias. The output is kappa times the sum over pixels p and channels c
    of W[p, c] g^(L-1)[p, c] (readout "vanilla") or of W[c] mean_p g^(L-1)[p, c] ("gap"). As the width grows its NTK
    tends to kappa^2 `exact_ntk.kernels.cntk`, its covariance at initialisation to kappa^2 times the NNGP kernel.

    shape: of an image, (C, H, W).  train_first, train_last: fixed layers take no gradient.  seed: of the weights, the
    same on every device.  Maps (n, C, H, W) to (n, outputs).
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        outputs: int,
        *,
        depth: int,
        width: int,
        readout: str,
        train_first: bool,
        train_last: bool,
        kappa: float = 1.0,
        seed: int = 0,
    ):
        super().__init__()
        if readout not in ("vanilla", "gap") or depth < 2:
            raise ValueError(f"readout must be vanilla or gap and depth at least 2, not {readout!r} and {depth}")
        generator = torch.Generator().manual_seed(seed)
        channels = [shape[0], *[width] * (depth - 1)]
        convolutions = [torch.randn((out, into, 3, 3), generator=generator) for into, out in pairwise(channels)]
        pixels = shape[1:] if readout == "vanilla" else ()
        last = torch.randn((outputs, width, *pixels), generator=generator)
        self.convolutions = nn.ParameterList(
            nn.Parameter(w, requires_grad=train_first or k > 0) for k, w in enumerate(convolutions)
        )
        self.last = nn.Parameter(last, requires_grad=train_last)
        self.scale = math.sqrt(C_SIGMA / (width * FILTER_PIXELS))
        self.kappa = kappa

    def forward(self, x: Tensor) -> Tensor:
        # Unpacked, not sliced: a slice of a ParameterList copies what torch.func puts in the weights' place.
        first, *others = self.convolutions
        u = F.conv2d(x, first, padding=1)
        for w in others:
            # Scaling the small weights instead of the large activations is the same map at less traffic.
            u = F.conv2d(F.relu(u), self.scale * w, padding=1)
        # The readout adds up to H W width terms: in the weights' precision, whatever the convolutions were computed in.
        with torch.autocast(x.device.type, enabled=False):
            g = F.relu(u).to(self.last.dtype)
            # Channels last in both factors: neither is copied when the net is in that memory format.
            if self.last.ndim == 2:
                f = g.mean((2, 3)) @ self.last.T
            else:
                f = g.permute(0, 2, 3, 1).flatten(1) @ self.last.permute(0, 2, 3, 1).flatten(1).T
            return (self.kappa * self.scale) * f
