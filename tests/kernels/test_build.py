"""The cache of compiled kernels, damaged or not writable; compilers that fail or are gone. On a source of one line."""

import errno
import logging
import os
import shutil
import stat
import time
from pathlib import Path

import pytest

from exact_ntk.kernels.fused import build
from exact_ntk.notices import warn_once

pytestmark = pytest.mark.skipif(not build.compilers(), reason="no C++ compiler")


@pytest.fixture(autouse=True)
def small_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    """A library whose only function says 42, no temporary files but in tmp/, and nothing said before."""
    source, temporary = tmp_path / "source", tmp_path / "tmp"
    source.mkdir()
    temporary.mkdir()
    for name in build.CPU_SOURCES:
        (source / name).write_text("")
    (source / "cpu.cpp").write_text('extern "C" int answer() { return 42; }\n')
    monkeypatch.setattr(build, "HERE", source)
    monkeypatch.setattr(build.tempfile, "tempdir", str(temporary))
    monkeypatch.delenv("CXX", raising=False)
    warn_once.cache_clear()
    caplog.set_level(logging.INFO)
    yield
    assert list(temporary.iterdir()) == []


def program(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def answer(folder: Path | None) -> int:
    return build.build_library(folder, ("-shared", "-fPIC")).answer()


def compilations(caplog) -> int:
    return sum(message.startswith("compiling") for message in caplog.messages)


@pytest.mark.parametrize(
    ("vendor", "features", "dear"),
    [
        ("GenuineIntel", "fpu avx2 avx512f", True),
        ("GenuineIntel", "fpu avx2", False),
        ("AuthenticAMD", "fpu avx2 avx512f", False),
        (None, "asimd", False),
    ],
)
def test_intels_512_bit_units_get_the_arithmetic_with_one_root(vendor, features, dear, monkeypatch):
    monkeypatch.setattr(build, "cpu_vendor", lambda: vendor)
    monkeypatch.setattr(build, "cpu_features", lambda: features)
    assert ("-DNTK_DEAR_ROOTS" in build.flags_here()) == dear


def test_a_build_is_kept_and_found_again(tmp_path: Path, caplog):
    cache = tmp_path / "cache"
    assert [answer(cache), answer(cache)] == [42, 42]
    assert compilations(caplog) == 1
    assert len(list(cache.iterdir())) == 1
    assert build.build_library(cache, ("-shared", "-fPIC", "-O1")).answer() == 42
    assert len(list(cache.iterdir())) == 2


DAMAGE = {
    "empty": lambda content: b"",
    "cut in the middle": lambda content: content[: len(content) // 2],
    "cut by a byte": lambda content: content[:-1],
    "a byte altered": lambda content: content[:1000] + bytes([content[1000] ^ 1]) + content[1001:],
    "a digest of nothing": lambda content: build.hashlib.sha256(b"").digest(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_library_is_compiled_again(tmp_path: Path, damage: str, caplog):
    cache = tmp_path / "cache"
    answer(cache)
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(DAMAGE[damage](whole))
    assert answer(cache) == 42
    assert compilations(caplog) == 2
    assert len(kept.read_bytes()) == len(whole)
    answer(cache)
    assert compilations(caplog) == 2


def test_a_whole_library_that_cannot_be_opened_here_is_compiled_again(tmp_path: Path, caplog):
    """Compiled, for instance, in another container, with a newer standard library."""
    cache = tmp_path / "cache"
    answer(cache)
    (kept,) = cache.iterdir()
    build._keep(cache, kept.name, b"no library")
    assert answer(cache) == 42
    assert compilations(caplog) == 2


def test_a_file_in_use_may_be_cut_short(tmp_path: Path):
    library = build.build_library(tmp_path / "cache", ("-shared", "-fPIC"))
    (kept,) = (tmp_path / "cache").iterdir()
    os.truncate(kept, 0)
    assert library.answer() == 42


def test_a_cache_that_cannot_be_written_is_said_once(tmp_path: Path, caplog):
    (tmp_path / "file").write_text("")
    assert [answer(tmp_path / "file" / "ntk"), answer(tmp_path / "file" / "ntk")] == [42, 42]
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "Not a directory: the kernels are compiled for this process only" in warnings[0]


def test_a_full_cache_loses_nothing(tmp_path: Path, monkeypatch, caplog):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert answer(tmp_path / "cache") == 42
    assert list((tmp_path / "cache").iterdir()) == []
    assert "No space left on device" in caplog.text


def test_a_user_without_a_home(monkeypatch, caplog):
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    assert build.cache_folder() is None
    assert answer(None) == 42
    assert "there is no home folder" in caplog.text


def test_no_temporary_folder_but_room_in_the_cache(tmp_path: Path, monkeypatch):
    """By no room of its own, as the compiler says it, and by none to be found at all."""
    full = f"case $TMPDIR in {tmp_path}/tmp/*) echo 'No space left on device' >&2; exit 1;; esac; exec g++ \"$@\""
    monkeypatch.setenv("CXX", program(tmp_path / "full", full))
    assert answer(tmp_path / "cache") == 42
    monkeypatch.setattr(build.tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert answer(tmp_path / "other cache") == 42
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".so"]


def test_no_room_but_in_memory(tmp_path: Path, monkeypatch):
    full = "case $TMPDIR in /dev/shm/*) exec g++ \"$@\";; esac; echo 'error: Disk quota exceeded' >&2; exit 1"
    monkeypatch.setattr(build, "compilers", lambda: [[str(tmp_path / "full")]])
    program(tmp_path / "full", f"[ $1 = --version ] && exit; {full}")
    assert answer(None) == 42
    program(tmp_path / "full", "[ $1 = --version ] && exit; echo 'error: Disk quota exceeded' >&2; exit 1")
    with pytest.raises(build.CompileError, match="make room"):
        answer(None)


@pytest.mark.parametrize("why", ["no such call", "no code from memory"])
def test_without_files_in_memory(why: str, tmp_path: Path, monkeypatch):
    if why == "no such call":
        monkeypatch.delattr(os, "memfd_create")
    else:
        monkeypatch.setattr(build, "_in_memory", lambda content: "/dev/null")
    assert [answer(tmp_path / "cache"), answer(None)] == [42, 42]


def test_the_next_compiler_takes_the_place_of_one_that_fails(tmp_path: Path, monkeypatch, caplog):
    fails = "[ $1 = --version ] && exit; echo 'In file included from a.h:1:' >&2; echo 'b.h:2: error: no b' >&2; exit 1"
    monkeypatch.setenv("CXX", program(tmp_path / "fails", fails))
    cache = tmp_path / "cache"
    assert answer(cache) == 42
    assert f"{tmp_path}/fails: b.h:2: error: no b: compiled with {shutil.which('g++')} instead" in caplog.text
    assert answer(cache) == 42
    assert compilations(caplog) == 2  # it is not seen to fail again


def test_a_wrapper_that_fails_is_not_what_it_wraps(tmp_path: Path, monkeypatch):
    """It says it is of the same version, and g++ works all the same."""
    script = '[ $1 = --version ] || set -- -no-such-option "$@"; exec g++ "$@"'
    monkeypatch.setenv("CXX", program(tmp_path / "wrapper", script))
    assert answer(tmp_path / "cache") == 42


def test_one_compiler_by_two_names_is_tried_once(tmp_path: Path, monkeypatch, caplog):
    fails = program(tmp_path / "g++", "[ $1 = --version ] && echo g++ 1 && exit; echo 'error: no' >&2; exit 1")
    (tmp_path / "c++").symlink_to(fails)
    monkeypatch.setenv("PATH", f"{tmp_path}:/nowhere")
    with pytest.raises(build.CompileError, match="error: no: install"):
        answer(tmp_path / "cache")
    assert compilations(caplog) == 1


def test_a_compiler_whose_libraries_cannot_be_opened_is_one_that_fails(tmp_path: Path, monkeypatch, caplog):
    """As of CXX=gcc, which links without C++'s own library."""
    script = "[ $1 = --version ] && exit; for out; do :; done; echo 'int no(); int answer() { return no(); }' >$out.cpp"
    script += "; exec g++ -shared -fPIC $out.cpp -o $out"
    monkeypatch.setenv("CXX", program(tmp_path / "forgets", script))
    assert answer(tmp_path / "cache") == 42
    assert "undefined symbol" in caplog.text


@pytest.mark.parametrize("named", ["no-such-compiler", "g++ -DNDEBUG", "false"])
def test_what_cxx_may_hold(named: str, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("CXX", named)
    assert answer(tmp_path / "cache") == 42


def test_without_a_compiler_the_library_from_before_is_used(tmp_path: Path, monkeypatch, caplog):
    cache = tmp_path / "cache"
    answer(cache)
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert answer(cache) == 42
    assert "no C++ compiler found: the kernels compiled here before are used" in caplog.text
    with pytest.raises(build.CompileError, match=r"no C\+\+ compiler found: install a C\+\+ compiler"):
        answer(tmp_path / "empty")
    (kept,) = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(build.CompileError, match="no C"):
        answer(cache)


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch):
    for name in ("g++", "clang++", "c++"):
        program(tmp_path / name, "[ $1 = --version ] && exit; echo 'note' >&2; echo 'cannot find cc1plus' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:/nowhere")
    with pytest.raises(build.CompileError, match=r"/g\+\+: cannot find cc1plus; .*/c\+\+: .*: install a C\+\+"):
        answer(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_what_a_killed_compilation_left_goes_with_the_next(tmp_path: Path):
    left, held, young = (tmp_path / "tmp" / f"{build.SCRATCH}{name}" for name in ("left", "held", "young"))
    partials = [tmp_path / "cache" / f".fused-cpu-{name}.so.x.partial" for name in ("old", "young")]
    partials[0].parent.mkdir()
    for folder in (left, held, young):
        folder.mkdir()
        (folder / "cc.s").write_text("half")
    for path, age in ((left, 60), (held, 60), (young, 1), (partials[0], 4000), (partials[1], 60)):
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    with build._held(held):
        answer(tmp_path / "cache")
        assert [path.exists() for path in (left, held, young, *partials)] == [False, True, True, False, True]
    for folder in (held, young):
        shutil.rmtree(folder)


def test_cubins_are_kept_in_the_same_way(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setattr(build, "HERE", Path(build.__file__).parent)
    monkeypatch.setattr(build, "_nvrtc_version", lambda: "13.0")
    monkeypatch.setattr(build, "compile_cubin", lambda code, arch: f"{code} for {arch}".encode())

    def made() -> int:
        return caplog.text.count("compiling the fused GPU kernels")

    cache = tmp_path / "cache"
    assert build.build_cubin(cache, "code", "sm_90") == build.build_cubin(cache, "code", "sm_90") == b"code for sm_90"
    assert made() == 1
    (kept,) = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:20])
    assert build.build_cubin(cache, "code", "sm_90") == b"code for sm_90"
    assert build.build_cubin(None, "code", "sm_90") == b"code for sm_90"
    assert made() == 3

    def missing() -> str:
        raise ImportError("no NVRTC")

    monkeypatch.setattr(build, "_nvrtc_version", missing)
    assert build.build_cubin(cache, "code", "sm_90") == b"code for sm_90"
    with pytest.raises(build.CompileError, match=r"NVRTC cannot be loaded \(no NVRTC\): pip install"):
        build.build_cubin(cache, "code", "sm_80")
