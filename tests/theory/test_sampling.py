"""Signals sampled without weights have the law of those of drawn weights."""

import numpy as np
import pytest
import torch

from exact_ntk.kernels import ntk
from exact_ntk.theory.inputs import vectors
from exact_ntk.theory.networks import Signals, draw_weights, propagate
from exact_ntk.theory.sampling import sample_signals
from exact_ntk.theory.theorem_3_1 import compare_laws, entries

SEEDS = 2000


def both(x: torch.Tensor, width: int, hidden_layers: int, sampled_width: int | None = None):
    generator = torch.Generator().manual_seed(0)
    options = (hidden_layers, SEEDS, generator, torch.float64)
    drawn = propagate(draw_weights(x.shape[1], width, *options), x)[1]
    return drawn, sample_signals(x, sampled_width or width, *options)


@pytest.mark.parametrize("width,hidden_layers", [(6, 1), (6, 2), (12, 3)])
def test_the_law_is_that_of_drawn_weights(width, hidden_layers):
    drawn, sampled = both(vectors(4), width, hidden_layers)
    one, other = entries(drawn), entries(sampled)
    assert compare_laws(one, other) > 1e-3
    # Products of two entries see the dependence between layers, forward and backward, that marginals do not.
    pairs = [(a, b) for a in range(0, one.shape[1], 7) for b in range(0, a, 3)]
    products, sampled_products = (np.stack([e[:, a] * e[:, b] for a, b in pairs], axis=1) for e in (one, other))
    assert compare_laws(products, sampled_products) > 1e-3
    error = np.sqrt((products.var(0) + sampled_products.var(0)) / SEEDS)
    assert (np.abs(products.mean(0) - sampled_products.mean(0)) < 5 * error).all()


def test_another_law_is_told_apart():
    drawn, sampled = both(vectors(4), 12, 2, sampled_width=24)
    assert compare_laws(entries(drawn), entries(sampled)) < 1e-3


def euler(signals: Signals) -> torch.Tensor:
    """<b^(h)(x), g^(h)(x)> for h = 1 .. L, (L, S, n): all are f(x) sqrt(c_sigma / d), ReLU being homogeneous."""
    return torch.stack([(b * g).sum(2) for b, g in zip(signals.b[:-1], signals.g[1:], strict=True)])


def test_forward_and_backward_share_their_weights_exactly():
    x = vectors(4)
    signals = sample_signals(x, 8, 4, 50, torch.Generator().manual_seed(0), torch.float64)
    found = euler(signals)
    torch.testing.assert_close(found, found[-1].expand_as(found), rtol=1e-9, atol=1e-12)
    drawn = propagate(draw_weights(64, 8, 4, 50, torch.Generator().manual_seed(0), torch.float64), x)
    expected = (drawn[0] * (2 / 8) ** 0.5).expand(4, -1, -1)
    torch.testing.assert_close(euler(drawn[1]), expected, rtol=1e-9, atol=1e-12)
    # The shortcut of a backward pass with weights of its own does not have this.
    own = sample_signals(x, 8, 4, 50, torch.Generator().manual_seed(1), torch.float64).b
    assert float((euler(Signals(signals.g, own)) - found).abs().max()) > 0.1


def test_equal_inputs_have_equal_signals():
    x = vectors(4)
    x[2] = x[1]
    signals = sample_signals(x, 8, 3, 5, torch.Generator().manual_seed(0), torch.float64)
    for v in (*signals.g, *signals.b):
        assert bool(v.isfinite().all())
        torch.testing.assert_close(v[:, 2], v[:, 1], rtol=1e-6, atol=1e-9)


def test_wide_networks_are_near_the_limit():
    x = vectors(5)
    found = sample_signals(x, 4096, 2, 200, torch.Generator().manual_seed(0), torch.float64).ntk
    deviation = (found.mean(0) - ntk(x, hidden_layers=2)).abs() / (found.std(0) / 200**0.5)
    assert float(deviation.max()) < 5


def test_too_narrow_a_network_is_refused():
    with pytest.raises(ValueError, match="at least 4"):
        sample_signals(vectors(4), 3, 1, 1, torch.Generator(), torch.float64)
