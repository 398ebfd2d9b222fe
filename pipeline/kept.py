"""Results that are kept: beside each file its SHA-256, as `sha256sum --check` reads it, and no damaged one is used.

`torch.load` checks no checksum, and an npz archive does not notice every flipped bit.
"""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from exact_ntk.errors import StoreError
from exact_ntk.files import json_text, read_npz, write_atomic, write_text
from exact_ntk.locks import try_lock
from exact_ntk.records import Record, read_record

KINDS = (".json", ".npz", ".pt", ".ridge")

log = logging.getLogger("ntk")
R = TypeVar("R", bound=Record)


def digest_path(path: Path) -> Path:
    """Where the SHA-256 of a file lies."""
    return path.with_name(f"{path.name}.sha256")


def keep(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """`write_atomic`, with a SHA-256 that is there before the file is.

    Where a file is replaced, the digests of both stand there until it is: a kill never leaves a whole file without its
    own.
    """
    line = ""

    def announce(temporary: Path) -> None:
        nonlocal line
        with temporary.open("rb") as file:
            line = f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n"
        write_text(digest_path(path), (_lines(path) if path.exists() else "") + line)

    replaces = path.exists()
    write_atomic(path, write, announce)
    if replaces:
        write_text(digest_path(path), line)


def keep_record(path: Path, record: Record) -> None:
    """`keep` a record as JSON."""
    keep(path, lambda file: file.write(json_text(record.json_value()).encode()))


def keep_npz(path: Path, **arrays: np.ndarray) -> None:
    """`keep` a NumPy archive."""
    keep(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def _lines(path: Path) -> str:
    try:
        return digest_path(path).read_text()
    except (OSError, ValueError):
        return ""


def _damage(path: Path) -> str | None:
    """What is wrong with a file, or None. Looked at twice, for it may be replaced meanwhile."""
    for _ in range(2):
        known = [line.split()[0] for line in _lines(path).splitlines() if line.split()[1:] == [path.name]]
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() in known:
                return None
    return f"its SHA-256 is not the one in {digest_path(path).name}"


def require_whole(path: Path) -> None:
    """Raise StoreError, naming the file, unless it is there with the SHA-256 that stands beside it."""
    try:
        why = _damage(path)
    except OSError as error:
        why = error.strerror or str(error)
    if why:
        raise StoreError(f"cannot read {path} ({why}): run `ntk run` to have it made again")


def read_kept(path: Path, kind: type[R]) -> R:
    """A record that is whole. Raises StoreError, naming the file."""
    require_whole(path)
    return read_record(path, kind)


def read_kept_npz(path: Path) -> dict[str, np.ndarray]:
    """Every array of a NumPy archive that is whole. Raises StoreError, naming the file."""
    require_whole(path)
    return read_npz(path, "run `ntk run` to have it made again")


def is_whole(path: Path) -> bool:
    """Whether a file that is there has the SHA-256 that stands beside it."""
    return _damage(path) is None


def remove(path: Path) -> None:
    """The file goes, then its SHA-256."""
    path.unlink(missing_ok=True)
    digest_path(path).unlink(missing_ok=True)


def set_aside(path: Path) -> None:
    """Rename a damaged file to *.damaged, so that it counts as missing, and say so."""
    log.warning(f"{path} is damaged: set aside as {path.name}.damaged, to be made again")
    path.replace(path.with_name(f"{path.name}.damaged"))
    digest_path(path).unlink(missing_ok=True)


def set_damaged_aside(record: Path, *others: Path) -> None:
    """Set aside the record, and the files that go with it, where one of them is damaged; under the record's lock."""
    if not _any_damaged(record, *others):
        return
    lock = try_lock(record.with_suffix(".lock"))
    if lock is None:
        return  # another process is at it
    try:
        for path in (record, *others):
            if _any_damaged(path):
                set_aside(path)
    finally:
        lock.release(remove=True)


def _any_damaged(*paths: Path) -> bool:
    return any(path.exists() and not is_whole(path) for path in paths)


def damaged(folder: Path) -> list[Path]:
    """The kept files in a folder that are not whole; reads them all."""
    found = []
    for path in sorted(folder.glob("*")):
        try:
            if path.suffix in KINDS and not path.name.startswith(".") and not is_whole(path):
                found.append(path)
        except FileNotFoundError:
            continue  # a checkpoint whose run has just ended
    return found
