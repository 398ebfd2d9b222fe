"""The fused kernels on a CPU: compiled by the host's C++ compiler at first use, cached, called through ctypes."""

import ctypes
import functools
import logging
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exact_ntk.kernels.fused import SHORT_SIDE, values_of
from exact_ntk.kernels.fused.build import CompileError, build_library, cache_folder
from exact_ntk.kernels.passes import Pass

log = logging.getLogger("ntk")


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        path = build_library(cache_folder())
    except OSError as error:
        log.warning("%s cannot be written (%s): compiling the kernels for this process only", cache_folder(), error)
        path = build_library(Path(tempfile.mkdtemp(prefix="ntk-")))
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
