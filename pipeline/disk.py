"""How much room a folder's disk has."""

import os
from pathlib import Path

from exact_ntk.errors import NtkError


def free_space(folder: Path) -> tuple[int, int | None]:
    """Bytes and inodes that are free where a folder is or would be; None where inodes are made as they are needed."""
    disk = os.statvfs(next(place for place in (folder, *folder.absolute().parents) if place.exists()))
    return disk.f_bavail * disk.f_frsize, disk.f_favail if disk.f_files else None


def check_space(folder: Path, need: int, files: int) -> None:
    """Raise NtkError unless the folder's disk has room for so many bytes and files."""
    free, inodes = free_space(folder)
    advice = "make room, or give another folder (--runs)"
    if need > free:
        raise NtkError(
            f"{folder}: the missing tiles need {need / 1e6:,.1f} MB, and the disk has {free / 1e6:,.1f} MB free: "
            f"{advice}"
        )
    if inodes is not None and files > inodes:
        raise NtkError(
            f"{folder}: the missing tiles need {files:,} files and the disk has {inodes:,} inodes free: {advice}"
        )
