"""The kernels' compilers and the cache of what they made: the host's C++ compiler for a CPU, NVRTC for a GPU.

A cached file is what was compiled with its SHA-256 behind it: one that is cut short or altered is compiled anew.
"""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exact_ntk.device import cpu_features, cpu_model, cpu_vendor
from exact_ntk.errors import NtkError
from exact_ntk.files import digest, write_atomic
from exact_ntk.notices import warn_once

HERE = Path(__file__).parent
CPU_SOURCES = (
    "arithmetic.h",
    "windows.h",
    "call.h",
    "images.h",
    "exact.h",
    "planes.h",
    "output.h",
    "rotate.h",
    "myrtle.h",
    "pooled.h",
    "vanilla.h",
    "cpu.cpp",
)
GPU_SOURCES = ("arithmetic.h", "windows.h", "warp.cuh", "gpu.cu", "gpu_myrtle.cu", "gpu_myrtle_exact.cu")
# Not -ffast-math: it turns NaN checks off, and a library linked with it flushes denormals in the whole process.
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-pthread"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-ffp-contract=fast"),
)
SCRATCH = "ntk-build-"
# What no process holds was left by one that was killed, unless it was made just now; what none can hold, after an hour.
JUST_MADE, STALE = 10.0, 3600.0
NO_ROOM = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS))
ROOM_HINT = "make room, or name a folder that has some in TMPDIR"
COMPILER_HINT = "install a C++ compiler (Debian and Ubuntu: apt install g++), or name one in CXX"
CUDA_HINT = "pip install cuda-core cuda-bindings nvidia-cuda-nvrtc"

log = logging.getLogger("ntk")


class CompileError(ValueError):
    """The kernels cannot be compiled here; the message says why and what to do."""


def compilers() -> list[list[str]]:
    """The host's C++ compilers as commands, in the order in which they are tried: $CXX, g++, clang++, c++."""
    named = [shlex.split(os.environ.get("CXX", "")), ["g++"], ["clang++"], ["c++"]]
    return [[found, *command[1:]] for command in named if command and (found := shutil.which(command[0]))]


def _named_but_missing() -> list[str]:
    named = shlex.split(os.environ.get("CXX", ""))
    return [f"CXX={named[0]}: no such program"] if named and not shutil.which(named[0]) else []


def cache_folder() -> Path | None:
    """Where compiled kernels are kept: $XDG_CACHE_HOME/ntk, by default ~/.cache/ntk; None for a user without a home."""
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "ntk"
    try:
        return Path.home() / ".cache" / "ntk"
    except RuntimeError:
        return None


def _read(path: Path) -> bytes | None:
    """What was kept, or None where nothing is, or not all of it."""
    try:
        kept = path.read_bytes()
    except OSError:
        return None
    content, check = kept[:-32], kept[-32:]
    return content if content and hashlib.sha256(content).digest() == check else None


def _keep(folder: Path | None, name: str, content: bytes) -> None:
    """Cache it; where that cannot be done it is said, and costs every process a compilation."""
    why = "there is no home folder"
    if folder is not None:
        _remove_stale(folder, ".fused-*.partial")
        try:
            write_atomic(folder / name, lambda file: file.write(content + hashlib.sha256(content).digest()))
            return
        except NtkError as error:
            why = str(error)
    warn_once(f"{why}: the kernels are compiled for this process only (XDG_CACHE_HOME names another folder)")


def _kept(folder: Path | None, pattern: str) -> Iterator[bytes]:
    """Everything whole that is cached under such a name."""
    return (content for path in sorted(folder.glob(pattern) if folder else []) if (content := _read(path)))


