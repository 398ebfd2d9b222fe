"""The GPU kernels without a GPU: compiled for every architecture, and run over an emulated warp."""

import io
import itertools
import logging
import re
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext

import pytest
import torch

from exact_ntk import kernels
from exact_ntk.kernels import READOUTS
from exact_ntk.kernels.fused import LONG_SIDE, SHORT_SIDE, build, gpu, gpu_images, gpu_launch, gpu_myrtle
from exact_ntk.kernels.fused.build import CompileError, compilers
from exact_ntk.kernels.fused.layout import LANES, LARGE_TILE_ENTRIES, SHARED_BYTES, find_layout
from exact_ntk.kernels.passes import Pass
from exact_ntk.notices import warn_once
from tests.kernels import emulated_gpu
from tests.kernels.emulated_gpu import cntk as emulated
from tests.kernels.test_fused_cpu import alike, degenerate, digits, largest_error, one_torch_thread
from tests.kernels.test_reference import diagonal, images, nearly_equal_pairs

__all__ = ["one_torch_thread"]
needs_compiler = pytest.mark.skipif(not compilers(), reason="no C++ compiler")
# The oldest, the one that is tuned for and the newest of a kind; the slow test takes all that NVRTC knows.
ARCHITECTURES = ("sm_75", "sm_90", "sm_120")
# Bytes a thread, at 32 x 32. A spill once a layer beside 1,000 instructions costs nothing that can be measured.
MOST_SPILLED = {"ntk_pooled": 48, "ntk_vanilla": 8, "ntk_zero_offset": 20, "ntk_collect": 0, "ntk_multiply_adds": 0}
# One lane, planes packed in a warp, lanes left over, tall, uneven tiles, full rows.
SHAPES = [(1, 1, 1), (2, 8, 8), (3, 5, 7), (2, 33, 3), (1, 17, 5), (1, 6, 32)]
# Measured with every float32 square root off by the most that a GPU's may be: at most 4.3e-7 over these tests.
BOUND = 2e-6


