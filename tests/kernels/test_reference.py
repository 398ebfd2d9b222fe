"""The reference kernels against a separate slow loop, and the invariants every kernel must have."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from exact_ntk import kernels
from exact_ntk.kernels import READOUTS
from exact_ntk.kernels.passes import plan_passes
from exact_ntk.kernels.reference import TENSORS_ALIVE, cntk_pass
from tests.kernels.slow_cntk import slow_cntk

cntk = functools.partial(kernels.cntk, backend="reference")
SHAPES = [(1, 1, 1), (2, 1, 3), (3, 4, 5), (1, 6, 2), (1, 2, 2)]
ENDS = [(first, last) for first in (False, True) for last in (False, True)]
# Measured: at most 6e-16 in float64 and 7e-8 in float32 over these shapes; bounds leave a factor of four.
TOLERANCE = {torch.float64: 2.4e-15, torch.float32: 2.8e-7}


def images(n: int, shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def error(k: torch.Tensor, truth: torch.Tensor, k11: torch.Tensor, k22: torch.Tensor) -> float:
    """|error| / sqrt(K(x, x) K(x', x')), the largest over the block; 0 / 0 counts as 0."""
    scale = (k11[..., :, None] * k22[..., None, :]).sqrt()
    return float(torch.where(scale > 0, (k - truth).abs() / scale, (k - truth).abs()).max())


def diagonal(x: torch.Tensor, **options) -> torch.Tensor:
    return torch.cat([cntk(x[i : i + 1], **options)[..., 0] for i in range(len(x))], dim=-1)


def few_images(shape: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = images(3, shape), images(2, shape, seed=1)
    y[0] = x[1]  # an equal pair off the diagonal
    x[2, :, :, 0] = 0  # a black column
    return x, y


@functools.cache
def slow_values(shape: tuple[int, int, int], ends: tuple[bool, bool]) -> torch.Tensor:
    """(readouts, depths, 3, 2) by the slow loop."""
    x, y = few_images(shape)
    found = [[[slow_cntk(a.numpy(), b.numpy(), depth, *ends) for b in y] for a in x] for depth in (3, 5)]
    return torch.tensor(
        [[[[pair[name] for pair in row] for row in at] for at in found] for name in READOUTS], dtype=torch.float64
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_agrees_with_the_slow_loop(shape, ends, dtype):
    x, y = few_images(shape)
    options = dict(depths=(3, 5), readouts=READOUTS, train_first=ends[0], train_last=ends[1])
    k = cntk(x, y, dtype=dtype, **options)
    slow = slow_values(shape, ends)
    k11, k22 = (diagonal(z, dtype=torch.float64, **options) for z in (x, y))
    assert error(k, slow, k11, k22) < TOLERANCE[dtype]


@pytest.mark.parametrize("ends", ENDS)
def test_depth_two_is_one_hidden_layer(ends):
    x, y = images(2, (2, 3, 3)), images(2, (2, 3, 3), seed=1)
    names = [r for r in READOUTS if any(ends) or r.endswith("nngp")]
    k = cntk(x, y, depths=(2,), readouts=names, train_first=ends[0], train_last=ends[1], dtype=torch.float64)
    for row, name in enumerate(names):
        expected = slow_cntk(x[0].numpy(), y[1].numpy(), 2, *ends)[name]
        assert float(k[row, 0, 0, 1]) == pytest.approx(expected, rel=1e-13)


def test_hand_computed_single_pixel():
    """One pixel, one channel, x = 1, x' = -1: S = -1, lam = -1, so K = Kdot = 0; and K(x, x) = 1/9 a layer."""
    x = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1)
    k = cntk(x, depths=(2, 3), readouts=("vanilla", "vanilla-nngp"), dtype=torch.float64)
    ninth = 1 / 9
    # Depth 2: K = 1/9 and Kdot T_0 = 1/9.  Depth 3: K = 1/81 and Kdot T_1 = (1/9)(2/9).
    expected = torch.tensor([[2 * ninth, 3 * ninth**2], [ninth, ninth**2]], dtype=torch.float64)
    torch.testing.assert_close(k[:, :, 0, 0], expected, rtol=1e-15, atol=0)
    torch.testing.assert_close(k[:, 0, 0, 1], torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-17)


small_images = st.integers(0, 2**32 - 1).map(
    lambda seed: torch.from_numpy(
        np.random.default_rng(seed).normal(size=(6, 2, 3, 4))
        * np.random.default_rng(seed + 1).integers(0, 2, (6, 1, 3, 4))
    )
)


