"""CIFAR-10 from disk or the network, and what is wrong with what is there."""

import errno
import http.client
import socket
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity

from exact_ntk.errors import DataError, NtkError
from exact_ntk.locks import locked

FOLDER, ARCHIVE = CIFAR10.base_folder, CIFAR10.filename
ARCHIVE_BYTES = 170_498_071
FILES = (*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"]))
SECONDS_OF_SILENCE = 60.0
CANNOT_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST)
LONGEST_REASON = 120
MOST_LISTED = 5
PYTHON_VERSION = "this reads the Python version, cifar-10-python.tar.gz"
# What else lies about under a name like it, most telling first.
OTHERS = {
    "cifar-10-batches-bin": f"the binary version; {PYTHON_VERSION}",
    "cifar-10-binary*": f"the binary version; {PYTHON_VERSION}",
    "cifar-10-batches-mat": f"the MATLAB version; {PYTHON_VERSION}",
    "cifar-10-matlab*": f"the MATLAB version; {PYTHON_VERSION}",
    "cifar-100*": "CIFAR-100, another data set",
    "*.npz": "an npz archive, which data: {dataset: npz, path: ...} reads",
    "*.parquet": f"the Parquet version; {PYTHON_VERSION}",
    "train.7z": f"Kaggle's version; {PYTHON_VERSION}",
    "trainLabels.csv": f"Kaggle's version; {PYTHON_VERSION}",
}


def read_cifar10(root: Path) -> dict[str, np.ndarray]:
    """x_train, y_train, x_test, y_test, checksums verified. Raises DataError, saying what is there instead."""
    try:
        train, test = (CIFAR10(str(root), train=part) for part in (True, False))
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise DataError(f"no CIFAR-10 in {root.absolute()}: {_what_is_there(root)}") from error
    return {
        "x_train": train.data,
        "y_train": np.array(train.targets),
        "x_test": test.data,
        "y_test": np.array(test.targets),
    }


def download_cifar10(root: Path) -> None:
    """Download and extract what is not there yet, checksums verified; one process at a time.

    Raises DataError, saying what is there and what the network answered.
    """
    if inside := _is_batches(root):
        raise DataError(f"data.root: {inside}")
    try:
        if not _is_whole(root):
            waiting = f"another process downloads CIFAR-10 into {root.absolute()}: waiting for it"
            with locked(root / f".{ARCHIVE}.lock", remove=True, waiting=waiting), _patience(SECONDS_OF_SILENCE):
                CIFAR10(str(root), download=True)
    except NtkError as error:
        raise DataError(f"cannot download CIFAR-10: {error}: make that folder writable, or set data.root") from error
    except (OSError, RuntimeError, ValueError, EOFError, http.client.HTTPException, tarfile.TarError) as error:
        why = _why_no_download(root, error)
        raise DataError(f"cannot download CIFAR-10 into {root.absolute()} ({_brief(error)}): {why}") from error