@pytest.fixture(autouse=True, scope="module")
def unwritten_tensors_are_nan():
    """What `torch.empty` gives, which a card's memory may hold anything in."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def error(x, y, **options) -> float:
    return largest_error(x, y, compute=emulated, **options)


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_reference(shape):
    x, y = degenerate(shape), images(2, shape, seed=1).float()
    y[0] = x[2]
    depths = (2, 3, 6, 21) if shape[1] * shape[2] <= 40 else (2, 4)
    for first, last, other in [(True, False, None), (False, True, y)]:
        options = dict(depths=depths, readouts=READOUTS, train_first=first, train_last=last)
        assert error(x if shape[1] * shape[2] <= 64 else x[:3], other, **options) < BOUND


@needs_compiler
def test_default_ends_and_the_gaussian_process_alone():
    x = degenerate((1, 4, 3))
    assert error(x, None, depths=(3, 11), readouts=READOUTS) < BOUND
    assert error(x, None, depths=(2, 11), readouts=("vanilla-nngp", "gap-nngp")) < BOUND


def local(*windows: int) -> tuple[str, ...]:
    return tuple(f"lap-{c}{kind}" for c in windows for kind in ("", "-nngp"))


@needs_compiler
@pytest.mark.parametrize(("shape", "windows"), [((1, 1, 1), (0, 2)), ((2, 8, 8), (0, 1, 3, 40)), ((3, 5, 7), (1, 2))])
@pytest.mark.parametrize("last", [False, True])
def test_local_average_pooling(shape, windows, last):
    x, y = degenerate(shape), images(2, shape, seed=1).float()
    y[0] = x[2]
    readouts = (*local(*windows), "gap", "gap-nngp")  # more than one launch has room for
    options = dict(depths=(2, 3, 6), train_first=True, train_last=last)
    assert error(x, y if last else None, readouts=readouts, **options) < BOUND
    together = emulated(x, y, readouts=readouts, **options)
    for name in (readouts[0], "gap"):
        assert torch.equal(emulated(x, y, readouts=(name,), **options)[0], together[readouts.index(name)]), name
    own = emulated(x, diagonal=True, readouts=readouts, **options)
    assert torch.equal(emulated(x, readouts=readouts, **options).diagonal(dim1=-2, dim2=-1), own)


@needs_compiler
def test_a_small_window_needs_few_offsets(monkeypatch):
    x, y = images(2, (1, 16, 16)).float(), images(1, (1, 16, 16), seed=1).float()
    options = dict(depths=(3,), train_first=True, train_last=True)
    assert error(x, y, readouts=local(2, 3), **options) < BOUND
    both = emulated(x, y, readouts=local(2, 3), **options)
    blocks = []

    def counted(device, code):
        launch = emulated_gpu.emulator(device, code)

        def run(name, count, *arguments):
            blocks.append((name, count))
            launch(name, count, *arguments)

        return run

    job = Pass("gap", (3,), local(2), True, True)
    assert torch.equal(gpu.cntk_pass(x, y, job, counted)[:, 0], both[:2, 0])
    assert ("ntk_pooled", 2 * 5) in blocks  # nine offsets of sixteen, two a block


@needs_compiler
def test_cifar_sized_images():
    x, y = images(1, (3, 32, 32)).float(), images(1, (3, 32, 32), seed=1).float()
    y[..., :9] = x[..., :9]
    assert error(x, y, depths=(3,), readouts=READOUTS) < BOUND
    assert error(x, y, depths=(3, 21), readouts=("vanilla", "vanilla-nngp")) < BOUND


@needs_compiler
def test_images_of_more_pixels_than_a_warp_has_registers_for_at_32_a_lane():
    x, y = images(2, (1, 40, 31)).float(), images(1, (1, 40, 31), seed=1).float()
    assert error(x, y, depths=(3, 6), readouts=("vanilla", "vanilla-nngp")) < BOUND
    assert error(x[:1], y, depths=(2,), readouts=("gap-nngp",)) < BOUND


@needs_compiler
def test_real_digits():
    assert error(digits(6), None, depths=(3, 6, 21), readouts=READOUTS) < BOUND


@needs_compiler
@pytest.mark.parametrize("name", ["one pixel", "noise", "shared background"])
def test_nearly_equal_images(name):
    x, y = (z[..., 8:, 8:].float() for z in nearly_equal_pairs()[name])
    assert error(x, y, depths=(3, 11, 21), readouts=READOUTS) < BOUND


@needs_compiler
@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-6])
def test_differences_of_every_size(size):
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1
    everywhere, one_pixel, faint = x + size * images(1, (1, 8, 8)).float(), x.clone(), torch.full_like(x, 0.5)
    one_pixel[0, 0, 4, 4] += size
    options = dict(depths=(3, 21), readouts=READOUTS)
    assert error(x, torch.cat([everywhere, one_pixel]), **options) < BOUND
    other = faint.clone()
    other[..., -3:, -3:] += size
    assert error(faint, other, depths=(3, 21), readouts=("vanilla", "vanilla-nngp")) < BOUND


@needs_compiler
def test_pixels_of_every_magnitude_and_scale():
    x = images(4, (1, 6, 6)) * 10.0 ** torch.arange(-36, 0).reshape(6, 6)
    x[1] = x[1].flip(-1, -2)
    assert error(x.float(), None, depths=(3, 21), readouts=READOUTS) < BOUND
    x, y = images(2, (1, 6, 6)).float(), images(2, (1, 6, 6), seed=1).float()
    options = dict(depths=(3, 6), readouts=READOUTS)
    for exponent in (-100, 60):
        factor = torch.tensor(2.0, dtype=torch.float64) ** exponent
        assert torch.equal(emulated((x * factor).float(), y, **options), emulated(x, y, **options) * factor)


@needs_compiler
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)])
def test_same_bits_for_any_tile_strip_and_launch(shape, monkeypatch):
    x, y = degenerate(shape)[:4], torch.cat([degenerate(shape, 1), images(3, shape, seed=2).float()])
    options = dict(depths=(3, 6), readouts=READOUTS)
    whole, square = emulated(x, y, **options), emulated(y, **options)
    tiles = [torch.cat([emulated(x[i : i + 1], part, **options) for part in y.split(3)], dim=3) for i in range(len(x))]
    assert torch.equal(torch.cat(tiles, dim=2), whole)
    strips = dict(strip_images=3)
    limits = [(gpu, "PARTIAL_BYTES", 1000), (gpu_images, "BUILD_BYTES", 1), (gpu_launch, "MOST_ENTRY_LAYERS", 10**5)]
    for module, name, small in limits:
        monkeypatch.setattr(module, name, small)
        gpu_launch.entry_layers_a_launch.cache_clear()
        assert torch.equal(emulated(x, y, **options, **strips), whole)
        assert torch.equal(emulated(y, **options, **strips), square)
    gpu_launch.entry_layers_a_launch.cache_clear()


@needs_compiler
def test_a_launch_is_no_more_than_it_should_be_and_nothing_is_left_out(monkeypatch):
    x, jobs = images(9, (1, 8, 8)).float(), [Pass(f, (3, 6), (f,), True, True) for f in ("vanilla", "gap")]
    whole = [gpu.cntk_pass(x, None, job, emulated_gpu.emulator) for job in jobs]
    work = []

    def counted(device, code):
        launch = emulated_gpu.emulator(device, code)

        def run(name, blocks, threads, *arguments):
            each = {"ntk_pooled": 64 * 64, "ntk_vanilla": 64 * 64, "ntk_zero_offset": 64 * gpu.DOUBLE_COST}
            work.append((name, blocks * each.get(name, 0) * 5))
            launch(name, blocks, threads, *arguments)

        return run

    monkeypatch.setattr(gpu, "entry_layers_a_launch", lambda _: 10**5)
    assert all(torch.equal(gpu.cntk_pass(x, None, job, counted), k) for job, k in zip(jobs, whole, strict=True))
    assert 0 < max(count for _, count in work) <= 10**5
    # Of the lower triangle's 45 pairs a launch takes one with all its offsets, and two of the zero offset alone.
    launches = Counter(name for name, _ in work)
    assert (launches["ntk_pooled"], launches["ntk_zero_offset"]) == (45, 45 + 23)


@needs_compiler
def test_a_vanilla_value_does_not_depend_on_its_panel_or_launch(monkeypatch):
    x, y = images(5, (1, 32, 32)).float(), images(9, (1, 32, 32), seed=1).float()
    y[7] = x[2]
    options = dict(depths=(2, 3), readouts=("vanilla",), train_first=True, train_last=True)
    block, square = emulated(x, y, **options), emulated(y, **options)
    monkeypatch.setattr(gpu, "PANEL", 2)  # of three blocks across
    monkeypatch.setattr(gpu, "entry_layers_a_launch", lambda _: 3 * 8 * 1024 * 2)  # three blocks
    assert torch.equal(emulated(x, y, **options), block)
    assert torch.equal(emulated(y, **options), square)


def check_tables(x, layouts, layers, parts) -> None:
    """An image's tables do not depend on the others, nor on how many are made at once, and take what is said."""
    together = gpu_images.ImageTables(x, layouts, layers)
    bytes_each = gpu_images.ImageTables.bytes_each(layouts, layers, x.shape[1])
    assert bytes_each * len(x) == together.exact.nbytes + sum(table.nbytes for table in together.tables)
    for part in parts:
        alone = gpu_images.ImageTables(x[part], layouts, layers)
        for name in ("exact", "scale", "hash"):
            assert torch.equal(getattr(alone, name), getattr(together, name)[part]), name
        for one, all_of_them in zip(alone.tables, together.tables, strict=True):
            assert torch.equal(one, all_of_them[part])


