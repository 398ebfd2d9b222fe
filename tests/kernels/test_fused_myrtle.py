"""The fused Myrtle kernels against the float64 reference: random and degenerate images, every flag, same bits."""

import functools
import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exact_ntk.kernels import myrtle
from exact_ntk.kernels.arccos import relu_duals
from exact_ntk.kernels.backends import resolve_myrtle
from exact_ntk.kernels.fused import build
from exact_ntk.kernels.fused.self_planes import self_deviations
from exact_ntk.kernels.myrtle import BLOCKS, READOUTS, _through
from exact_ntk.notices import warn_once
from tests.kernels.test_fused_cpu import degenerate, digits, one_torch_thread
from tests.kernels.test_reference import ENDS, error, images, nearly_equal_pairs

__all__ = ["one_torch_thread"]
pytestmark = pytest.mark.skipif(not build.compilers(), reason="no C++ compiler")

fused = functools.partial(myrtle, backend="fused")
reference = functools.partial(myrtle, backend="reference")
# Planes side by side, of all levels and of some; lanes left over; transposed because wide; tall.
SHAPES = [(1, 4, 4), (2, 8, 8), (3, 12, 20), (2, 4, 40), (1, 64, 8)]
# Measured: at most 5.3e-7, of 4 x 4 images, whose last level is one pixel; 2.2e-7 of others.
BOUND = 2e-6
# Of values in float64, relative. Measured for all variants on degenerate images: 3.3e-12 to 1.1e-11 at 16 x 16, at most
# 1.9e-11 at 32 x 32; most of it is the polynomial in place of arccos, whose error of 8e-12 the layers add up.
DIAGONAL = 4e-11
CPU = torch.device("cpu")


def largest_error(x, y, **options) -> float:
    """Fused against the float64 reference, the NTK and the NNGP kernel."""
    options = {"readouts": ("ntk", "nngp"), **options}
    own = [reference(z, diagonal=True, **options) for z in (x, x if y is None else y)]
    found = fused(x, y, **options)
    assert bool(found.isfinite().all())
    return error(found, reference(x, y, **options), *own)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", BLOCKS)
def test_agrees_with_the_reference(shape, variant):
    x, y = degenerate(shape), images(2, shape, seed=1).float()
    y[0] = x[2]
    if shape[1] * shape[2] > 100:
        x = x[:3]
    assert largest_error(x, y, variant=variant) < BOUND
    assert largest_error(x, None, variant=variant) < BOUND


@pytest.mark.parametrize("ends", ENDS)
def test_trained_ends(ends):
    x, y = degenerate((2, 8, 8)), images(2, (2, 8, 8), seed=1).float()
    for variant in BLOCKS:
        assert largest_error(x, y, variant=variant, train_first=ends[0], train_last=ends[1]) < BOUND


def test_cifar_sized_images():
    x, y = images(1, (3, 32, 32)).float(), images(1, (3, 32, 32), seed=1).float()
    y[..., :9] = x[..., :9]
    assert largest_error(x, y, variant=10) < BOUND


def test_real_digits():
    assert largest_error(digits(12), None, variant=10) < BOUND


@pytest.mark.parametrize("variant", [5, 10])
@pytest.mark.parametrize("name", ["one pixel", "noise", "shared background"])
def test_nearly_equal_images(name, variant):
    x, y = (z[..., 8:, 8:].float() for z in nearly_equal_pairs()[name])
    assert largest_error(x, y, variant=variant) < BOUND


@pytest.mark.parametrize("size", [0.1, 1e-2, 1e-3, 1e-4, 1e-6])
def test_differences_of_every_size(size):
    """Those that the counting calls nearly equal, those that it just does not, and float64 where 1 - lam is tiny."""
    x = torch.rand(1, 2, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1
    everywhere, one_pixel = x + size * images(1, (2, 8, 8)).float(), x.clone()
    one_pixel[0, 0, 4, 4] += size
    assert largest_error(x, torch.cat([everywhere, one_pixel]), variant=10) < BOUND


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.9))
def test_any_contents(seed, share_black):
    x = images(3, (1, 4, 8), seed).float()
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < share_black] = 0
    assert largest_error(x, None, variant=7) < BOUND


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 12, 8), (1, 16, 16)])
@pytest.mark.parametrize("variant", BLOCKS)
def test_normalisers_from_few_planes_are_those_of_all(shape, variant):
    x = degenerate(shape).double()
    *_, tables = _through(x, x, None, BLOCKS[variant], relu_duals, False, True)
    expected = torch.cat([table.flatten(1) for table in tables], 1)
    found = self_deviations(x, BLOCKS[variant])
    # Measured: at most 2.4e-16.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15 * float(expected.max()))
    assert torch.equal(self_deviations(x[3:5], BLOCKS[variant]), found[3:5])