def _why_no_download(root: Path, error: Exception) -> str:
    """What to do about it; an archive that the network has just answered, and is none, is removed."""
    if getattr(error, "errno", None) in CANNOT_WRITE:
        return "make that folder writable, or set data.root"
    archive = root / ARCHIVE
    there = archive.is_file()
    if there and _archive_is_whole(archive):
        return f"{ARCHIVE} is there and whole, but is not extracted: run tar -xzf {ARCHIVE} there"
    if there and "corrupted" in str(error):
        what = _damage(archive)
        archive.unlink()
        return f"what came is {what}: check the network and its proxy, or put {ARCHIVE} there yourself"
    if there:
        return f"{ARCHIVE} there is {_damage(archive)}: delete it and run this again"
    known = _known(root)
    return f"{f'{known}; ' if known else ''}check the network, or put {ARCHIVE} there yourself and run this again"


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """A connection that is silent for so long is given up; torchvision would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _brief(error: BaseException) -> str:
    text = "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]} ..."


def _is_whole(root: Path) -> bool:
    return all(check_integrity(str(root / FOLDER / name), md5) for name, md5 in FILES)


def _archive_is_whole(path: Path) -> bool:
    return bool(check_integrity(str(path), CIFAR10.tgz_md5))


def _size(size: int) -> str:
    return next((f"{size / unit:.3g} {name}" for unit, name in ((1e6, "MB"), (1e3, "kB")) if size >= unit), f"{size} B")


def _damage(archive: Path) -> str:
    """What an archive is whose checksum differs."""
    size = archive.stat().st_size
    with archive.open("rb") as file:
        if file.read(256).lstrip()[:1] == b"<":
            return f"a web page ({_size(size)})"
    if size < ARCHIVE_BYTES:
        return f"incomplete ({_size(size)} of {_size(ARCHIVE_BYTES)}, the checksum differs)"
    return "damaged (the checksum differs)"


def _what_is_there(root: Path) -> str:
    """Why it is no CIFAR-10, and what to do."""
    if not root.exists():
        return "there is no such folder: run `ntk download`, or set data.root"
    if not root.is_dir():
        return (
            f"that is a file: data.root should be the folder that holds {FOLDER} or {ARCHIVE}, here "
            f"{root.absolute().parent}"
        )
    if inside := _is_batches(root):
        return inside
    if (root / ARCHIVE).is_file():
        if _archive_is_whole(root / ARCHIVE):
            return f"{ARCHIVE} is there but not extracted: run `ntk download`, which needs no network for that"
        return f"{ARCHIVE} there is {_damage(root / ARCHIVE)}: delete it and run `ntk download`"
    names = sorted(path.name for path in root.iterdir())
    listed = ", ".join(names[:MOST_LISTED]) + (", ..." if len(names) > MOST_LISTED else "")
    known = _known(root) or f"the folder holds {listed or 'nothing'}, not {FOLDER}"
    return f"{known} (`ntk download` fetches it)"


def _first_bad_file(folder: Path) -> str:
    for name, md5 in FILES:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if not check_integrity(str(path), md5):
            return f"{name} is damaged ({_size(path.stat().st_size)}, the checksum differs)"
    return "a file cannot be read"


def _is_batches(root: Path) -> str | None:
    """Advice where the root itself is the folder of the batches."""
    if not any((root / name).exists() for name, _ in FILES):
        return None
    if root.absolute().name == FOLDER:
        return f"data.root should be the folder that holds {FOLDER}, here {root.absolute().parent}"
    return f"its files lie in data.root itself: data.root should be a folder that holds them in one called {FOLDER}"


def _nearby(root: Path) -> Path | None:
    """A folder in the root that holds it."""
    return next((p.parent for pattern in (f"*/{FOLDER}", f"*/{ARCHIVE}") for p in sorted(root.glob(pattern))), None)


def _known(root: Path) -> str | None:
    """What is there instead: damaged, elsewhere, under another name, another version; None for nothing of the kind."""
    if nearby := _nearby(root):
        return f"it is in {nearby}: set data.root to that"
    if (root / FOLDER).is_dir():
        return f"of {FOLDER}, {_first_bad_file(root / FOLDER)}"
    for pattern in ("cifar-10-python*", f"{FOLDER}*", "*.tar.gz", "*.tgz"):
        for path in sorted(root.glob(pattern)):
            if path.name.endswith(".tar"):
                return f"{path.name} is not extracted: run tar -xf {path.name} there"
            if path.is_file() and path.stat().st_size == ARCHIVE_BYTES and _archive_is_whole(path):
                return f"{path.name} is it under another name: rename it to {ARCHIVE}"
    for pattern, what in OTHERS.items():
        if found := sorted(root.glob(pattern)):
            return f"{found[0].name} is {what}"
    if any((root.absolute().parent / name).exists() for name in (FOLDER, ARCHIVE)):
        return f"it is in {root.absolute().parent}: set data.root to that"
    return None
