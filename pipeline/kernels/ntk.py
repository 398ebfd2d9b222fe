"""The NTK and NNGP kernels of infinitely wide fully connected networks (Arora et al. 2019, equations 6 to 9)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from exact_ntk.kernels.duals import Activation, get_activation
from exact_ntk.kernels.inputs import Values, as_device, as_integers, as_tensor


@dataclass(frozen=True)
class Layers:
    """The kernels of a network of L hidden layers, layer by layer, between n1 and n2 inputs.

    sigma: Sigma^(0) .. Sigma^(L), (L + 1, n1, n2).  sigma_dot: Sigmadot^(1) .. Sigmadot^(L), (L, n1, n2).
    """

    sigma: Tensor
    sigma_dot: Tensor

    @property
    def nngp(self) -> Tensor:
        """Sigma^(L): the covariance of the network's output at initialisation, (n1, n2)."""
        return self.sigma[-1]

    @property
    def backward(self) -> Tensor:
        """prod_{h'=h}^{L+1} Sigmadot^(h') for h = 1 .. L + 1, with Sigmadot^(L+1) = 1: (L + 1, n1, n2).

        The limit of <b^(h)(x), b^(h)(x')>, b^(h) being the backpropagated vector of layer h.
        """
        products = [torch.ones_like(self.sigma[0])]
        for sigma_dot in self.sigma_dot.flip(0):
            products.append(products[-1] * sigma_dot)
        return torch.stack(products[::-1])

    @property
    def ntk(self) -> Tensor:
        """Theta^(L) = sum_{h=1}^{L+1} Sigma^(h-1) prod_{h'=h}^{L+1} Sigmadot^(h'), (n1, n2): equation 9."""
        return (self.sigma * self.backward).sum(0)


def _equal_rows(x1: Tensor, x2: Tensor) -> Tensor:
    """(n1, n2) booleans: which inputs are the same, entry for entry."""
    _, names = torch.unique(torch.cat([x1, x2]) + 0.0, dim=0, return_inverse=True)
    return names[: len(x1), None] == names[None, len(x1) :]


def ntk_layers(
    x1: Values,
    x2: Values | None = None,
    *,
    hidden_layers: int,
    activation: str | Activation = "relu",
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float64,
) -> Layers:
    """Sigma^(h) and Sigmadot^(h) of every layer: equations 6 to 8.

    The network is f^(h) = W^(h) g^(h-1), g^(h) = sqrt(c_sigma / d_h) sigma(f^(h)), g^(0) = x, output W^(L+1) g^(L),
    every weight from N(0, 1).

    Arguments:
        x1: inputs (n1, d), as a tensor, a NumPy array or nested lists.
        x2: inputs (n2, d), or None for x1 with itself.
        hidden_layers: L, at least 1.
        activation: "relu", "erf", "sine", "cosine", "gaussian", "identity", or an `Activation` such as
            `leaky_relu(0.1)`, `smooth(torch.tanh)`, `kinked(torch.nn.functional.elu)`.
        device: where to compute; None is x1's device.
        dtype: torch.float32 or torch.float64, of the result. The arithmetic is always float64: nearly equal inputs
            have correlations near 1, where float32 loses arccos.

    Raises ValueError for malformed inputs, for those whose gradient is asked for (there is none), hidden_layers below
    1, an unknown activation or device, or another dtype.
    """
    x1 = as_tensor(x1, "x1", "n1, d")
    x2 = None if x2 is None else as_tensor(x2, "x2", "n2, d")
    if x2 is not None and x1.shape[1] != x2.shape[1]:
        raise ValueError(f"x1 and x2 must hold vectors of one length, not {x1.shape[1]} and {x2.shape[1]}")
    (layers,) = as_integers([hidden_layers], "hidden_layers")
    if layers < 1:
        raise ValueError(f"hidden_layers must be at least 1, not {hidden_layers}")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, not {dtype}")
    known = get_activation(activation)
    target = as_device(device, x1)
    x1 = x1.to(target, torch.float64)
    x2 = x1 if x2 is None else x2.to(target, torch.float64)
    equal = _equal_rows(x1, x2)
    a, b = (x.square().sum(1) for x in (x1, x2))
    c = torch.where(equal, a[:, None], x1 @ x2.T)
    sigma, sigma_dot = [c], []
    for _ in range(layers):
        c, derivative = known.duals(a[:, None], b[None, :], c)
        a, b = (known.duals(v, v, v)[0] for v in (a, b))
        c = torch.where(equal, a[:, None], c)
        sigma.append(c)
        sigma_dot.append(derivative)
    return Layers(torch.stack(sigma).to(dtype), torch.stack(sigma_dot).to(dtype))


def ntk(
    x1: Values,
    x2: Values | None = None,
    *,
    hidden_layers: int,
    activation: str | Activation = "relu",
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Theta^(L), the NTK of the fully connected network of `ntk_layers`: (n1, n2). Arguments and errors as there."""
    return ntk_layers(x1, x2, hidden_layers=hidden_layers, activation=activation, device=device, dtype=dtype).ntk


def nngp(
    x1: Values,
    x2: Values | None = None,
    *,
    hidden_layers: int,
    activation: str | Activation = "relu",
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Sigma^(L), the NNGP kernel of the network of `ntk_layers`: (n1, n2). Arguments and errors as there."""
    return ntk_layers(x1, x2, hidden_layers=hidden_layers, activation=activation, device=device, dtype=dtype).nngp