@pytest.mark.parametrize("exponent", [-60, 60])
def test_scale_of_images_does_not_matter(exponent):
    x, y = images(3, (2, 8, 8)).float(), images(2, (2, 8, 8), seed=1).float()
    options = dict(variant=5, readouts=("ntk", "nngp"))
    assert torch.equal(fused(x * 2.0**exponent, y, **options), fused(x, y, **options) * 2.0**exponent)


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 4, 12)])
def test_same_bits_for_any_tile_thread_count_and_readout(shape):
    x, y = degenerate(shape), torch.cat([degenerate(shape, 1), images(5, shape, seed=2).float()])
    options = dict(variant=7, readouts=("ntk", "nngp"))
    whole, square = fused(x, y, **options), fused(x, **options)
    assert torch.equal(square, square.mT)
    assert torch.equal(fused(x, diagonal=True, **options), square.diagonal(dim1=1, dim2=2))
    tiles = [torch.cat([fused(x[i : i + 1], part, **options) for part in y.split(3)], dim=2) for i in range(len(x))]
    assert torch.equal(torch.cat(tiles, dim=1), whole)
    every = fused(x, y, variant=7)
    for slot, name in enumerate(READOUTS):
        assert torch.equal(fused(x, y, variant=7, readouts=(name,))[0], every[slot]), name
    torch.set_num_threads(3)
    try:
        assert torch.equal(fused(x, y, **options), whole)
    finally:
        torch.set_num_threads(1)


def test_equal_images_have_the_diagonal_value_wherever_they_stand(caplog):
    x = images(3, (2, 8, 8)).float()
    own = fused(x, diagonal=True, variant=5)
    with caplog.at_level(logging.DEBUG, "ntk"):
        k = fused(x, x.clone()[[2, 0, 1]], variant=5)
    assert torch.equal(torch.stack([k[..., 0, 1], k[..., 1, 2], k[..., 2, 0]], dim=-1), own)
    assert "3 nearly equal pairs were computed in float64" in caplog.text
    np.testing.assert_array_equal(own[2], 1)


@pytest.mark.parametrize("variant", BLOCKS)
def test_the_diagonal_is_the_exact_recursion(variant):
    x = degenerate((3, 16, 16))
    own, truth = (k(x, diagonal=True, variant=variant, readouts=("ntk", "nngp")) for k in (fused, reference))
    torch.testing.assert_close(own, truth, rtol=DIAGONAL, atol=0)


def test_what_fused_does_not_cover_falls_back_and_is_said_once(caplog):
    def resolved(side=8, dtype=None, activation="relu", backend="auto"):
        return resolve_myrtle(backend, CPU, dtype, activation, side, side)

    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert resolved() == resolved(dtype=torch.float32) == "fused-cpu"
        assert resolved(dtype=torch.float64) == resolved(backend="reference") == "reference-cpu"
        assert not caplog.messages
        assert [resolved(activation="gaussian") for _ in range(3)] == ["reference-cpu"] * 3
        assert len(caplog.messages) == 1
        assert "in float64 and many times slower: the fused Myrtle kernels are those of the ReLU" in caplog.messages[0]
        assert resolved(side=36) == "reference-cpu"
        assert "36 x 36" in caplog.messages[1]
    for options, words in [
        (dict(dtype=torch.float64, backend="fused"), "float32 only"),
        (dict(activation="gaussian", backend="fused"), "those of the ReLU"),
        (dict(activation="gaussian", dtype=torch.float32), "float64 only, so leave dtype out: the fused"),
        (dict(backend="reference", dtype=torch.float32), "float64 only, so leave dtype out$"),
    ]:
        with pytest.raises(ValueError, match=words):
            resolved(**options)
