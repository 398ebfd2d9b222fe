"""The fused CPU kernels against the float64 reference: random, real and degenerate images, every flag, same bits."""

import contextlib
import logging
import resource
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from exact_ntk import kernels
from exact_ntk.kernels import READOUTS, cntk
from exact_ntk.kernels.fused import build, cpu
from exact_ntk.kernels.passes import Pass
from exact_ntk.notices import warn_once
from tests.kernels.test_reference import ENDS, diagonal, error, images, nearly_equal_pairs

pytestmark = pytest.mark.skipif(not build.compilers(), reason="no C++ compiler")

# One plane a row, several, lanes left over, one column or row, transposed because wide, taller than a plane is wide.
SHAPES = [(1, 1, 1), (2, 8, 8), (3, 5, 7), (1, 7, 1), (1, 1, 7), (1, 4, 40), (2, 33, 3), (1, 17, 5), (1, 6, 32)]
DEPTHS = (2, 3, 6, 21)
# Measured: at most 5e-7 on real digits; the bound is what is aimed for.
BOUND = 2e-6
CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread():
    """The reference's many small operations gain nothing from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fused(x, y=None, **options):
    return cntk(x, y, backend="fused", **options)


def largest_error(x, y, compute=fused, **options) -> float:
    """Fused against the float64 reference."""
    truth = cntk(x, y, dtype=torch.float64, **options)
    own = [diagonal(z, dtype=torch.float64, **options) for z in (x, x if y is None else y)]
    found = compute(x, y, **options).cpu()
    assert bool(found.isfinite().all())
    return error(found, truth, *own)


def degenerate(shape, seed=0):
    """Seven images: random, blank, a black column, flat, one lit pixel, the first again, the first negated."""
    x = images(7, shape, seed).float()
    x[1] = 0
    x[2, :, :, 0] = 0
    x[3] = 0.5
    x[4] = 0
    x[4, 0, -1, 0] = 1
    x[5], x[6] = x[0], -x[0]
    return x


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ends", ENDS)
def test_agrees_with_the_reference(shape, ends):
    depths = DEPTHS if any(ends) else DEPTHS[1:]
    if shape[1] * shape[2] > 90:
        depths = depths[:2]
    x, y = degenerate(shape), images(2, shape, seed=1).float()
    y[0] = x[2]
    options = dict(depths=depths, readouts=READOUTS, train_first=ends[0], train_last=ends[1])
    assert largest_error(x, y, **options) < BOUND
    assert largest_error(x, None, **options) < BOUND


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (2, 33, 3), (1, 4, 40), (1, 17, 5)])
def test_self_pairs_alone_have_the_bits_of_the_diagonal(shape):
    x = degenerate(shape)
    options = dict(depths=(3, 6), readouts=READOUTS)
    assert torch.equal(fused(x, diagonal=True, **options), fused(x, **options).diagonal(dim1=-2, dim2=-1))


def test_self_pairs_take_the_memory_of_their_images_alone():
    """Their square would take 80 GB."""
    x = torch.ones(100_000, 1, 1, 1)
    own = fused(x, depths=(3,), readouts=("vanilla",), diagonal=True)
    assert own.shape == (1, 1, 100_000)
    torch.testing.assert_close(own, torch.full_like(own, 3 / 81), rtol=1e-15, atol=0)


def test_cifar_sized_images():
    x, y = images(1, (3, 32, 32)).float(), images(1, (3, 32, 32), seed=1).float()
    y[..., :9] = x[..., :9]
    assert largest_error(x, y, depths=(3, 5), readouts=READOUTS) < BOUND


@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 4, 4), (3, 5, 7)]), st.floats(0, 0.9))
@settings(max_examples=10)
def test_any_contents(seed, shape, share_black):
    x = images(4, shape, seed).float()
    x[torch.rand(x[:, :1].shape, generator=torch.Generator().manual_seed(seed)).expand_as(x) < share_black] = 0
    assert largest_error(x, None, depths=(3, 11), readouts=READOUTS) < BOUND


def digits(n):
    x = torch.from_numpy(load_digits().images[:n]).float().unsqueeze(1)
    return (x - x.mean()) / x.std()


def test_real_digits():
    assert largest_error(digits(16), None, depths=(3, 6, 11, 21), readouts=READOUTS) < BOUND


@pytest.mark.parametrize("name", ["one pixel", "noise", "shared background"])
@pytest.mark.parametrize("side", [8, 16])
def test_nearly_equal_images(name, side):
    x, y = (z[..., 16 - side :, 16 - side :].float() for z in nearly_equal_pairs()[name])
    assert largest_error(x, y, depths=(3, 11, 21), readouts=READOUTS) < BOUND


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 12)])
@pytest.mark.parametrize("size", [1e-2, 1e-3, 3e-4, 1e-4, 1e-5, 1e-6])
def test_differences_of_every_size(shape, size):
    """float32 cannot tell a correlation of 1 - 3e-7 from 1, and its arccos is 8e-4."""
    x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(5)) * 2 - 1
    everywhere, one_pixel = x + size * images(1, shape).float(), x.clone()
    one_pixel[0, 0, 4, 4] += size
    options = dict(depths=(3, 11, 21), readouts=READOUTS)
    assert largest_error(x, torch.cat([everywhere, one_pixel]), **options) < BOUND


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 12)])
@pytest.mark.parametrize("size", [1e-2, 1e-3, 1e-4])
def test_faint_objects_on_a_flat_background(shape, size):
    background = torch.full((1, *shape), 0.5)
    x, y = background.clone(), background.clone()
    x[..., :3, :3] = torch.rand(3, 3, generator=torch.Generator().manual_seed(6))
    y[..., -3:, -3:] += size
    options = dict(depths=(3, 11, 21))
    assert largest_error(x, y, readouts=("vanilla", "vanilla-nngp"), **options) < BOUND
    # Flat images are alike at other offsets too, and only offset zero is float64. Measured: at most 9.1e-6.
    assert largest_error(x, y, readouts=("gap", "gap-nngp"), **options) < 1e-5


@pytest.mark.parametrize("exponent", [-60, 60])
def test_scale_of_images_does_not_matter(exponent):
    """By a power of two: not a bit of the kernel's digits may change, and nothing may overflow."""
    x, y = images(3, (2, 5, 5)).float(), images(2, (2, 5, 5), seed=1).float()
    options = dict(depths=(3, 6), readouts=READOUTS)
    assert torch.equal(fused(x * 2.0**exponent, y, **options), fused(x, y, **options) * 2.0**exponent)


