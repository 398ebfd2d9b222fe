"""Local average pooling: weights by counting windows, kernels by loops over windows and as layers of a network."""

import functools
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exact_ntk import kernels
from exact_ntk.kernels.duals import RELU
from exact_ntk.kernels.network import Blur, Conv, Readout, network_kernels
from exact_ntk.kernels.passes import plan_passes
from exact_ntk.kernels.windows import local_mean, window_counts
from tests.kernels.slow_cntk import slow_cntk
from tests.kernels.test_reference import ENDS, images

cntk = functools.partial(kernels.cntk, backend="reference", dtype=torch.float64)
sides, windows, paddings = st.integers(1, 7), st.integers(0, 9), st.sampled_from(["zero", "circular"])


@given(sides, windows, paddings)
def test_counts_are_of_windows(n, c, padding):
    counts = torch.zeros(n, n, dtype=torch.float64)
    for centre in range(n):
        window = range(centre - c, centre + c + 1)
        if padding == "zero":
            window = [i for i in window if 0 <= i < n]
        for i, other in itertools.product(window, repeat=2):
            counts[i % n, other % n] += 1
    assert torch.equal(window_counts(n, c, padding), counts)
    assert torch.equal(counts, counts.T)


@given(sides, sides, windows)
def test_weights_sum_to_the_pixels_of_every_window_squared(height, width, c):
    sizes = torch.zeros(height, width, dtype=torch.float64)
    for i, j in itertools.product(range(height), range(width)):
        rows, columns = min(height - 1, i + c) - max(0, i - c) + 1, min(width - 1, j + c) - max(0, j - c) + 1
        sizes[i, j] = rows * columns
    total = local_mean(torch.ones(1, height, width, height, width, dtype=torch.float64), c, "zero")
    torch.testing.assert_close(total[0], (sizes**2).sum() / (2 * c + 1) ** 4, rtol=1e-14, atol=0)


def over_windows(m: torch.Tensor, c: int) -> float:
    """(2 c + 1)^-4 sum over centres o and offsets D, D' of M[o + D, o + D'], as it is written."""
    height, width = m.shape[:2]
    around = list(itertools.product(range(-c, c + 1), repeat=2))
    total = 0.0
    for i, j in itertools.product(range(height), range(width)):
        inside = [(i + a, j + b) for a, b in around if 0 <= i + a < height and 0 <= j + b < width]
        total += sum(float(m[p + q]) for p in inside for q in inside)
    return total / (2 * c + 1) ** 4


@pytest.mark.parametrize("ends", ENDS)
def test_agrees_with_a_loop_over_windows(ends):
    x, y = images(2, (2, 3, 4)), images(1, (2, 3, 4), seed=1)
    x[1, :, :, 0] = 0
    names = ("lap-1", "lap-2-nngp", "lap-2", "lap-1-nngp")
    found = cntk(x, y, depths=(4,), readouts=names, train_first=ends[0], train_last=ends[1])[:, 0, :, 0]
    for i, image in enumerate(x):
        slow = slow_cntk(image.numpy(), y[0].numpy(), 4, *ends)
        for slot, name in enumerate(names):
            m = torch.from_numpy(slow["pixels-nngp" if name.endswith("-nngp") else "pixels"])
            expected = over_windows(m, int(name[4]))
            # Measured: at most 1e-15.
            assert float(found[slot, i]) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("padding", ["zero", "circular"])
