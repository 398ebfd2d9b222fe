"""The fused kernels on a CPU: compiled by the host's C++ compiler at first use, cached, called through ctypes."""

import ctypes
import functools
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from exact_ntk.kernel_names import window_of
from exact_ntk.kernels.fused import LONG_SIDE, SHORT_SIDE
from exact_ntk.kernels.fused.build import CompileError, build_library, cache_folder
from exact_ntk.kernels.fused.self_planes import self_deviations
from exact_ntk.kernels.passes import Matrices, Pass

log = logging.getLogger("ntk")

NO_MEMORY = 2  # as in call.h
ALL, LOWER, SELF = 0, 1, 2  # as in cpu.cpp: which pairs
EVERY_PAIR = -1  # as in exact.h
IMAGES_KEPT = 4096  # their deviations and pixels take at most 0.2 GB at 32 x 32 x 3


@functools.cache
def _library() -> ctypes.CDLL:
    return load(build_library(cache_folder()))


def load(library: ctypes.CDLL) -> ctypes.CDLL:
    """Declare the functions of a compiled library."""
    floats, matrices = ctypes.POINTER(ctypes.c_float), ctypes.POINTER(ctypes.c_void_p)
    arguments: Any = [
        ctypes.c_int,
        *[floats, ctypes.c_long] * 2,
        *[ctypes.c_int] * 6,
        ctypes.POINTER(ctypes.c_int),
        *[matrices] * 2,
        ctypes.c_long,
        *[ctypes.c_int] * 3,
        ctypes.POINTER(ctypes.c_int),
        ctypes.POINTER(ctypes.c_long),
    ]
    library.ntk_cntk.argtypes, library.ntk_cntk.restype = arguments, ctypes.c_int
    doubles = ctypes.POINTER(ctypes.c_double)
    myrtle_arguments: Any = [
        *[floats, doubles, ctypes.c_long] * 2,
        *[ctypes.c_int] * 4,
        ctypes.POINTER(ctypes.c_int),
        *[doubles] * 2,
        ctypes.c_long,
        *[ctypes.c_int] * 3,
        ctypes.POINTER(ctypes.c_int),
        ctypes.POINTER(ctypes.c_long),
    ]
    library.ntk_myrtle.argtypes, library.ntk_myrtle.restype = myrtle_arguments, ctypes.c_int
    library.ntk_multiply_adds.argtypes, library.ntk_multiply_adds.restype = [ctypes.c_long], ctypes.c_double
    return library


@functools.cache
def unavailable() -> str | None:
    """Why the fused CPU kernels cannot run here, or None; compiles them if that has not been done yet."""
    try:
        _library()
    except CompileError as error:
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