def test_pixels_of_every_magnitude():
    x = images(4, (1, 6, 6)) * 10.0 ** torch.arange(-36, 0).reshape(6, 6)
    x[1] = x[1].flip(-1, -2)
    assert largest_error(x.float(), None, depths=(3, 21), readouts=READOUTS) < BOUND


# Over what one plane holds: no lane idle, some, a last vector of one pixel, transposed, one row, taller than 64.
@pytest.mark.parametrize("shape", [(1, 40, 64), (2, 33, 33), (1, 70, 40), (1, 1, 200), (3, 100, 5)])
@pytest.mark.parametrize("ends", ENDS)
def test_vanilla_kernels_of_large_images_agree_with_the_reference(shape, ends):
    x, y = degenerate(shape), images(2, shape, seed=1).float()
    y[0] = x[2]
    options = dict(readouts=("vanilla", "vanilla-nngp"), train_first=ends[0], train_last=ends[1])
    assert kernels.resolve_backend("auto", CPU, torch.float32, *shape[1:], "vanilla") == "fused-cpu"
    assert largest_error(x, y, depths=(3, 6, 21), **options) < BOUND
    assert largest_error(x, None, depths=(3, 21), **options) < BOUND
    whole = fused(x, y, depths=(3, 21), **options)
    assert torch.equal(fused(x[3:5], y, depths=(21,), **options)[:, 0], whole[:, 1, 3:5])
    assert torch.equal(fused(x, y, depths=(21,), **{**options, "readouts": ("vanilla-nngp",)})[0, 0], whole[1, 1])


def test_a_panel_of_images_makes_no_difference():
    """More images than have their tables in memory at once, for one matrix and for a symmetric one."""
    x = images(115, (1, 40, 40)).float()  # tables of 0.62 MB each at depth 41, and 64 MiB hold 107
    options = dict(depths=(3, 41), readouts=("vanilla",))
    square = fused(x, **options)
    assert torch.equal(square, square.mT)
    assert torch.equal(fused(x[:3], x, **options), square[:, :, :3])
    assert torch.equal(fused(x, x[105:], **options), square[:, :, :, 105:])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)])
