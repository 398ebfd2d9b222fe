"""The fused kernels on a GPU: `pytest -m gpu`. What needs no GPU is in test_fused_emulated.py."""

import shutil
import subprocess
import sys

import pytest
import torch

from exact_ntk import kernels
from exact_ntk.kernels import READOUTS
from exact_ntk.kernels.fused import gpu, gpu_launch
from exact_ntk.kernels.fused.layout import find_layout
from exact_ntk.kernels.passes import Pass
from tests.kernels.test_fused_cpu import SHAPES, alike, degenerate, digits, largest_error
from tests.kernels.test_fused_emulated import check_tables
from tests.kernels.test_reference import ENDS, diagonal, images, nearly_equal_pairs

pytestmark = pytest.mark.gpu
# As over the emulated warp, whose square roots are as far off as a GPU's may be.
BOUND = 2e-6
GPU = torch.device("cuda")
SANITIZERS = ["memcheck", "racecheck", "synccheck"]
needs_sanitizer = pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="needs compute-sanitizer")


def fused(x, y=None, **options):
    """On the GPU, back on the host."""
    return kernels.cntk(x, y, backend="fused", device=GPU, **options).cpu()


def error(x, y, **options) -> float:
    return largest_error(x, y, compute=fused, **options)


def test_auto_is_fused():
    assert kernels.resolve_backend("auto", GPU, torch.float32, 32, 32, "gap") == "fused-cuda"


@pytest.mark.parametrize("shape", [*SHAPES, (1, 40, 31)])
@pytest.mark.parametrize("ends", ENDS)
def test_agrees_with_the_reference(shape, ends):
    depths = (2, 3, 6, 21) if any(ends) else (3, 6, 21)
    if shape[1] * shape[2] > 90:
        depths = depths[:2]
    x, y = degenerate(shape), images(2, shape, seed=1).float()
    if shape[1] * shape[2] > 1000:
        x = x[[0, 4]]
    y[0] = x[1]
    options = dict(depths=depths, readouts=READOUTS, train_first=ends[0], train_last=ends[1])
    assert error(x, y, **options) < BOUND
    assert error(x, None, **options) < BOUND


def test_cifar_sized_images():
    x, y = images(2, (3, 32, 32)).float(), images(1, (3, 32, 32), seed=1).float()
    y[..., :9] = x[:1, ..., :9]
    assert error(x, y, depths=(3, 5), readouts=READOUTS) < BOUND
    assert error(x, y, depths=(3, 21), readouts=("vanilla", "vanilla-nngp")) < BOUND


@pytest.mark.parametrize(
    ("shape", "windows"), [((2, 8, 8), (0, 1, 3, 40)), ((3, 5, 7), (1, 2)), ((3, 32, 32), (4, 8, 12))]
)
def test_local_average_pooling(shape, windows):
    x, y = degenerate(shape)[:4], images(2, shape, seed=1).float()
    y[0] = x[2]
    readouts = (*(f"lap-{c}{kind}" for c in windows for kind in ("", "-nngp")), "gap", "gap-nngp")
    options = dict(depths=(2, 3), train_first=True, train_last=True)
    assert error(x, y, readouts=readouts, **options) < BOUND
    assert error(x, None, readouts=readouts, **options) < BOUND
    together = fused(x, y, readouts=readouts, **options)
    for name in (readouts[0], "gap"):
        assert torch.equal(fused(x, y, readouts=(name,), **options)[0], together[readouts.index(name)]), name
    own = fused(x, diagonal=True, readouts=readouts, **options)
    assert torch.equal(fused(x, readouts=readouts, **options).diagonal(dim1=-2, dim2=-1), own)


def test_real_digits():
    assert error(digits(40), None, depths=(3, 6, 11, 21), readouts=("vanilla", "vanilla-nngp")) < BOUND
    assert error(digits(12), None, depths=(3, 6, 11, 21), readouts=READOUTS) < BOUND


@pytest.mark.parametrize("name", ["one pixel", "noise", "shared background"])
def test_nearly_equal_images(name):
    x, y = (z[..., 8:, 8:].float() for z in nearly_equal_pairs()[name])
    assert error(x, y, depths=(3, 11, 21), readouts=READOUTS) < BOUND