@pytest.mark.parametrize("at_once", [gpu_images.BUILD_BYTES, 40_000])
@pytest.mark.parametrize("channels", [3, 20, 64])
def test_an_images_tables_do_not_depend_on_the_others(channels, at_once, monkeypatch):
    monkeypatch.setattr(gpu_images, "BUILD_BYTES", at_once)
    x, parts = images(50, (channels, 6, 5)).float(), [slice(0, 1), slice(7, 9), slice(20, 50)]
    check_tables(x, [find_layout(6, 5)], [3], parts)


@needs_compiler
def test_more_layers_than_a_word_has_bits():
    x, depths = images(3, (2, 2, 2)).float(), (3, 33, 34, 35, 70)
    options = dict(readouts=READOUTS, train_first=True, train_last=True)
    together = emulated(x, depths=depths, **options)
    for slot, depth in enumerate(depths):
        assert torch.equal(emulated(x, depths=(depth,), **options)[:, 0], together[:, slot])
    assert error(x, None, depths=depths, **options) < 2 * BOUND  # rounding adds up with depth


@needs_compiler
def test_symmetric_half_and_exact_diagonal():
    x = degenerate((1, 8, 8))
    options = dict(depths=(3, 21), readouts=READOUTS)
    k = emulated(x, **options)
    assert torch.equal(k, k.mT)
    assert torch.equal(k.tril(), emulated(x, x.clone(), **options).tril())
    own = diagonal(x, dtype=torch.float64, **options)
    torch.testing.assert_close(k[:1].diagonal(dim1=-2, dim2=-1), own[:1], rtol=1e-13, atol=0)


