"""Locks between processes, and file systems that have none."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from exact_ntk.errors import NtkError
from exact_ntk.locks import NO_LOCKS, locked, try_lock
from exact_ntk.notices import warn_once


def test_a_lock_is_one_holders_until_it_is_released(tmp_path: Path):
    path = tmp_path / "locks" / "a"
    first = try_lock(path)
    assert first.sure
    assert try_lock(path) is None
    first.release()
    second = try_lock(path)
    second.release(remove=True)
    assert not path.exists()
    with locked(path):
        assert try_lock(path) is None
    try_lock(path).release()


def test_a_lock_goes_with_its_process(tmp_path: Path):
    path, child = tmp_path / "a", os.fork()
    if child == 0:
        try_lock(path)
        os._exit(0)
    os.waitpid(child, 0)
    lock = try_lock(path)
    assert lock is not None
    lock.release()


@pytest.fixture
def flock_says(monkeypatch):
    """Have flock fail with an error."""

    def fail_with(number: int) -> None:
        def flock(handle: int, operation: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)

    warn_once.cache_clear()
    return fail_with


@pytest.mark.parametrize("number", NO_LOCKS)
def test_without_locks_work_goes_on_and_it_is_said_once(number: int, tmp_path: Path, flock_says, caplog):
    flock_says(number)
    for name in ("a", "b/c"):
        lock = try_lock(tmp_path / name)
        assert not lock.sure
        lock.release(remove=True)
        with locked(tmp_path / name):
            assert (tmp_path / name).exists()
    assert len(caplog.messages) == 1
    assert f"has no locks ({os.strerror(number)})" in caplog.messages[0]
    assert "--runs" in caplog.messages[0]


def test_another_failure_is_one(tmp_path: Path, flock_says):
    before = len(list(Path("/proc/self/fd").iterdir()))
    flock_says(errno.EIO)
    with pytest.raises(NtkError, match=r"cannot lock .*/a: Input/output error"):
        try_lock(tmp_path / "a")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
