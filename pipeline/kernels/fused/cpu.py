"""The fused kernels on a CPU: compiled by the host's C++ compiler at first use, cached, called through ctypes."""

import ctypes
import functools
import logging
import os
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.device import cpu_features, cpu_model
from pipeline.files import digest
from pipeline.kernels.fused import SHORT_SIDE, values_of
from pipeline.kernels.passes import Pass

HERE = Path(__file__).parent
SOURCES = ("arithmetic.h", "images.h", "cpu.cpp")
# Not -ffast-math: it turns NaN checks off, and a library linked with it flushes denormals in the whole process.
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-pthread"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-ffp-contract=fast"),
)
INSTALL_HINT = "install a C++ compiler (Debian and Ubuntu: apt install g++), or name one in CXX"

log = logging.getLogger(__name__)


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


def build(folder: Path, flags: tuple[str, ...] = FLAGS) -> Path:
    """Compile into `folder`, or find what an earlier call compiled from the same source with the same tools.

    Named by source, flags, compiler version and CPU model with its features. Raises CompileError.
    """
    cxx = compiler()
    if cxx is None:
        raise CompileError(f"no C++ compiler found: {INSTALL_HINT}")
    sources = [(HERE / name).read_bytes() for name in SOURCES]
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


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        path = build(cache_folder())
    except OSError as error:
        log.warning("%s cannot be written (%s): compiling the kernels for this process only", cache_folder(), error)
        path = build(Path(tempfile.mkdtemp(prefix="ntk-")))
    return load(path)


def load(path: Path) -> ctypes.CDLL:
    """Open a compiled library and declare its functions."""
    library = ctypes.CDLL(str(path))
    floats, doubles, flags = (ctypes.POINTER(t) for t in (ctypes.c_float, ctypes.c_double, ctypes.c_uint8))
    arguments: Any = [
        floats,
        ctypes.c_long,
        floats,
        ctypes.c_long,
        *[ctypes.c_int] * 5,
        flags,
        *[ctypes.c_int] * 3,
        doubles,
    ]
    library.ntk_pooled.argtypes, library.ntk_pooled.restype = arguments, None
    library.ntk_vanilla.argtypes, library.ntk_vanilla.restype = arguments, ctypes.c_long
    library.ntk_multiply_adds.argtypes, library.ntk_multiply_adds.restype = [ctypes.c_long], ctypes.c_double
    return library


@functools.cache
def unavailable() -> str | None:
    """Why the fused CPU kernels cannot run here, or None; compiles them if that has not been done yet."""
    try:
        _library()
    except (CompileError, OSError) as error:
        return str(error)
    return None


def multiply_adds_per_second(threads: int, seconds: float = 0.2) -> float:
    """float32 multiply-adds a second that so many threads start when they do nothing else, the best of three tries."""
    issue, rounds = _library().ntk_multiply_adds, 1 << 20
    start = time.perf_counter()
    issue(rounds)
    rounds = max(rounds, int(rounds * seconds / (time.perf_counter() - start)))
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(3):
            start = time.perf_counter()
            done = sum(pool.map(issue, [rounds] * threads))
            best = max(best, done / (time.perf_counter() - start))
    return best


def _lanes_needed(rows: int, columns: int) -> float:
    """Lanes spent an image pair on planes of so many rows, those left idle included."""
    if columns > SHORT_SIDE:
        return float("inf")
    groups = -(-columns // (SHORT_SIDE // columns))
    return rows * rows * groups


def _pointer(x: Tensor, kind: type) -> ctypes._Pointer:
    assert x.is_contiguous()
    assert x.device.type == "cpu"
    return ctypes.cast(x.data_ptr(), ctypes.POINTER(kind))


def _as_planes(x: Tensor) -> Tensor:
    """Contiguous float32 images, transposed where that leaves fewer lanes idle: the kernels do not mind."""
    height, width = x.shape[2:]
    transposed = _lanes_needed(width, height) < _lanes_needed(height, width)
    return (x.mT if transposed else x).to("cpu", torch.float32).contiguous()


def cntk_pass(x1: Tensor, x2: Tensor | None, job: Pass, library: ctypes.CDLL | None = None) -> Tensor:
    """One readout family at all depths: as `reference.cntk_pass`, float32 on the CPU, on torch's number of threads.

    A pair's value depends on its two images alone: not on the block, the threads or the other images.
    """
    library = library or _library()
    a = _as_planes(x1)
    b = a if x2 is None else _as_planes(x2)
    layers = max(job.depths) - 1
    read = torch.zeros(layers, dtype=torch.uint8)
    read[[depth - 2 for depth in job.depths]] = 1
    sums = torch.zeros((2, len(job.depths), len(a), len(b)), dtype=torch.float64)
    function = library.ntk_vanilla if job.family == "vanilla" else library.ntk_pooled
    again = function(
        _pointer(a, ctypes.c_float),
        len(a),
        _pointer(b, ctypes.c_float),
        len(b),
        x2 is None,
        *a.shape[1:],
        layers,
        _pointer(read, ctypes.c_uint8),
        job.train_first,
        job.ntk,
        torch.get_num_threads(),
        _pointer(sums, ctypes.c_double),
    )
    if again:
        log.debug("%d nearly equal pairs were computed in float64", again)
    if x2 is None:
        lower = sums.tril()
        sums = lower + sums.tril(-1).mT
    return values_of(sums, job, a.shape[2] * a.shape[3])
