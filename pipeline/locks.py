"""Locks between the processes of one host, on files: a lock goes with its process, however that ends."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from exact_ntk.errors import NtkError


@dataclass(frozen=True)
class Lock:
    """A file that this process alone holds, until `release`."""

    path: Path
    handle: int

    def release(self, remove: bool = False) -> None:
        """Let go. remove: the file goes too, and whoever had it open takes a new one."""
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self.handle)


def try_lock(path: Path) -> Lock | None:
    """The lock, or None where another process has it. Raises NtkError where the file cannot be written."""
    return _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def locked(path: Path, remove: bool = False) -> Iterator[None]:
    """Hold the lock, once every other process has let go; remove: the file goes afterwards.

    Raises NtkError where the file cannot be written.
    """
    lock = _lock(path, fcntl.LOCK_EX)
    assert lock is not None
    try:
        yield
    finally:
        lock.release(remove)


def _lock(path: Path, kind: int) -> Lock | None:
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        except OSError as error:
            raise NtkError(f"cannot write in {path.parent}: {error.strerror or error}") from error
        try:
            fcntl.flock(handle, kind)
        except BlockingIOError:
            os.close(handle)
            return None
        if _is_at(path, handle):
            return Lock(path, handle)
        os.close(handle)  # its last holder has removed it: another file may be there by now


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