def _remove_stale(folder: Path, pattern: str) -> None:
    """Remove what killed compilations of this user have left."""
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):
            status = path.stat()
            age = time.time() - status.st_mtime
            if status.st_uid == os.getuid() and (age > STALE or (age > JUST_MADE and _is_let_go(path))):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_let_go(path: Path) -> bool:
    """Whether it is a temporary folder of a process that has ended."""
    try:
        with _held(path):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a folder for as long as this process lives. Raises OSError where another does, or it cannot be done."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _complaint(output: str, status: int) -> str:
    """The line of a compiler's output that says what is wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = (line for word in ("error", "undefined", "cannot") for line in lines if word in line.lower())
    return next(telling, lines[0] if lines else f"exit status {status}")


def _run(command: list[str], scratch: str | None = None) -> str:
    environment = {**os.environ, "LC_ALL": "C", **({"TMPDIR": scratch} if scratch else {})}
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)
    except OSError as error:
        raise CompileError(f"{command[0]}: {error.strerror or error}") from error
    if done.returncode:
        raise CompileError(f"{command[0]}: {_complaint(done.stderr, done.returncode)}")
    return done.stdout


def _roots(spare: Path | None) -> list[Path | None]:
    """Where a temporary folder may be made: the usual place, a folder of ours, another usual place, memory."""
    return [None, *([spare] if spare else []), Path("/var/tmp"), Path("/dev/shm")]


@contextlib.contextmanager
def _scratch(root: Path | None) -> Iterator[Path]:
    """A temporary folder, which goes at the end, or when another is made after this process was killed."""
    if root:
        root.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=SCRATCH, dir=root, ignore_cleanup_errors=True) as name,
        contextlib.ExitStack() as hold,
    ):
        folder = Path(name)
        with contextlib.suppress(OSError):
            hold.enter_context(_held(folder))
        yield folder
        _remove_stale(folder.parent, f"{SCRATCH}*")


def _lacks_room(reason: str) -> bool:
    return any(text in reason for text in NO_ROOM)


def _compile(cxx: list[str], flags: tuple[str, ...], spare: Path | None) -> bytes:
    """A library's bytes, by way of a temporary folder; spare: one to make it in. Raises CompileError."""
    log.info("compiling the fused CPU kernels with %s", shlex.join(cxx))
    failed = CompileError("there is no folder to compile in")
    for root in _roots(spare):
        try:
            with _scratch(root) as scratch:
                made = scratch / "fused-cpu.so"
                _run([*cxx, *flags, str(HERE / "cpu.cpp"), "-o", str(made)], str(scratch))
                return made.read_bytes()
        except OSError as error:
            failed = CompileError(f"cannot compile in {root or 'the temporary folder'}: {error.strerror or error}")
        except CompileError as error:
            failed = error
            if not _lacks_room(str(error)):
                break
    raise failed


def _in_memory(content: bytes) -> str:
    """A file in memory: no mount forbids its code, and nobody can cut it short while it is mapped."""
    # Never closed: the loader would take what comes under the same number next for this library.
    memory = os.memfd_create("ntk-fused-cpu")
    with open(memory, "wb", closefd=False) as file:
        file.write(content)
    return f"/proc/self/fd/{memory}"


def _open(content: bytes, spare: Path | None) -> ctypes.CDLL:
    """Open a library; where memory will not do, as a file that is removed at once. Raises CompileError."""
    failures = []
    with contextlib.suppress(AttributeError):  # some builds of Python know no files in memory
        try:
            return ctypes.CDLL(_in_memory(content))
        except OSError as error:
            failures.append(error)
    for root in _roots(spare):
        try:
            with _scratch(root) as scratch:
                path = scratch / "fused-cpu.so"
                path.write_bytes(content)
                return ctypes.CDLL(str(path))
        except OSError as error:
            failures.append(error)
    raise CompileError(f"the compiled kernels cannot be loaded: {failures[0]}")


def flags_here() -> tuple[str, ...]:
    """`FLAGS`, and for Intel's 512-bit units a polynomial in place of the second square root of an entry.

    Theirs take 12 cycles each, one after another, which bounds the loop; AMD's are faster than the polynomial.
    """
    dear = cpu_vendor() == "GenuineIntel" and "avx512f" in cpu_features().split()
    return (*FLAGS, "-DNTK_DEAR_ROOTS") if dear else FLAGS


