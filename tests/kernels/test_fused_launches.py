"""Launches as a driver sees them: cuda.core on a stub of libcuda, whose kernels are those of the emulated warp."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from exact_ntk.kernels.fused import build, gpu, gpu_launch, gpu_myrtle
from exact_ntk.kernels.fused.build import compilers
from exact_ntk.kernels.fused.layout import find_layout, find_level_layouts
from tests.kernels import emulated_gpu
from tests.kernels.launches_on_stub import CAPABILITY, FAILING, JOBS, myrtle_values

HERE = Path(__file__).parent
LAUNCH = re.compile(r"launch (\w+) of (\d) on (\d), stream (0x[0-9a-f]+)")


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> tuple[dict, list[str]]:
    """What the process found, and what was asked of the driver, line by line."""
    pytest.importorskip("cuda.core")
    if not compilers():
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("stub")
    stub = folder / "libcuda.so.1"
    subprocess.run(
        [*compilers()[0], "-x", "c", "-shared", "-fPIC", HERE / "stub_driver.c", "-o", stub, "-ldl"], check=True
    )
    (code,) = {gpu_launch.source(find_layout(3, 2), True, job.train_first, panel=gpu.PANEL) for job in JOBS}
    codes = [code, *gpu_myrtle.sources(find_level_layouts(4, 4), True, True)]
    # NVRTC does not run beside the stub, which looks at the first bytes alone.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "compile_cubin", lambda *_: b"\x7fELF")
        for each in codes:
            build.build_cubin(folder / "ntk", each, "sm_{}{}".format(*CAPABILITY))
    environment = {
        "LD_LIBRARY_PATH": f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}",
        "STUB_KERNELS": ":".join(emulated_gpu.library(each)._name for each in codes),
        "XDG_CACHE_HOME": str(folder),
        # The setting under which a stream's handle of 0 would no longer be torch's default stream.
        "CUDA_PYTHON_CUDA_PER_THREAD_DEFAULT_STREAM": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.launches_on_stub"],
        cwd=HERE.parents[1],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr.splitlines()


def launches(lines: list[str]) -> list[tuple[str, ...]]:
    return [match.groups() for line in lines if (match := LAUNCH.search(line))]


def test_kernels_get_what_they_ask_for(seen):
    """Every argument in its place: the values are those of the kernels called without a driver."""
    found, _ = seen
    x = torch.randn(3, 1, 3, 2, generator=torch.Generator().manual_seed(0))
    expected = [v for job in JOBS for v in gpu.cntk_pass(x, None, job, emulated_gpu.emulator).flatten().tolist()]
    expected += myrtle_values(emulated_gpu.emulator)
    assert found["values"] == [expected, expected]


def test_launches_go_to_the_images_device_and_torchs_stream(seen):
    _, lines = seen
    first, second = ([launch[1:] for launch in launches(lines) if launch[1] == str(device)] for device in (0, 1))
    assert set(second) == {("1", "1", "0x7700")}
    assert first[: len(second)] == [("0", "0", "0x1")] * len(second)  # the legacy default stream
    inside = None
    for line in lines:
        entered = re.fullmatch(r"torch enters cuda:(\d)", line)
        inside = entered[1] if entered else None if line.startswith("torch leaves") else inside
        if match := LAUNCH.search(line):
            assert match[3] == inside  # torch's own idea of the current device comes back


def test_a_device_loads_its_kernels_once(seen):
    _, lines = seen
    before = lines[: next(k for k, line in enumerate(lines) if "on 1, stream" in line) + 1]
    assert [line for line in before if line.startswith("load")] == ["load on 0"] * 5 + ["load on 1"]
    assert not [line for line in lines if "stub has not" in line]


def test_every_kernel_is_launched_before_it_counts_as_running(seen):
    found, lines = seen
    assert found["fine"] is None
    kernels = {"ntk_vanilla", "ntk_pooled", "ntk_zero_offset", "ntk_collect", "ntk_myrtle_collect", "ntk_myrtle_exact"}
    assert {name for name, *_ in launches(lines)} == kernels | set(map(gpu_myrtle.level_name, range(gpu_myrtle.LEVELS)))


@pytest.mark.parametrize("failing", FAILING)
def test_a_driver_that_refuses_is_named_in_one_line(seen, failing):
    reason = seen[0][failing]
    assert reason.startswith("the driver cannot run the kernels (")
    assert "\n" not in reason


def test_a_driver_without_memory_gets_what_torch_keeps_and_is_then_out_of_memory_as_torch_is(seen):
    """So that a tile is computed in smaller blocks, and that a full card is not one that cannot run the kernels."""
    found, lines = seen
    enough, too_little = found["short of memory"]
    assert enough == found["values"][0]
    assert "torch empties its cache" in lines
    assert too_little.startswith("out of memory: CUDA_ERROR_OUT_OF_MEMORY")
    assert found["no memory"] == too_little


def test_a_mistake_of_the_package_is_not_called_the_drivers(seen):
    assert seen[0]["mistake"] == "raised: 'NoneType' object is not callable"
