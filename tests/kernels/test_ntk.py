"""The fully connected NTK against the paper's formula written out for one pair, and its invariants."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exact_ntk.kernels import cntk, nngp, ntk, ntk_layers
from exact_ntk.kernels.duals import ACTIVATIONS, leaky_relu, smooth

ALL = [*ACTIVATIONS, leaky_relu(0.2), smooth(torch.tanh)]


def name(activation) -> str:
    return getattr(activation, "name", activation)


def inputs(n: int, d: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn((n, d), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / math.sqrt(d)


def slow_relu(x, y, hidden_layers: int) -> tuple[float, float]:
    """Equations 6 to 9 for one pair, ReLU, with plain floats."""
    s = {
        (p, q): sum(a * b for a, b in zip(u, v, strict=True))
        for p, u in enumerate((x, y))
        for q, v in enumerate((x, y))
    }
    sigmas, dots = [s[0, 1]], []
    for _ in range(hidden_layers):
        new = {}
        for p, q in s:
            scale = math.sqrt(s[p, p] * s[q, q])
            lam = 1.0 if p == q else s[p, q] / scale
            new[p, q] = scale * (lam * (math.pi - math.acos(lam)) + math.sqrt(1 - lam * lam)) / math.pi
            if (p, q) == (0, 1):
                dots.append((math.pi - math.acos(lam)) / math.pi)
        s = new
        sigmas.append(s[0, 1])
    theta = sum(sigma * math.prod(dots[h:]) for h, sigma in enumerate(sigmas))
    return theta, sigmas[-1]


@pytest.mark.parametrize("hidden_layers", [1, 2, 5, 20])
def test_agrees_with_the_formula_written_out(hidden_layers):
    x, y = inputs(4), inputs(3, seed=1)
    expected = [[slow_relu(a.tolist(), b.tolist(), hidden_layers) for b in y] for a in x]
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(ntk(x, y, hidden_layers=hidden_layers), expected[..., 0], rtol=1e-13, atol=0)
    torch.testing.assert_close(nngp(x, y, hidden_layers=hidden_layers), expected[..., 1], rtol=1e-13, atol=0)


def test_agrees_with_the_convolutional_kernel_on_one_pixel():
    # On 1 x 1 images a padded 3 x 3 filter sees one pixel: the CNTK is the fully connected one, but for 1 / q^2 a ReLU.
    x, y = inputs(5, 3), inputs(4, 3, seed=1)
    k = cntk(x[:, :, None, None], y[:, :, None, None], depths=(4,), readouts=("vanilla", "vanilla-nngp"), dtype=x.dtype)
    torch.testing.assert_close(9.0**3 * k[0, 0], ntk(x, y, hidden_layers=3), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(9.0**3 * k[1, 0], nngp(x, y, hidden_layers=3), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("activation", ALL, ids=name)
def test_one_hidden_layer_is_the_definition(activation):
    x = inputs(5)
    layers = ntk_layers(x, hidden_layers=1, activation=activation)
    assert layers.sigma.shape == (2, 5, 5)
    assert layers.backward.shape == (2, 5, 5)
    torch.testing.assert_close(layers.ntk, layers.sigma[0] * layers.sigma_dot[0] + layers.sigma[1])


@pytest.mark.parametrize("activation", ALL, ids=name)
def test_symmetric_positive_semidefinite_and_the_same_in_blocks(activation):
    x = inputs(12)
    k = ntk(x, hidden_layers=3, activation=activation)
    torch.testing.assert_close(k, k.T, rtol=1e-13, atol=1e-14)
    assert float(torch.linalg.eigvalsh(k)[0]) > -1e-12 * float(k.diagonal().max())
    torch.testing.assert_close(
        ntk(x[:5], x[3:], hidden_layers=3, activation=activation), k[:5, 3:], rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize("activation", ALL, ids=name)
def test_float32_loses_no_more_than_its_rounding(activation):
    x = inputs(12)
    x[1] = x[0]
    x[2] = x[0] + 1e-3 * x[3]
    double, single = (ntk(x, hidden_layers=3, activation=activation, dtype=t) for t in (torch.float64, torch.float32))
    assert single.dtype == torch.float32
    scale = (double.diagonal()[:, None] * double.diagonal()).sqrt()
    assert float(((single - double) / scale).abs().max()) < 3e-7


def test_equal_inputs_have_the_kernel_of_the_diagonal_exactly():
    x, y = inputs(3), inputs(3)
    for dtype in (torch.float32, torch.float64):
        k = ntk(x, y, hidden_layers=8, dtype=dtype)
        assert torch.equal(k.diagonal(), ntk(x, hidden_layers=8, dtype=dtype).diagonal())
        # On a ReLU diagonal Sigma stays |x|^2 and Sigmadot is 1: Theta = (L + 1) |x|^2.
        torch.testing.assert_close(
            k.diagonal(), 9 * x.square().sum(1).to(dtype), rtol=4 * torch.finfo(dtype).eps, atol=0
        )


@given(scale=st.floats(1e-3, 1e3), hidden_layers=st.integers(1, 6))
def test_relu_is_homogeneous(scale, hidden_layers):
    x, y = inputs(3), inputs(2, seed=1)
    k = ntk(scale * x, y, hidden_layers=hidden_layers)
    torch.testing.assert_close(k, scale * ntk(x, y, hidden_layers=hidden_layers), rtol=1e-12, atol=0)


@given(angle=st.floats(0, 6.3), activation=st.sampled_from(list(ACTIVATIONS)))
def test_rotations_change_nothing(angle, activation):
    x, y = inputs(3, 2), inputs(2, 2, seed=1)
    c, s = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    options = dict(hidden_layers=2, activation=activation)
    torch.testing.assert_close(ntk(x @ turn, y @ turn, **options), ntk(x, y, **options), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("activation", ALL, ids=name)
def test_the_zero_vector_gives_no_nan(activation):
    x = inputs(3)
    x[1] = 0
    k = ntk(x, hidden_layers=3, activation=activation)
    assert bool(k.isfinite().all())
    if activation == "relu":
        assert not k[1].any()


def test_the_identity_is_a_deep_linear_network():
    x, y = inputs(3), inputs(2, seed=1)
    torch.testing.assert_close(ntk(x, y, hidden_layers=4, activation="identity"), 5 * x @ y.T, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    "change,match",
    [
        ({"x1": torch.zeros(3)}, "x1"),
        ({"x1": torch.zeros((3, 2), dtype=torch.int64)}, "x1"),
        ({"x1": torch.full((3, 2), math.nan)}, "x1 holds NaN"),
        ({"x2": torch.zeros((0, 2))}, "x2"),
        ({"x2": torch.zeros((2, 5))}, "one length"),
        ({"hidden_layers": 0}, "hidden_layers"),
        ({"activation": "swish"}, "activation"),
        ({"dtype": torch.float16}, "dtype"),
    ],
)
def test_mistakes_are_named(change, match):
    options = {"x1": torch.ones((3, 2)), "hidden_layers": 2} | change
    with pytest.raises(ValueError, match=match):
        ntk(options.pop("x1"), options.pop("x2", None), **options)