def test_same_bits_for_any_tile_and_thread_count(shape):
    x, y = degenerate(shape), torch.cat([degenerate(shape, 1), images(9, shape, seed=2).float()])
    options = dict(depths=(3, 6), readouts=READOUTS)
    whole = fused(x, y, **options)
    tiles = [torch.cat([fused(x[i : i + 1], part, **options) for part in y.split(3)], dim=3) for i in range(len(x))]
    assert torch.equal(torch.cat(tiles, dim=2), whole)
    for threads in (2, 5):
        torch.set_num_threads(threads)
        try:
            assert torch.equal(fused(x, y, **options), whole)
        finally:
            torch.set_num_threads(1)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)])
def test_symmetric_half(shape):
    x = degenerate(shape)
    k = fused(x, depths=(3, 6), readouts=READOUTS)
    assert torch.equal(k, k.mT)
    assert torch.equal(k.tril(), fused(x, x.clone(), depths=(3, 6), readouts=READOUTS).tril())


WINDOWS = tuple(f"lap-{c}{kind}" for c in (0, 1, 2, 12) for kind in ("", "-nngp"))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ends", ENDS)
def test_local_averages_agree_with_the_reference(shape, ends):
    x, y = degenerate(shape), images(2, shape, seed=1).float()
    y[0] = x[2]
    if shape[1] * shape[2] > 90:
        x = x[:3]
    options = dict(depths=(3, 6), readouts=WINDOWS, train_first=ends[0], train_last=ends[1])
    # Measured: at most 1.0e-7.
    assert largest_error(x, y, **options) < BOUND
    assert torch.equal(fused(x, diagonal=True, **options), fused(x, **options).diagonal(dim1=-2, dim2=-1))


@pytest.mark.parametrize("name", ["one pixel", "noise", "shared background"])
def test_local_averages_of_nearly_equal_images(name):
    x, y = (z[..., 8:, 8:].float() for z in nearly_equal_pairs()[name])
    assert largest_error(x, y, depths=(3, 11, 21), readouts=WINDOWS) < BOUND


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 6, 32), (1, 17, 5)])
@pytest.mark.parametrize("ends", ENDS)
def test_a_local_average_has_the_same_bits_alone_and_beside_others(shape, ends):
    """Alone a small window computes only the planes that it needs."""
    x, y = degenerate(shape)[:3], images(2, shape, seed=1).float()
    options = dict(depths=(3, 6), train_first=ends[0], train_last=ends[1])
    names = ("gap", *WINDOWS, "gap-nngp")
    together = fused(x, y, readouts=names, **options)
    for slot, name in enumerate(names):
        assert torch.equal(fused(x, y, readouts=(name,), **options)[0], together[slot]), name
    assert torch.equal(fused(x, y, readouts=WINDOWS, **{**options, "depths": (3,)})[:, 0], together[1:-1, 0])


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 17, 5)])
def test_windows_of_one_pixel_are_vanilla_and_of_the_whole_image_global(shape):
    x, y = degenerate(shape), images(2, shape, seed=1).float()
    options = dict(depths=(3, 11), train_first=True, train_last=True)
    names = [f"{name}{kind}" for name in ("lap-0", "lap-31", "vanilla", "gap") for kind in ("", "-nngp")]
    k = dict(zip(names, fused(x, y, readouts=names, **options), strict=True))
    pixels = shape[1] * shape[2]
    for kind in ("", "-nngp"):
        scale = float(k[f"vanilla{kind}"].max())
        # The vanilla kernel is float32, lap-0 float64 throughout. Measured: at most 1e-7; of the mean, 2e-7.
        torch.testing.assert_close(k[f"lap-0{kind}"], k[f"vanilla{kind}"], rtol=0, atol=1e-6 * scale)
        expected = pixels**3 / 63**4 * k[f"gap{kind}"]
        torch.testing.assert_close(k[f"lap-31{kind}"], expected, rtol=1e-6, atol=0)


def test_the_vanilla_diagonal_is_the_exact_recursion():
    x = images(4, (3, 9, 9)).float()
    options = dict(depths=(3, 21), readouts=("vanilla", "vanilla-nngp"))
    own = diagonal(x, dtype=torch.float64, **options)
    torch.testing.assert_close(fused(x, **options).diagonal(dim1=-2, dim2=-1), own, rtol=1e-13, atol=0)


def test_one_pass_for_all_depths_and_readouts():
    x = images(3, (2, 8, 8)).float()
    k = fused(x, depths=(6, 3, 11), readouts=READOUTS)
    for slot, name in enumerate(READOUTS):
        for place, depth in enumerate((6, 3, 11)):
            alone = fused(x, depths=(depth,), readouts=(name,))[0, 0]
            torch.testing.assert_close(k[slot, place], alone, rtol=1e-6, atol=0)