@needs_compiler
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7)])
def test_self_pairs_alone_have_the_bits_of_the_diagonal(shape, monkeypatch):
    x = degenerate(shape)
    options = dict(depths=(3, 6), readouts=READOUTS)
    own = emulated(x, **options).diagonal(dim1=-2, dim2=-1)
    assert torch.equal(emulated(x, diagonal=True, **options), own)
    monkeypatch.setattr(gpu, "PARTIAL_BYTES", 1000)
    assert torch.equal(emulated(x, diagonal=True, **options, strip_images=3), own)


@needs_compiler
def test_multiply_adds():
    code, out = gpu_launch.source(find_layout(1, 1), False, False), torch.zeros(64)
    emulated_gpu.emulator(torch.device("cpu"), code)("ntk_multiply_adds", 2, 32, 3, out.data_ptr())
    steps, t = 3 * gpu_launch.CHAIN_STEPS, torch.arange(32).double()
    expected = sum(((t + c) - 1) * 0.999**steps + 1 for c in range(gpu_launch.CHAINS))
    torch.testing.assert_close(out.double(), expected.repeat(2), rtol=1e-5, atol=1e-5)


EMULATED = "import ctypes, sys; d = ctypes.CDLL(sys.argv[1]); o = (ctypes.c_float * 68)(); "
EMULATED += "a = (ctypes.c_int64 * 2)(int(sys.argv[2]), -(-ctypes.addressof(o) // 16) * 16); "
EMULATED += "d.run(b'ntk_multiply_adds', ctypes.c_long(int(sys.argv[3])), 32, a, 2); print(*o)"


def run_emulated(body: str, rounds: int, blocks: int = 1) -> subprocess.CompletedProcess:
    """A kernel of (long long rounds, float* out) in a process that the emulated warp may stop, and that prints out."""
    code = 'extern "C" { void ntk_multiply_adds(long long rounds, float* out) {\n' + body
    code += " }\nvoid ntk_pooled() {} void ntk_vanilla() {} void ntk_zero_offset() {} void ntk_collect() {} }"
    words = [sys.executable, "-c", EMULATED, emulated_gpu.library(code)._name, str(rounds), str(blocks)]
    return subprocess.run(words, capture_output=True)


@needs_compiler
def test_the_emulated_warp_stops_where_lanes_diverge():
    """Otherwise a kernel that a real warp would hang or go wrong on could pass."""
    body = "out[threadIdx.x] = threadIdx.x < rounds ? __shfl_up_sync(~0u, 1.f, 1) : __shfl_down_sync(~0u, 1.f, 1);"
    assert run_emulated(body, 32).returncode == 0
    assert b"different shuffles" in run_emulated(body, 7).stderr