def _planes_cost(rows: int, columns: int) -> tuple[bool, int]:
    """Whether planes of this size are wide, and the lanes spent on an image pair, those left idle included."""
    if columns > SHORT_SIDE or rows > LONG_SIDE:
        return True, rows * -(-columns // 16)
    groups = -(-columns // (SHORT_SIDE // columns))
    return False, rows * rows * groups


def _as_planes(x: Tensor) -> Tensor:
    """Contiguous float32 images, transposed where that leaves fewer lanes idle: the kernels do not mind."""
    height, width = x.shape[2:]
    transposed = _planes_cost(width, height) < _planes_cost(height, width)
    return (x.mT if transposed else x).to("cpu", torch.float32).contiguous()


def _floats(x: Tensor) -> ctypes._Pointer:
    return ctypes.cast(x.data_ptr(), ctypes.POINTER(ctypes.c_float))


def _doubles(x: Tensor | None) -> ctypes._Pointer:
    return ctypes.cast(0 if x is None else x.data_ptr(), ctypes.POINTER(ctypes.c_double))


def _addresses(out: Matrices, job: Pass, kind: str) -> Any:
    """For each pooling and layer the address of the matrix for its depth's values, or null; kind: "" or "-nngp"."""
    layers = max(job.depths) - 1
    addresses = (ctypes.c_void_p * (len(job.poolings) * layers))()
    for place, pooling in enumerate(job.poolings):
        for depth in job.depths if pooling + kind in job.readouts else ():
            addresses[place * layers + depth - 2] = out[pooling + kind, depth].data_ptr()
    return addresses


def _windows(job: Pass) -> Any:
    """For each pooling c of its window, or that there is none."""
    found = [window_of(pooling) for pooling in job.poolings]
    return (ctypes.c_int * len(found))(*[EVERY_PAIR if c is None else c for c in found])


def cntk_pass(x1: Tensor, x2: Tensor | None, job: Pass, library: ctypes.CDLL | None = None) -> Tensor:
    """One readout family at all depths: as `reference.cntk_pass`, float32 on the CPU."""
    shape = (len(job.readouts), len(job.depths), len(x1), len(x1 if x2 is None else x2))
    out = torch.empty(shape, dtype=torch.float64)
    names = {(r, d): out[i, j] for i, r in enumerate(job.readouts) for j, d in enumerate(job.depths)}
    write_pass(x1, x2, job, names, library)
    return out


def self_pass(x: Tensor, job: Pass, library: ctypes.CDLL | None = None) -> Tensor:
    """Each image with itself: as `reference.self_pass`, float32 on the CPU, the diagonal of `cntk_pass` bit for bit."""
    out = torch.empty((len(job.readouts), len(job.depths), len(x)), dtype=torch.float64)
    names = {(r, d): out[i, j][None] for i, r in enumerate(job.readouts) for j, d in enumerate(job.depths)}
    _call(x, x, SELF, job, names, library)
    return out


def write_pass(x1: Tensor, x2: Tensor | None, job: Pass, out: Matrices, library: ctypes.CDLL | None = None) -> None:
    """One readout family at all depths, on torch's number of threads, each kernel into a float64 matrix (n1, n2).

    The matrices' rows are contiguous, and as far apart in all of them. A pair's value depends on its two images alone:
    not on the block, the threads or the other images. What a signal raises in the calling thread, such as
    KeyboardInterrupt, stops the computation within a second. Raises MemoryError.
    """
    _call(x1, x1 if x2 is None else x2, LOWER if x2 is None else ALL, job, out, library)


def _call(x1: Tensor, x2: Tensor, pairs: int, job: Pass, out: Matrices, library: ctypes.CDLL | None) -> None:
    library = library or _library()
    a = _as_planes(x1)
    b = a if x2 is x1 else _as_planes(x2)
    stop, again = ctypes.c_int(0), ctypes.c_long()
    arguments = (
        job.family == "gap",
        _floats(a),
        len(a),
        _floats(b),
        len(b),
        pairs,
        *a.shape[1:],
        max(job.depths) - 1,
        len(job.poolings),
        _windows(job),
        _addresses(out, job, ""),
        _addresses(out, job, "-nngp"),
        out[job.readouts[0], job.depths[0]].stride(0),
        job.train_first,
        job.train_last,
        torch.get_num_threads(),
        ctypes.byref(stop),
        ctypes.byref(again),
    )
    what = f"the {job.family} kernel of {len(a)} x {len(b)} images"
    _run(library.ntk_cntk, arguments, stop, again, (a, b, out), what)


def _run(
    function: Callable[..., int], arguments: tuple, stop: ctypes.c_int, again: ctypes.c_long, held: tuple, what: str
) -> None:
    """Call a kernel so that what a signal raises stops it. held: what its addresses point into. Raises MemoryError."""

    def compute(held: tuple = (held, stop, again)) -> int:
        """held: which a second interrupt must not free under the kernels."""
        return function(*arguments)

    # Signals reach Python between two of its instructions only: this thread waits between them while another computes.
    with ThreadPoolExecutor(1) as pool:
        try:
            status = pool.submit(compute).result()
        except BaseException:
            stop.value = 1
            raise
    if status == NO_MEMORY:
        raise MemoryError(f"not enough memory for {what}")
    if again.value:
        log.debug("%d nearly equal pairs were computed in float64", again.value)


@functools.lru_cache(maxsize=IMAGES_KEPT)
def _deviations_of_image(pixels: bytes, shape: torch.Size, blocks: tuple[int, ...]) -> Tensor:
    image = torch.frombuffer(bytearray(pixels), dtype=torch.float32).view(1, *shape)
    return self_deviations(image, blocks)[0]


def _deviations(x: Tensor, blocks: Sequence[int]) -> Tensor:
    """`self_deviations`, kept for a matrix's other blocks: in one of 100 x 100 images they take a tenth of the time."""
    return torch.stack([_deviations_of_image(image.numpy().tobytes(), image.shape, tuple(blocks)) for image in x])


def myrtle_pass(
    x1: Tensor, x2: Tensor | None, job: Pass, diagonal: bool = False, library: ctypes.CDLL | None = None
) -> tuple[Tensor | None, Tensor]:
    """The NTK, None unless it is asked for, and the NNGP kernel of a Myrtle network: (n1, n2) each, or (n1).

    float32 on the CPU with float64 sums; equal and nearly equal pairs in float64. A pair's value depends on its two
    images alone. Stops for signals; raises MemoryError.
    """
    library = library or _library()
    a = _as_planes(x1)
    b = a if x2 is None else _as_planes(x2)
    d1 = _deviations(a, job.blocks)
    d2 = d1 if x2 is None else _deviations(b, job.blocks)
    shape = (len(a),) if diagonal else (len(a), len(b))
    kernels = [torch.empty(shape, dtype=torch.float64) if wanted else None for wanted in (job.ntk, True)]
    stop, again = ctypes.c_int(0), ctypes.c_long()
    arguments = (
        *(_floats(a), _doubles(d1), len(a), _floats(b), _doubles(d2), len(b)),
        *(SELF if diagonal else LOWER if x2 is None else ALL, *a.shape[1:]),
        (ctypes.c_int * len(job.blocks))(*job.blocks),
        *map(_doubles, kernels),
        *(shape[-1], job.train_first, job.train_last, torch.get_num_threads()),
        *(ctypes.byref(stop), ctypes.byref(again)),
    )
    what = f"the Myrtle kernel of {len(a)} x {len(b)} images"
    _run(library.ntk_myrtle, arguments, stop, again, (a, b, d1, d2, kernels), what)
    assert kernels[1] is not None
    return kernels[0], kernels[1]
