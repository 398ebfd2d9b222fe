"""Files that are there whole or not at all, and digests that name contents."""

import contextlib
import errno
import glob
import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
import uuid
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from exact_ntk.errors import ConfigError, NtkError, StoreError


def expanded(path: Path) -> Path:
    """The path with a ~ at its start replaced by the home folder. Raises ConfigError where there is none."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{path}: no home folder is known for ~: write the path in full") from error


REPORT_BYTES = 2 << 20
# Hosts that share a folder may not see one another's locks: what another has begun is left alone for so long.
SECONDS_FOR_OTHER_HOSTS = 86400.0


def _sync(file: IO[bytes]) -> None:
    """Bring a file's bytes to disk, as far as its file system can."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise


def write_atomic(
    path: Path, write: Callable[[BinaryIO], Any], before: Callable[[Path], None] = lambda temporary: None
) -> None:
    """Call `write` on a temporary file beside `path`, then rename it into place; `before` is told of it in between.

    Raises NtkError, naming the file, if it cannot be written; what was there before is then untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_suffix(), dir=path.parent)
    except OSError as error:
        raise NtkError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            _sync(file)
        with contextlib.suppress(OSError):  # some file systems know no modes
            Path(temporary).chmod(0o644)
        before(Path(temporary))
        Path(temporary).replace(path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise NtkError(f"cannot write {path}: {error.strerror or error}") from error
        raise


def _suffix() -> str:
    """Of a temporary name: whose it is."""
    return f"@{platform.node()}.partial"


def temporary_beside(path: Path) -> Path:
    """A new name for what is to be renamed to `path`."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{_suffix()}")


def remove_partials(*paths: Path) -> None:
    """Remove what killed writers of `paths` have left beside them; only for whoever holds the lock under which they are
    written: `Lock.clear`."""
    for path in paths:
        remove_leftovers(path.parent, f".{glob.escape(path.name)}.*.partial")


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Remove the temporary files and folders of that name, but for those that another host may be writing."""
    for leftover in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            young = time.time() - leftover.stat().st_mtime < SECONDS_FOR_OTHER_HOSTS
            if "@" in leftover.name and not leftover.name.endswith(_suffix()) and young:
                continue
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def require_writable(folder: Path) -> None:
    """Make the folder if it is not there. Raises NtkError, naming it, unless a report's bytes can be written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(REPORT_BYTES))
            _sync(file)  # a quota may speak no sooner
    except OSError as error:
        raise NtkError(f"cannot write in {folder}: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """`write_atomic` for UTF-8 text."""
    write_atomic(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` for JSON; keys keep their order, NaN is refused."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """As `write_json` writes it."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """`write_atomic` for a NumPy archive."""
    write_atomic(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def read_npz(path: Path, advice: str) -> dict[str, np.ndarray]:
    """Every array of a NumPy archive. Raises StoreError, naming the file and ending with the advice."""
    try:
        with np.load(path, allow_pickle=False) as saved:
            return dict(saved)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise StoreError(f"cannot read {path}: {error}: {advice}") from error


def read_json(path: Path) -> Any:
    """Raises StoreError, naming the file, unless it holds JSON."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {path}: {error}; delete it to have it made again") from error


def digest(*parts: bytes | np.ndarray | str) -> str:
    """SHA-256 of the parts, arrays with their dtype and shape, as 64 hex digits."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            sha.update(f"{part.dtype.str}{part.shape}".encode())
            sha.update(np.ascontiguousarray(part).data)
        else:
            sha.update(part.encode() if isinstance(part, str) else part)
    return sha.hexdigest()


def fingerprint(fields: dict[str, Any]) -> str:
    """16 hex digits that name `fields`: the same for the same JSON, whatever the order of its keys."""
    return digest(json.dumps(fields, sort_keys=True, allow_nan=False))[:16]