@needs_compiler
@pytest.mark.parametrize(
    "body, message",
    [
        ("kept[t] = 1; if (rounds) __syncthreads(); out[t] = kept[31 - t];", b"a race in shared memory"),
        ("out[t] = kept[31 - t]; if (rounds) __syncthreads(); kept[t] = 1;", b"a race in shared memory"),
        (
            "copy_later(&kept[t], out), wait_for_copies(); if (rounds) __syncthreads(); out[t + 1] = kept[31 - t];",
            b"a race in shared memory",
        ),
        ("out[t] = 1; if (rounds) __syncthreads(); out[32 + t] = out[31 - t];", b"a race in global memory"),
        ("out[rounds ? t : 0] += 1;", b"a race in global memory"),
        ("if (rounds || t % 2) __syncthreads();", b"waits at a barrier for ever"),
        ("copy_later((float4*)out, (float4*)(out + (rounds ? 4 : 2))); wait_for_copies();", b"misaligned"),
    ],
)
def test_the_emulated_warp_stops_at_a_race(body, message):
    """A thread after another it would be none: what a card's threads do at once is told by their barriers alone."""
    body = "__shared__ float kept[32]; const int t = threadIdx.x; " + body
    fine, bad = (run_emulated(body, rounds) for rounds in (1, 0))
    assert fine.returncode == 0, fine.stderr
    assert message in bad.stderr


@needs_compiler
def test_the_emulated_warp_stops_at_a_race_of_two_blocks():
    body = "out[threadIdx.x] = rounds ? 1 : blockIdx.x;"
    assert run_emulated(body, 1, blocks=2).returncode == 0  # both write the same
    assert b"a race in global memory: thread 0 of block 0 and thread 0 of block 1" in run_emulated(body, 0, 2).stderr


@needs_compiler
def test_shared_memory_that_nothing_was_written_to_is_nan():
    assert b"nan" in run_emulated("__shared__ float kept[32]; out[threadIdx.x] = kept[threadIdx.x];", 1).stdout


def test_every_size_has_a_layout_that_a_gpu_can_run():
    for height, width in itertools.product(range(1, LONG_SIDE + 1), [*range(1, 9), 13, 17, 24, 31, SHORT_SIDE]):
        layout = find_layout(height, width)
        assert {layout.rows, layout.columns} == {height, width}
        assert layout.planes >= 1
        assert 4 * layout.buffer <= SHARED_BYTES
        assert layout.lane_rows <= layout.rows
        assert layout.lane_rows * layout.lane_columns <= LARGE_TILE_ENTRIES
        assert layout.padded[1] <= LANES * layout.warps  # each thread copies one column
    assert find_layout(32, 32).planes == 1
    assert find_layout(8, 8).planes == 16


@pytest.fixture
def nvrtc():
    pytest.importorskip("cuda.core")


def check_machine_code(arch: str, height: int, width: int, first: bool, windows: bool = False) -> None:
    """Planes lie in registers: at most 128, so that 16 warps share a multiprocessor, and next to no spills."""
    report = io.StringIO()
    cubin = build.compile_cubin(
        gpu_launch.source(find_layout(height, width), True, first, windows), arch, report, ["-v"]
    )
    assert cubin.startswith(b"\x7fELF")
    used = re.findall(
        r"function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers", report.getvalue(), re.DOTALL
    )
    assert {name for name, *_ in used} == set(MOST_SPILLED)
    for name, spilled, registers in used:
        assert int(spilled) <= MOST_SPILLED[name], name
        assert int(registers) <= 128, name
    pooled = next(int(spilled) for name, spilled, _ in used if name == "ntk_pooled")
    assert pooled == 0 or windows or int(arch[3:]) >= 100


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_machine_code_keeps_planes_in_registers(arch, nvrtc):
    check_machine_code(arch, 32, 32, first=False)


def test_machine_code_with_windows(nvrtc):
    check_machine_code("sm_90", 32, 32, first=True, windows=True)


@pytest.mark.slow
def test_every_architecture_that_nvrtc_knows_with_every_trained_end(nvrtc):
    from cuda.bindings import nvrtc as compiler_library

    _, known = compiler_library.nvrtcGetSupportedArchs()
    for arch in (f"sm_{number}" for number in known):
        for size, first in [((32, 32), False), ((32, 32), True), ((5, 7), True)]:
            for windows in (False, True):
                check_machine_code(arch, *size, first, windows)


