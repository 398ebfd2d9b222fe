"""Launches the GPU kernels' own source on a CPU: g++ compiles it over `emulated_warp.h`."""

import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from exact_ntk.files import digest
from exact_ntk.kernels.fused import gpu, gpu_launch
from exact_ntk.kernels.fused.build import HERE as SOURCES
from exact_ntk.kernels.fused.build import compilers
from exact_ntk.kernels.passes import plan_passes

HERE = Path(__file__).parent
SCRATCH = tempfile.TemporaryDirectory(prefix="ntk-emulated-")
# GCC does not know `#pragma unroll`, which only matters for speed. Hardened jumps refuse to change stacks.
FLAGS = (
    *("-U_FORTIFY_SOURCE", "-Wno-unknown-pragmas"),
    *("-std=c++17", "-O1", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fPIC"),
)
# Every access is watched (see emulated_races.cpp), and a misaligned one or one beyond an array ends the process.
WATCHED = (*FLAGS, "-fsanitize=thread", "-fsanitize=alignment,bounds", "-fsanitize-undefined-trap-on-error")


@functools.cache
def compiled_header() -> Path:
    """What to include for `emulated_warp.h`, which takes a third of a library's compilation."""
    header = Path(SCRATCH.name) / "emulated_warp.h"
    for name in (header.name, "emulated_races.h"):
        shutil.copy(HERE / name, header.parent / name)
    subprocess.run([*compilers()[0], *WATCHED, "-x", "c++-header", str(header), "-o", f"{header}.gch"], check=True)
    return header


@functools.cache
def compiled_races() -> Path:
    made = Path(SCRATCH.name) / "emulated_races.o"
    subprocess.run([*compilers()[0], *FLAGS, "-O2", "-c", HERE / "emulated_races.cpp", "-o", made], check=True)
    return made


@functools.cache
def library(code: str) -> ctypes.CDLL:
    """gpu.cu, or another source of kernels, with its constants as a library."""
    folder = Path(SCRATCH.name)
    source, made, linked = (folder / f"{digest(code)}.{kind}" for kind in ("cu", "o", "so"))
    source.write_text(code)
    kernels = " ".join(f"DO({name})" for name in dict.fromkeys(re.findall(r"\bntk_\w+", code)))
    command = [*compilers()[0], *WATCHED, "-include", str(compiled_header()), f"-I{SOURCES}"]
    command += [f'-DGPU_SOURCE="{source}"', f"-DNTK_KERNELS(DO)={kernels}"]
    subprocess.run([*command, "-c", str(HERE / "emulated_gpu.cpp"), "-o", str(made)], check=True)
    subprocess.run([*compilers()[0], "-shared", made, compiled_races(), "-o", linked], check=True)
    return ctypes.CDLL(str(linked))


def emulator(device: torch.device, code: str) -> gpu_launch.Launch:
    """In place of `gpu_launch.launcher`."""
    run = library(code).run

    def launch(name: str, blocks: int, threads: int, *arguments: int) -> None:
        values = (ctypes.c_int64 * len(arguments))(*arguments)
        assert run(name.encode(), ctypes.c_long(blocks), threads, values, len(values)) == 0, name

    return launch


def cntk(
    x: Tensor,
    y: Tensor | None = None,
    *,
    depths,
    readouts,
    train_first=None,
    train_last=None,
    diagonal=False,
    **splits,
) -> Tensor:
    """`exact_ntk.kernels.cntk` by the emulated kernels."""
    found = {}
    for job in plan_passes(depths, readouts, train_first, train_last):
        if diagonal:
            values = gpu.self_pass(x, job, emulator, **splits)
        else:
            values = gpu.cntk_pass(x, y, job, emulator, **splits)
        found.update(
            {name: values[slot, [job.depths.index(d) for d in depths]] for slot, name in enumerate(job.readouts)}
        )
    return torch.stack([found[name] for name in readouts])