def build_library(folder: Path | None, flags: tuple[str, ...] | None = None) -> ctypes.CDLL:
    """Compile, or find in `folder` what an earlier call compiled from the same source with the same tools.

    Named by source, flags and CPU model with its features, and by the compiler and its version. Where a compiler fails
    the next one takes its place, and where all do what any has compiled before. Raises CompileError.
    """
    flags = flags_here() if flags is None else flags
    sources = [(HERE / name).read_bytes() for name in CPU_SOURCES]
    stem = f"fused-cpu-{digest(*sources, ' '.join(flags), cpu_model(), cpu_features())[:16]}"
    failures, names, tried = _named_but_missing(), [], set()
    for cxx in compilers():
        try:
            version = _run([*cxx, "--version"])
            who = os.path.realpath(cxx[0]), version.partition(" ")[2]
            if who in tried:
                continue  # the same one by another name
            tried.add(who)
            names.append(f"{stem}-{digest(shlex.join(cxx), version)[:8]}.so")
            kept = _read(folder / names[-1]) if folder else None
            with contextlib.suppress(CompileError):  # it needs libraries of another system: compiled anew
                if kept is not None:
                    return _open(kept, folder)
            content = _compile(cxx, flags, folder)
            library = _open(content, folder)
        except CompileError as error:
            failures.append(str(error))
            continue
        if failures:
            log.warning("%s: compiled with %s instead", "; ".join(failures), shlex.join(cxx))
        for name in names:  # so that no compiler is seen to fail again
            _keep(folder, name, content)
        return library
    reason = "; ".join(failures) or "no C++ compiler found"
    for content in _kept(folder, f"{stem}-*.so"):
        with contextlib.suppress(CompileError):
            library = _open(content, folder)
            log.info("%s: the kernels compiled here before are used", reason)
            return library
    raise CompileError(f"{reason}: {ROOM_HINT if _lacks_room(reason) else COMPILER_HINT}")


def _nvrtc_version() -> str:
    from cuda.bindings import nvrtc

    return ".".join(map(str, nvrtc.nvrtcVersion()[1:]))


def cuda_refusals() -> tuple[type[Exception], ...]:
    """What cuda.core and torch raise where a driver, NVRTC or their loader refuses. Raises ImportError."""
    try:
        from cuda.core import CUDAError
    except ImportError:  # up to cuda-core 1.2 it has no public place
        from cuda.core._utils.cuda_utils import CUDAError
    return OSError, RuntimeError, CUDAError


def compile_cubin(code: str, arch: str, log_to: Any = None, ptxas_options: list[str] | None = None) -> bytes:
    """Machine code for `arch` (sm_90, ...) by NVRTC; needs neither a GPU nor a driver. Raises CompileError."""
    try:
        from cuda.core import Program, ProgramOptions

        refusals = cuda_refusals()
    except ImportError as error:
        raise CompileError(f"cuda-core cannot be imported ({error}): {CUDA_HINT}") from error
    try:
        options = ProgramOptions(std="c++17", arch=arch, include_path=str(HERE), ptxas_options=ptxas_options)
        return bytes(Program(code, "c++", options).compile("cubin", logs=log_to).code)
    except refusals as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        first = next((line for line in lines if "error" in line), lines[0]).strip()
        raise CompileError(f"NVRTC cannot compile the kernels for {arch}: {first}: {CUDA_HINT}") from error


def build_cubin(folder: Path | None, code: str, arch: str) -> bytes:
    """Compile, or read what an earlier call compiled, into a file named by source and arch, and by NVRTC's version.

    A folder that cannot be written costs a warning and a compilation each time; without NVRTC what any version has
    compiled before is taken. Raises CompileError.
    """
    stem = f"fused-cuda-{digest(code, *[(HERE / name).read_bytes() for name in GPU_SOURCES], arch)[:16]}"
    try:
        version = _nvrtc_version()
    except (ImportError, OSError, RuntimeError) as error:
        for content in _kept(folder, f"{stem}-*.cubin"):
            return content
        raise CompileError(f"NVRTC cannot be loaded ({error}): {CUDA_HINT}") from error
    name = f"{stem}-{version}.cubin"
    kept = _read(folder / name) if folder else None
    if kept is not None:
        return kept
    log.info("compiling the fused GPU kernels for %s", arch)
    cubin = compile_cubin(code, arch)
    _keep(folder, name, cubin)
    return cubin
