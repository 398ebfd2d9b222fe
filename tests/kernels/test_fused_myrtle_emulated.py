"""The Myrtle kernels of a GPU without one: over an emulated warp, and compiled for every architecture."""

import functools
import io
import itertools
import re

import pytest
import torch

from exact_ntk.kernels.backends import resolve_myrtle
from exact_ntk.kernels.fused import LONG_SIDE, SHORT_SIDE, build, gpu_images, gpu_myrtle
from exact_ntk.kernels.fused.layout import LANES, LARGE_TILE_ENTRIES, SHARED_BYTES, find_level_layouts
from exact_ntk.kernels.passes import BLOCKS, Pass
from tests.kernels.emulated_gpu import emulator
from tests.kernels.test_fused_cpu import degenerate, one_torch_thread
from tests.kernels.test_fused_emulated import check_tables, fresh, needs_compiler, nvrtc, unwritten_tensors_are_nan
from tests.kernels.test_fused_myrtle import DIAGONAL, reference
from tests.kernels.test_reference import error, images, nearly_equal_pairs

__all__ = ["fresh", "nvrtc", "one_torch_thread", "unwritten_tensors_are_nan"]
PAIR = ("myrtle", "myrtle-nngp")
# Measured with every float32 square root off by the most that a GPU's may be: at most 5.7e-7, of 4 x 4 images.
BOUND = 2e-6
# Bytes a thread, at 32 x 32, level by level; most from compute capability 10 on. Pooled tiles, which are meant to lie
# in memory, are not among them.
MOST_SPILLED = {1: 88, 2: 72, 3: 60}


def emulated(x, y=None, *, variant, ntk=True, train_first=True, train_last=True, **options):
    """`exact_ntk.kernels.myrtle` with readouts ntk and nngp, or nngp alone, by the emulated kernels."""
    job = Pass("myrtle", (variant,), PAIR if ntk else PAIR[1:], train_first, train_last)
    found = gpu_myrtle.myrtle_pass(x, y, job, **{"make_launcher": emulator, **options})
    return torch.stack([kernel for kernel in found if kernel is not None])


def largest_error(x, y, **options) -> float:
    named = {"readouts": ("ntk", "nngp"), **options}
    own = [reference(z, diagonal=True, **named) for z in (x, x if y is None else y)]
    found = emulated(x, y, **options)
    assert bool(found.isfinite().all())
    return error(found, reference(x, y, **named), *own)


@needs_compiler
@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 8, 8), (3, 20, 12)])
def test_agrees_with_the_reference(shape):
    x, y = degenerate(shape), images(2, shape, seed=1).float()
    y[0] = x[2]
    if shape[1] > 8:
        x = x[1:4]
    for variant in BLOCKS:
        assert largest_error(x, y, variant=variant) < BOUND
    assert largest_error(x, None, variant=10) < BOUND


@needs_compiler
def test_trained_ends():
    x, y = degenerate((1, 8, 8))[2:5], images(2, (1, 8, 8), seed=1).float()
    for first, last in [(True, False), (False, True), (False, False)]:
        assert largest_error(x, y, variant=7, train_first=first, train_last=last) < BOUND


@needs_compiler
def test_the_gaussian_process_alone():
    x, y = degenerate((2, 8, 8)), images(2, (2, 8, 8), seed=1).float()
    assert torch.equal(emulated(x, y, variant=7, ntk=False)[0], emulated(x, y, variant=7)[1])