@pytest.mark.parametrize("ends", ENDS)
def test_is_a_blur_and_a_vanilla_readout(padding, ends):
    """Windows smaller and larger than the image, images of a row, padding of either kind."""
    for shape in ((2, 4, 5), (1, 1, 6)):
        x, y = images(3, shape), images(2, shape, seed=1)
        y[0], x[2, :, :, 0] = x[1], 0
        for c, depth in ((1, 3), (2, 6), (4, 3)):
            options = dict(depths=(depth,), readouts=(f"lap-{c}", f"lap-{c}-nngp"), padding=padding)
            found = cntk(x, y, **options, train_first=ends[0], train_last=ends[1])[:, 0]
            hidden = [layer for _ in range(depth - 2) for layer in (Conv(padding=padding), RELU)]
            first = Conv(padding=padding, trained=ends[0])
            layers = [first, RELU, *hidden, Blur(c, padding), Readout("vanilla", trained=ends[1])]
            expected = torch.stack(network_kernels(x, y, layers=layers))
            # Measured: at most 6e-16.
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-13 * float(expected.max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_windows_of_one_pixel_are_vanilla_and_of_the_whole_image_global(dtype):
    x, y = images(3, (2, 4, 5)), images(2, (2, 4, 5), seed=1)
    options = dict(depths=(3, 6), train_first=True, train_last=True, dtype=dtype)
    names = [f"{name}{kind}" for name in ("lap-0", "lap-4", "lap-7", "vanilla", "gap") for kind in ("", "-nngp")]
    k = dict(zip(names, cntk(x, y, readouts=names, **options), strict=True))
    for kind in ("", "-nngp"):
        torch.testing.assert_close(k[f"lap-0{kind}"], k[f"vanilla{kind}"], rtol=1e-14, atol=0)
        for c in (4, 7):
            expected = 20 * 20**2 / (2 * c + 1) ** 4 * k[f"gap{kind}"]
            torch.testing.assert_close(k[f"lap-{c}{kind}"], expected, rtol=1e-14, atol=0)


def test_circular_windows_are_the_mean_over_shifts_of_both_images():
    """Li et al. 2019, section 4: the average of the vanilla kernel over all shifts of both by at most c pixels."""
    x, y = images(1, (2, 5, 4)), images(1, (2, 5, 4), seed=1)
    c, options = 1, dict(depths=(4,), padding="circular")
    shifts = [(i, j) for i in range(-c, c + 1) for j in range(-c, c + 1)]
    moved = [torch.cat([z.roll(shift, (2, 3)) for shift in shifts]) for z in (x, y)]
    # Both sums over windows divide by 9^2, the mean over shifts by as much.
    expected = cntk(*moved, readouts=("vanilla",), **options)[0, 0].mean()
    found = cntk(x, y, readouts=("lap-1",), **options)
    torch.testing.assert_close(found[0, 0, 0, 0], expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("padding", ["zero", "circular"])
def test_circular_and_mirrored_images(padding):
    x, y = images(2, (3, 4, 5)), images(2, (3, 4, 5), seed=1)
    options = dict(depths=(4,), readouts=("vanilla", "gap", "lap-1", "lap-2-nngp"), padding=padding)
    k = cntk(x, y, **options)
    torch.testing.assert_close(cntk(x.flip(3), y.flip(3), **options), k, rtol=1e-13, atol=0)
    torch.testing.assert_close(cntk(x.mT, y.mT, **options), k, rtol=1e-13, atol=0)
    own = cntk(x, **options)
    torch.testing.assert_close(cntk(x, diagonal=True, **options), own.diagonal(dim1=2, dim2=3), rtol=1e-13, atol=0)
    assert torch.equal(own, own.mT)
    if padding == "circular":
        torch.testing.assert_close(cntk(x.roll(1, 3), y.roll(1, 3), **options), k, rtol=1e-13, atol=0)


def test_readouts_with_the_same_trained_ends_come_from_one_pass():
    def passes(*readouts, first=None, last=None):
        jobs = plan_passes((3,), readouts, first, last)
        return [(job.family, job.readouts, job.train_first, job.train_last) for job in jobs]

    assert passes("lap-4", "gap", "lap-12-nngp", first=True, last=True) == [
        ("gap", ("lap-4", "gap", "lap-12-nngp"), True, True)
    ]
    assert passes("lap-4", "gap", "lap-12-nngp", "vanilla") == [
        ("vanilla", ("vanilla",), True, True),
        ("gap", ("lap-4", "lap-12-nngp"), True, True),
        ("gap", ("gap",), False, False),
    ]
    assert passes("gap-nngp", "lap-2") == [("gap", ("gap-nngp", "lap-2"), True, True)]
    assert passes("gap-nngp") == [("gap", ("gap-nngp",), False, False)]


@pytest.mark.parametrize("name", ["lap", "lap-", "lap--1", "lap-04", "lap-1000", "lap-4-nngp-nngp", "lap-4.5"])
def test_windows_that_are_none_are_refused(name):
    with pytest.raises(ValueError, match="lap-C and lap-C-nngp"):
        cntk(images(1, (1, 3, 3)), depths=(3,), readouts=(name,))


def test_padding_that_is_none_is_refused():
    with pytest.raises(ValueError, match="padding must be one of zero, circular, not 'mirror'"):
        cntk(images(1, (1, 3, 3)), depths=(3,), padding="mirror")
    with pytest.raises(ValueError, match="pad with zeros only"):
        kernels.cntk(images(1, (1, 3, 3)), depths=(3,), padding="circular", backend="fused")
