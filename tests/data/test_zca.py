"""ZCA whitening against its definition, and what it must not depend on."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exact_ntk.config import Zca
from exact_ntk.data.zca import contrast_normalised, fit, whitened
from exact_ntk.errors import DataError

SHAPE = (2, 3, 4)
D = 24


def made_up(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand((n, *SHAPE), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def white(x: torch.Tensor, how: Zca, fitted_on: int) -> torch.Tensor:
    return whitened(lambda at: x[at], len(x), how, np.arange(fitted_on)).double()


def defined(x: torch.Tensor, fitted_on: torch.Tensor, e: float) -> torch.Tensor:
    """As the definition reads: every eigenvector of the moment by eigh."""
    rows, f = (
        (lambda flat: (flat - flat.mean(1, keepdim=True)) / (flat - flat.mean(1, keepdim=True)).norm(dim=1)[:, None])(
            images.flatten(1)
        )
        for images in (x, fitted_on)
    )
    lam, u = torch.linalg.eigh(f.T @ f / len(f))
    return ((rows @ u) * (lam.clamp_min(0) + e).rsqrt()) @ u.T


@pytest.mark.parametrize("fitted_on", [10, 30, 60], ids=["fewer than pixels", "a few more", "more"])
@pytest.mark.parametrize("flips", [False, True])
def test_it_is_the_definition(fitted_on: int, flips: bool):
    x = made_up(70)
    train = x[:fitted_on]
    both = torch.cat([train, train.flip(-1)]) if flips else train
    absolute = white(x, Zca(epsilon=1e-3, flips=flips), fitted_on)
    torch.testing.assert_close(absolute.flatten(1), defined(x, both, 1e-3), rtol=0, atol=3e-6)
    # The moment's trace is 1, so that relative to its mean eigenvalue e is r / D.
    relative = white(x, Zca(relative=0.5, flips=flips), fitted_on)
    torch.testing.assert_close(relative.flatten(1), defined(x, both, 0.5 / D), rtol=0, atol=3e-6)


def test_what_is_fitted_on_is_white():
    x = made_up(4000)
    rows = white(x, Zca(epsilon=1e-9), 4000).flatten(1)
    moment = rows.T @ rows / len(rows)
    centred = torch.eye(D, dtype=torch.float64) - 1 / D
    torch.testing.assert_close(moment, centred, rtol=0, atol=1e-4)


@pytest.mark.parametrize("fitted_on", [9, 40])
def test_a_mirror_image_becomes_the_mirror_image_where_fitted_on_both(fitted_on: int):
    """Else K(Fx, Fx') is not K(x, x')."""
    x = made_up(50)
    both = torch.cat([x, x.flip(-1)])
    for rank_control in (False, True):
        z = white(both, Zca(relative=0.1, flips=True, rank_control=rank_control), fitted_on)
        torch.testing.assert_close(z[50:], z[:50].flip(-1), rtol=0, atol=2e-6)
    z = white(both, Zca(relative=0.1, flips=False), fitted_on)
    assert float((z[50:] - z[:50].flip(-1)).abs().max()) > 0.1


def test_rank_control_keeps_the_length_of_what_was_never_seen():
    x = made_up(30)
    rows = contrast_normalised(x)
    seen = torch.linalg.svd(rows[:5], full_matrices=False).Vh
    unseen = rows[20:] - rows[20:] @ seen.T @ seen
    for rank_control, length in ((True, 1.0), (False, 1e-4**-0.5)):
        whitening = fit(Zca(epsilon=1e-4, flips=False, rank_control=rank_control), lambda at: x[at], np.arange(5))
        torch.testing.assert_close(whitening(unseen), unseen * length, rtol=1e-10, atol=1e-12)


@given(st.floats(0.01, 100), st.floats(-10, 10), st.integers(0, 5))
def test_contrast_and_brightness_are_immaterial(scale: float, shift: float, seed: int):
    x = made_up(3, seed)
    torch.testing.assert_close(contrast_normalised(scale * x + shift), contrast_normalised(x), rtol=0, atol=1e-9)


def test_a_constant_image_is_zero_and_only_such_are_refused():
    x = made_up(6)
    x[1] = 0.1  # in binary its mean is not exactly what it is
    x[2] = 0.0
    rows = contrast_normalised(x.float())
    assert rows.norm(dim=1).tolist() == pytest.approx([1, 0, 0, 1, 1, 1])
    assert white(x, Zca(relative=0.1, flips=False), 6)[1].abs().max() == 0
    with pytest.raises(DataError, match="every image that it would be fitted on is constant"):
        white(x[1:3], Zca(relative=0.1, flips=False), 2)
