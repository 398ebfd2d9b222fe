"""The fused Myrtle kernels on a GPU: `pytest -m gpu`. What needs no GPU is in test_fused_myrtle_emulated.py."""

import time

import pytest
import torch

from exact_ntk.kernels import myrtle
from exact_ntk.kernels.backends import resolve_myrtle
from exact_ntk.kernels.fused import gpu_launch, gpu_myrtle
from exact_ntk.kernels.fused.layout import find_level_layouts
from exact_ntk.kernels.fused.self_planes import self_deviations
from exact_ntk.kernels.myrtle import BLOCKS, READOUTS
from exact_ntk.kernels.passes import Pass
from tests.kernels.test_fused_cpu import degenerate, digits
from tests.kernels.test_fused_gpu import SANITIZERS, check_with_sanitizer, needs_sanitizer
from tests.kernels.test_fused_myrtle import DIAGONAL, SHAPES, reference
from tests.kernels.test_reference import ENDS, error, images, nearly_equal_pairs

pytestmark = pytest.mark.gpu
# As over the emulated warp, whose square roots are as far off as a GPU's may be.
BOUND = 2e-6
GPU = torch.device("cuda")
PAIR = ("ntk", "nngp")


def fused(x, y=None, **options):
    """On the GPU, back on the host."""
    return myrtle(x, y, backend="fused", device=GPU, **options).cpu()


def passed(x, y, variant, **splits):
    """The NTK and the NNGP kernel of images on the GPU, there, without a wait."""
    job = Pass("myrtle", (variant,), ("myrtle", "myrtle-nngp"), True, True)
    return torch.stack(gpu_myrtle.myrtle_pass(x, y, job, **splits))


def largest_error(x, y, truth=reference, **options) -> float:
    options = {"readouts": PAIR, **options}
    own = [truth(z, diagonal=True, **options) for z in (x, x if y is None else y)]
    found = fused(x, y, **options)
    assert bool(found.isfinite().all())
    return error(found, truth(x, y, **options), *own)


def on_cpu(*images_of_both, **options):
    return myrtle(*images_of_both, backend="fused", **options)


def test_auto_is_fused():
    assert resolve_myrtle("auto", GPU, None, "relu", 32, 32) == "fused-cuda"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", BLOCKS)
def test_agrees_with_the_reference(shape, variant):
    x, y = degenerate(shape), images(2, shape, seed=1).float()
    y[0] = x[2]
    assert largest_error(x, y, variant=variant) < BOUND
    assert largest_error(x, None, variant=variant) < BOUND


@pytest.mark.parametrize("ends", ENDS)
def test_trained_ends(ends):
    x, y = degenerate((2, 8, 8)), images(2, (2, 8, 8), seed=1).float()
    assert largest_error(x, y, variant=7, train_first=ends[0], train_last=ends[1]) < BOUND


@pytest.mark.parametrize("variant", BLOCKS)
def test_cifar_sized_images_agree_with_the_cpu(variant):
    x, y = images(4, (3, 32, 32)).float(), images(3, (3, 32, 32), seed=1).float()
    y[0, ..., :9] = x[0, ..., :9]
    y[1] = x[2]
    assert largest_error(x, y, on_cpu, variant=variant) < BOUND


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 64, 32)])
def test_other_sizes_agree_with_the_cpu(shape):
    assert largest_error(degenerate(shape), None, on_cpu, variant=7) < BOUND


def test_real_digits():
    assert largest_error(digits(40), None, variant=10) < BOUND


@pytest.mark.parametrize("name", ["one pixel", "noise", "shared background"])
def test_nearly_equal_images(name):
    x, y = (z.float() for z in nearly_equal_pairs()[name])
    for variant in BLOCKS:
        assert largest_error(x, y, variant=variant) < BOUND


def test_the_diagonal_of_a_square_is_that_of_its_images_alone():
    x = degenerate((3, 16, 16))
    own = fused(x, diagonal=True, variant=10, readouts=PAIR)
    assert torch.equal(fused(x, variant=10, readouts=PAIR).diagonal(dim1=1, dim2=2), own)