@given(small_images)
def test_gram_matrix_is_symmetric_and_positive_semidefinite(x):
    k = cntk(x, depths=(3, 6), readouts=READOUTS, dtype=torch.float64)
    assert torch.equal(k, k.transpose(-1, -2))
    lowest = torch.linalg.eigvalsh(k).min(-1).values
    assert bool((lowest >= -1e-13 * k.diagonal(dim1=-2, dim2=-1).sum(-1)).all())


@given(small_images, st.permutations(range(6)))
def test_permuting_images_permutes_the_kernel(x, order):
    k = cntk(x, depths=(4,), dtype=torch.float64)
    permuted = cntk(x[order], depths=(4,), dtype=torch.float64)
    torch.testing.assert_close(permuted, k[..., order, :][..., order], rtol=1e-13, atol=1e-15)


@given(small_images, st.integers(1, 5))
def test_any_split_gives_the_same_values(x, cut):
    whole = cntk(x, x, depths=(3, 5), readouts=READOUTS, dtype=torch.float64)
    parts = [cntk(part, x, depths=(3, 5), readouts=READOUTS, dtype=torch.float64) for part in (x[:cut], x[cut:])]
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("readout", ["vanilla", "gap"])
def test_byte_budget_changes_nothing_but_memory(readout):
    x = images(5, (2, 4, 4))
    (job,) = plan_passes((3, 4), (readout,), None, None)
    whole, one_by_one = (cntk_pass(x, None, job, torch.float64, byte_budget=b) for b in (1 << 30, 1))
    torch.testing.assert_close(whole, one_by_one, rtol=1e-13, atol=1e-15)


def test_scaling_an_image_scales_its_row():
    """ReLU nets are homogeneous: K(a x, x') = a K(x, x') for a > 0."""
    x, y = images(2, (3, 4, 4)), images(2, (3, 4, 4), seed=1)
    options = dict(depths=(3, 6), readouts=READOUTS, dtype=torch.float64)
    torch.testing.assert_close(cntk(7 * x, y, **options), 7 * cntk(x, y, **options), rtol=1e-13, atol=0)


