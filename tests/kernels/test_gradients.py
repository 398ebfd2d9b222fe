"""Gradients of the kernels with respect to images: against differences, at cusps, in memory; what has none says so."""

import math
from functools import partial

import pytest
import torch
from torch.autograd import forward_ad, gradcheck

from exact_ntk.kernels import Pass, cntk, fused, gradients, ntk, reference
from tests.kernels.peak import peak_bytes
from tests.kernels.test_reference import images

X, Y = images(2, (2, 3, 4)), images(2, (2, 3, 4), seed=1)
BLACK_CORNER, BLACK_IMAGE = X.clone(), torch.ones_like(X)
BLACK_CORNER[0, :, :2, :2] = 0  # one patch is black
BLACK_IMAGE[0, :, :, :3] = BLACK_IMAGE[1] = 0
ENDS = [(None, None), (True, False), (False, True)]


def kernels(x, y=None, readouts=("vanilla", "gap", "vanilla-nngp", "gap-nngp", "lap-1"), **options):
    return cntk(x, y, **{"depths": (5, 3), "readouts": readouts, "dtype": torch.float64, **options})


def check(f, *inputs) -> bool:
    return gradcheck(f, [x.clone().requires_grad_() for x in inputs], fast_mode=True)


@pytest.mark.parametrize("ends", ENDS)
def test_gradients_are_those_of_differences(ends):
    ends = dict(train_first=ends[0], train_last=ends[1])
    assert check(lambda x, y: kernels(x, y, **ends), X, Y)
    assert check(lambda x: kernels(x, **ends), X)
    assert check(lambda x: kernels(x, diagonal=True, padding="circular", **ends), X)


def test_black_patches_have_the_mean_of_both_sides():
    assert check(lambda x: kernels(x, Y), BLACK_CORNER)
    assert check(kernels, BLACK_CORNER)


def test_black_regions_and_images_leave_the_others_gradients_alone():
    for f in (lambda x: kernels(x, Y), kernels, lambda x: kernels(x, diagonal=True)):
        assert check(lambda x, f=f: f(x * BLACK_IMAGE), X)
    z = torch.zeros_like(X).requires_grad_()
    kernels(z).sum().backward()
    assert bool(z.grad.isfinite().all())


def test_equal_images_as_two_arguments():
    """The NNGP is smooth there; the NTK has a cusp, and half the diagonal's gradient."""
    assert check(lambda x, y: kernels(x, y, readouts=("vanilla-nngp", "gap-nngp")), X, X)
    x, z = X.clone().requires_grad_(), X.clone().requires_grad_()
    kernels(x, X).diagonal(dim1=-2, dim2=-1).sum().backward()
    kernels(z, diagonal=True).sum().backward()
    torch.testing.assert_close(x.grad, z.grad / 2, rtol=1e-12, atol=1e-15)
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        check(lambda x: kernels(x, X, readouts=("vanilla",)), X)


def test_values_are_those_without_a_graph_and_any_block_gives_the_same_gradient():
    x, job = X.clone().requires_grad_(), Pass("gap", (3, 4), ("gap", "gap-nngp"), True, False)
    assert torch.equal(kernels(x, Y), kernels(X, Y))
    found = []
    for budget in (1, 1 << 30):
        values = gradients.cntk_pass(x, None, job, torch.float64, byte_budget=budget)
        torch.testing.assert_close(values, reference.cntk_pass(X, None, job, torch.float64), rtol=1e-13, atol=0)
        found += torch.autograd.grad(values.square().sum(), x)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-15)


def test_float32_arithmetic_and_images():
    """Measured: 8e-7 of the largest entry."""
    exact, x = X.clone().requires_grad_(), X.float().requires_grad_()
    kernels(exact, Y).sum().backward()
    kernels(x, Y, dtype=torch.float32).sum().backward()
    assert x.grad.dtype == torch.float32
    assert float((x.grad - exact.grad).abs().max() / exact.grad.abs().max()) < 3e-6


@pytest.mark.parametrize("family", ["vanilla", "gap"])
def test_memory_does_not_grow_with_the_number_of_pairs(family):
    """Beside values, weights and images it is that of one pair, as said."""
    job, side = Pass(family, (3, 5), (family,), True, True), 24 if family == "vanilla" else 8
    said = gradients.gradient_bytes(family, 4, torch.float64, side, side)
    for n in (2, 4):
        x, y = (images(n, (1, side, side), seed).requires_grad_() for seed in (0, 1))
        values = gradients.cntk_pass(x, y, job, torch.float64, byte_budget=1)
        peak = peak_bytes(partial(torch.autograd.grad, values, (x, y), torch.ones_like(values)))
        assert peak - x.nbytes - y.nbytes == pytest.approx(said, rel=0.15)  # of 4 and of 16 pairs


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by forward_ad itself
def test_a_gradient_is_never_dropped():
    """A training loop would see a kernel that does not depend on the images."""
    x, v = X.clone().requires_grad_(), X.flatten(1).requires_grad_()
    for call in (lambda: ntk(v, hidden_layers=1), lambda: ntk(v.detach(), v, hidden_layers=1)):
        with pytest.raises(ValueError, match=r"which `cntk` alone gives: pass x[12].detach\(\)"):
            call()
    with pytest.raises(ValueError, match=r"fused kernels give no gradients.*: give backend='reference', or detached"):
        kernels(X, x, backend="fused", dtype=torch.float32)
    with pytest.raises(ValueError, match="leave it out where a gradient is asked for"):
        kernels(x, out=torch.empty(5, 2, 2, 2, dtype=torch.float64))
    with forward_ad.dual_level(), pytest.raises(ValueError, match="x1 asks for a gradient in forward mode"):
        kernels(forward_ad.make_dual(X, X))
    with torch.no_grad():
        assert torch.equal(kernels(x), kernels(X))
    assert not kernels(x.detach()).requires_grad


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by torch.func itself
def test_second_derivatives_are_refused():
    x = X.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(kernels(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.func.grad(lambda z: kernels(z).sum())(X)


def test_auto_takes_the_reference_kernels(monkeypatch):
    monkeypatch.setattr(fused.cpu, "write_pass", lambda *_: pytest.fail("no gradients here"))
    x = X.clone().requires_grad_()
    cntk(x, depths=(3,)).sum().backward()
    assert math.isfinite(float(x.grad.sum()))


def test_memory_for_the_gradient_of_one_pair_is_asked_for_first(monkeypatch):
    large = torch.ones(1, 1, 100, 100, requires_grad=True)
    monkeypatch.setattr("exact_ntk.kernels.backends.available_memory", lambda device: 10 * 10**9)
    with pytest.raises(MemoryError, match=r"takes 12\.8 GB with gap readouts and their gradient in reference-cpu"):
        cntk(large, depths=(9,), readouts=("gap",))
