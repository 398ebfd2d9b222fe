"""The kernels' compilers and the cache of what they made: the host's C++ compiler for a CPU, NVRTC for a GPU."""

import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from exact_ntk.device import cpu_features, cpu_model
from exact_ntk.files import digest

HERE = Path(__file__).parent
CPU_SOURCES = ("arithmetic.h", "call.h", "images.h", "exact.h", "planes.h", "output.h", "pooled.h", "vanilla.h", "cpu.cpp")
GPU_SOURCES = ("arithmetic.h", "gpu.cu")
# Not -ffast-math: it turns NaN checks off, and a library linked with it flushes denormals in the whole process.
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-pthread"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-ffp-contract=fast"),
)
COMPILER_HINT = "install a C++ compiler (Debian and Ubuntu: apt install g++), or name one in CXX"
CUDA_HINT = "pip install cuda-core cuda-bindings nvidia-cuda-nvrtc"

log = logging.getLogger("ntk")


class CompileError(ValueError):
    """The kernels cannot be compiled here; the message says why and what to do."""


def compiler() -> str | None:
    """The host's C++ compiler: $CXX, g++, clang++ or c++, whichever is there first."""
    return next(
        (found for name in (os.environ.get("CXX"), "g++", "clang++", "c++") if name and (found := shutil.which(name))),
        None,
    )


def cache_folder() -> Path:
    """Where compiled kernels are kept: $XDG_CACHE_HOME/ntk, by default ~/.cache/ntk."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ntk"


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        first = next(iter((done.stderr or done.stdout).strip().splitlines()), f"exit status {done.returncode}")
        raise CompileError(f"{command[0]} failed: {first}")
    return done.stdout


def build_library(folder: Path, flags: tuple[str, ...] = FLAGS) -> Path:
    """Compile into `folder`, or find what an earlier call compiled from the same source with the same tools.

    Named by source, flags, compiler version and CPU model with its features. Raises CompileError.
    """
    cxx = compiler()
    if cxx is None:
        raise CompileError(f"no C++ compiler found: {COMPILER_HINT}")
    sources = [(HERE / name).read_bytes() for name in CPU_SOURCES]
    key = digest(*sources, " ".join(flags), _run([cxx, "--version"]), cpu_model(), cpu_features())[:16]
    library = folder / f"fused-cpu-{key}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        log.info("compiling the fused CPU kernels with %s", cxx)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / library.name
            _run([cxx, *flags, str(HERE / "cpu.cpp"), "-o", str(made)])
            made.replace(library)
    return library


def _nvrtc_version() -> str:
    from cuda.bindings import nvrtc

    return ".".join(map(str, nvrtc.nvrtcVersion()[1:]))


def compile_cubin(code: str, arch: str, log_to: Any = None, ptxas_options: list[str] | None = None) -> bytes:
    """Machine code for `arch` (sm_90, ...) by NVRTC; needs neither a GPU nor a driver. Raises CompileError."""
    try:
        from cuda.core import Program, ProgramOptions
    except ImportError as error:
        raise CompileError(f"cuda-core cannot be imported ({error}): {CUDA_HINT}") from error
    try:
        options = ProgramOptions(std="c++17", arch=arch, include_path=str(HERE), ptxas_options=ptxas_options)
        return bytes(Program(code, "c++", options).compile("cubin", logs=log_to).code)
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        first = next((line for line in lines if "error" in line), lines[0]).strip()
        raise CompileError(f"NVRTC cannot compile the kernels for {arch}: {first}: {CUDA_HINT}") from error


def build_cubin(folder: Path, code: str, arch: str) -> bytes:
    """Compile, or read what an earlier call compiled, into a file named by source, arch and NVRTC's version.

    A folder that cannot be written costs a warning and a compilation each time. Raises CompileError.
    """
    try:
        version = _nvrtc_version()
    except Exception as error:
        raise CompileError(f"NVRTC cannot be loaded ({error}): {CUDA_HINT}") from error
    key = digest(code, *[(HERE / name).read_bytes() for name in GPU_SOURCES], arch, version)[:16]
    path = folder / f"fused-cuda-{key}.cubin"
    try:
        return path.read_bytes()
    except OSError:
        log.info("compiling the fused GPU kernels for %s", arch)
    cubin = compile_cubin(code, arch)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / path.name
            made.write_bytes(cubin)
            made.replace(path)
    except OSError as error:
        log.warning("%s cannot be written (%s): the kernels are compiled for this process only", folder, error)
    return cubin