def test_mirrored_images_have_mirrored_kernels():
    x, y = images(2, (3, 4, 5)), images(2, (3, 4, 5), seed=1)
    options = dict(depths=(4,), readouts=READOUTS, dtype=torch.float64)
    torch.testing.assert_close(cntk(x.flip(3), y.flip(3), **options), cntk(x, y, **options), rtol=1e-13, atol=0)
    torch.testing.assert_close(cntk(x.mT, y.mT, **options), cntk(x, y, **options), rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blank_images_and_borders_never_give_nan(dtype):
    x = images(4, (3, 6, 6))
    x[0] = 0
    x[1, :, :3] = 0
    k = cntk(x, depths=(3, 21), readouts=READOUTS, dtype=dtype)
    assert bool(k.isfinite().all())
    assert bool((k[..., 0, :] == 0).all())


@pytest.mark.parametrize("readout", READOUTS)
def test_equal_images_have_the_diagonal_value_wherever_they_stand(readout):
    x = images(3, (3, 5, 5))
    k = cntk(x, x.clone()[[2, 0, 1]], depths=(3, 21), readouts=(readout,), dtype=torch.float32)
    symmetric = cntk(x, depths=(3, 21), readouts=(readout,), dtype=torch.float32)
    moved = torch.stack([k[..., 0, 1], k[..., 1, 2], k[..., 2, 0]], dim=-1)
    torch.testing.assert_close(moved, symmetric.diagonal(dim1=-2, dim2=-1), rtol=3e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ends", ENDS)
def test_self_pairs_alone_are_the_diagonal(ends, dtype):
    x = images(5, (2, 4, 3))
    x[1] = 0
    x[2, :, :, 0] = 0
    options = dict(depths=(6, 3), readouts=READOUTS, train_first=ends[0], train_last=ends[1], dtype=dtype)
    own, whole = cntk(x, diagonal=True, **options), cntk(x, **options)
    assert own.shape == (4, 2, 5)
    torch.testing.assert_close(own, whole.diagonal(dim1=-2, dim2=-1), rtol=TOLERANCE[dtype], atol=0)
    assert bool((own[..., 1] == 0).all())
    out = torch.full_like(own, float("nan"))
    assert cntk(x, diagonal=True, out=out, **options) is out
    assert torch.equal(out, own)


def test_self_pairs_have_no_second_images():
    x = images(2, (1, 3, 3))
    with pytest.raises(ValueError, match="leave x2 out"):
        cntk(x, x, depths=(3,), diagonal=True)
    with pytest.raises(ValueError, match=r"out must be a float64 tensor \(2, 1, 2\)"):
        cntk(x, depths=(3,), diagonal=True, out=torch.empty(2, 1, 2, 2, dtype=torch.float64))


def nearly_equal_pairs() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    one_pixel, noise, background = x.clone(), x + 1e-3 * images(1, (3, 16, 16)), torch.full_like(x, 0.5)
    one_pixel[0, 0, 8, 8] += 1 / 255 / 0.25
    shared = background.clone()
    background[..., 5:9, 5:9], shared[..., 7:11, 7:11] = x[..., 5:9, 5:9], x[..., 7:11, 7:11]
    return {"one pixel": (x, one_pixel), "noise": (x, noise), "shared background": (background, shared)}


@pytest.mark.parametrize("name", ["one pixel", "noise", "shared background"])
def test_float32_is_good_for_nearly_equal_images(name):
    x, y = nearly_equal_pairs()[name]
    options = dict(depths=(3, 11, 21), readouts=READOUTS)
    k, truth = (cntk(x, y, dtype=dtype, **options) for dtype in (torch.float32, torch.float64))
    # Measured: at most 1.8e-7.
    assert error(k, truth, *(diagonal(z, dtype=torch.float64, **options) for z in (x, y))) < 6e-7


def test_float32_error_on_real_digits(digits_images):
    x = digits_images[:12]
    options = dict(depths=(3, 6, 11, 21), readouts=READOUTS)
    k, truth = (cntk(x, x.clone(), dtype=dtype, **options) for dtype in (torch.float32, torch.float64))
    own = truth.diagonal(dim1=-2, dim2=-1)
    # Measured: at most 6e-8.
    assert error(k, truth, own, own) < 2e-7


@pytest.fixture
def digits_images():
    from sklearn.datasets import load_digits

    pixels = torch.from_numpy(load_digits().images[:64]).unsqueeze(1)
    return (pixels - pixels.mean()) / pixels.std()


def test_large_images_and_one_pass_for_all_depths():
    x = images(1, (1, 1, 64))
    k = cntk(x, images(1, (1, 1, 64), seed=1), depths=(21, 3), readouts=("gap", "vanilla"), dtype=torch.float64)
    alone = cntk(x, images(1, (1, 1, 64), seed=1), depths=(3,), readouts=("gap",), dtype=torch.float64)
    assert k.shape == (2, 2, 1, 1)
    torch.testing.assert_close(k[0, 1], alone[0, 0], rtol=0, atol=0)


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any operation makes."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        made = [t.untyped_storage().nbytes() for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.bytes = max(self.bytes, *made, 0)
        return out


@pytest.mark.parametrize("readout, shape, n", [("vanilla", (1, 64, 64), 20), ("gap", (1, 8, 8), 12)])
def test_no_tensor_outgrows_its_share_of_the_budget(readout: str, shape: tuple[int, int, int], n: int):
    """All pairs at once would take 6.9 and 2.6 MB a tensor, all pixel pairs of 64 x 64 images 134 MB."""
    x, (job,) = images(n, shape), plan_passes((3, 5), (readout,), None, None)
    whole = cntk_pass(x, None, job, torch.float64)
    with Largest() as largest:
        found = cntk_pass(x, None, job, torch.float64, byte_budget=8 << 20)
    assert largest.bytes <= (8 << 20) / TENSORS_ALIVE
    torch.testing.assert_close(found, whole, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(depths=(1,)), "at least 2"),
        (dict(depths=()), "depths"),
        (dict(depths=(3,), readouts=("pooled",)), "readouts"),
        (dict(depths=(2,), readouts=("gap",)), "trains nothing"),
        (dict(depths=(3,), backend="magic"), "backend"),
        (dict(depths=(3,), dtype=torch.float16), "dtype"),
    ],
)
def test_bad_arguments_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        cntk(images(2, (1, 3, 3)), **options)


@pytest.mark.parametrize("x", [torch.zeros(3, 3), torch.zeros(0, 1, 3, 3), torch.zeros(1, 1, 3, 3, dtype=torch.uint8)])
def test_bad_images_are_refused(x):
    with pytest.raises(ValueError, match="x1 must be"):
        cntk(x, depths=(3,))
    with pytest.raises(ValueError, match="NaN"):
        cntk(torch.full((1, 1, 2, 2), float("nan")), depths=(3,))
    with pytest.raises(ValueError, match="one shape"):
        cntk(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 3, 2), depths=(3,))
