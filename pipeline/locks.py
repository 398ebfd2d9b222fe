"""Locks between the processes of one host, on files: a lock goes with its process, however that ends."""

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from exact_ntk.errors import NtkError
from exact_ntk.files import remove_leftovers, remove_partials
from exact_ntk.notices import warn_once

# What `flock` says on a file system without locks: NFS without lockd, Lustre without -o flock, some FUSE and 9p ones.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY)

log = logging.getLogger("ntk")


@dataclass(frozen=True)
class Lock:
    """A file that this process alone holds, until `release`.

    sure: not so on a file system without locks: work may then be done twice, and what looks left over may be in use.
    """

    path: Path
    handle: int
    sure: bool

    def clear(self, *paths: Path) -> None:
        """Remove what killed writers of files that are written under this lock have left beside them."""
        if self.sure:
            remove_partials(*paths)

    def clear_in(self, folder: Path, pattern: str = ".*.partial") -> None:
        """Remove what killed writers have left in a folder where all is written under this lock."""
        if self.sure:
            remove_leftovers(folder, pattern)

    def release(self, remove: bool = False) -> None:
        """Let go. remove: the file goes too, and whoever had it open takes a new one."""
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self.handle)


def try_lock(path: Path) -> Lock | None:
    """The lock, or None where another process has it. Raises NtkError where the file cannot be written."""
    return _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def locked(path: Path, remove: bool = False, waiting: str = "") -> Iterator[Lock]:
    """Hold the lock, once every other process has let go; remove: the file goes afterwards.

    waiting: said where another process has it.  Raises NtkError where the file cannot be written.
    """
    lock = try_lock(path)
    if lock is None:
        if waiting:
            log.info(waiting)
        lock = _lock(path, fcntl.LOCK_EX)
    assert lock is not None
    try:
        yield lock
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
            sure = _flock(path, handle, kind)
        except BaseException as error:
            os.close(handle)
            if isinstance(error, BlockingIOError):
                return None
            if isinstance(error, OSError):
                raise NtkError(f"cannot lock {path}: {error.strerror or error}") from error
            raise
        if _is_at(path, handle):
            return Lock(path, handle, sure)
        os.close(handle)  # its last holder has removed it: another file may be there by now


def _flock(path: Path, handle: int, kind: int) -> bool:
    """False, and said once, where the file system has no locks: every write of ours is whole without them."""
    try:
        fcntl.flock(handle, kind)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        mount = next(folder for folder in path.absolute().parents if folder.is_mount())
        warn_once(
            f"the file system at {mount} has no locks ({error.strerror}): going on without; let only one process at a "
            "time work there, or give a folder on a local disk with --runs"
        )
        return False
    return True


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