def test_the_vanilla_diagonal_is_the_exact_recursion():
    x = images(4, (3, 9, 9)).float()
    options = dict(depths=(3, 21), readouts=("vanilla", "vanilla-nngp"))
    own = diagonal(x, dtype=torch.float64, **options)
    torch.testing.assert_close(fused(x, **options).diagonal(dim1=-2, dim2=-1), own, rtol=1e-13, atol=0)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_self_pairs_alone_have_the_bits_of_the_diagonal(shape):
    x = degenerate(shape)
    options = dict(depths=(3, 6), readouts=READOUTS)
    assert torch.equal(fused(x, diagonal=True, **options), fused(x, **options).diagonal(dim1=-2, dim2=-1))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (3, 32, 32)])
def test_same_bits_from_run_to_run_and_for_any_tile_strip_and_launch(shape, monkeypatch):
    x, y = degenerate(shape), torch.cat([degenerate(shape, 1), images(9, shape, seed=2).float()])
    options = dict(depths=(3, 6), readouts=READOUTS)
    whole, square = fused(x, y, **options), fused(y, **options)
    for _ in range(3):
        assert torch.equal(fused(x, y, **options), whole)
    tiles = [torch.cat([fused(x[i : i + 1], part, **options) for part in y.split(3)], dim=3) for i in range(len(x))]
    assert torch.equal(torch.cat(tiles, dim=2), whole)
    assert torch.equal(square, square.mT)
    assert torch.equal(square.tril(), fused(y, y.clone(), **options).tril())
    job = Pass("gap", (3, 6), ("gap",), False, False)
    monkeypatch.setattr(gpu, "PARTIAL_BYTES", 5000)
    monkeypatch.setattr(gpu, "entry_layers_a_launch", lambda _: 10**6)
    strips = gpu.cntk_pass(y.to(GPU), None, job, strip_images=3).cpu()
    assert torch.equal(strips[0], square[READOUTS.index("gap")])


def test_a_gpu_and_a_cpu_agree():
    x = digits(30)
    cpu = kernels.cntk(x, depths=(3, 21), readouts=READOUTS)
    own = cpu.diagonal(dim1=-2, dim2=-1).sqrt()
    off = (fused(x, depths=(3, 21), readouts=READOUTS) - cpu) / (own[..., :, None] * own[..., None, :])
    assert float(off.abs().max()) < BOUND


def test_work_goes_to_the_current_stream():
    """Images written by a slow kernel of a stream of its own are read after it, and nothing waits for the device."""
    x = images(6, (3, 32, 32)).float()
    options = dict(depths=(3,), readouts=("vanilla", "gap"))
    expected = fused(x, **options)
    stream = torch.cuda.Stream()
    jobs = [Pass("vanilla", (3,), ("vanilla",), True, True), Pass("gap", (3,), ("gap",), False, False)]
    source = x.pin_memory()
    late = torch.zeros_like(x, device=GPU)
    with torch.cuda.stream(stream):
        # Once to load the kernels, which waits for the device; then two seconds, or ten where other processes take the
        # cores for as long as two.
        for cycles in (1000, 4_000_000_000, 20_000_000_000):
            stream.synchronize()
            late.zero_()
            torch.cuda._sleep(cycles)
            late.copy_(source, non_blocking=True)
            found = torch.stack([gpu.cntk_pass(late, None, job)[0] for job in jobs])
            done = stream.record_event()
            if waits_for_nothing := cycles > 1000 and not done.query():
                break
    assert waits_for_nothing
    done.synchronize()
    assert torch.equal(found.cpu(), expected)


def test_multiply_adds():
    assert gpu_launch.multiply_adds_per_second(torch.device("cuda", torch.cuda.current_device())) > 1e11


def test_a_value_does_not_depend_on_the_depths_or_readouts_beside_it():
    x, depths, ends = alike().to(GPU), (2, 3, 6, 11, 21), dict(train_first=True, train_last=True)
    together = kernels.cntk(x, depths=depths, readouts=READOUTS, backend="fused", **ends)
    for slot, depth in enumerate(depths):
        alone = kernels.cntk(x, depths=(depth,), readouts=READOUTS, backend="fused", **ends)
        assert torch.equal(alone[:, 0], together[:, slot]), depth
    for slot, name in enumerate(READOUTS):
        assert torch.equal(kernels.cntk(x, depths=depths, readouts=(name,), backend="fused", **ends)[0], together[slot])


