"""The Myrtle kernels against slow loops, against the same network as a list of layers, and their invariants."""

import functools
import math

import pytest
import torch
from hypothesis import given

from exact_ntk.kernels import cntk, myrtle
from exact_ntk.kernels.duals import RELU, Activation
from exact_ntk.kernels.myrtle import BLOCKS, reference_pass
from exact_ntk.kernels.network import Conv, Layer, Pool, Readout, network_kernels
from tests.kernels.slow_cntk import slow_myrtle
from tests.kernels.test_reference import ENDS, images, small_images

reference = functools.partial(myrtle, backend="reference", dtype=torch.float64)


def _exponential(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = a.sqrt() * b.sqrt()
    kappa = torch.exp(torch.where(scale > 0, c / scale, 0.0) - 1)
    return scale * kappa, kappa


# exp(x - 1) at unit variance, scaled to any other: E[sigma(u) sigma(v)] = n exp(lam - 1), that of sigma' without n.
GAUSSIAN = Activation("normalised exponential", lambda x: torch.exp(x - 1), _exponential)


def myrtle_network(blocks: tuple[int, ...], activation: Activation, first: bool, last: bool) -> list[Layer]:
    layers: list[Layer] = []
    for block, convolutions in enumerate(blocks):
        layers += [Pool()] if block else []
        layers += [Conv(), activation] * convolutions
    return [Conv(trained=first), *layers[1:], Readout("gap", trained=last)]


@pytest.mark.parametrize("variant", BLOCKS)
@pytest.mark.parametrize("ends", ENDS)
def test_agrees_with_the_slow_loop(variant, ends):
    x, y = images(2, (2, 4, 4)), images(1, (2, 4, 4), seed=1)
    x[1, :, :, 0] = 0
    found = reference(x, y, variant=variant, readouts=("nngp", "ntk"), train_first=ends[0], train_last=ends[1])
    for i, image in enumerate(x):
        slow = slow_myrtle(image.numpy(), y[0].numpy(), BLOCKS[variant], *ends)
        # Measured: at most 1e-15.
        assert float(found[0, i, 0]) == pytest.approx(slow["nngp"], rel=1e-13)
        assert float(found[1, i, 0]) == pytest.approx(slow["ntk"], rel=1e-13)


@pytest.mark.parametrize("activation", ["relu", "gaussian"])
@pytest.mark.parametrize("variant", BLOCKS)
@pytest.mark.parametrize("ends", ENDS)
def test_is_the_network_of_its_layers(variant, ends, activation):
    x, y = images(3, (2, 8, 4)), images(2, (2, 8, 4), seed=1)
    y[0], x[2, :, :, :2] = x[1], 0
    options = dict(activation=activation, train_first=ends[0], train_last=ends[1], readouts=("ntk", "nngp"))
    layers = myrtle_network(BLOCKS[variant], RELU if activation == "relu" else GAUSSIAN, *ends)
    for other in (y, None):
        expected = torch.stack(network_kernels(x, other, layers=layers))
        # Measured: at most 9e-16.
        found = reference(x, other, variant=variant, **options)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13 * float(expected.max()))


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("layers", [2, 4])
def test_one_block_is_global_average_pooling(ends, layers):
    """The mean of means is the mean: depth n + 1 for n convolutions."""
    x, y = images(3, (1, 4, 8)), images(2, (1, 4, 8), seed=1)
    r, k = reference_pass(x, y, (layers, 0, 0), train_first=ends[0], train_last=ends[1])
    options = dict(depths=(layers + 1,), readouts=("gap", "gap-nngp"), train_first=ends[0], train_last=ends[1])
    ntk, nngp = cntk(x, y, backend="reference", dtype=torch.float64, **options)[:, 0]
    torch.testing.assert_close(r, ntk, rtol=1e-13, atol=1e-16)
    torch.testing.assert_close(k, nngp, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("activation", ["relu", "gaussian"])
def test_the_unit_kernel_is_one_more_activation_of_the_correlations(activation):
    x, y = images(3, (1, 4, 4)), images(2, (1, 4, 4), seed=1)
    x[2], y[0] = 0, 3 * x[0]
    options = dict(variant=5, activation=activation)
    nngp, unit = reference(x, y, readouts=("nngp", "nngp-unit"), **options)
    own = [reference(z, diagonal=True, readouts=("nngp",), **options)[0] for z in (x, y)]
    for i, j in [(0, 1), (1, 0), (1, 1)]:
        t = float(nngp[i, j] / (own[0][i] * own[1][j]).sqrt())
        relu = (math.sqrt(1 - t * t) + t * (math.pi - math.acos(t))) / math.pi
        assert float(unit[i, j]) == pytest.approx(relu if activation == "relu" else math.exp(t - 1), rel=1e-12)
    assert float(unit[0, 0]) == pytest.approx(1, abs=1e-12)
    assert bool((unit[2] == 0).all())
    square = reference(x, readouts=("nngp-unit",), **options)[0]
    assert torch.equal(square.diagonal(), torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))