def test_layout_and_precision_of_the_input_do_not_matter():
    x = images(3, (2, 6, 5)).float()
    expected = fused(x, depths=(3,))
    strided = x.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    assert not strided.is_contiguous()
    assert torch.equal(fused(strided, depths=(3,)), expected)
    assert torch.equal(fused(x.double(), depths=(3,)), expected)


# A compilation each: .ci/run runs the second.
@pytest.mark.parametrize(
    ("march", "more"),
    [("x86-64", ()), pytest.param("x86-64-v3", ("-DNTK_DEAR_ROOTS",), marks=pytest.mark.slow)],
)
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="needs an x86 with AVX2")
def test_other_vectors_and_roots_from_the_same_source(march, more, tmp_path):
    flags = tuple(f"-march={march}" if f == "-march=native" else f for f in build.FLAGS)
    library = cpu.load(build.build_library(tmp_path, (*flags, *more)))
    x = torch.cat([degenerate((1, 8, 8)), images(3, (1, 8, 8)).float()])
    for family in ("vanilla", "gap"):
        names = (family, f"{family}-nngp", *(["lap-1", "lap-3-nngp"] if family == "gap" else []))
        job = Pass(family, (3, 11, 21), names, family == "vanilla", family == "vanilla")
        found = cpu.cntk_pass(x, None, job, library)
        ends = dict(train_first=job.train_first, train_last=job.train_last)
        options = dict(depths=job.depths, readouts=job.readouts, dtype=torch.float64, **ends)
        own = diagonal(x, **options)
        assert error(found, cntk(x, **options), own, own) < BOUND
        for slot, depth in enumerate(job.depths):
            alone = cpu.cntk_pass(x, None, replace(job, depths=(depth,)), library)
            assert torch.equal(alone[:, 0], found[:, slot])
    job = Pass("myrtle", (5,), ("myrtle", "myrtle-nngp"), True, True)
    truths = kernels.myrtle(x, variant=5, readouts=("ntk", "nngp"), backend="reference")
    for found, truth in zip(cpu.myrtle_pass(x, None, job, library=library), truths, strict=True):
        own = truth.diagonal()
        assert error(found, truth, own, own) < BOUND


def test_loading_leaves_denormals_alone():
    """A library linked with -ffast-math would flush them to zero in the whole process."""
    cpu.cntk_pass(images(1, (1, 2, 2)).float(), None, Pass("gap", (3,), ("gap",), False, False))
    assert float(torch.tensor(1e-40) * 1.0) > 0
    assert sys.float_info.min / 2 > 0


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "compilers", lambda: [])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    caches = (cpu.unavailable, cpu._library, warn_once)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def test_without_a_compiler_the_reference_is_used_and_said_once(no_compiler, caplog):
    with caplog.at_level(logging.WARNING):
        names = [kernels.resolve_backend("auto", CPU, torch.float32, 8, 8, "gap") for _ in range(3)]
    assert names == ["reference-cpu"] * 3
    assert len(caplog.messages) == 1
    assert "apt install g++" in caplog.messages[0]
    with pytest.raises(ValueError, match=r"apt install g\+\+"):
        kernels.resolve_backend("fused", CPU, torch.float32, 8, 8, "gap")


def test_what_fused_does_not_cover_falls_back(caplog):
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert kernels.resolve_backend("auto", CPU, torch.float64, 8, 8, "gap") == "reference-cpu"
        assert not caplog.messages
        assert kernels.resolve_backend("auto", CPU, torch.float32, 33, 33, "gap") == "reference-cpu"
        assert "33 x 33" in caplog.messages[0]
    assert kernels.resolve_backend("auto", CPU, torch.float32, 64, 32, "gap") == "fused-cpu"
    with pytest.raises(ValueError, match="float32 only"):
        kernels.resolve_backend("fused", CPU, torch.float64, 8, 8, "gap")


def test_the_sources_are_part_of_the_package():
    for name in build.CPU_SOURCES:
        assert (Path(kernels.__file__).parent / "fused" / name).is_file()