def test_pooled_cifar_sized_images_at_depth_21_agree_with_the_cpu():
    x, y = images(4, (3, 32, 32)).float(), images(3, (3, 32, 32), seed=1).float()
    y[0, ..., :9] = x[0, ..., :9]
    options = dict(depths=(3, 4, 6, 11, 21), readouts=("gap", "gap-nngp"))
    cpu, own = kernels.cntk(x, y, **options), [kernels.cntk(z, **options).diagonal(dim1=-2, dim2=-1) for z in (x, y)]
    scale = (own[0][..., :, None] * own[1][..., None, :]).sqrt()
    assert float(((fused(x, y, **options) - cpu) / scale).abs().max()) < BOUND


@pytest.mark.parametrize("family, n", [("vanilla", 700), ("gap", 60)])
def test_blocks_over_several_strips_and_launches_at_real_size(family: str, n: int, monkeypatch):
    x = images(n, (3, 32, 32)).float().to(GPU)
    x[n // 2] = x[1]
    job = Pass(family, (3, 21), (family, f"{family}-nngp"), True, True)
    whole, rectangle = gpu.cntk_pass(x, None, job), gpu.cntk_pass(x, x[: n // 3], job)
    assert torch.equal(whole.tril()[..., : n // 3], rectangle.tril())
    monkeypatch.setattr(gpu, "entry_layers_a_launch", lambda _: 3 * 10**7)
    assert torch.equal(gpu.cntk_pass(x, None, job, strip_images=n // 3), whole)
    assert torch.equal(gpu.cntk_pass(x, x[: n // 3], job, strip_images=n // 3), rectangle)


@pytest.mark.parametrize("channels", [3, 40, 1024])
def test_an_images_tables_do_not_depend_on_the_others(channels: int):
    x = images(300, (channels, 8, 8)).float()
    check_tables(x.to(GPU), [find_layout(8, 8)], [4], [slice(0, 1), slice(100, 103), slice(150, 300)])


def test_images_of_many_channels():
    x, y = images(3, (1024, 6, 6)).float(), images(2, (1024, 6, 6), seed=1).float()
    assert error(x, y, depths=(3, 6), readouts=READOUTS) < BOUND


def test_launches_are_cut_by_a_rate_that_was_measured():
    gpu_launch.entry_layers_a_launch.cache_clear()
    limit = gpu_launch.entry_layers_a_launch(torch.device("cuda", torch.cuda.current_device()))
    assert 10**8 < limit <= gpu_launch.MOST_ENTRY_LAYERS


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_second_gpu():
    x = images(5, (3, 32, 32)).float()
    options = dict(depths=(3, 6), readouts=("vanilla", "gap"), backend="fused")
    with torch.cuda.device(0):
        first, second = (kernels.cntk(x, device=f"cuda:{k}", **options) for k in (0, 1))
        assert torch.cuda.current_device() == 0
    assert second.device.index == 1
    if torch.cuda.get_device_name(0) == torch.cuda.get_device_name(1):
        assert torch.equal(first.cpu(), second.cpu())
    torch.testing.assert_close(first.cpu(), second.cpu(), rtol=4e-6, atol=0)


def check_with_sanitizer(tool: str, script: str) -> None:
    # Calls of the driver that fail, torch's and cuda.core's questions of what it can do, are theirs to deal with.
    quiet = ["--report-api-errors", "no"] if tool == "memcheck" else []
    command = ["compute-sanitizer", "--tool", tool, *quiet, "--error-exitcode", "9"]
    done = subprocess.run([*command, sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[:4000] + done.stderr[-2000:]


SMALL = """
import torch
from exact_ntk.kernels import READOUTS, cntk
x = torch.randn(5, 3, {height}, {width}, generator=torch.Generator().manual_seed(0)).cuda()
x[3] = x[1]
readouts = (*READOUTS, "lap-1", "lap-2-nngp")
assert cntk(x, depths=(3, 6), readouts=readouts, backend="fused").isfinite().all()
"""


@needs_sanitizer
@pytest.mark.parametrize("tool", SANITIZERS)
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (32, 32)])
def test_the_sanitizer_finds_nothing(tool: str, size: tuple[int, int]):
    check_with_sanitizer(tool, SMALL.format(height=size[0], width=size[1]))