def test_the_diagonal_is_the_exact_recursion():
    x = degenerate((3, 16, 16))
    own, truth = (k(x, diagonal=True, variant=10, readouts=PAIR) for k in (fused, reference))
    torch.testing.assert_close(own, truth, rtol=DIAGONAL, atol=0)


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 4, 12), (3, 32, 32)])
def test_same_bits_from_run_to_run_and_for_any_tile_strip_batch_and_launch(shape, monkeypatch):
    x, y = degenerate(shape), torch.cat([degenerate(shape, 1), images(9, shape, seed=2).float()])
    options = dict(variant=7, readouts=PAIR)
    whole, square = fused(x, y, **options), fused(y, **options)
    for _ in range(3):
        assert torch.equal(fused(x, y, **options), whole)
    assert torch.equal(square, square.mT)
    assert torch.equal(square.tril(), fused(y, y.clone(), **options).tril())
    tiles = [torch.cat([fused(x[i : i + 1], part, **options) for part in y.split(3)], dim=2) for i in range(len(x))]
    assert torch.equal(torch.cat(tiles, dim=1), whole)
    every = fused(x, y, variant=7)
    for slot, name in enumerate(READOUTS):
        assert torch.equal(fused(x, y, variant=7, readouts=(name,))[0], every[slot]), name
    pair = 4 * sum(gpu_myrtle.pooled_floats(find_level_layouts(*shape[1:]), True))
    for name, small in [("POOLED_BYTES", 3 * pair), ("EXACT_BYTES", 1), ("entry_layers_a_launch", lambda _: 10**6)]:
        monkeypatch.setattr(gpu_myrtle, name, small)
        assert torch.equal(passed(x.to(GPU), y.to(GPU), 7, strip_images=5).cpu(), whole)
        assert torch.equal(passed(y.to(GPU), None, 7, strip_images=5).cpu(), square)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_an_images_normalisers_do_not_depend_on_the_others(shape):
    x = torch.cat([degenerate(shape), images(200, shape, seed=3).float()]).to(GPU)
    together = self_deviations(x, BLOCKS[10])
    for part in (slice(0, 1), slice(3, 10), slice(150, 207)):
        assert torch.equal(self_deviations(x[part], BLOCKS[10]), together[part])
    # Measured on a CPU against all planes: at most 2.4e-16.
    expected = self_deviations(x[:20].cpu(), BLOCKS[10])
    torch.testing.assert_close(together[:20].cpu(), expected, rtol=0, atol=1e-14 * float(expected.max()))


def test_blocks_over_several_batches_at_real_size_and_no_launch_of_seconds():
    x, seconds = images(60, (3, 32, 32)).float().to(GPU), []
    x[30] = x[1]

    def timed(device, code):
        launch = gpu_launch.launcher(device, code)

        def run(*arguments):
            torch.cuda.synchronize()
            start = time.perf_counter()
            launch(*arguments)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)

        return run

    whole, rectangle = passed(x, None, 5), passed(x, x[:20], 5, make_launcher=timed)
    assert torch.equal(whole.tril()[..., :20], rectangle.tril())
    assert len(seconds) > 8
    assert max(seconds) < 1


def test_work_goes_to_the_current_stream():
    """Images written by a slow kernel of a stream of its own are read after it, and nothing waits for the device."""
    x = images(6, (3, 32, 32)).float()
    expected = fused(x, variant=5, readouts=PAIR)
    stream = torch.cuda.Stream()
    source, late = x.pin_memory(), torch.zeros_like(x, device=GPU)
    with torch.cuda.stream(stream):
        # Twice: kernels that are loaded for the first time wait for the device.
        for cycles in (1000, 4_000_000_000):
            stream.synchronize()
            late.zero_()
            torch.cuda._sleep(cycles)
            late.copy_(source, non_blocking=True)
            found = passed(late, None, 5)
            done = stream.record_event()
        assert not done.query()
    done.synchronize()
    assert torch.equal(found.cpu(), expected)


SMALL = """
import torch
from exact_ntk.kernels import myrtle
x = torch.randn(4, 3, {height}, {width}, generator=torch.Generator().manual_seed(0)).cuda()
x[3] = x[1]
assert myrtle(x, variant=7, backend="fused").isfinite().all()
"""


@needs_sanitizer
@pytest.mark.parametrize("tool", SANITIZERS)
@pytest.mark.parametrize("size", [(8, 8), (12, 20), (32, 32)])
def test_the_sanitizer_finds_nothing(tool: str, size: tuple[int, int]):
    check_with_sanitizer(tool, SMALL.format(height=size[0], width=size[1]))