@given(small_images)
def test_gram_matrices_are_symmetric_and_positive_semidefinite(x):
    x = torch.nn.functional.pad(x, (0, 0, 1, 0))  # to 4 x 4
    k = reference(x, variant=7)
    assert torch.equal(k, k.mT)
    lowest = torch.linalg.eigvalsh(k).min(-1).values
    assert bool((lowest >= -1e-13 * k.diagonal(dim1=-2, dim2=-1).sum(-1)).all())
    own = reference(x, variant=7, diagonal=True)
    torch.testing.assert_close(own, k.diagonal(dim1=-2, dim2=-1), rtol=1e-13, atol=0)


def test_mirrored_turned_and_scaled_images():
    x, y = images(2, (3, 4, 8)), images(2, (3, 4, 8), seed=1)
    k = reference(x, y, variant=10)
    for turned in (reference(x.flip(3), y.flip(3), variant=10), reference(x.mT, y.mT, variant=10)):
        torch.testing.assert_close(turned, k, rtol=1e-13, atol=0)
    scale = torch.tensor([7.0, 7.0, 1.0], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(reference(7 * x, y, variant=10), scale * k, rtol=1e-13, atol=0)


def test_equal_images_have_the_diagonal_value_wherever_they_stand():
    x = images(3, (2, 8, 8))
    k = reference(x, x.clone()[[2, 0, 1]], variant=5)
    moved = torch.stack([k[..., 0, 1], k[..., 1, 2], k[..., 2, 0]], dim=-1)
    torch.testing.assert_close(moved, reference(x, variant=5, diagonal=True), rtol=1e-13, atol=0)


def test_blank_images_never_give_nan():
    x = images(3, (1, 8, 8))
    x[0], x[1, :, :4] = 0, 0
    k = reference(x, variant=10)
    assert bool(k.isfinite().all())
    assert bool((k[:, 0] == 0).all())


def test_memory_changes_no_value():
    x, y = images(5, (1, 8, 8)), images(3, (1, 8, 8), seed=1)
    whole, by_pair = (torch.stack(reference_pass(x, y, BLOCKS[5], byte_budget=b)) for b in (None, 1))
    torch.testing.assert_close(by_pair, whole, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(variant=6), "variant must be one of 5, 7, 10, not 6"),
        (dict(variant=5, readouts=("gap",)), "readouts must be distinct names out of ntk, nngp, nngp-unit"),
        (dict(variant=5, readouts=()), "readouts must be distinct"),
        (dict(variant=5, activation="tanh"), "activation must be one of relu, gaussian"),
        (dict(variant=5, backend="magic"), "backend must be"),
        (dict(variant=5, dtype=torch.float16), "dtype must be"),
        (dict(variant=5, train_first=1), "train_first must be"),
    ],
)
def test_bad_arguments_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        myrtle(images(2, (1, 4, 4)), **options)


def test_images_that_do_not_fit_are_refused():
    for shape in ((1, 6, 8), (1, 8, 6), (1, 2, 2)):
        with pytest.raises(ValueError, match="divisible by 4"):
            myrtle(images(1, shape), variant=5)
    with pytest.raises(ValueError, match="one shape"):
        myrtle(images(1, (1, 4, 4)), images(1, (1, 4, 8)), variant=5)
    with pytest.raises(ValueError, match="leave x2 out"):
        myrtle(images(1, (1, 4, 4)), images(1, (1, 4, 4)), variant=5, diagonal=True)
    with pytest.raises(MemoryError, match="one pair of 2000 x 2000 images"):
        reference(torch.ones(1, 1, 2000, 2000), variant=5)