@needs_compiler
def test_nearly_equal_images():
    for x, y in nearly_equal_pairs().values():
        x, y = (z[:, :2, 8:, 8:].float() for z in (x, y))
        assert largest_error(x, y, variant=10) < BOUND
    x = torch.rand(1, 2, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1
    for size in (0.1, 1e-2, 1e-3, 1e-4, 1e-6):
        everywhere, one_pixel = x + size * images(1, (2, 8, 8)).float(), x.clone()
        one_pixel[0, 0, 4, 4] += size
        assert largest_error(x, torch.cat([everywhere, one_pixel]), variant=5) < BOUND


@needs_compiler
@pytest.mark.parametrize("exponent", [-60, 60])
def test_scale_of_images_does_not_matter(exponent):
    x, y = images(3, (2, 8, 8)).float(), images(2, (2, 8, 8), seed=1).float()
    k = emulated(x, y, variant=5)
    assert torch.equal(emulated(x * 2.0**exponent, y, variant=5), k * 2.0**exponent)


@needs_compiler
def test_same_bits_for_any_tile_strip_batch_and_launch(monkeypatch):
    shape = (2, 8, 8)
    x, y = degenerate(shape), torch.cat([degenerate(shape, 1)[:2], images(5, shape, seed=2).float()])
    whole, square = emulated(x, y, variant=7), emulated(x, variant=7)
    assert torch.equal(square, square.mT)
    assert torch.equal(square.tril(), emulated(x, x.clone(), variant=7).tril())
    tiles = [torch.cat([emulated(x[i : i + 1], part, variant=7) for part in y.split(3)], dim=2) for i in range(len(x))]
    assert torch.equal(torch.cat(tiles, dim=1), whole)
    pair = 4 * sum(gpu_myrtle.pooled_floats(find_level_layouts(8, 8), True))
    for name, small in [("POOLED_BYTES", 3 * pair), ("EXACT_BYTES", 1), ("entry_layers_a_launch", lambda _: 10**5)]:
        monkeypatch.setattr(gpu_myrtle, name, small)
        assert torch.equal(emulated(x, y, variant=7, strip_images=3), whole)
        assert torch.equal(emulated(x, variant=7, strip_images=3), square)


@needs_compiler
def test_equal_images_have_the_exact_diagonal_value_wherever_they_stand(caplog):
    x = degenerate((2, 8, 8))
    own = emulated(x, variant=10, diagonal=True)
    assert torch.equal(emulated(x, variant=10, diagonal=True, strip_images=3), own)
    assert torch.equal(emulated(x, variant=10).diagonal(dim1=1, dim2=2), own)
    with caplog.at_level("DEBUG", "ntk"):
        k = emulated(x[:4], x.clone()[[2, 0, 1, 3]], variant=10)
    assert torch.equal(torch.stack([k[..., 0, 1], k[..., 1, 2], k[..., 2, 0]], dim=-1), own[..., :3])
    assert "4 nearly equal pairs were computed in float64" in caplog.text
    truth = reference(x, diagonal=True, variant=10, readouts=("ntk", "nngp"))
    torch.testing.assert_close(own, truth, rtol=DIAGONAL, atol=0)


@needs_compiler
def test_a_launch_is_no_more_than_it_should_be(monkeypatch):
    x, work = images(5, (2, 8, 8)).float(), []
    layouts = find_level_layouts(8, 8)
    each = {gpu_myrtle.level_name(k): 2 * (layout.rows * layout.columns) ** 2 for k, layout in enumerate(layouts)}
    chunks = {gpu_myrtle.level_name(k): layout.chunks for k, layout in enumerate(layouts)}

    def counted(device, code):
        launch = emulator(device, code)

        def run(name, blocks, threads, *arguments):
            work.append((name, blocks // chunks.get(name, 1) * each.get(name, 0)))
            launch(name, blocks, threads, *arguments)

        return run

    whole = emulated(x, variant=7)
    monkeypatch.setattr(gpu_myrtle, "entry_layers_a_launch", lambda _: 3 * 10**4)
    assert torch.equal(emulated(x, variant=7, make_launcher=counted), whole)
    assert 0 < max(count for _, count in work) <= 3 * 10**4
    assert sum(count for name, count in work if name == gpu_myrtle.level_name(0)) == 15 * 2 * 64**2
    assert sum(name == "ntk_myrtle_exact" for name, _ in work) == 15


@pytest.mark.parametrize("at_once", [gpu_images.BUILD_BYTES, 1])
def test_an_images_tables_do_not_depend_on_the_others(at_once, monkeypatch):
    monkeypatch.setattr(gpu_images, "BUILD_BYTES", at_once)
    layouts = find_level_layouts(8, 12)
    x = gpu_images.turned(degenerate((3, 8, 12)), layouts[0])
    check_tables(x, layouts, BLOCKS[5], [slice(0, 1), slice(2, 5)])


def test_every_size_has_layouts_that_a_gpu_can_run():
    for height, width in itertools.product(range(4, LONG_SIDE + 1, 4), range(4, SHORT_SIDE + 1, 4)):
        layouts = find_level_layouts(height, width)
        for level, (layout, step) in enumerate(zip(layouts, (2, 2, 1), strict=True)):
            assert {layout.rows << level, layout.columns << level} == {height, width}
            assert layout.lane_rows % step == layout.lane_columns % step == layout.run(step) % step == 0
            assert layout.run(step) * (layout.warps * layout.planes // layout.group) >= layout.rows
            assert 4 * layout.buffer <= SHARED_BYTES
            assert layout.lane_rows * layout.lane_columns <= LARGE_TILE_ENTRIES
            assert layout.padded[1] <= LANES * layout.warps
    assert [layout.planes for layout in find_level_layouts(32, 32)] == [1, 4, 16]


def check_machine_code(arch: str, ntk: bool, first: bool) -> None:
    for level, code in enumerate(gpu_myrtle.sources(find_level_layouts(32, 32), ntk, first), start=1):
        report = io.StringIO()
        assert build.compile_cubin(code, arch, report, ["-v"]).startswith(b"\x7fELF")
        used = re.findall(r"(\d+) bytes spill stores.*?Used (\d+) registers", report.getvalue(), re.DOTALL)
        assert used
        for spilled, registers in used:
            assert int(spilled) <= MOST_SPILLED.get(level, 0), (arch, level)
            assert int(registers) <= 128, (arch, level)
            assert level > 1 or int(spilled) <= 28 or int(arch[3:]) >= 100


def test_machine_code_keeps_planes_in_registers(nvrtc):
    check_machine_code("sm_90", True, True)


@pytest.mark.slow
def test_every_architecture_that_nvrtc_knows(nvrtc):
    from cuda.bindings import nvrtc as compiler_library

    _, known = compiler_library.nvrtcGetSupportedArchs()
    for arch in (f"sm_{number}" for number in known):
        for ntk, first in [(True, True), (True, False), (False, True)]:
            check_machine_code(arch, ntk, first)


def test_what_runs_on_a_gpu_and_why_not(fresh, monkeypatch):
    resolved = functools.partial(resolve_myrtle, device=torch.device("cuda:0"), dtype=None, activation="relu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolved("auto", height=8, width=8) == "reference-cuda"
    for options, words in [
        (dict(height=8, width=8), "no NVIDIA driver"),
        (
            dict(height=36, width=36),
            "kernels on a GPU cover images up to 32 x 64 pixels, not 36 x 36: make them smaller",
        ),
        (dict(height=8, width=8, activation="gaussian"), "those of the ReLU"),
        (dict(height=8, width=8, dtype=torch.float64), "float32 only"),
    ]:
        with pytest.raises(ValueError, match=words):
            resolved("fused", **options)
    monkeypatch.setattr(gpu_myrtle, "unavailable", lambda *_: None)
    assert resolved("auto", height=8, width=8) == "fused-cuda"