def test_a_build_is_kept_and_found_again(tmp_path, nvrtc):
    code = gpu_launch.source(find_layout(1, 1), False, False)
    cubin = build.build_cubin(tmp_path, code, "sm_90")
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    assert build.build_cubin(tmp_path, code, "sm_90") == cubin
    assert path.stat().st_mtime_ns == written
    build.build_cubin(tmp_path, code, "sm_80")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_written_is_said(tmp_path, nvrtc, caplog):
    (tmp_path / "file").write_text("")
    assert build.build_cubin(tmp_path / "file", gpu_launch.source(find_layout(1, 1), False, False), "sm_90")
    assert "compiled for this process only" in caplog.text


def test_an_unknown_architecture_is_named(nvrtc):
    with pytest.raises(CompileError, match="sm_12"):
        build.compile_cubin(gpu_launch.source(find_layout(1, 1), False, False), "sm_12")


GPU = torch.device("cuda:0")


@pytest.fixture
def fresh():
    """Forget what earlier tests found, before and after."""
    caches = (
        gpu.unavailable,
        gpu_myrtle.unavailable,
        gpu_launch._cubin,
        gpu_launch._object_code,
        gpu_launch._kernel,
        warn_once,
    )
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize("missing", ["cuda.core", "cuda.bindings"])
def test_without_the_cuda_extra_the_reference_is_used_and_said_once(missing, fresh, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, result in [("is_available", True), ("get_device_capability", (9, 0)), ("device", None)]:
        monkeypatch.setattr(torch.cuda, name, lambda *_, result=result: result or nullcontext())
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    monkeypatch.setitem(sys.modules, missing, None)
    with caplog.at_level(logging.WARNING):
        names = [kernels.resolve_backend("auto", GPU, torch.float32, 8, 8, "gap") for _ in range(3)]
    assert names == ["reference-cuda"] * 3
    assert len(caplog.messages) == 1
    assert "pip install cuda-core cuda-bindings nvidia-cuda-nvrtc" in caplog.messages[0]
    with pytest.raises(ValueError, match="cuda-core"):
        kernels.resolve_backend("fused", GPU, torch.float32, 8, 8, "gap")


def test_without_a_driver_the_reference_is_used(fresh, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no NVIDIA driver"):
        kernels.resolve_backend("fused", GPU, torch.float32, 8, 8, "gap")
    assert kernels.resolve_backend("auto", GPU, torch.float32, 8, 8, "gap") == "reference-cuda"


def test_a_gpu_that_is_too_old_is_named(fresh, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")
    with pytest.raises(ValueError, match=r"Tesla V100 is too old: it has compute capability 7\.0, and they need 7\.5"):
        kernels.resolve_backend("fused", GPU, torch.float32, 8, 8, "gap")


def test_the_gpu_backend_is_the_one_dispatched_to(fresh, monkeypatch):
    monkeypatch.setattr(gpu, "unavailable", lambda *_: None)
    assert kernels.resolve_backend("auto", GPU, torch.float32, 8, 8, "gap") == "fused-cuda"
    monkeypatch.setattr(gpu, "cntk_pass", lambda *arguments: arguments)
    job = Pass("gap", (3,), ("gap",), False, False)
    assert kernels.cntk_pass(1, 2, job, backend="fused-cuda", dtype=torch.float32) == (1, 2, job)


@needs_compiler
def test_a_value_does_not_depend_on_the_depths_or_readouts_beside_it():
    x, depths, ends = alike()[:8, :, :8, :8], (2, 3, 6, 11), dict(train_first=True, train_last=True)
    together = emulated(x, depths=depths, readouts=READOUTS, **ends)
    for slot, depth in enumerate(depths):
        assert torch.equal(emulated(x, depths=(depth,), readouts=READOUTS, **ends)[:, 0], together[:, slot]), depth
    for slot, name in enumerate(READOUTS):
        assert torch.equal(emulated(x, depths=depths, readouts=(name,), **ends)[0], together[slot]), name


def test_the_sources_are_part_of_the_package():
    for name in build.GPU_SOURCES:
        assert (build.HERE / name).is_file()