def test_a_kernel_goes_where_it_is_told():
    x, y = images(5, (1, 4, 4)).float(), images(3, (1, 4, 4), seed=1).float()
    options = dict(depths=(6, 3, 6), readouts=("gap", "vanilla"))
    expected = fused(x, y, **options)
    assert torch.equal(expected[:, 0], expected[:, 2])
    assert torch.equal(expected, fused(x, y, depths=(3, 6), readouts=("vanilla", "gap"))[[1, 0]][:, [1, 0, 1]])
    matrix = torch.full((2, 3, 9, 7), torch.nan, dtype=torch.float64)
    out = matrix[:, :, 2:7, 1:4]
    assert fused(x, y, out=out, **options) is out
    assert torch.equal(out, expected)
    assert int(matrix.isfinite().sum()) == expected.numel()
    matrix.fill_(torch.nan)
    fused(x, out=matrix[:1, :1, :5, :5], depths=(3,), readouts=("vanilla",))
    assert int(matrix.isfinite().sum()) == 25
    for wrong in (out[:1], out.float(), torch.empty(2, 3, 3, 5, dtype=torch.float64).mT):
        with pytest.raises(ValueError, match="out must be a float64 tensor"):
            fused(x, y, out=wrong, **options)
    with pytest.raises(ValueError, match="out must be a tensor, not ndarray"):
        fused(x, y, out=expected.numpy(), **options)
    with pytest.raises(ValueError, match="out must have memory for every entry"):
        fused(x, y, out=torch.empty_like(expected[:1]).expand_as(expected), **options)
    reference = cntk(x, y, backend="reference", out=torch.empty_like(expected), **options)
    assert torch.equal(reference, cntk(x, y, backend="reference", **options))


class StoppedError(Exception):
    pass


def test_a_signal_stops_a_kernel_that_is_being_computed():
    """Minutes of work, of which some is left undone."""

    def stop(*_):
        raise StoppedError

    before = signal.signal(signal.SIGALRM, stop)
    x = images(1000, (1, 32, 32)).float()
    try:
        for family in ("vanilla", "gap"):
            out = torch.full((1, 1, len(x), len(x)), torch.nan, dtype=torch.float64)
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(StoppedError):
                fused(x, out=out, depths=(101,), readouts=(family,))
            assert not bool(out.isfinite().all())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def memory_left(count: int):
    """Let this process map only so many bytes more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_a_kernel_takes_little_more_memory_than_its_result():
    x = images(3000, (1, 2, 2)).float()
    options = dict(depths=(3,), readouts=("vanilla", "vanilla-nngp"))
    fused(x[:2], **options)
    result = 2 * len(x) ** 2 * 8
    with memory_left(int(2.4 * result)):
        assert fused(x, **options).shape == (2, 1, 3000, 3000)


def test_lack_of_memory_is_a_memory_error():
    x = images(64, (1, 64, 64)).float()
    with memory_left(300_000_000), pytest.raises(MemoryError, match="not enough memory for the vanilla kernel of 64 x"):
        fused(x, depths=(301,), readouts=("vanilla",))


def alike() -> torch.Tensor:
    """Images of every degree of likeness: of each pair, some depths are nearly equal and some are not."""
    pairs = [torch.cat([z[..., :12, :12].float() for z in pair]) for pair in nearly_equal_pairs().values()]
    x = images(6, (pairs[0].shape[1], 12, 12)).float()
    blends = [x[:1] + 10.0**-k * x[k % 5 + 1 : k % 5 + 2] for k in range(6)]
    return torch.cat([*pairs, *blends, x])


def test_a_value_does_not_depend_on_the_depths_or_readouts_beside_it():
    x, depths = alike(), (2, 3, 4, 6, 11, 21)
    for train_first, train_last in ENDS:
        ends = dict(train_first=train_first, train_last=train_last)
        names = READOUTS if train_first or train_last else ("vanilla-nngp", "gap-nngp")
        together = fused(x, depths=depths, readouts=names, **ends)
        for slot, depth in enumerate(depths):
            assert torch.equal(fused(x, depths=(depth,), readouts=names, **ends)[:, 0], together[:, slot]), depth
        for slot, name in enumerate(names):
            assert torch.equal(fused(x, depths=depths, readouts=(name,), **ends)[0], together[slot]), name


MANY = (*READOUTS, "lap-1", "lap-2-nngp")


@given(st.sets(st.integers(2, 12), min_size=1, max_size=4), st.sets(st.sampled_from(MANY), min_size=1))
def test_any_request_holds_the_bits_of_the_whole(depths: set[int], readouts: set[str]):
    ordered, names = tuple(sorted(depths)), tuple(sorted(readouts))
    x, ends = alike()[:8, :, :6, :6], dict(train_first=True, train_last=True)
    whole = fused(x, depths=tuple(range(2, 13)), readouts=MANY, **ends)
    found = fused(x, depths=ordered, readouts=names, **ends)
    at = [MANY.index(name) for name in names]
    assert torch.equal(found, whole[at][:, [depth - 2 for depth in ordered]])
